"""Cells on the wire: columns of integers, each in as few bytes as its largest number needs."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from quiver_kernels.cells import MAX_SIZE, Cells, Cut, times
from quiver_kernels.errors import InvalidInput
from quiver_kernels.partition import (
    LAYOUTS,
    MAX_CELLS,
    MIN_CELLS,
    Ints,
    Partition,
)

WIRE_VERSION = 1
MAX_ROWS = 1 << 24
MAX_BITS = 16
MAX_PIECES = 1 << 20


class PlacesMessage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which rows of which partition, as they stand on the wire."""

    v: int
    kind: str
    dtype: str
    cells: int
    exponent: int
    rows: int
    first: int
    steps: memoryview
    nearest: memoryview
    spans: memoryview


class CellsMessage(PlacesMessage, forbid_unknown_fields=True, kw_only=True):
    """Rows with their statistics."""

    counts: memoryview
    whole: memoryview
    part: memoryview


class CutMessage(PlacesMessage, forbid_unknown_fields=True, kw_only=True):
    """Rows to be cut."""

    low: float
    high: float
    bits: int


def cells_fields(cells: Cells, kind: str) -> dict[str, Any]:
    """The map of unweighted `cells`."""
    return {
        **_places(kind, cells),
        "counts": _column(cells.count),
        "whole": _column(cells.whole),
        "part": _column(cells.part),
    }


def cut_fields(cut: Cut, kind: str) -> dict[str, Any]:
    """The map of a cut."""
    return {**_places(kind, cut), "low": cut.low, "high": cut.high, "bits": cut.bits}


def _places(kind: str, rows: Cells | Cut) -> dict[str, Any]:
    return {
        "v": WIRE_VERSION,
        "kind": kind,
        "dtype": rows.partition.layout.name,
        "cells": rows.partition.cells,
        "exponent": rows.partition.exponent,
        "rows": rows.index.size,
        "first": int(rows.index[0]) if rows.index.size else 0,
        "steps": _column(np.diff(rows.index)),
        "nearest": _column(rows.nearest),
        "spans": _column(rows.farthest - rows.nearest),
    }


