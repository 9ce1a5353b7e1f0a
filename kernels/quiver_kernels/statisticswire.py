"""``POST /levels`` from statistics of blocks: what is asked, and its key in the message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.schemes.normed.statistics import Statistics
from quiver_kernels.tensors import TensorMessage, tensor_fields, to_array

FITTED = ("alq", "amq")
"""Methods whose tables follow from statistics."""
MAX_STATISTICS = 1 << 20
"""Blocks of one request."""

_OTHERS = ("block_size", "seed", "world_size", "rank", "shared_seed", "levels")


class StatisticsMessage(msgspec.Struct, forbid_unknown_fields=True):
    """The key ``statistics`` as it stands on the wire."""

    means: TensorMessage
    variances: TensorMessage
    norms: TensorMessage


@dataclass(frozen=True, eq=False, slots=True)
class StatisticsRequest:
    """A checked request for one table from statistics; its method is of `FITTED`."""

    statistics: Statistics
    options: QuantizeOptions

    @property
    def size(self) -> int:
        """Number of blocks."""
        return self.statistics.norms.size


def statistics_requested(message: StatisticsMessage, given: dict[str, Any]) -> StatisticsRequest:
    """The request of a message, with the options that were `given` beside it.

    Raises
    ------
    InvalidInput
        Statistics out of range, or an option that has no meaning here.
    """
    for name in _OTHERS:
        if given.get(name) is not None:
            raise InvalidInput(
                f"statistics exclude {name}; got both", code="invalid_option", field=name
            )
    parts = (message.means, message.variances, message.norms)
    names = ("means", "variances", "norms")
    arrays = [to_array(part, f"statistics.{name}") for name, part in zip(names, parts, strict=True)]
    return statistics_request(Statistics.checked(*arrays), given)


def statistics_request(statistics: Statistics, given: dict[str, Any]) -> StatisticsRequest:
    """A request for checked statistics; options that are not `given` have their defaults."""
    size = statistics.norms.size
    if size > MAX_STATISTICS:
        raise InvalidInput(
            f"statistics must be of at most {MAX_STATISTICS} blocks; got {size}",
            code="too_many_elements",
            field="statistics",
        )
    options = QuantizeOptions.create(**{"method": FITTED[0], **given})
    if options.method not in FITTED:
        raise InvalidInput(
            f"method must be one of {', '.join(FITTED)} for levels from statistics; "
            f"got {options.method!r:.40}",
            code="invalid_option",
            field="method",
        )
    return StatisticsRequest(statistics, options)


def statistics_fields(request: StatisticsRequest) -> dict[str, Any]:
    """The key ``statistics`` of a request."""
    names = ("means", "variances", "norms")
    arrays = (np.asarray(getattr(request.statistics, name)) for name in names)
    return {
        "statistics": {
            name: tensor_fields(array, f"statistics.{name}")
            for name, array in zip(names, arrays, strict=True)
        }
    }
