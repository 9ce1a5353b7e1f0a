"""What the rounding of a vector to a table costs, as far as its cells tell.

No level lies inside a row of the cells, so all its values are rounded to one pair of levels a and
b. With m their mean, which is known exactly,

    sum (b - x)(x - a) = n (b - m)(m - a) - sum (x - m)**2

and of the last sum the row's number, mean, least and greatest value leave open only a little: at
least what is left if all values but these two are equal, at most what is left if all lie at
either end. A row of one or two values, or of one distinct value, leaves nothing open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cells import Cells
from quiver_kernels.checks import Range


@dataclass(frozen=True, slots=True)
class CellError:
    """Expected squared error of a vector's rounding, per value: what is known of it.

    Attributes
    ----------
    low, high
        The true value lies between them, rounding aside; in squared units of the vector.
    vnmse
        Error over squared norm where the error is `high`: at least the true ratio.
    """

    low: float
    high: float
    vnmse: float


def error_of(cells: Cells, levels: NDArray[Any]) -> CellError:
    """The error of the values of unweighted `cells`; O(rows log s).

    Parameters
    ----------
    levels
        Ascending, shape (s,), s >= 2, bracketing the values; none strictly between the least and
        the greatest value of a row.
    """
    unit = Range(cells.low, cells.high).unit
    exponent = math.frexp(unit)[1] - 1
    low, high = cells.minimum, cells.maximum
    table = np.asarray(levels, dtype=np.float64)
    place = np.clip(np.searchsorted(table, low, side="right") - 1, 0, table.size - 2)
    count = cells.count.astype(np.float64)
    # Distances of the mean: from the row's ends, and from the levels.
    above, below = cells.above(exponent) / count, cells.below(exponent) / count
    to_lower = (low * unit - table[place] * unit) + above
    to_upper = (table[place + 1] * unit - high * unit) + below
    product = count * to_lower * to_upper
    pair = np.where(count > 1, above * above + below * below, 0.0)
    least = pair + (above - below) ** 2 / np.maximum(count - 2, 1.0) * (count > 2)
    most = np.maximum(count * above * below, least)
    centre = low * unit + above
    largest = math.fsum(np.maximum(product - least, 0.0).tolist())
    smallest = math.fsum(np.maximum(product - most, 0.0).tolist())
    norm = math.fsum((count * centre * centre + least).tolist())
    size = cells.size
    return CellError(
        low=smallest / size / unit / unit,
        high=largest / size / unit / unit,
        vnmse=largest / norm if norm > 0 else 0.0,
    )
