"""``quiver compare`` and ``quiver bench``: what they measure is what there is to measure."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quiver_kernels as qk
from command_line import Command
from quiver_client import LocalClient
from quiver_client.cli.comparing import Way, compared, ways
from quiver_client.cli.timing import Call, measure
from quiver_client.errors import Invalid

pytestmark = pytest.mark.faces


def heavy(size: int = 3000) -> Any:
    return np.random.default_rng(1).standard_t(4, size).astype(np.float32)


def test_error_and_bias_are_measured():
    x = heavy()
    tried = [Way("exact", 4, True), Way("lsq", 8, True)]
    exact, nearest = compared(LocalClient(), x, tried, 40, 0.0)

    assert exact.vnmse == pytest.approx(qk.quantize(x, bits=2, seed=1).vnmse)
    assert exact.nmse == pytest.approx(exact.vnmse, rel=0.1)
    assert abs(exact.bias) < 0.02 * exact.nmse
    assert exact.bits_per_value == pytest.approx(2, rel=0.03)
    # Nearest rounding is the same for every seed: its error is all bias.
    assert nearest.bias == pytest.approx(nearest.nmse, rel=1e-6)
    assert exact.encode_seconds > 0


def test_a_planted_bias_is_seen():
    """The detector itself: what is always added to one value does not average away."""

    class Leaning(LocalClient):
        def dequantize(self, q: qk.QuantizedVector) -> Any:
            decoded = super().dequantize(q)
            decoded[0] += 10
            return decoded

    x = heavy()
    [found] = compared(Leaning(), x, [Way("exact", 16, True)], 8, 0.0)
    assert found.bias == pytest.approx(100 / float((x.astype(float) ** 2).sum()), rel=0.3)


def test_methods_without_the_bits_are_tried_with_their_own():
    schemes = LocalClient().info()["schemes"]
    assert ways(schemes, ("exact", "sign"), 4) == [Way("exact", 16, True), Way("sign", 2, False)]
    assert [way.method for way in ways(schemes, ("all",), 4)] == [s["name"] for s in schemes]
    with pytest.raises(Invalid, match=r"methods must be of exact, .* or all; got 'best'"):
        ways(schemes, ("best",), 4)


def test_a_table_of_methods(quiver: Command, tmp_path: Path):
    path = tmp_path / "x.npy"
    np.save(path, heavy(2000))
    arguments = ("compare", path, "--methods", "uniform,exact,sign", "--seconds", 0)
    data = quiver(*arguments, "--json").data
    found = {one["method"]: one for one in data["methods"]}

    assert found["exact"]["nmse"] < found["uniform"]["nmse"]
    assert not found["sign"]["as_asked"]
    lines = quiver(*arguments).out.splitlines()
    order = [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in found]
    assert order == ["exact", "uniform", "sign"]  # best first, other bits than asked for last
    assert "sign (2 levels)" in "\n".join(lines)


def test_what_cannot_be_compared(quiver: Command, tmp_path: Path):
    np.save(tmp_path / "i.npy", np.arange(4))
    ran = quiver("compare", tmp_path / "i.npy")
    assert (ran.code, "cannot be quantized: values of int64" in ran.err) == (1, True)
    np.savez(tmp_path / "m.npz", a=heavy(20), b=heavy(20))
    ran = quiver("compare", tmp_path / "m.npz")
    assert ran.code == 2
    assert f"name one: quiver compare {tmp_path / 'm.npz'}:NAME" in ran.err
    assert quiver("compare", f"{tmp_path / 'm.npz'}:a", "--methods", "best").code == 1


def test_calls_take_turns():
    order: list[str] = []
    calls = [
        Call(lambda: order.append("a")),
        Call(lambda: (order.append("b"), time.sleep(0.006))[1]),
    ]
    found = measure(calls, 0.0)

    runs = [(name, len(list(group))) for name, group in itertools.groupby(order[4:])]
    assert [name for name, _ in runs] == ["a", "b"] * 3
    assert {count for name, count in runs if name == "b"} == {1}
    assert {count for name, count in runs if name == "a"} == {50}  # short ones many at a time
    assert [len(one.seconds) for one in found] == [150, 3]
    assert found[1].median >= 0.006
    assert found[1].rate <= 1 / 0.006


def test_calls_in_flight_at_once():
    [alone] = measure([Call(lambda: time.sleep(0.02))], 0.0)
    [together] = measure([Call(lambda: time.sleep(0.02))], 0.0, parallel=4)
    assert len(together.seconds) == 4 * len(alone.seconds)
    assert together.rate > 2 * alone.rate


def test_bench_by_this_process(quiver: Command):
    arguments = ("bench", "--sizes", "64,512", "--methods", "exact,eden", "--seconds", 0)
    data = quiver(*arguments, "--json").data

    assert [(one["operation"], one["method"], one["values"]) for one in data["cases"]] == [
        (operation, method, size)
        for method in ("exact", "eden")
        for size in (64, 512)
        for operation in ("quantize", "dequantize")
    ]
    for one in data["cases"]:
        assert 0 < one["p50_ms"] <= one["p99_ms"]
        assert one["bytes_per_second"] > 0
    first = data["cases"][0]
    assert list(first["stages_ms"]) == ["levels", "encode", "rest"]
    assert first["message_bytes"] == 64 // 2 + 64
    assert "quantize exact, 512 values" in quiver(*arguments).out
    refused = quiver("bench", "--sizes", "0")
    assert (refused.code, "sizes must be 1..268435456; got 0" in refused.err) == (2, True)


def test_by_a_service(quiver: Command, tmp_path: Path, live_server: str):
    np.save(tmp_path / "x.npy", heavy(2000))
    here = quiver("inspect", tmp_path / "x.npy", "--json").data
    there = quiver("inspect", tmp_path / "x.npy", "--json", "--server", live_server).data
    assert here == there

    where = ("--server", live_server, "--seconds", 0)
    bench = quiver("bench", "--sizes", 2000, "--methods", "exact", *where, "--json").data
    assert next(iter(bench["cases"][0]["stages_ms"])) == "queue"
    assert "network and messages" in quiver("bench", "--sizes", 2000, *where).out
    found = quiver("compare", tmp_path / "x.npy", "--methods", "exact,sign", *where, "--json").data
    assert found["where"] == live_server
    info = quiver("info", "--server", live_server, "--json").data
    assert info["info"]["name"] == "quiver"
    np.savez(tmp_path / "m.npz", a=heavy(2000))
    plan = ("plan", tmp_path / "m.npz", "--bits-per-value", 7, "--json")
    assert quiver(*plan, "--server", live_server).data == quiver(*plan).data
    gone = quiver("info", "--server", "http://127.0.0.1:9")
    assert gone.code == 3
    assert "is it running, and is --server right?" in gone.err
