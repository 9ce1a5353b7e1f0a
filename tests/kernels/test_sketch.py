"""Sketches: merging is exact in any order, levels become optimal, and bytes are not trusted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import quiver_kernels as qk
from hostile import EXTREME, KINDS
from quiver_kernels import cells, sketch
from quiver_kernels.dispatch import Backend
from quiver_kernels.errors import InvalidInput, MalformedMessage
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.partition import Layout, Partition
from quiver_kernels.sketch import Details, Sketch, Undecided

Vector = NDArray[Any]
ALL = KINDS | EXTREME | {"constant": lambda _, n: np.full(n, -0.99999)}
TYPES: dict[str, type] = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
CELLS = 128


def within(values: NDArray[np.float64], dtype: type) -> Vector:
    """Values as a type, those beyond its range at its ends."""
    limit = float(ml_dtypes.finfo(dtype).max)
    with np.errstate(under="ignore"):
        return np.clip(values, -limit, limit).astype(dtype)


def parted(x: Vector, rng: np.random.Generator, count: int) -> list[Vector]:
    parts = np.split(rng.permutation(x), np.sort(rng.integers(0, x.size + 1, count - 1)))
    return [part for part in parts if part.size]


def merged_in_some_order(parts: list[Sketch], rng: np.random.Generator) -> Sketch:
    """Merge neighbours or strangers, some at a time, until one is left."""
    while len(parts) > 1:
        rng.shuffle(parts)
        taken = int(rng.integers(2, len(parts) + 1))
        parts = [parts[0].merge(*parts[1:taken]), *parts[taken:]]
    return parts[0]


def check_any_split(x: Vector, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    whole = Sketch.from_vector(x, CELLS)
    parts = [Sketch.from_vector(part, CELLS) for part in parted(x, rng, count)]
    assert merged_in_some_order(parts, rng).to_bytes() == whole.to_bytes()


@settings(deadline=None, max_examples=300)
@given(
    kind=st.sampled_from(sorted(ALL)),
    name=st.sampled_from(sorted(TYPES)),
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 400),
    count=st.integers(1, 12),
)
def test_any_split_merges_to_the_same_bytes(
    kind: str, name: str, seed: int, size: int, count: int
) -> None:
    values = ALL[kind](np.random.default_rng(seed), max(size, 2))[:size]
    check_any_split(within(values, TYPES[name]), seed, count)


@settings(deadline=None, max_examples=300)
@given(
    values=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False)
        | st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 3.4e38]),
        min_size=1,
        max_size=60,
    ),
    wide=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_values_split_anyhow(values: list[float], wide: bool, seed: int) -> None:
    x = np.array(values, np.float64 if wide else np.float32)
    check_any_split(x, seed, 5)


@pytest.mark.parametrize("name", TYPES)
def test_a_long_vector_split_anyhow(name: str) -> None:
    x = within(np.random.default_rng(4).normal(size=700_000), TYPES[name])
    check_any_split(x, 1, 4)


def test_a_lost_bit_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = cells.normal

    def rounded(whole: Any, part: Any, bits: int) -> Any:
        return exact(whole, part & ~1, bits)

    monkeypatch.setattr(cells, "normal", rounded)
    x = np.random.default_rng(0).normal(size=500).astype(np.float32)
    with pytest.raises(AssertionError):
        check_any_split(x, 0, 6)


def test_cells_that_depend_on_more_than_the_range_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = Partition.of

    def wider_for_constants(low: float, high: float, count: int, layout: Layout) -> Partition:
        found = exact(low, high, count, layout)
        return replace(found, exponent=max(found.exponent, -9)) if low == high else found

    parts = [np.full(3, -0.99999, np.float32), -np.ones(1, np.float32), np.zeros(1, np.float32)]

    def in_turn() -> bytes:
        first, second, third = (Sketch.from_vector(part, CELLS) for part in parts)
        return first.merge(second).merge(third).to_bytes()

    whole = Sketch.from_vector(np.concatenate(parts), CELLS).to_bytes()
    assert in_turn() == whole
    monkeypatch.setattr(Partition, "of", wider_for_constants)
    assert in_turn() != whole


def test_16_bit_types_are_counted_as_float32() -> None:
    x = np.random.default_rng(1).normal(size=300).astype(np.float16)
    assert Sketch.from_vector(x).to_bytes() == Sketch.from_vector(x.astype("float32")).to_bytes()
    assert Sketch.from_vector(x).dtype == "float32"


def test_what_a_sketch_knows() -> None:
    x = np.array([[3.0, -1.5, 0.0], [3.0, 2.0, -0.0]], np.float32)
    found = Sketch.from_vector(x, 64)
    assert (found.size, found.minimum, found.maximum, found.cells) == (6, -1.5, 3.0, 64)
    assert found.levels(8).tolist() == [-1.5, 0, 2, 3, 3, 3, 3, 3]
    assert found.levels(8).dtype == np.float32
    assert found.levels(2).tolist() == [-1.5, 3]
    assert found.undecided(2) is None


@pytest.mark.parametrize("kind", ["normal", "lognormal", "offset 1e7", "outlier 1e6"])
def test_levels_are_nearly_optimal_at_once(kind: str, reference: Backend) -> None:
    x = KINDS[kind](np.random.default_rng(6), 250)
    levels = Sketch.from_vector(x).levels(8)
    best = reference.solve_levels(x, QuantizeOptions.create(num_levels=8), None)
    assert np.isin(levels, x).all()
    assert qk.expected_mse(x, levels) <= 1.001 * qk.expected_mse(x, best)


def answered(
    found: Sketch, parts: list[Vector], num_levels: int, rounds: int = 20
) -> tuple[Sketch, int]:
    """The exact form, with every message sent as bytes."""
    for number in range(rounds):
        undecided = found.undecided(num_levels)
        if undecided is None:
            return found, number
        asked = Undecided.from_bytes(undecided.to_bytes())
        details = [Details.from_bytes(asked.of(part).to_bytes()) for part in parts]
        found = Sketch.from_bytes(found.with_details(undecided, details[::-1]).to_bytes())
    raise AssertionError("no end of questions")


@pytest.mark.parametrize("name", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["normal", "lognormal", "offset 1e7", "outlier 1e6", "ties"])
def test_levels_of_answered_questions_are_optimal(kind: str, name: str, reference: Backend) -> None:
    rng = np.random.default_rng(6)
    x = within(KINDS[kind](rng, 250), TYPES[name])
    parts = parted(x, rng, 5)
    first = Sketch.merged(Sketch.from_vector(part, 16) for part in parts)
    found, _ = answered(first, parts, 8)
    best = reference.solve_levels(x, QuantizeOptions.create(num_levels=8), None)
    cost = qk.expected_mse(x, found.levels(8))
    assert cost <= qk.expected_mse(x, best) * (1 + 1e-9)
    assert found.size == x.size
    assert found.merge().to_bytes() == first.to_bytes()


def question() -> tuple[Sketch, Undecided, list[Vector]]:
    rng = np.random.default_rng(8)
    parts = [rng.normal(size=400).astype(np.float32) for _ in range(3)]
    found = Sketch.merged(Sketch.from_vector(part, CELLS) for part in parts)
    undecided = found.undecided(8)
    assert undecided is not None
    return found, undecided, parts


def refused(call: Callable[[], object], field: str, code: str = "invalid_option") -> None:
    with pytest.raises(InvalidInput) as caught:
        call()
    assert (caught.value.field, caught.value.code) == (field, code)


def test_rows_of_answers_lie_within_pieces() -> None:
    found, undecided, parts = question()
    rows = [undecided.of(part).rows for part in parts]
    chosen = undecided.cut.rows_of(found.rows.index, found.rows.nearest) >= 0
    uncut = Details(found.rows[chosen])
    assert not undecided.cut.holds(uncut.rows)
    refused(lambda: found.with_details(undecided, [uncut]), "details")
    assert found.with_details(undecided, map(Details, rows)).size == found.size


def test_answers_must_add_up() -> None:
    found, undecided, parts = question()
    details = [undecided.of(part) for part in parts]
    refused(lambda: found.with_details(undecided, details[1:]), "details")
    refused(lambda: found.with_details(undecided, [*details, details[0]]), "details")
    refused(lambda: found.with_details(undecided, []), "details")
    other = undecided.of(parts[0] * np.float32(0.999))
    refused(lambda: found.with_details(undecided, [other, *details[1:]]), "details")
    finer = found.with_details(undecided, details)
    refused(lambda: finer.with_details(undecided, details), "undecided")
    refused(
        lambda: Sketch.from_vector(parts[0], CELLS).with_details(undecided, details), "undecided"
    )


def test_a_shard_must_be_part_of_the_vector() -> None:
    _, undecided, parts = question()
    refused(lambda: undecided.of(parts[0].astype(np.float64)), "x")
    refused(lambda: undecided.of(parts[0] * 100), "x")
    refused(lambda: undecided.of(np.empty(0, np.float32)), "vector", "empty_vector")
    nowhere = np.array([undecided.cut.low], np.float32)
    assert Details.from_bytes(undecided.of(nowhere).to_bytes()).rows.size <= 1


def test_only_like_sketches_merge() -> None:
    x = np.arange(10.0)
    a = Sketch.from_vector(x, 64)
    refused(lambda: a.merge(Sketch.from_vector(x, 65)), "sketches")
    narrow = Sketch.from_vector(x.astype(np.float32), 64)
    refused(lambda: a.merge(narrow), "sketches", "unsupported_dtype")
    refused(lambda: Sketch.merged([]), "sketches")


def test_options_are_checked() -> None:
    for bad in (1, 65_537):
        refused(lambda bad=bad: Sketch.from_vector([1.0], bad), "cells")
    for bad in (1, 257):
        refused(lambda bad=bad: Sketch.from_vector([1.0]).levels(bad), "num_levels")
        refused(lambda bad=bad: Sketch.from_vector([1.0]).undecided(bad), "num_levels")
    refused(lambda: Sketch.from_vector([]), "vector", "empty_vector")
    refused(lambda: Sketch.from_vector([np.nan]), "vector", "non_finite")


def fields(x: Vector | None = None) -> dict[str, Any]:
    x = np.array([-1.0, 0.5, 1.0, 1.0 + 2**-20, 1.0 + 2**-19], np.float32) if x is None else x
    return msgpack.unpackb(Sketch.from_vector(x, 64).to_bytes())


def test_the_message_is_what_the_page_says() -> None:
    assert fields() == {
        "v": 1,
        "kind": "sketch",
        "dtype": "float32",
        "cells": 64,
        "exponent": -4,
        "rows": 3,
        "first": -(127 << 7) - 1,
        "steps": bytes.fromhex("817e 8000"),
        "nearest": b"\0\0\0",
        "spans": b"\0\0\x10",
        "counts": b"\1\1\3",
        "whole": b"\0\0\0",
        "part": b"\0\0\x18",
    }


@pytest.mark.parametrize(
    ("change", "field", "code"),
    [
        ({"v": 2}, "v", "unsupported_version"),
        ({"kind": "details"}, "kind", "invalid_option"),
        ({"dtype": "float16"}, "dtype", "unsupported_dtype"),
        ({"cells": 1}, "cells", "invalid_option"),
        ({"cells": 65_537}, "cells", "invalid_option"),
        ({"exponent": -3}, "exponent", "invalid_option"),
        ({"exponent": 10**6}, "exponent", "invalid_option"),
        ({"rows": -1}, "rows", "invalid_option"),
        ({"rows": 2**40}, "rows", "invalid_option"),
        ({"rows": 2}, "nearest", "size_mismatch"),
        ({"first": 2**62}, "first", "invalid_option"),
        ({"first": -(2**63)}, "first", "invalid_option"),
        ({"steps": b"\xff" * 16}, "steps", "invalid_option"),
        ({"steps": b"\xff\xff\xff\x3f" * 2}, "steps", "invalid_option"),
        ({"steps": b"\0\0"}, "nearest", "invalid_option"),
        ({"nearest": b"\0\0\0\0\0\1" * 3}, "nearest", "invalid_option"),
        ({"nearest": b"\0\0"}, "nearest", "size_mismatch"),
        ({"nearest": b"\0" * 27}, "nearest", "size_mismatch"),
        ({"spans": b"\xff\xff" * 3}, "part", "invalid_option"),
        ({"counts": b"\0\1\3"}, "counts", "invalid_option"),
        ({"counts": b"\0\0\0\0\0\1" * 3}, "counts", "too_many_elements"),
        ({"counts": b"\1\1\1"}, "part", "invalid_option"),
        ({"whole": b"\2\0\0"}, "whole", "invalid_option"),
        ({"whole": b"\0\0\1"}, "part", "invalid_option"),
        ({"part": b"\0\0\1\0\0\2\0\0\3"}, "part", "invalid_option"),
        ({"part": b"\0\0\3"}, "part", "invalid_option"),
        ({"part": b"\0\0\x21"}, "part", "invalid_option"),
    ],
)
def test_numbers_that_contradict_are_refused(change: dict[str, Any], field: str, code: str) -> None:
    message = msgpack.packb({**fields(), **change})
    refused(lambda: Sketch.from_bytes(message), field, code)


def test_structure_is_checked() -> None:
    good = msgpack.packb(fields())
    assert Sketch.from_bytes(good).to_bytes() == Sketch.from_bytes(bytearray(good)).to_bytes()
    with pytest.raises(MalformedMessage):
        Sketch.from_bytes(good[:-1])
    with pytest.raises(MalformedMessage):
        Sketch.from_bytes(good + b"\0")
    for change, code in (({"x": 1}, "unknown_key"), ({"rows": "3"}, "invalid_type")):
        with pytest.raises(InvalidInput) as caught:
            Sketch.from_bytes(msgpack.packb({**fields(), **change}))
        assert caught.value.code == code
    empty = {**fields(), "rows": 0}
    empty |= dict.fromkeys(("steps", "nearest", "spans", "counts", "whole", "part"), b"")
    refused(lambda: Sketch.from_bytes(msgpack.packb(empty)), "rows", "empty_vector")


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_any_damage_is_refused_or_read(data: st.DataObject) -> None:
    x = np.array([-3e38, -1.0, 0.0, 1e-44, 1.0, 1.5, 2.0, 2.0, 3e38], np.float32)
    changed = fields(x)
    key = data.draw(st.sampled_from(sorted(changed)))
    value = changed[key]
    if isinstance(value, bytes):
        width = data.draw(st.integers(1, 9))
        changed[key] = data.draw(st.binary(max_size=width * changed["rows"]))
    elif isinstance(value, int):
        changed[key] = data.draw(st.integers(-(2**63), 2**64 - 1))
    message = bytearray(msgpack.packb(changed))
    if data.draw(st.booleans()):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = Sketch.from_bytes(bytes(message))
    except (InvalidInput, MalformedMessage):
        return
    assert Sketch.from_bytes(found.to_bytes()).to_bytes() == found.to_bytes()
    assert found.merge(found).size == 2 * found.size
    assert (np.diff(found.levels(4)) >= 0).all()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"bits": 17}, "bits"),
        ({"bits": -1}, "bits"),
        ({"low": float("nan")}, "low"),
        ({"low": 0.0}, "low"),
        ({"high": float("inf")}, "low"),
        ({"high": 1e9}, "exponent"),
        ({"kind": "sketch"}, "kind"),
    ],
)
def test_questions_are_checked(change: dict[str, Any], field: str) -> None:
    _, undecided, _ = question()
    message = {**msgpack.unpackb(undecided.to_bytes()), **change}
    refused(lambda: Undecided.from_bytes(msgpack.packb(message)), field)


def test_a_question_asks_for_so_many_pieces() -> None:
    x = np.arange(2.0**18)
    found = Sketch.from_vector(x, 65_536)
    asked = Undecided(cells.Cut.of(found.rows, found.rows.count > 1, 16)).to_bytes()
    with pytest.raises(InvalidInput) as caught:
        Undecided.from_bytes(asked)
    assert caught.value.code == "too_many_elements"


def test_merging_and_reading_need_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    found, undecided, parts = question()
    details = [undecided.of(part) for part in parts]

    def refuse(_: str) -> None:
        raise AssertionError("asked for a backend")

    monkeypatch.setattr(sketch.dispatch, "pick", refuse)
    finer = found.with_details(undecided, details)
    assert Sketch.from_bytes(finer.to_bytes()).merge(found).size == 2 * found.size
