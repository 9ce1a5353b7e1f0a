"""One level table for all workers of a round, and sums of codes without decoding.

Workers send sketches, some tens of kilobytes each; the server has them merged, by the service or in
its own process, and sends one table to all; every worker encodes with it. Nobody but the worker
ever sees its vector. On an integer grid the server adds codes up as they are::

    shared = SharedLevels(16)
    messages = [shared.sketch(x), ...]                  # each at its worker
    table = shared.table(client, messages)              # at the server, sent to all
    q = table.encode(x, seed=...)                       # at each worker
    total = table.sum(x.shape, len(messages))           # at the server
    total.add_all([q, ...])
    mean = total.mean()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quiver_client._core import as_client_errors, create_options
from quiver_kernels import wire
from quiver_kernels.framing import Buffer
from quiver_kernels.homomorphic import IntegerSum
from quiver_kernels.partition import DEFAULT_CELLS
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.sketch import Sketch
from quiver_kernels.wire import LevelsResult


class ChoosesLevels(Protocol):
    """What `SharedLevels` needs of a client: `Client` and `LocalClient` have it."""

    def levels_from_sketches(
        self,
        sketches: Sequence[Sketch | Buffer],
        num_levels: int = 16,
        granularity: int | Literal["auto"] | None = None,
    ) -> LevelsResult:
        """One table for the vectors of many sketches."""
        ...


@dataclass(frozen=True, slots=True)
class SharedLevels:
    """How a round's common table is made; the same at every worker and the server.

    Attributes
    ----------
    num_levels
        Levels, 2..256.
    granularity
        ``auto`` or 2..65536: levels on an integer grid, so that codes add up without decoding
        (`quiver_kernels.grid_levels`). None: on no grid, up to 1 % less error.
    cells
        Cells of the sketches, 2..65536; a grid's steps are no finer than cells.
    """

    num_levels: int = 16
    granularity: int | Literal["auto"] | None = "auto"
    cells: int = DEFAULT_CELLS

    def __post_init__(self) -> None:
        """Check the options; `Invalid` names the field."""
        create_options(num_levels=self.num_levels)
        with as_client_errors():
            wire.check_granularity(self.granularity)

    def sketch(self, x: ArrayLike) -> bytes:
        """A worker's message to the server: its vector as sums over cells. One pass.

        Raises
        ------
        Invalid
            `x` is empty, not finite, or of an unsupported type; `cells` is out of range.
        """
        with as_client_errors():
            return Sketch.from_vector(x, self.cells).to_bytes()

    def table(self, client: ChoosesLevels, sketches: Sequence[Sketch | Buffer]) -> SharedTable:
        """The table for all vectors whose sketches are given, in any order.

        Raises
        ------
        Invalid, QuiverClientError
            As `Client.levels_from_sketches`.
        """
        return SharedTable(client.levels_from_sketches(sketches, self.num_levels, self.granularity))


@dataclass(frozen=True, slots=True)
class SharedTable:
    """A table that all workers of a round encode with.

    Attributes
    ----------
    result
        The levels, and upper bounds of the error of encoding all sketched values with them.
    """

    result: LevelsResult

    @property
    def levels(self) -> NDArray[Any]:
        """The table, ascending, shape (s,)."""
        return self.result.levels

    def encode(self, x: ArrayLike, seed: int | None = None, **options: Any) -> QuantizedVector:
        """Quantize a worker's vector with this table, in this process; unbiased.

        Parameters
        ----------
        x
            Values within the table, as those are that were sketched.
        seed
            Each worker's own; drawn when None.
        options
            ``world_size``, ``rank``, ``shared_seed`` or ``threads`` of `quiver_kernels.quantize`.

        Raises
        ------
        Invalid
            Values beyond the table: it was made without a sketch of this vector.
        """
        from quiver_kernels import api

        with as_client_errors():
            return api.quantize(x, seed=seed, levels=self.levels, **options)

    def sum(
        self, shape: int | Sequence[int], count: int | None = None, *, dtype: str | None = None
    ) -> IntegerSum:
        """An empty sum for vectors that were encoded with this table; see `IntegerSum`."""
        with as_client_errors():
            return IntegerSum(self.levels, shape, count, dtype=dtype)

    def to_bytes(self) -> bytes:
        """The table as a message to the workers: the answer of ``POST /levels``."""
        return b"".join(wire.encode_levels(self.result))

    @classmethod
    def from_bytes(cls, data: Buffer) -> SharedTable:
        """Read a message.

        Raises
        ------
        BadRequest, Invalid
            It is not one, or its levels are no table of one row.
        """
        with as_client_errors():
            result = wire.decode_levels(data)
            # No values are sent yet: only what any table must be is checked.
            create_options(levels=np.asarray(result.levels))
        return cls(result)
