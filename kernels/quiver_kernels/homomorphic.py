"""Sums of quantized vectors that share a table, without decoding them.

If all levels are integers times one power of two (`gridlevels`), a sum of decoded values is a sum
of integers: codes are added as table integers, and ``decode(sum) == sum(decode)`` to the last bit,
in any order, over any number of servers. The form is THC's ("THC: Accelerating distributed deep
learning using tensor homomorphic compression", NSDI 2024, section 4), with the best table.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from quiver_kernels import dispatch, sharing
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.errors import BackendUnavailable, InvalidInput
from quiver_kernels.framing import Buffer, pack
from quiver_kernels.gridlevels import GridLevels
from quiver_kernels.quantized import QuantizedVector, decode_validated
from quiver_kernels.stopping import slices
from quiver_kernels.tensors import (
    TensorMessage,
    byte_view,
    check_shape,
    tensor_fields,
    to_array,
)
from quiver_kernels.wrapping.around import require_plain

ACCUMULATORS = {"int16": np.int16, "int32": np.int32, "int64": np.int64}
WIRE_VERSION = 1
KIND = "integer_sum"
DEFAULT_ACCUMULATOR = "int32"

# Integers up to here are exact as float64.
_EXACT = 1 << 53
_LARGEST_EXPONENT = 1024
# Sums are added to eight at a time.
_TOGETHER = 8
# Values that are decoded at once.
_AT_ONCE = 1 << 15


class SumMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A sum as it stands on the wire."""

    v: int
    kind: str
    shape: list[int]
    dtype: str
    count: int
    weight: int
    levels: TensorMessage
    sums: memoryview


