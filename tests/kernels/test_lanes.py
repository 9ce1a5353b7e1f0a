"""Lanes: one user at a time, first come first served, nobody waits who need not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from quiver_kernels.errors import Stopped
from quiver_kernels.lanes import Lane, Lanes
from quiver_kernels.stopping import stopping_when

NOBODY: Any = None


def lanes(count: int) -> Lanes:
    return Lanes([Lane(number, NOBODY) for number in range(count)])


def until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_free_lane_is_taken_by_preference():
    pool = lanes(3)

    with pool.taken(lambda: [2, 0]) as first, pool.taken(lambda: [2, 0]) as second:
        assert (first, second) == (pool.lanes[2], pool.lanes[0])
    with pool.taken(lambda: [2]) as again:
        assert again is pool.lanes[2]


def test_no_usable_lane_is_told_at_once():
    with lanes(2).taken(list) as lane:
        assert lane is None


def test_one_user_at_a_time():
    pool = lanes(2)
    using: set[int] = set()
    clashes: list[int] = []
    most: list[int] = []
    together = threading.Barrier(2)

    def work() -> None:
        for turn in range(20):
            with pool.taken(lambda: [0, 1]) as lane:
                assert lane is not None
                if lane.number in using:
                    clashes.append(lane.number)
                using.add(lane.number)
                most.append(len(using))
                if turn == 0:
                    together.wait(10)
                using.remove(lane.number)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(most) == 120
    assert clashes == []
    # Both were in use side by side.
    assert max(most) == 2


def test_who_came_first_is_served_first():
    pool = lanes(1)
    order: list[int] = []

    def work(number: int) -> None:
        with pool.taken(lambda: [0]):
            order.append(number)

    threads = []
    with pool.taken(lambda: [0]):
        for number in range(5):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            until(lambda number=number: pool.waiting == number + 1)
    for thread in threads:
        thread.join()

    assert order == [0, 1, 2, 3, 4]


def test_whoever_waits_looks_again_which_lanes_will_do():
    pool = lanes(1)
    usable = [0]
    found: list[object] = []

    def work() -> None:
        with pool.taken(lambda: usable) as lane:
            found.append(lane)

    with pool.taken(lambda: [0]):
        thread = threading.Thread(target=work)
        thread.start()
        until(lambda: pool.waiting == 1)
        usable.clear()  # it failed meanwhile
        thread.join(10)

    assert found == [None]


def test_a_failure_gives_the_lane_back():
    pool = lanes(1)
    with pytest.raises(ValueError, match="planted"), pool.taken(lambda: [0], 1.0):
        raise ValueError("planted")

    assert pool.backlog == 0
    with pool.taken(lambda: [0]) as lane:
        assert lane is not None


def test_waiting_ends_when_nobody_wants_the_result():
    pool = lanes(1)
    with pool.taken(lambda: [0]):
        with (
            stopping_when(lambda: pool.waiting > 0),
            pytest.raises(Stopped),
            pool.taken(lambda: [0]),
        ):
            raise AssertionError
        assert pool.waiting == 0


def test_the_backlog_is_what_those_before_need():
    pool = lanes(2)

    assert pool.backlog == 0
    with pool.taken(lambda: [0], 3.0):
        assert pool.backlog == 0  # the other is free
        with pool.taken(lambda: [1], 1.0):
            assert pool.backlog == pytest.approx(2.0)
    assert pool.backlog == 0
