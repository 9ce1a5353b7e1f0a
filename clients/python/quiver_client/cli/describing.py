"""What a vector is like: its range, moments, and what stands in the way of quantizing it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from quiver_client.cli.values import Values
from quiver_kernels.plots.histogram import Histogram, histogram

PASSES = 2
"""How often `describe` reads the values."""


@dataclass(frozen=True, slots=True)
class Description:
    """Figures of a vector; those of values are of the finite ones.

    Attributes
    ----------
    shape, dtype, size, nbytes
        Of the array.
    is_quantizable
        Whether its type is one that is quantized.
    nans, infinities, zeros
        How many there are.
    low, high, mean, deviation
        Least, greatest, mean and standard deviation, in the vector's units; None without finite
        values, or where they have no order.
    skewness, kurtosis
        Third and excess fourth standardised moment; None for constant vectors.
    norm
        Square root of the sum of squares; infinity where that is no float64.
    """

    shape: tuple[int, ...]
    dtype: str
    size: int
    nbytes: int
    is_quantizable: bool
    nans: int = 0
    infinities: int = 0
    zeros: int = 0
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    deviation: float | None = None
    skewness: float | None = None
    kurtosis: float | None = None
    norm: float = 0.0

    @property
    def is_constant(self) -> bool:
        """Whether all values are one."""
        return self.is_finite and self.low is not None and self.low == self.high

    @property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return self.nans == 0 and self.infinities == 0

    @property
    def notes(self) -> list[str]:
        """What one should know before quantizing it."""
        said = []
        if self.size == 0:
            said.append("there are no values: it is stored as it is")
        if not self.is_quantizable:
            said.append(f"values of {self.dtype} are not quantized: they are stored as they are")
        elif not self.is_finite:
            said.append(
                f"{self.nans} NaN and {self.infinities} infinite values: quantizing is refused "
                "while they are there"
            )
        elif self.is_constant:
            said.append("all values are the same: 1 bit keeps them exactly")
        return said


def describe(values: Values, advance: Callable[[int], None] = lambda _: None) -> Description:
    """Look at all values, twice; memory of a part in float64.

    Parameters
    ----------
    values
        Numbers; of complex ones the size alone is told.
    advance
        Told of bytes that were read.
    """
    about = Description(
        values.shape, values.dtype.name, values.size, values.nbytes, values.is_quantizable
    )
    if not values.is_real:
        return about
    nans = infinities = zeros = count = 0
    low, high = math.inf, -math.inf
    means = []
    for given in values.parts():
        part = given.astype(np.float64)
        finite = part[np.isfinite(part)]
        nans += int(np.isnan(part).sum())
        infinities += int(np.isinf(part).sum())
        zeros += int((part == 0).sum())
        if finite.size:
            count += finite.size
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            # Scaled before they are added, so that large values do not overflow.
            means.append(float(np.sum(finite / values.size)))
        advance(given.nbytes)
    about = replace(about, nans=nans, infinities=infinities, zeros=zeros)
    if not count:
        return about
    mean = min(max(math.fsum(means) * (values.size / count), low), high)
    about = replace(about, low=low, high=high, mean=mean)
    return _with_moments(about, values, count, (low, mean, high), advance)


def _with_moments(
    about: Description,
    values: Values,
    count: int,
    places: tuple[float, float, float],
    advance: Callable[[int], None],
) -> Description:
    low, mean, high = places
    # In units of the largest distance and value: powers neither overflow nor vanish.
    unit = max(high / 2 - mean / 2, mean / 2 - low / 2) * 2
    largest = max(abs(low), abs(high))
    powers = np.zeros(3)
    squares = 0.0
    for given in values.parts():
        part = given.astype(np.float64)
        finite = part[np.isfinite(part)]
        if largest > 0:
            squares += float(np.sum((finite / largest) ** 2))
        if 0 < unit < math.inf:
            away = finite / unit - mean / unit
            powers += [float(np.sum(away**k)) for k in (2, 3, 4)]
        advance(given.nbytes)
    spread, third, fourth = (powers / count).tolist()
    shaped = spread > 0
    return replace(
        about,
        deviation=math.sqrt(spread) * unit,
        skewness=third / spread**1.5 if shaped else None,
        kurtosis=fourth / spread**2 - 3 if shaped else None,
        norm=math.sqrt(squares) * largest,
    )


def counted(values: Values, about: Description, bars: int) -> Histogram | None:
    """Histogram over the whole range, read once more; None where there is no range."""
    if about.low is None or about.high is None:
        return None
    found = np.zeros(bars, np.int64)
    for part in values.parts():
        found += histogram(part, about.low, about.high, bars).counts
    return Histogram(about.low, about.high, found)
