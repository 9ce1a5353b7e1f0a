"""Bits for the arrays of a file within a budget for the ``.qvr`` file that is made of it."""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quiver_client._local import LocalClient
from quiver_client._sync import Client
from quiver_client.cli.errors import CommandError
from quiver_client.errors import QuiverClientError
from quiver_client.files import Entry, Source
from quiver_client.files.model import Work
from quiver_client.ps.policy import Policy, Rule
from quiver_kernels.allocation import Choice
from quiver_kernels.dtypes import levels_dtype
from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import METHODS
from quiver_kernels.packing import num_blocks
from quiver_kernels.planning import Budget, Candidate, allocated
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.qvr.frames import FOOTER_BYTES, FRAME_BYTES, PREAMBLE_BYTES

# What a tensor adds to the header besides its name, a chunk to the index, and a message's numbers
# where they are longer than those of a short one: upper limits.
_TENSOR_BYTES: Final = 160
_INDEX_BYTES: Final = 16
_NUMBERS_BYTES: Final = 48
_SCHEME_BYTES: Final = 256
_METADATA_BYTES: Final = 512
_ALIGNMENT: Final = 8


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """What was chosen for one array.

    Attributes
    ----------
    entry
        The array.
    bits, method
        None: it is stored as it is.
    nbytes
        Of its chunks in the file, frames and tables counted: an upper limit.
    error
        Expected squared error, in squared units.
    norm
        Squared norm; 0 for arrays that were not looked at.
    free
        Whether there was a choice; else the policy, or the type, keeps it as it is.
    """

    entry: Entry
    bits: int | None
    method: str | None
    nbytes: int
    error: float
    norm: float
    free: bool


@dataclass(frozen=True, slots=True)
class FilePlan:
    """The choice for a whole file.

    Attributes
    ----------
    tensors
        In the file's order.
    nbytes
        Of the ``.qvr`` file: an upper limit.
    error
        Expected squared error of all values.
    optimal
        Whether no other choice is better within the budget.
    policy
        What ``quiver quantize --policy`` takes.
    """

    tensors: tuple[PlannedTensor, ...]
    nbytes: int
    error: float
    optimal: bool
    policy: Policy


def plan_file(
    source: Source,
    policy: Policy,
    client: Client | LocalClient,
    budget: Budget,
    *,
    bits: Sequence[int],
    methods: Sequence[str] | None,
    raw: bool = True,
    advance: Callable[[int], None] = lambda _: None,
) -> FilePlan:
    """Choose the best bits and methods for the arrays that `policy` quantizes.

    Parameters
    ----------
    source
        The file; chunks are read one after the other.
    policy
        Which arrays are quantized, and in what chunks.
    client
        Who computes error curves.
    budget
        Of the file's bytes, of its bits per value, or of the expected squared error.
    bits, methods
        Candidates; methods None: that of each array's rule.
    raw
        Whether an array may be stored as it is, though the policy quantizes it.
    advance
        Told of bytes that were looked at.

    Raises
    ------
    CommandError
        The budget cannot be kept; the text has the least possible.
    QuiverClientError
        Values cannot be quantized; the text names the array.
    """
    work = Work(policy, 0)
    rules = [work.rule(entry) for entry in source.entries]
    curves = [
        [_as_is(entry, policy)]
        if rule.raw
        else _curve(source, number, rule, policy, client, bits, methods, raw, advance)
        for number, (entry, rule) in enumerate(zip(source.entries, rules, strict=True))
    ]
    fixed = _file_bytes(source.entries, policy)
    size = sum(entry.size for entry in source.entries)
    items = [[Choice(one.nbytes, one.error) for one, _ in row] for row in curves]
    limit = budget.bytes_for(size)
    least = fixed + sum(min(one.nbytes for one in row) for row in items)
    if limit is not None and limit < least:
        raise CommandError(
            f"the budget must leave at least {least} bytes "
            f"({8 * least / max(size, 1):.3g} bits per value) for this file and policy; "
            f"got {limit}",
            "allow fewer bits with --bits, or quantize more with --policy",
            code="invalid_option",
        )
    inner = budget if limit is None else Budget(limit - fixed)
    found = allocated(items, inner, size)
    tensors = tuple(
        PlannedTensor(entry, one.bits, one.method, one.nbytes, one.error, norm, free=not rule.raw)
        for entry, rule, row, place in zip(source.entries, rules, curves, found.chosen, strict=True)
        for one, norm in [row[place]]
    )
    return FilePlan(
        tensors, found.nbytes + fixed, found.error, found.optimal, _policy(policy, tensors, rules)
    )


