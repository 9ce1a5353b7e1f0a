"""`quantize_shards`, and what it gives."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quiver_kernels import dispatch
from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import DEFAULT_BINS, DEFAULT_GRID, QuantizeOptions
from quiver_kernels.packing import packed_size
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.sharded.holders import Handle, Progress, Shards

if TYPE_CHECKING:
    from quiver_kernels.sharded.steps import Extent

METHODS = ("exact", "approx", "uniform")
"""Methods of `quantize_shards`, beside a table that is given."""

MOST_GATHERED = 1 << 26
"""Values that are brought together where ties defeat the search for levels, unless said."""


@dataclass(frozen=True, eq=False, slots=True)
class ShardedVector:
    """A quantized vector whose codes lie where they were made.

    Attributes
    ----------
    about
        Everything but the codes, which are empty there.
    shards
        Where the codes lie.
    parts
        The packed codes, one part after the other.
    """

    about: QuantizedVector
    shards: Shards = field(repr=False)
    parts: tuple[Handle, ...] = field(repr=False)

    @property
    def levels(self) -> NDArray[Any]:
        """The level table, shape (s,), or (blocks, s)."""
        return self.about.levels

    @property
    def vnmse(self) -> float:
        """Expected squared error over the squared norm."""
        return self.about.vnmse

    @property
    def code_bytes(self) -> int:
        """Bytes of all codes."""
        return packed_size(self.about.size, self.about.bits, self.about.block_size)

    def to_vector(self) -> QuantizedVector:
        """The quantized vector, with all codes brought here."""
        codes = np.concatenate(self.shards.fetch(self.parts))
        return replace(self.about, codes=codes)

    def write(self, path: str | os.PathLike[str]) -> int:
        """Write the message (docs/wire-format.md) to a file, one part of the codes at a time.

        It is written beside `path` and renamed, so nobody reads half of it.

        Returns
        -------
        int
            Bytes of the file.
        """
        target = Path(path)
        # Zeros that nobody touches take no memory; the message ends with the codes.
        codes = np.zeros(self.code_bytes, np.uint8)
        segments = replace(self.about, codes=codes).to_segments()
        left = sum(len(segment) for segment in segments) - codes.size
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
            try:
                for segment in segments:
                    left -= file.write(segment[:left])
                    if left == 0:
                        break
                for part in self.parts:
                    file.write(self.shards.fetch([part])[0].data)
                size = file.tell()
                file.close()
                Path(file.name).replace(target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        return size


def quantize_shards(
    shards: Shards,
    bits: int | None = None,
    method: str = "exact",
    seed: int | None = None,
    *,
    num_levels: int | None = None,
    bins: int = DEFAULT_BINS,
    grid: str = DEFAULT_GRID,
    levels: ArrayLike | None = None,
    block_size: int | None = None,
    shape: Sequence[int] | None = None,
    progress: Progress | None = None,
    most_gathered: int = MOST_GATHERED,
) -> ShardedVector:
    """Quantize the vector that `shards` make up, one after the other.

    Parameters
    ----------
    shards
        At least one, none empty, all of one type: `HeldShards`, or
        `quiver_client.sharded.on_ray.RayShards`.
    bits, num_levels, seed, bins, grid, levels, block_size
        As for `quiver_kernels.quantize`.
    method
        ``exact``, ``approx`` or ``uniform``.
    shape
        Of the vector; None: (d,).
    progress
        Told of every shard that is done, with the stage: ``measure``, ``count``, ``refine``,
        ``collect``, ``share``, ``encode``.
    most_gathered
        Values of a vector that may be brought here where ties defeat the search for levels.

    Returns
    -------
    ShardedVector
        Levels, codes and `vnmse` are those of `quiver_kernels.quantize` of the whole vector, bit
        for bit.

    Raises
    ------
    InvalidInput
        As for `quantize`; shards of several types, another method, shards that change meanwhile,
        a `shape` of another size, or ties in more than `most_gathered` values.
    BackendUnavailable
        Numba is not installed.

    Notes
    -----
    Each holder keeps its shard and one table of cells; here are the joined cells, at most some
    100 MB. Shards of whole multiples of 2**18 values exchange nothing. With blocks these are the
    multiples of `block_size`, all tables come here, and a block is read together where it begins.
    """
    if levels is None and method not in METHODS:
        raise InvalidInput(
            f"method must be one of {', '.join(METHODS)} for shards; got {method!r}",
            code="unsupported_method",
            field="method",
        )
    if len(shards) == 0:
        raise InvalidInput("shards must hold at least one", code="empty_vector", field="shards")
    options = QuantizeOptions.create(
        bits=bits,
        num_levels=num_levels,
        method=method,
        bins=bins,
        grid=grid,
        seed=seed,
        device="cpu",
        levels=levels,
        block_size=block_size,
    ).with_seed()
    dispatch.pick("cpu")
    from quiver_kernels.sharded import passes

    crew = passes.Crew(shards, progress or _ignore)
    extents = crew.measured(options.num_levels)
    _check_types(extents)
    whole = passes.whole_of(extents, options.num_levels)
    given = (whole.size,) if shape is None else tuple(int(n) for n in shape)
    if int(np.prod(given, dtype=object)) != whole.size or any(n < 0 for n in given):
        raise InvalidInput(
            f"shape must hold the {whole.size} values of all shards; got {list(given)}",
            code="shape_mismatch",
            field="shape",
        )
    if options.block_size is None:
        table = passes.solve(crew, extents, whole, options, most_gathered)
        parts, vnmse = passes.encode(crew, extents, whole, options, table)
    else:
        parts, vnmse, table = passes.quantize_blocks(crew, extents, whole, options)
    assert options.seed is not None  # with_seed gives one
    about = QuantizedVector(
        method=options.method,
        bits=options.bits,
        num_levels=options.num_levels,
        shape=given,
        dtype=whole.dtype,
        block_size=options.block_size,
        seed=options.seed,
        levels=table,
        codes=np.empty(0, np.uint8),
        vnmse=vnmse,
        device="cpu",
    )
    return ShardedVector(about, shards, tuple(parts))


def _check_types(extents: Sequence[Extent]) -> None:
    for number, extent in enumerate(extents):
        if extent.dtype != extents[0].dtype:
            raise InvalidInput(
                f"shards must have one type; shard 0 has {extents[0].dtype}, "
                f"shard {number} has {extent.dtype}",
                code="unsupported_dtype",
                field="shards",
            )


def _ignore(stage: str, done: int, of: int) -> None:  # noqa: ARG001
    return
