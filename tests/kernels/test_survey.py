"""Surveys: a pass that does not know the range, against one that does."""

from __future__ import annotations

import contextlib
import threading
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.support.strategies import properties

import quiver_kernels as qk
from hostile import EXTREME, KINDS
from quiver_kernels import dispatch, options, sharing
from quiver_kernels.cells import Cells
from quiver_kernels.checks import finite_range
from quiver_kernels.cpu import cells as counting
from quiver_kernels.cpu import chunking, solving, streaming, survey
from quiver_kernels.cpu.outline import outline
from quiver_kernels.cpu.survey import Plan, Survey, Surveyed
from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.partition import Partition, layout_of

Vector = NDArray[Any]
ALL = KINDS | EXTREME
COLUMNS = ("index", "count", "whole", "part", "nearest", "farthest")
# A multiple of 8, so that codes of every chunk begin on a byte.
CHUNK = 160


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "CHUNK", CHUNK)
    monkeypatch.setattr(survey, "_MAX_FRAMES", 1000)


def vector(kind: str, dtype: type, n: int = 4000) -> Vector:
    """Values of a kind, squeezed into their type."""
    values = ALL[kind](np.random.default_rng(3), n)
    if dtype != np.float64 and np.abs(values).max() > 3e38:
        values = values / 1e271
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return values.astype(dtype)


def expected(x: Vector, plan: Plan) -> Cells:
    """The cells that a pass counts which knows the range."""
    bounds, layout = finite_range(x), layout_of(x.dtype)
    partition = Partition.of(bounds.low, bounds.high, plan.cells, layout)
    chunks = [(x, chunking.NO_WEIGHTS)]
    count = outline if plan.loose else counting.count
    return count(chunks, partition, bounds.low, bounds.high)


def check(found: Surveyed, x: Vector, plan: Plan) -> None:
    """Whether a survey found what it should have."""
    assert found.bounds == finite_range(x)
    if np.unique(x[:CHUNK]).size <= plan.num_levels:
        assert found.cells is None
        return
    assert found.cells is not None
    right = expected(x, plan)
    assert found.cells.partition == right.partition
    assert found.cells.loose == right.loose
    for name in COLUMNS:
        assert np.array_equal(getattr(found.cells, name), getattr(right, name)), name


