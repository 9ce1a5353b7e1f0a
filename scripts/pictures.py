"""Pictures of docs/concepts.md, from runs of the kernels: ``scripts/pictures.py [FOLDER]``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import quiver_kernels as qk

FOLDER = Path(__file__).parents[1] / "docs" / "images"
COLORS = {"exact": "#0b5fa5", "approx": "#d9730d", "uniform": "#7d8590", "nearest": "#b3261e"}
# Text stays text, and no date and no random names: the same run writes the same bytes.
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "quiver",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
}
VALUES = 1 << 16
SEEDS = 400


def gradient_like(seed: int = 0) -> NDArray[np.float32]:
    """Most values near 0 and a few far away, as in gradients: Student's t, 4 degrees of freedom."""
    return np.random.default_rng(seed).standard_t(4, VALUES).astype(np.float32)


def levels(axes: Axes) -> None:
    """Where 8 levels of three methods lie, below the histogram of the vector."""
    x = gradient_like()
    counts, edges = np.histogram(x, bins=80)
    shown = counts > 0
    axes.vlines((edges[:-1] + edges[1:])[shown] / 2, 0.7, counts[shown], "#c9d1d9", linewidth=4)
    axes.set_yscale("log")
    axes.set_ylim(1e-3, counts.max() * 2)
    axes.set_yticks([1, 100, 10_000])
    for row, method in enumerate(("exact", "approx", "uniform")):
        table = qk.optimal_levels(x, num_levels=8, method=method)
        error = qk.expected_mse(x, table) * x.size / np.square(x, dtype=np.float64).sum()
        height = 0.13 / 6**row
        axes.plot(table, np.full(table.size, height), "|", color=COLORS[method], ms=13, mew=2)
        axes.text(
            1.02,
            height,
            f"{method}: vNMSE {error:.3f}",
            color=COLORS[method],
            va="center",
            transform=axes.get_yaxis_transform(),
        )
    axes.set_title("65,536 values, and where three methods put 8 levels")
    axes.set_xlabel("value")
    axes.set_ylabel("values in a bin")


def rounding(axes: Axes) -> None:
    """What becomes of single values: their two neighbours, and the mean over many seeds."""
    x = np.linspace(-3, 3, 25).astype(np.float32)
    table = np.array([-3, -1, 0.2, 3], np.float32)
    decoded = np.stack(
        [qk.dequantize(qk.quantize(x, levels=table, seed=seed)) for seed in range(SEEDS)]
    )
    for level in table:
        axes.axhline(level, color="#c9d1d9", linewidth=1, zorder=0)
        share = (decoded == level).mean(axis=0)
        seen = share > 0
        axes.scatter(
            x[seen], np.full(seen.sum(), level), 90 * share[seen], COLORS["exact"], linewidths=0
        )
    axes.plot(x, decoded.mean(axis=0), ".", color=COLORS["approx"], label=f"mean of {SEEDS} seeds")
    axes.plot(x, x, color=COLORS["approx"], linewidth=0.8, label="the value itself")
    axes.set_title("Each value goes to one of its two neighbours")
    axes.set_xlabel("value")
    axes.set_ylabel("decoded (area: how often)")
    axes.legend(frameon=False, loc="upper left")


def means(axes: Axes) -> None:
    """The error of the mean of n copies: it falls for unbiased rounding and stays for nearest."""
    x = gradient_like()[:4096]
    norm = float(np.square(x, dtype=np.float64).sum())
    table = qk.optimal_levels(x, num_levels=4)
    nearest = table[np.abs(x[:, None] - table).argmin(axis=1)]
    counts = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    total, errors = np.zeros(x.shape), []
    for n in range(1, counts[-1] + 1):
        total += qk.dequantize(qk.quantize(x, num_levels=4, seed=n))
        if n in counts:
            errors.append(float(np.square(total / n - x).sum()) / norm)
    stays = float(np.square(nearest - x, dtype=np.float64).sum()) / norm
    axes.loglog(counts, errors, "o-", color=COLORS["exact"], label="stochastic rounding")
    axes.loglog(counts, [stays] * len(counts), "--", color=COLORS["nearest"], label="nearest level")
    axes.set_title("The mean of n senders, 4 levels each")
    axes.set_xlabel("n")
    axes.set_ylabel("squared error / squared norm")
    axes.legend(frameon=False)


def errors(axes: Axes) -> None:
    """VNMSE against bits, for three methods."""
    x = gradient_like()
    bits = range(1, 9)
    for method, mark in (("uniform", "s-"), ("approx", "o-"), ("exact", ".--")):
        found = [qk.quantize(x, bits=b, method=method, seed=1).vnmse for b in bits]
        axes.semilogy(bits, found, mark, color=COLORS[method], label=method, linewidth=1.2)
    axes.set_title("A bit more: about a quarter of the error")
    axes.set_xlabel("bits per value")
    axes.set_ylabel("vNMSE")
    axes.legend(frameon=False)


PICTURES: Mapping[str, tuple[Callable[[Axes], None], tuple[float, float]]] = {
    "concepts-levels.svg": (levels, (7.6, 3.6)),
    "concepts-rounding.svg": (rounding, (5.6, 3.6)),
    "concepts-means.svg": (means, (5.6, 3.4)),
    "concepts-bits.svg": (errors, (5.6, 3.4)),
}


def main(folder: Path) -> None:
    """Write all pictures into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (draw, size) in PICTURES.items():
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=size, layout="constrained")
            draw(figure.add_subplot())
            figure.savefig(folder / name, format="svg", facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
