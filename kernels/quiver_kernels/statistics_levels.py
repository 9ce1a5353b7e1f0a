"""One table for the vectors of many workers, from statistics of their blocks."""

from __future__ import annotations

import numpy as np

from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.schemes.normed import fitting, tables
from quiver_kernels.schemes.normed.statistics import Mixture
from quiver_kernels.statisticswire import StatisticsRequest
from quiver_kernels.wire import LevelsResult


def levels_of_statistics(request: StatisticsRequest) -> LevelsResult:
    """The table of ``alq`` or ``amq`` for the modelled values. Needs Numba.

    Returns
    -------
    LevelsResult
        Levels on [-1, 1], float32, for ``levels=`` of a quantization by the same method;
        ``expected_mse`` is that of the model's values over their norm, ``vnmse`` that over
        their mean square. Both are of the model, not of the values, and the norms are not in them.

    Raises
    ------
    BackendUnavailable
        Numba is not installed.
    """
    # Without Numba it says so in words.
    from quiver_kernels import dispatch

    dispatch.load("cpu")
    options = request.options
    parameters = dict(options.parameters)
    mixture = Mixture.of(request.statistics, str(parameters["model"]))
    if options.method == "amq":
        given = float(parameters["multiplier"])
        multiplier = given if given > 0 else fitting.amq_multiplier(mixture, options.num_levels)
        exact = tables.powers(multiplier, options.num_levels)
    else:
        exact = fitting.alq_table(mixture, options.num_levels)
    levels = exact.astype(WIRE_DTYPES["float32"])
    error = fitting.expected_error(mixture, levels.astype(np.float64))
    square = fitting.mean_square(mixture)
    return LevelsResult(
        levels=levels,
        num_levels=options.num_levels,
        method=options.method,
        expected_mse=error,
        vnmse=error / square if square > 0 else 0.0,
        device="cpu",
    )