def _curve(
    source: Source,
    number: int,
    rule: Rule,
    policy: Policy,
    client: Client | LocalClient,
    bits: Sequence[int],
    methods: Sequence[str] | None,
    raw: bool,
    advance: Callable[[int], None],
) -> list[tuple[Candidate, float]]:
    """Candidates of an array: those of its chunks, added up."""
    entry = source.entries[number]
    totals: dict[tuple[int | None, str | None], Candidate] = {}
    norm = 0.0
    for start in range(0, entry.size, policy.chunk_values):
        stop = min(start + policy.chunk_values, entry.size)
        values = source.read(number, start, stop)
        norm += _squares(values)
        for one in _candidates(client, entry, values, rule, bits, methods):
            head = FRAME_BYTES + _head_bytes(one, rule, values) + _ALIGNMENT
            before = totals.get((one.bits, one.method))
            nbytes = one.nbytes + head + (0 if before is None else before.nbytes)
            error = one.error + (0.0 if before is None else before.error)
            totals[one.bits, one.method] = replace(one, nbytes=nbytes, error=error)
        advance(values.nbytes)
    if raw or not totals:
        as_is, _ = _as_is(entry, policy)
        totals[None, None] = as_is
    return [(one, norm) for one in totals.values()]


def _candidates(
    client: Client | LocalClient,
    entry: Entry,
    values: NDArray[Any],
    rule: Rule,
    bits: Sequence[int],
    methods: Sequence[str] | None,
) -> Sequence[Candidate]:
    asked = (rule.method,) if methods is None else methods
    try:
        answer = client.plan(
            {"values": values}, bits=bits, methods=asked, block_size=rule.block_size, raw=False
        )
    except QuiverClientError as error:
        error.detail = f"tensor {entry.name!r:.100}: {error.detail}"
        raise
    return answer.curves["values"].candidates


def _as_is(entry: Entry, policy: Policy) -> tuple[Candidate, float]:
    chunks = -(-entry.size // policy.chunk_values)
    return Candidate(None, None, entry.nbytes + chunks * (FRAME_BYTES + _ALIGNMENT), 0.0), 0.0


def _squares(values: NDArray[Any]) -> float:
    wide = values.astype(np.float64)
    with np.errstate(over="ignore"):
        return float(wide @ wide)


def _head_bytes(one: Candidate, rule: Rule, values: NDArray[Any]) -> int:
    """Bytes of a message besides codes and levels, at most."""
    if one.bits is None or one.method is None:
        raise InvalidInput("candidates must have bits", code="size_mismatch", field="curves")
    levels = 1 << one.bits
    blocks = () if rule.block_size is None else (num_blocks(1, rule.block_size),)
    dtype = values.dtype.name
    like = QuantizedVector(
        method=one.method,
        bits=one.bits,
        num_levels=levels,
        shape=(1,),
        dtype=dtype,
        block_size=rule.block_size,
        seed=2**64 - 1,
        levels=np.zeros((*blocks, levels), levels_dtype(dtype)),
        codes=np.zeros(1, np.uint8),
        vnmse=0.5,
        device="cuda:000",
        timings_ms={"queue": 0.5, "levels": 0.5, "encode": 0.5},
    )
    # Names of parameters and of side information.
    named = 0 if one.method in METHODS else _SCHEME_BYTES
    return len(like.to_bytes()) - like.nbytes + _NUMBERS_BYTES + named


def _file_bytes(entries: Sequence[Entry], policy: Policy) -> int:
    """What a file has besides its chunks."""
    names = sum(len(entry.name.encode("utf-8", "replace")) + _TENSOR_BYTES for entry in entries)
    chunks = sum(math.ceil(entry.size / policy.chunk_values) for entry in entries)
    return PREAMBLE_BYTES + FOOTER_BYTES + _METADATA_BYTES + names + chunks * _INDEX_BYTES


def _policy(policy: Policy, tensors: Sequence[PlannedTensor], rules: Sequence[Rule]) -> Policy:
    """`policy` with an exact rule for each array that was planned, before its own rules."""
    planned: dict[str, Mapping[str, Any]] = {}
    for tensor, rule in zip(tensors, rules, strict=True):
        if not tensor.free:
            continue
        # Names are patterns there: what means something in a pattern must not.
        name = glob.escape(tensor.entry.name)
        if tensor.bits is None:
            planned[name] = {"raw": True}
        else:
            block = {} if rule.block_size == policy.block_size else {"block_size": rule.block_size}
            planned[name] = {"bits": tensor.bits, "method": tensor.method, **block}
    return replace(policy, overrides={**planned, **policy.overrides})
