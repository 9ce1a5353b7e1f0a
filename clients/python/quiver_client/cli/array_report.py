"""What ``quiver inspect`` says of an array, for programs and for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_client.cli.curves import Point, curve_table, gain
from quiver_client.cli.describing import Description
from quiver_client.cli.sizes import in_bytes
from quiver_client.cli.tables import number, shape_of, table
from quiver_client.cli.terminal_plot import draw
from quiver_kernels.plots.histogram import Histogram


@dataclass(frozen=True, slots=True)
class Levels:
    """Levels of one method, with their expected error over the squared norm."""

    method: str
    bits: int
    values: NDArray[Any]
    vnmse: float

    @property
    def caption(self) -> str:
        """A line for a picture."""
        return (
            f"{self.method}, {self.values.shape[-1]} levels ({self.bits} bits), "
            f"vNMSE {number(self.vnmse)}"
        )


@dataclass(frozen=True, slots=True)
class Report:
    """All that is known of an array.

    Attributes
    ----------
    name
        Of the array.
    about
        Its figures.
    sampled
        Values that levels and errors are of; None: all.
    histogram, levels
        None where values cannot be counted, or quantized.
    points
        Errors by method and bits; empty where it cannot be quantized.
    """

    name: str
    about: Description
    sampled: int | None
    histogram: Histogram | None
    levels: Levels | None
    points: tuple[Point, ...]

    def data(self) -> dict[str, Any]:
        """For JSON; numbers that it has not are null."""
        histogram = None
        if self.histogram is not None:
            counts = self.histogram.counts.tolist()
            histogram = {"low": self.histogram.low, "high": self.histogram.high, "counts": counts}
        levels = None
        if self.levels is not None:
            values = self.levels.values.astype(np.float64).tolist()
            levels = {**dataclasses.asdict(self.levels), "values": values}
        return {
            "name": self.name,
            **finite(dataclasses.asdict(self.about)),
            "notes": self.about.notes,
            "sampled": self.sampled,
            "histogram": histogram,
            "levels": levels,
            "curves": [dataclasses.asdict(point) for point in self.points],
            "summary": gain(self.points),
        }

    def text(self, *, colour: bool, unicode: bool, height: int) -> str:
        """For people."""
        parts = [_figures(self.name, self.about)]
        parts += [f"note: {note}" for note in self.about.notes]
        if self.histogram is not None:
            drawn = np.empty(0) if self.levels is None else self.levels.values
            picture = draw(self.histogram, drawn, height=height, colour=colour, unicode=unicode)
            mark = "▲" if unicode else "^"
            below = (
                ""
                if self.levels is None
                else f"\n{mark} levels of {self.levels.caption}; bars: square roots of counts"
            )
            parts.append(picture + below)
        if self.points:
            of = "" if self.sampled is None else f", of a sample of {self.sampled:,} values"
            size = self.about.nbytes // max(self.about.size, 1) * (self.sampled or self.about.size)
            heading = f"expected squared error over squared norm (vNMSE){of}:"
            parts.append(f"{heading}\n{curve_table(self.points, size)}")
        said = gain(self.points)
        return "\n\n".join([*parts, *([] if said is None else [said])])


def _figures(name: str, about: Description) -> str:
    rows = [
        [name, f"{about.dtype}, {shape_of(about.shape)}"],
        ["size", f"{about.size:,} values, {in_bytes(about.nbytes)}"],
    ]
    if about.low is not None:
        rows += [
            ["range", f"{number(about.low)} to {number(about.high)}"],
            ["mean", f"{number(about.mean)}, standard deviation {number(about.deviation)}"],
            ["zeros", f"{about.zeros:,}"],
        ]
    if about.skewness is not None:
        heavy = ", tails heavier than a normal's" if (about.kurtosis or 0) > 1 else ""
        shape = f"skewness {number(about.skewness, 3)}, excess kurtosis {number(about.kurtosis, 3)}"
        rows.append(["shape", shape + heavy])
    return table(rows, left=2)


def finite(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with null for infinities and NaN, which JSON has not."""
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in data.items()
    }
