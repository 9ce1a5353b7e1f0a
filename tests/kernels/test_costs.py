"""Which device `auto` takes, from lines of cost; and the lines, from times."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from quiver_kernels.costs import (
    CPU,
    GPU,
    LEAST_VALUES,
    OPERATIONS,
    CostModel,
    Line,
    Work,
)
from quiver_kernels.options import QuantizeOptions

FREE = Line(0.0, 0.0)
UNIFORM = QuantizeOptions.create(bits=4, method="uniform")


def model(cpu: Line, gpu: Line, copy: Line = FREE) -> CostModel:
    every = {operation: dict.fromkeys((2, 4, 8), cpu) for operation in OPERATIONS}
    other = {operation: dict.fromkeys((2, 4, 8), gpu) for operation in OPERATIONS}
    return CostModel(every, other, copy, copy)


def uniform(values: int, **changes: object) -> Work:
    return replace(Work.of_quantize(values, 4, UNIFORM), **changes)  # type: ignore[arg-type]


# CPU 1 ns a value; GPU 100 us and a tenth of it, and half a nanosecond for a value's copies.
TYPICAL = model(Line(0.0, 1e-9), Line(1e-4, 1e-10), Line(1e-5, 1e-10))


def test_long_vectors_go_to_the_gpu_and_short_ones_do_not():
    assert TYPICAL.choose(uniform(1 << 17)) == CPU
    assert TYPICAL.choose(uniform(1 << 24)) == GPU


def test_copies_count_unless_the_data_are_on_the_device():
    slow_bus = model(Line(0.0, 1e-9), Line(1e-4, 1e-10), Line(0.0, 1e-9))

    assert slow_bus.choose(uniform(1 << 24)) == CPU
    assert slow_bus.choose(uniform(1 << 24, on_device=True)) == GPU
    # Whatever the size.
    assert slow_bus.choose(uniform(1, on_device=True)) == GPU
    assert slow_bus.cost(GPU, uniform(1000)) == pytest.approx(1e-4 + 1e-7 + 4e-6 + 0.5e-6)
    assert slow_bus.cost(GPU, uniform(1000, on_device=True)) == pytest.approx(1e-4 + 1e-7)


def test_a_queue_turns_work_away():
    big = uniform(1 << 24)

    assert TYPICAL.choose(big, waiting=0.0) == GPU
    assert TYPICAL.choose(big, waiting=1.0) == CPU


@pytest.mark.parametrize(
    ("now", "ratio", "chosen"),
    [
        (CPU, 0.79, GPU),
        (CPU, 0.81, CPU),
        (CPU, 1.5, CPU),
        (GPU, 1.2, GPU),
        (GPU, 1.26, CPU),
    ],
)
def test_a_choice_stays_unless_the_other_is_a_fifth_cheaper(now: str, ratio: float, chosen: str):
    close = model(Line(0.0, 1e-9), Line(0.0, ratio * 1e-9))

    assert close.choose(uniform(1 << 20), now=now) == chosen


@pytest.mark.parametrize(
    "options",
    [
        QuantizeOptions.create(bits=4, method="simba"),
        None,
    ],
)
def test_what_only_the_cpu_computes_stays_there(options: QuantizeOptions | None):
    work = Work.of_quantize(1 << 26, 4, options or UNIFORM, weighted=options is None)

    assert work.operation is None
    assert TYPICAL.choose(work) == CPU


def test_what_was_not_measured_stays_with_the_cpu():
    part = replace(TYPICAL, gpu={"approx": {4: FREE}})

    assert part.choose(uniform(1 << 26)) == CPU
    assert part.break_even("uniform", 4) is None
    assert part.break_even("approx", 4) is not None


@pytest.mark.parametrize(
    ("changes", "operation"),
    [
        ({"method": "exact"}, "exact"),
        ({"method": "accelerated"}, "exact"),
        ({"method": "approx"}, "approx"),
        ({"method": "uniform"}, "uniform"),
        ({"method": "uniform", "block_size": 64}, "blocks"),
        ({"method": "approx", "block_size": 64}, "tables"),
        ({"method": "exact", "block_size": 1 << 12}, "tables"),
    ],
)
def test_kinds_of_work(changes: dict[str, object], operation: str):
    options = QuantizeOptions.create(bits=4, **changes)  # type: ignore[arg-type]
    work = Work.of_quantize(1001, 2, options)

    assert (work.operation, work.bytes_in, work.bytes_out) == (operation, 2002, 501)
    assert work.device_bytes > 2002 + 501


@pytest.mark.parametrize(
    ("methods", "values", "operation"),
    [
        (("uniform", "uniform"), 4096, "blocks"),
        (("uniform", "exact"), 1024, "tables"),
        (("uniform", "exact"), 4096, None),
        (("simba", "uniform"), 64, None),
        (("exact", "exact"), 1 << 20, "exact"),
    ],
)
def test_kinds_of_many(methods: tuple[str, ...], values: int, operation: str | None):
    each = [
        Work.of_quantize(values, size, QuantizeOptions.create(bits=4, method=method))
        for size, method in zip((2, 4), methods, strict=True)
    ]
    work = Work.of_many(each)

    assert (work.operation, work.itemsize, work.values) == (operation, 4, 2 * values)
    assert (work.bytes_in, work.bytes_out) == (6 * values, values)


def test_long_rows_are_searched_by_the_cpu():
    options = QuantizeOptions.create(bits=4, method="exact", block_size=1 << 12)
    on_grid = replace(options, method="approx", grid="uniform")

    assert Work.of_quantize(1 << 20, 4, options).operation is None
    assert Work.of_quantize(1 << 20, 4, on_grid).operation == "tables"


def test_a_given_table_costs_as_equal_steps_do():
    options = QuantizeOptions.create(levels=np.array([0.0, 1.0]))

    assert Work.of_quantize(10, 4, options).operation == "uniform"


LINES = st.builds(
    Line, st.floats(0.0, 1e-2), st.floats(1e-13, 1e-7, allow_nan=False, allow_infinity=False)
)


@given(LINES, LINES, LINES, st.sampled_from(["uniform", "decode", "mean"]))
def test_the_break_even_size_is_where_the_choice_changes(
    cpu: Line, gpu: Line, copy: Line, operation: str
):
    costs = model(cpu, gpu, copy)
    size = costs.break_even(operation, 4)

    def chosen(values: int) -> str:
        values = values // 8 * 8  # whole bytes of codes
        if operation == "uniform":
            return costs.choose(uniform(values))
        code_bytes = values // 2
        if operation == "decode":
            return costs.choose(Work.of_decode(values, 4, code_bytes))
        return costs.choose(Work.of_mean(values, 1, 4, code_bytes))

    if size is None:
        for power in (16, 20, 30, 40):
            assert chosen(1 << power) == CPU
        return
    assume(size < 1 << 50)
    if size == LEAST_VALUES:
        assert chosen(LEAST_VALUES) == GPU
        return
    # Sums of floats: not to the very value.
    assert chosen(int(size * 1.001) + 16) == GPU
    if size > LEAST_VALUES + 16:
        assert chosen(int(size * 0.999) - 16) == CPU


@given(LINES, st.lists(st.integers(1, 1 << 24), min_size=2, max_size=6, unique=True))
def test_a_line_is_found_again(line: Line, sizes: list[int]):
    found = Line.through([(n, line(n)) for n in sizes])

    for n in sizes:
        assert found(n) == pytest.approx(line(n), rel=1e-6)


@given(st.lists(st.tuples(st.integers(1, 1 << 24), st.floats(1e-9, 1.0)), min_size=1, max_size=6))
def test_no_line_promises_less_than_nothing(points: list[tuple[int, float]]):
    found = Line.through(points)

    assert found.fixed >= 0
    assert found.each >= 0
    assert np.isfinite(found(1 << 30))


def test_what_is_shown_is_json():
    shown = json.loads(json.dumps(TYPICAL.describe()))

    assert len(shown["costs"]) == 3 * len(OPERATIONS)
    first = shown["costs"][0]
    assert (first["operation"], first["itemsize"]) == ("uniform", 2)
    assert first["cpu"] == {"fixed_us": 0.0, "ns_per_value": 1.0}
    assert first["gpu"] == {"fixed_us": 100.0, "ns_per_value": 0.1}
    assert first["break_even"] == TYPICAL.break_even("uniform", 2)
    assert shown["upload"] == {"fixed_us": 10.0, "ns_per_byte": 0.1}