def _column(numbers: Ints) -> memoryview:
    width = max(1, (int(numbers.max(initial=0)).bit_length() + 7) // 8)
    return memoryview(numbers.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes())


def cells_of(m: CellsMessage, kind: str) -> Cells:
    """The cells of a message, after checking every number against the others."""
    partition, index, nearest, farthest = _checked_places(m, kind)
    bits = partition.layout.offset_bits
    cells = Cells(
        partition=partition,
        index=index,
        count=_numbers(m.counts, index.size, "counts"),
        whole=_numbers(m.whole, index.size, "whole"),
        part=_numbers(m.part, index.size, "part"),
        nearest=nearest,
        farthest=farthest,
    )
    _require(bool((cells.count > 0).all()), "counts", "must be positive", "0")
    _require(
        bool((cells.count < MAX_SIZE).all()) and int(cells.count.sum()) < MAX_SIZE,
        "counts",
        f"must add up to less than {MAX_SIZE}",
        "more",
        "too_many_elements",
    )
    _require(bool((cells.part >> bits == 0).all()), "part", f"must be below 2**{bits}", "more")
    _require(
        bool((cells.whole <= cells.count).all()), "whole", "must not exceed counts", "a larger one"
    )
    # One value lies at either end, the others between.
    inner = np.maximum(cells.count - 2, 0)
    ends = np.where(cells.count > 1, farthest, 0)
    lone = bool((nearest == farthest)[cells.count == 1].all())
    least = _sum(times(inner, nearest, bits), nearest + ends, bits)
    most = _sum(times(inner, farthest, bits), nearest + ends, bits)
    total = cells.whole, cells.part
    _require(
        lone and _ascend(least, total) and _ascend(total, most),
        "part",
        "must be sums that nearest, spans and counts allow",
        "others",
    )
    return cells


def cut_of(m: CutMessage, kind: str) -> Cut:
    """The cut of a message, after checking every number against the others."""
    partition, index, nearest, farthest = _checked_places(m, kind)
    _require(0 <= m.bits <= MAX_BITS, "bits", f"must be 0..{MAX_BITS}", m.bits)
    _require(index.size > 0, "rows", "must not be 0", 0)
    cut = Cut(partition, m.low, m.high, index, nearest, farthest, m.bits)
    pieces = int(cut.first_piece[-1])
    _require(
        pieces <= MAX_PIECES,
        "bits",
        f"must give at most {MAX_PIECES} pieces",
        pieces,
        "too_many_elements",
    )
    ends = [cut.partition.value(index, offset) for offset in (nearest, farthest)]
    _require(
        bool(np.isfinite([m.low, m.high]).all())
        and m.low <= np.minimum(*ends)[0]
        and np.maximum(*ends)[-1] <= m.high,
        "low",
        "and high must be finite and bracket the rows",
        [m.low, m.high],
    )
    check_exponent(partition, m.low, m.high)
    return cut


def sketch_of(m: CellsMessage) -> Cells:
    """The cells of a sketch's message; errors as of `cells_of`."""
    rows = cells_of(m, "sketch")
    _require(rows.index.size > 0, "rows", "must not be 0", 0, "empty_vector")
    check_exponent(rows.partition, rows.low, rows.high)
    return rows


def check_columns(m: CellsMessage) -> None:
    """Refuse columns that cannot hold as many numbers as the message says it has rows."""
    for name in ("steps", "nearest", "spans", "counts", "whole", "part"):
        size = m.rows - 1 if name == "steps" else m.rows
        _require(
            size <= getattr(m, name).nbytes <= 8 * max(size, 0),
            name,
            f"must have 1..8 bytes for each of {size} numbers",
            getattr(m, name).nbytes,
            "size_mismatch",
        )


def check_exponent(partition: Partition, low: float, high: float) -> None:
    """Refuse a partition that is not the one of its range."""
    expected = Partition.of(low, high, partition.cells, partition.layout).exponent
    _require(
        partition.exponent == expected,
        "exponent",
        f"must be {expected} for the range [{low}, {high}]",
        partition.exponent,
    )


def _checked_places(m: PlacesMessage, kind: str) -> tuple[Partition, Ints, Ints, Ints]:
    _require(m.v == WIRE_VERSION, "v", f"must be {WIRE_VERSION}", m.v, "unsupported_version")
    _require(m.kind == kind, "kind", f"must be {kind!r}", repr(m.kind[:40]))
    _require(
        m.dtype in LAYOUTS,
        "dtype",
        f"must be one of {', '.join(LAYOUTS)}",
        repr(m.dtype[:40]),
        "unsupported_dtype",
    )
    _require(
        MIN_CELLS <= m.cells <= MAX_CELLS, "cells", f"must be {MIN_CELLS}..{MAX_CELLS}", m.cells
    )
    _require(0 <= m.rows <= MAX_ROWS, "rows", f"must be 0..{MAX_ROWS}", m.rows)
    layout = LAYOUTS[m.dtype]
    least, most = 1 - layout.bias, layout.bias + 1
    _require(least <= m.exponent <= most, "exponent", f"must be {least}..{most}", m.exponent)
    partition = Partition(layout, m.exponent, m.cells)
    index = _index(m, partition)
    nearest = _numbers(m.nearest, m.rows, "nearest")
    spans = _numbers(m.spans, m.rows, "spans")
    limit = 1 << layout.offset_bits
    _require(bool((nearest < limit).all()), "nearest", f"must be below {limit}", "more")
    _require(bool((spans < limit).all()), "spans", f"must be below {limit}", "more")
    farthest = nearest + spans
    _check_values(partition, index, nearest, "nearest")
    _check_values(partition, index, farthest, "spans")
    ends = [partition.value(index, offset) for offset in (nearest, farthest)]
    _require(
        bool((np.maximum(*ends)[:-1] < np.minimum(*ends)[1:]).all()),
        "nearest",
        "and spans must give rows that ascend",
        "rows that overlap",
    )
    return partition, index, nearest, farthest


def _index(m: PlacesMessage, partition: Partition) -> Ints:
    steps = _numbers(m.steps, max(m.rows - 1, 0), "steps")
    largest = _largest_cell(partition)
    _require(
        -largest - 1 <= m.first <= largest, "first", f"must be a cell of {m.dtype} values", m.first
    )
    # With rows and steps bounded no sum leaves 64 bits.
    _require(
        bool((steps <= 2 * largest + 1).all()), "steps", "must lead to cells of values", "more"
    )
    index = m.first + np.concatenate([[0], np.cumsum(steps)])[: m.rows].astype(np.int64)
    _require(
        index.size == 0 or (int(index.min()) >= m.first and int(index[-1]) <= largest),
        "steps",
        "must lead to cells of values",
        "more",
    )
    return index


def _largest_cell(partition: Partition) -> int:
    """Cell of the largest magnitude that any vector with this partition may hold."""
    layout = partition.layout
    binade = min(partition.exponent + layout.mantissa, layout.bias)
    largest = np.ldexp(2.0 - np.ldexp(1.0, -layout.mantissa), binade)
    return int(partition.locate(np.array([largest]))[0][0])


def _check_values(partition: Partition, index: Ints, offset: Ints, name: str) -> None:
    with np.errstate(over="ignore"):
        value = partition.value(index, offset)
        finite = bool(np.isfinite(value.astype(partition.layout.dtype)).all())
    places = partition.locate(value) if finite else (index, ~offset)
    _require(
        bool((places[0] == index).all() and (places[1] == offset).all()),
        name,
        f"must give values of {partition.layout.name}",
        "others",
    )


def _numbers(data: memoryview, size: int, name: str) -> Ints:
    width = data.nbytes // size if size else 1
    _require(
        1 <= width <= 8 and data.nbytes == width * size,
        name,
        f"must have 1..8 bytes for each of {size} numbers",
        data.nbytes,
        "size_mismatch",
    )
    wide = np.zeros((size, 8), np.uint8)
    wide[:, :width] = np.frombuffer(data, np.uint8).reshape(size, width)
    numbers = wide.view("<i8").reshape(-1).astype(np.int64)
    _require(bool(((numbers >> 62) == 0).all()), name, "must be below 2**62", "more")
    return numbers


def _sum(product: tuple[Ints, Ints], more: Ints, bits: int) -> tuple[Ints, Ints]:
    part = product[1] + more
    return product[0] + (part >> bits), part & ((1 << bits) - 1)


def _ascend(a: tuple[Ints, Ints], b: tuple[Ints, Ints]) -> bool:
    return bool(((a[0] < b[0]) | ((a[0] == b[0]) & (a[1] <= b[1]))).all())


def _require(holds: bool, name: str, limit: str, got: object, code: str = "invalid_option") -> None:
    if not holds:
        raise InvalidInput(f"{name} {limit}; got {got}", code=code, field=name)