class IntegerSum:
    """The sum of quantized vectors of one shape and one table, held as integers.

    Not safe for use by several threads at once.

    Parameters
    ----------
    table
        The table of all vectors: as `grid_levels` gives it, or any level table, shape (s,);
        coarse grids need the least width.
    shape
        Of the vectors: a tuple, or a number of values.
    count
        How many vectors, or what total weight, is expected: the accumulators are the narrowest
        that can hold it. Excludes `dtype`.
    dtype
        ``int16``, ``int32`` (the default) or ``int64``: type of the accumulators.

    Attributes
    ----------
    table
        The table, as integers times a power of two.
    shape
        Of the vectors.
    capacity
        The total weight up to which no accumulator can overflow and the sum is exact as float64.
    count
        Vectors added so far.
    weight
        Their total weight.

    Raises
    ------
    InvalidInput
        No such table, shape or dtype; `count` is more than any accumulator holds.
    """

    def __init__(
        self,
        table: GridLevels | ArrayLike,
        shape: int | Sequence[int],
        count: int | None = None,
        *,
        dtype: str | None = None,
    ) -> None:
        # The coarsest grid: integers are smallest, and the same for whoever has the same table.
        self.table = GridLevels.of(table.levels if isinstance(table, GridLevels) else table)
        listed = [shape] if isinstance(shape, int) else list(shape)
        self.shape = check_shape(listed, "shape")
        self.count = 0
        self.weight = 0
        if dtype is None:
            dtype = DEFAULT_ACCUMULATOR if count is None else _narrowest(self.table, count)
        elif count is not None:
            raise _invalid("dtype", "excludes count", f"dtype={dtype!r:.20}, count={count}")
        if dtype not in ACCUMULATORS:
            raise _invalid("dtype", f"must be one of {', '.join(ACCUMULATORS)}", f"{dtype!r:.40}")
        self.capacity = _capacity(self.table, dtype)
        # Integers counted from the first level are not negative: neighbours in a word of
        # accumulators then never borrow from each other.
        self._sums = np.zeros(-(-self.size // _TOGETHER) * _TOGETHER, ACCUMULATORS[dtype])
        self._broken = False

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> str:
        """Type of the accumulators."""
        return str(self._sums.dtype.name)

    @property
    def nbytes(self) -> int:
        """Bytes of the accumulators."""
        return self._sums.nbytes

    def add(self, q: QuantizedVector, weight: int = 1, *, threads: int | None = 1) -> None:
        """Add a vector `weight` times; see `add_all`."""
        self.add_all([q], [weight], threads=threads)

    def add_all(
        self,
        vectors: Sequence[QuantizedVector],
        weights: Sequence[int] | None = None,
        *,
        threads: int | None = 1,
    ) -> None:
        """Add vectors, each times its weight; all of them or, if one is refused, none. O(d n).

        Parameters
        ----------
        vectors
            Of the shape and the table of this sum, all values with one table (no block size).
        weights
            A positive integer each; None: ones.
        threads
            Threads to share the work; None: one per processor.

        Raises
        ------
        InvalidInput
            ``shape_mismatch``, ``invalid_levels`` (another table), ``invalid_codes``,
            ``invalid_weights``, or ``overflow``: the weight would pass `capacity`.
        Stopped
            As any computation (`stopping_when`); the sum is of no use then, and says so.
        """
        self._require_whole()
        shares = [1] * len(vectors) if weights is None else list(weights)
        if len(shares) != len(vectors):
            raise _invalid(
                "weights", f"must hold one for each of {len(vectors)} vectors", len(shares)
            )
        for weight in shares:
            if isinstance(weight, bool) or not hasattr(weight, "__index__") or weight < 1:
                raise _invalid(
                    "weights", "must be positive integers", f"{weight!r:.40}", "invalid_weights"
                )
        for place, q in enumerate(vectors):
            self._check(q, f"vectors[{place}]")
        total = sum(int(weight) for weight in shares)
        self._require_room(total)
        self._broken = True
        with sharing.threads(threads):
            self._add(list(zip(vectors, (int(weight) for weight in shares), strict=True)))
        self._broken = False
        self.count += len(vectors)
        self.weight += total

    def merge(self, other: IntegerSum) -> None:
        """Add another sum of vectors of the same shape and table, of any accumulators.

        Raises
        ------
        InvalidInput
            As for `add_all`.
        """
        self._require_whole()
        other._require_whole()
        if other.shape != self.shape:
            raise _invalid(
                "shape", f"must be {list(self.shape)}", list(other.shape), "shape_mismatch"
            )
        if not self.table.same_as(other.table):
            raise _invalid("table", "must be the table of this sum", "another", "invalid_levels")
        self._require_room(other.weight)
        np.add(self._sums, other._sums, out=self._sums, casting="unsafe")
        self.count += other.count
        self.weight += other.weight

    def decode(self) -> NDArray[np.float64]:
        """The sum of weight times decoded vector, exact, in the vectors' shape."""
        return self._decoded(1)

    def mean(self, count: int | None = None) -> NDArray[np.float64]:
        """The exact sum over `count`, rounded once to float64.

        Parameters
        ----------
        count
            What to divide by, positive; None: the total weight.

        Raises
        ------
        InvalidInput
            Nothing was added, or `count` is not positive.
        """
        share = self.weight if count is None else count
        if share < 1:
            raise _invalid("count", "must be positive", share)
        return self._decoded(share)

    def to_bytes(self) -> bytes:
        """The sum as one message, for another server to merge (docs/wire-format.md)."""
        self._require_whole()
        sums = self._sums[: self.size]
        return b"".join(
            pack(
                {
                    "v": WIRE_VERSION,
                    "kind": KIND,
                    "shape": list(self.shape),
                    "dtype": self.dtype,
                    "count": self.count,
                    "weight": self.weight,
                    "levels": tensor_fields(self.table.levels, "levels"),
                    "sums": byte_view(sums.astype(sums.dtype.newbyteorder("<"), copy=False)),
                }
            )
        )

    @classmethod
    def from_bytes(cls, data: Buffer) -> IntegerSum:
        """Read a message.

        Raises
        ------
        MalformedMessage
            Not one well-formed message.
        InvalidInput
            A key is missing, unknown, out of range, or numbers contradict each other.
        """
        m: SumMessage = decode_validated(data, _DECODER)
        if m.v != WIRE_VERSION:
            raise _invalid("v", f"must be {WIRE_VERSION}", m.v, "unsupported_version")
        if m.kind != KIND:
            raise _invalid("kind", f"must be {KIND!r}", repr(m.kind[:40]))
        if m.dtype not in ACCUMULATORS:
            raise _invalid("dtype", f"must be one of {', '.join(ACCUMULATORS)}", repr(m.dtype[:40]))
        size = math.prod(check_shape(m.shape, "shape"))
        wanted = size * np.dtype(m.dtype).itemsize
        if m.sums.nbytes != wanted:
            raise _invalid(
                "sums",
                f"must have {wanted} bytes for {size} values of {m.dtype}",
                m.sums.nbytes,
                "size_mismatch",
            )
        found = cls(to_array(m.levels, "levels"), m.shape, dtype=m.dtype)
        if not 0 <= m.count <= m.weight or (m.count == 0) != (m.weight == 0):
            raise _invalid("count", "must be 0..weight, 0 only with it", [m.count, m.weight])
        found._require_room(m.weight)
        sums = np.frombuffer(m.sums, np.dtype(m.dtype).newbyteorder("<"))
        most = found.table.granularity * m.weight
        if size and not (int(sums.min()) >= 0 and int(sums.max()) <= most):
            raise _invalid("sums", f"must lie in 0..{most}", "others", "invalid_codes")
        found._sums[:size] = sums
        found.count, found.weight = m.count, m.weight
        return found

    def _decoded(self, share: int) -> NDArray[np.float64]:
        """The exact sum over `share`; some at a time, so that they stay in the cache."""
        self._require_whole()
        first = float(int(self.table.integers[0]) * self.weight)
        out = np.empty(self.size)
        for part in slices(self.size, _AT_ONCE):
            values = out[part]
            np.add(self._sums[: self.size][part], first, out=values, dtype=np.float64)
            # Integers times a power of two are numbers of the type, so nothing is rounded.
            values *= self.table.step
            if share != 1:
                values /= share
        return out.reshape(self.shape)

    def _check(self, q: QuantizedVector, where: str) -> None:
        if q.shape != self.shape:
            raise _invalid(
                f"{where}.shape", f"must be {list(self.shape)}", list(q.shape), "shape_mismatch"
            )
        if q.is_scheme:
            raise _invalid(f"{where}.method", "must have codes that point into levels", q.method)
        require_plain(q, where)
        if q.block_size is not None:
            raise _invalid(
                f"{where}.block_size", "must be null: one table for all values", q.block_size
            )
        levels = np.asarray(q.levels, np.float64)
        table = self.table.levels.astype(np.float64)
        if levels.shape != table.shape or not np.array_equal(levels, table):
            raise _invalid(
                f"{where}.levels",
                f"must be the table of this sum, {table.size} levels from {table[0]} "
                f"to {table[-1]}",
                f"{levels.size} from {levels.flat[0]} to {levels.flat[-1]}",
                "invalid_levels",
            )
        with np.errstate(over="ignore"):
            decoded = levels.astype(WIRE_DTYPES[q.dtype]).astype(np.float64)
        if not np.array_equal(decoded, levels):
            raise _invalid(
                f"{where}.levels", f"must be values of {q.dtype}", "others", "invalid_levels"
            )
        kernels = _kernels()
        if kernels is None:
            _reference_check(q)
        else:
            kernels.check_codes(q)

    def _require_room(self, weight: int) -> None:
        if self.weight + weight > self.capacity:
            raise _invalid(
                "weights",
                f"must add up to at most {self.capacity}, what {self.dtype} accumulators hold of "
                f"a table of {self.table.granularity} steps",
                self.weight + weight,
                "overflow",
            )

    def _require_whole(self) -> None:
        if self._broken:
            raise _invalid("sum", "must be whole: an addition was stopped half-way", "a broken one")

    def _add(self, terms: list[tuple[QuantizedVector, int]]) -> None:
        if not terms or not self.size:
            return
        steps = self.table.integers - self.table.integers[0]
        kernels = _kernels()
        prepared = []
        for q, weight in terms:
            integers = np.zeros(1 << q.bits, self._sums.dtype)
            integers[: q.num_levels] = steps * weight
            prepared.append((q, integers))
        if kernels is None:
            for q, integers in prepared:
                self._sums[: self.size] += integers[q.indices().reshape(-1)]
        else:
            kernels.add([kernels.Term(*each) for each in prepared], self._sums)


_DECODER = msgspec.msgpack.Decoder(SumMessage)


def _kernels() -> Any:
    """The CPU's kernels, or None where Numba is not installed."""
    try:
        dispatch.load("cpu")
    except BackendUnavailable:
        return None
    return importlib.import_module("quiver_kernels.cpu.homomorphic")


def _reference_check(q: QuantizedVector) -> None:
    largest = int(q.indices().max(initial=0))
    if largest >= q.num_levels:
        raise _invalid(
            "codes", f"must be below num_levels={q.num_levels}", largest, "invalid_codes"
        )


def _capacity(table: GridLevels, dtype: str) -> int:
    """The total weight that accumulators hold, and whose sums are exact, finite float64."""
    largest = max(abs(int(table.integers[0])), abs(int(table.integers[-1])))
    limits = [_EXACT]
    if table.granularity:
        limits.append(int(np.iinfo(dtype).max) // table.granularity)
    if largest:
        limits.append(_EXACT // largest)
        room = _LARGEST_EXPONENT - table.exponent
        limits.append(((1 << max(room, 0)) - 1) // largest)
    return min(limits)


def _narrowest(table: GridLevels, count: int) -> str:
    """The narrowest accumulators for a total weight of `count`."""
    if count < 1:
        raise _invalid("count", "must be positive", count)
    most = max(_capacity(table, dtype) for dtype in ACCUMULATORS)
    if count > most:
        raise _invalid(
            "count",
            f"must be at most {most} for a table of {table.granularity} steps",
            count,
            "overflow",
        )
    return next(dtype for dtype in ACCUMULATORS if count <= _capacity(table, dtype))


def _invalid(field: str, limit: str, got: object, code: str = "invalid_option") -> InvalidInput:
    return InvalidInput(f"{field} {limit}; got {got}", code=code, field=field)
