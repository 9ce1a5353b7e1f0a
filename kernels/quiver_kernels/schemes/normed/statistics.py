"""What tables are fitted to: mean, variance and norm of each block, and the mixture they stand for.

A block's values over its norm are taken for a normal distribution cut off at -1 and 1. The error
of a block grows with the square of its norm, so that is the weight of its part in the mixture
(the norm-based model of "Adaptive Gradient Quantization for Data-Parallel SGD", NeurIPS 2020, where
only the blocks of largest norm take part); pooled, there is one part with the mean and
variance of all (its norm-less model).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput

Floats = NDArray[np.float64]

MODELS = ("norms", "pooled")
MOST_PARTS = 20
"""Blocks of largest norm that a mixture is made of, as in the authors' experiments."""

# A narrower part is taken for one this wide: its density must be a number.
_NARROWEST = 1e-9


@dataclass(frozen=True, eq=False, slots=True)
class Statistics:
    """Of blocks: what workers send in place of their values.

    Attributes
    ----------
    means, variances
        Of the values of each block divided by its norm, shape (blocks,).
    norms
        Of each block, not negative.
    """

    means: Floats
    variances: Floats
    norms: Floats

    @classmethod
    def checked(cls, means: Any, variances: Any, norms: Any) -> Statistics:
        """Statistics from outside.

        Raises
        ------
        InvalidInput
            Shapes that differ, nothing, or values out of range; ``field`` is
            ``statistics.<name>``.
        """
        found = {"means": means, "variances": variances, "norms": norms}
        arrays = {name: np.asarray(value, np.float64) for name, value in found.items()}
        size = arrays["norms"].size
        limits = {"means": (-1.0, 1.0), "variances": (0.0, 1.0), "norms": (0.0, np.inf)}
        for name, array in arrays.items():
            field = f"statistics.{name}"
            if array.ndim != 1 or array.size != size or size == 0:
                raise InvalidInput(
                    f"{field} must have shape [blocks], at least one, as norms have; "
                    f"got {list(array.shape)}",
                    code="shape_mismatch",
                    field=field,
                )
            low, high = limits[name]
            if not (np.isfinite(array) & (array >= low) & (array <= high)).all():
                raise InvalidInput(
                    f"{field} must be finite and from {low:g} to {high:g}; got something else",
                    code="invalid_option",
                    field=field,
                )
        return cls(arrays["means"], arrays["variances"], arrays["norms"])

    @classmethod
    def joined(cls, parts: Iterable[Statistics]) -> Statistics:
        """Statistics of several workers, one after the other."""
        found = list(parts)
        return cls(
            *(
                np.concatenate([getattr(one, name) for one in found])
                for name in ("means", "variances", "norms")
            )
        )


@dataclass(frozen=True, eq=False, slots=True)
class Mixture:
    """Normal distributions cut off at -1 and 1.

    Attributes
    ----------
    means, deviations
        Of each part before it is cut off.
    shares
        Of each part; they add up to 1.
    """

    means: Floats
    deviations: Floats
    shares: Floats

    @classmethod
    def of(cls, statistics: Statistics, model: str) -> Mixture:
        """The model of some blocks; blocks of zeros have no part in it."""
        norms = statistics.norms
        top = float(norms.max())
        if top == 0:
            return cls(np.zeros(1), np.ones(1), np.ones(1))
        weights = (norms / top) ** 2
        if model == "pooled":
            share = weights / weights.sum()
            mean = float(share @ statistics.means)
            spread = statistics.variances + (statistics.means - mean) ** 2
            deviation = max(float(np.sqrt(share @ spread)), _NARROWEST)
            return cls(np.array([mean]), np.array([deviation]), np.ones(1))
        largest = np.argsort(-weights, kind="stable")[:MOST_PARTS]
        largest = largest[weights[largest] > 0]
        deviations = np.maximum(np.sqrt(statistics.variances[largest]), _NARROWEST)
        share = weights[largest] / weights[largest].sum()
        return cls(statistics.means[largest], deviations, share)