ORDERS = {
    "as it comes": lambda x: x,
    "ascending": np.sort,
    "descending": lambda x: np.sort(x)[::-1].copy(),
    "from the middle": lambda x: x[np.argsort(np.abs(x.astype(np.float64)), kind="stable")],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("plan", [Plan(64, True, 4), Plan(4096, True, 4), Plan(2048, False, 4)])
@pytest.mark.parametrize("kind", ALL)
def test_cells_are_those_of_a_pass_that_knows_the_range(kind: str, plan: Plan, order: str) -> None:
    for dtype in (np.float32, np.float64):
        if plan.loose and dtype == np.float64:
            continue
        x = ORDERS[order](vector(kind, dtype))
        check(Survey(x, plan).finish(), x, plan)


def test_16_bits_are_widened() -> None:
    x = vector("normal", np.float16)
    plan = Plan(4096, True, 4)
    check(Survey(x, plan).finish(), x.astype(np.float32), plan)


def test_a_growing_range_takes_few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.sort(np.random.default_rng(1).normal(size=100 * CHUNK)).astype(np.float32)
    pass_ = Survey(x, Plan(4096, True, 4))
    frames: list[survey._Frame] = []
    monkeypatch.setattr(survey._Tables, "clear", lambda tables: frames.extend(tables._frames))
    check(pass_.finish(), x, pass_.plan)
    assert 1 < len(frames) < 8


@pytest.mark.parametrize(("times", "counted"), [(7, True), (8, False), (40, False)])
def test_a_range_that_grows_without_end_is_given_up(
    times: int, counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "_MAX_FRAMES", 8)
    rng = np.random.default_rng(1)
    x = np.concatenate([4.0**i * rng.uniform(0.9, 1, CHUNK) for i in range(times + 1)])
    x = (x * np.tile([1, -1], x.size // 2)).astype(np.float32)
    pass_ = Survey(x, Plan(4096, True, 4))
    found = pass_.finish()
    assert found.bounds == finite_range(x)
    assert (found.cells is not None) == counted
    if counted:
        check(found, x, pass_.plan)


@properties
@given(
    scales=st.lists(st.sampled_from([0.0, 1e-40, 1e-3, 1.0, 1e5, 1e38]), min_size=1, max_size=8),
    arrivals=st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 6)), max_size=8),
    loose=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_however_the_values_arrive(
    scales: list[float], arrivals: list[tuple[int, int]], loose: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = np.concatenate([s * rng.uniform(-1, 1, CHUNK) for s in scales]).astype(np.float32)
    plan = Plan(256, loose, 4)
    room = np.full(x.size, np.nan, np.float32)
    early, there = Survey(room, plan), 0
    for size, steps in arrivals:
        there = max(there, min(size, x.size))
        room[:there] = x[:there]
        early.arrived(there)
        for _ in range(steps):
            early.step()
    room[:] = x
    check(early.finish(), x, plan)


def test_many_threads_and_values_that_still_arrive() -> None:
    x = np.cumsum(np.random.default_rng(2).normal(size=300 * CHUNK)).astype(np.float32)
    room, plan = np.full(x.size, np.nan, np.float32), Plan(4096, True, 4)
    early, done = Survey(room, plan), threading.Event()

    def help_out() -> None:
        while not done.is_set():
            early.step()

    helpers = [threading.Thread(target=help_out) for _ in range(3)]
    for helper in helpers:
        helper.start()
    for start in range(0, x.size - 40 * CHUNK, 77):
        room[start : start + 77] = x[start : start + 77]
        early.arrived(start + 77)
    room[:] = x
    with sharing.threads(4):
        found = early.finish()
    done.set()
    for helper in helpers:
        helper.join()
    check(found, x, plan)
    assert not early.step()


def test_a_step_says_whether_there_was_anything() -> None:
    x = vector("normal", np.float32)
    early = Survey(x, Plan())
    assert not early.step()
    assert not early.arrived(CHUNK - 1)
    assert not early.step()
    assert early.arrived(2 * CHUNK)
    assert [early.step() for _ in range(3)] == [True, True, False]
    assert not early.arrived(2 * CHUNK)
    early.finish()
    early.arrived(x.size)
    assert not early.step()


@pytest.mark.parametrize("place", [0, CHUNK + 3, 3999])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(value: float, place: int) -> None:
    x = vector("normal", np.float32)
    x[place] = x[-1] = value
    early = Survey(x, Plan(64, True, 4))
    early.arrived(2 * CHUNK)
    while early.step():
        pass
    with pytest.raises(InvalidInput, match=rf"got {value} at index {place}") as caught:
        early.finish()
    assert (caught.value.code, caught.value.field) == ("non_finite", "vector")


def test_a_second_finish_begins_anew() -> None:
    x, plan = vector("normal", np.float32), Plan(64, True, 4)
    early = Survey(x, plan)
    check(early.finish(), x, plan)
    check(early.finish(), x, plan)


def test_a_step_that_fails_is_made_good(monkeypatch: pytest.MonkeyPatch) -> None:
    x, plan = vector("normal", np.float32), Plan(64, True, 4)
    early = Survey(x, plan)
    early.arrived(x.size)
    early.step()

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(survey._Slot, "add", fail)
        early.step()
    check(early.finish(), x, plan)


def test_a_chunk_that_is_forgotten_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, plan = vector("normal", np.float32), Plan(64, True, 4)
    early = Survey(x, plan)
    early.arrived(x.size)
    with monkeypatch.context() as patched:
        patched.setattr(survey._Tables, "add", lambda *_: None)
        early.step()
    with pytest.raises(AssertionError):
        check(early.finish(), x, plan)


# -- what it is for ----------------------------------------------------------------------

CASES: list[dict[str, Any]] = [
    {"bits": 4},
    {"bits": 3, "method": "approx"},
    {"num_levels": 40},
    {"bits": 4, "method": "approx", "grid": "uniform"},
    {"bits": 4, "method": "uniform"},
    {"bits": 4, "block_size": 1000},
    {"bits": 1},
    {"levels": np.linspace(-8, 8, 17)[1:]},
    {"bits": 2, "method": "simba"},
]


@pytest.fixture
def streaming_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "STREAM_FROM", 1000)
    monkeypatch.setattr(streaming, "OUTLINED", 1)
    monkeypatch.setattr(streaming, "OUTLINES", ((16, 2048),))


@pytest.mark.usefixtures("streaming_early")
@pytest.mark.parametrize("given_options", CASES, ids=str)
def test_an_offered_survey_changes_no_bit(given_options: dict[str, Any]) -> None:
    x = np.random.default_rng(5).normal(size=50 * CHUNK).astype(np.float32)
    chosen = QuantizeOptions.create(**{"seed": 3, **given_options})
    backend = dispatch.load("cpu")
    alone = backend.quantize(x, chosen, None)
    early = dispatch.begin_survey(x, chosen)
    assert early is not None
    early.arrived(20 * CHUNK)
    while early.step():
        pass
    with early.offered():
        together = backend.quantize(x, chosen, None)
    assert isinstance(early, Survey)
    assert early._begun, "nobody asked for it"
    assert np.array_equal(alone.levels, together.levels)
    assert np.array_equal(alone.codes, together.codes)
    assert alone.vnmse == together.vnmse


@pytest.mark.usefixtures("streaming_early")
def test_what_was_counted_is_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[str] = []
    for name in ("count", "outline"):
        whole = getattr(streaming.ChunkStream, name)

        def noted(stream: Any, cells: int, name: str = name, whole: Any = whole) -> Cells:
            found: Cells = whole(stream, cells)
            passes.append(name if found is not stream.known else f"known {name}")
            return found

        monkeypatch.setattr(streaming.ChunkStream, name, noted)
    x = np.random.default_rng(5).normal(size=50 * CHUNK).astype(np.float32)
    for method in ("exact", "approx"):
        qk.quantize(x, bits=4, method=method)
    assert passes == ["known outline", "known count"]


@pytest.mark.usefixtures("streaming_early")
def test_a_survey_of_something_else_is_left_alone() -> None:
    x = np.random.default_rng(5).normal(size=50 * CHUNK).astype(np.float32)
    chosen = QuantizeOptions.create(bits=4, seed=3)
    alone = dispatch.load("cpu").quantize(x, chosen, None)
    others = [
        (x[1:], chosen),
        (x[:-1], chosen),
        (x.copy(), chosen),
        (x.view(np.float64), chosen),
        (x, QuantizeOptions.create(bits=3)),
        (x, QuantizeOptions.create(bits=4, method="approx")),
    ]
    for values, other in others:
        with contextlib.suppress(InvalidInput):
            early = Survey(values, solving.plan_of(values.size, values.dtype, other))
        with early.offered():
            q = dispatch.load("cpu").quantize(x, chosen, None)
        assert not early._begun
        assert q.codes.tobytes() == alone.codes.tobytes()


def test_schemes_and_wrapped_vectors_have_no_survey() -> None:
    x = np.ones(10, np.float32)
    for given_options in ({"method": "qsgd"}, {"bits": 4, "outliers": 0.75}):
        assert dispatch.begin_survey(x, QuantizeOptions.create(**given_options)) is None  # type: ignore[arg-type]
