"""The shim finds what it is for: barriers left out, accesses outside, wrong launches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.gpu.agreement import grids_agree, streams_agree
from tests.gpu.shim_device import SHIM, ShimDevice, ShimFault, build
from tests.gpu.test_many import many_agree
from tests.gpu.test_rows import rows_agree
from tests.gpu.test_weighted import rows_agree as weighted_rows_agree

from quiver_kernels import dispatch
from quiver_kernels.gpu import sources
from quiver_kernels.gpu.backend import GpuBackend
from quiver_kernels.gpu.device import Launch
from quiver_kernels.options import QuantizeOptions

PLANTED = (SHIM.parent / "planted.cu").read_text()
PLANTED_KERNELS = tuple(re.findall(r"^PLANTED (\w+)\(", PLANTED, re.MULTILINE))


@pytest.fixture(scope="module")
def planted(libraries: Path) -> ShimDevice:
    return ShimDevice(build(libraries, {"planted": PLANTED_KERNELS}, {"planted.cu": PLANTED}))


def run(device: ShimDevice, kernel: str, n: int = 40, **chosen: Any) -> np.ndarray:
    data = np.arange(n, dtype=np.uint32)
    buffer = device.upload(data)
    given = {"arguments": (buffer, np.uint32(n)), "grid": 1, "block": 64, "shared": 256, **chosen}
    device.launch(Launch("planted", kernel, **given))
    device.download(buffer, data)
    return data


def test_a_kernel_without_a_fault_runs(planted: ShimDevice):
    expected = np.array([0 if i < 24 else min(63 - i, 63 - (i ^ 1)) for i in range(40)])

    for _ in range(10):
        assert np.array_equal(run(planted, "nothing_wrong"), expected)


@pytest.mark.parametrize(
    ("kernel", "n", "words"),
    [
        ("reads_beyond", 40, "block 0, thread 0: access to address"),
        ("writes_beyond", 40, "outside of all memory"),
        ("writes_beyond", 39, "device memory: written 1 bytes beyond its end"),
        ("writes_before", 40, "device memory: written 4 bytes before its begin"),
        ("writes_beyond_shared", 40, "outside of all memory"),
        ("null_pointer", 40, "access to address (nil)"),
        ("some_return_early", 40, "63 of 64 threads are at the barrier, 1 have ended"),
        ("two_barriers", 40, "threads wait at two barriers"),
        ("a_lane_is_missing", 40, "wait for lanes of their warp that never come"),
        ("two_masks", 40, "a warp's lanes name different masks"),
    ],
)
def test_a_planted_fault_is_found_and_the_device_goes_on(
    planted: ShimDevice, kernel: str, n: int, words: str
):
    with pytest.raises(ShimFault, match=re.escape(words)):
        run(planted, kernel, n)

    assert run(planted, "nothing_wrong")[39] == 24


def test_every_planted_kernel_is_tested():
    tested = {mark.args[1][i][0] for mark in _parameters() for i in range(len(mark.args[1]))}

    assert tested | {"nothing_wrong", "shared_is_not_zero"} == set(PLANTED_KERNELS)


def _parameters() -> list[pytest.Mark]:
    found = test_a_planted_fault_is_found_and_the_device_goes_on.pytestmark
    return [mark for mark in found if mark.name == "parametrize"]


def test_fresh_memory_is_full_of_poison(planted: ShimDevice):
    assert set(run(planted, "shared_is_not_zero").tolist()) == {0xCDCDCDCD}
    fresh = np.zeros(5, np.uint32)
    planted.download(planted.allocate(20), fresh)
    assert set(fresh.tolist()) == {0xCDCDCDCD}


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"arguments": (None,)}, "2 arguments are wanted, got 1"),
        ({"arguments": (None, np.uint64(1))}, "argument 1 has 4 bytes, got 8"),
        ({"grid": 0}, "a grid of 0 blocks"),
        ({"block": 40}, "a block of 40 threads"),
        ({"block": 2048}, "a block of 2048 threads"),
        ({"shared": 228 << 10}, "233472 bytes of shared memory"),
    ],
)
def test_a_wrong_launch_is_refused(planted: ShimDevice, chosen: dict[str, Any], words: str):
    with pytest.raises(ShimFault, match=words):
        run(planted, "nothing_wrong", **chosen)


def test_memory_of_the_host_is_no_argument(planted: ShimDevice):
    for wrong in (np.zeros(4), 17, 1.0):
        with pytest.raises(AssertionError, match="an argument of type"):
            run(planted, "nothing_wrong", arguments=(wrong, np.uint32(1)))


# -- the real kernels ------------------------------------------------------------------------


def barriers() -> Iterator[tuple[str, int]]:
    """Every barrier of the sources: module and line."""
    for module in sources.KERNELS:
        for number, line in enumerate(sources.text(f"{module}.cu").splitlines(), 1):
            if "__syncthreads()" in line:
                yield module, number


def agrees(device: ShimDevice) -> bool:
    """Whether all bits are the CPU's; a fault is no agreement."""
    gpu, cpu = GpuBackend(device), dispatch.load("cpu")
    x = np.random.default_rng(1).normal(size=40_000).astype(np.float32)
    options = QuantizeOptions.create(bits=5, method="approx", seed=3)
    theirs = cpu.quantize(x, options, None)
    try:
        ours = gpu.quantize(x, options, None)
        decoded = gpu.dequantize(theirs)
        if not (streams_agree(device, x[:9000], 256) and grids_agree(device, x[:9000], 90)):
            return False
    except ShimFault:
        return False
    return (
        ours.levels.tobytes() == theirs.levels.tobytes()
        and ours.codes.tobytes() == theirs.codes.tobytes()
        and ours.vnmse == theirs.vnmse
        and decoded.tobytes() == cpu.dequantize(theirs).tobytes()
    )


@pytest.mark.parametrize(("module", "line"), list(barriers()))
def test_no_barrier_can_be_left_out(library: Path, module: str, line: int):
    device = ShimDevice(library, seed=line)
    # Tables of rows have a kernel of their own; codes of many vectors have one of two.
    several = {"rows": [rows_agree, weighted_rows_agree], "encode": [agrees, many_agree]}.get(
        module, [agrees]
    )
    with device.without_barrier(line):
        assert not all(agree(device) for agree in several)


def test_with_all_barriers_the_bits_agree(library: Path):
    assert len(list(barriers())) >= 6
    device = ShimDevice(library, seed=5)
    # The first line of a source is a comment.
    with device.without_barrier(1):
        assert agrees(device)
        assert rows_agree(device)
        assert weighted_rows_agree(device)
        assert many_agree(device)


def test_an_index_one_too_far_is_found(libraries: Path):
    text = sources.text("decode.cu")
    assert text.count("i < rest;") == 1
    decode = {"decode": sources.KERNELS["decode"]}
    device = ShimDevice(
        build(libraries, decode, {"decode.cu": text.replace("i < rest;", "i <= rest;")})
    )
    q = dispatch.load("cpu").quantize(np.arange(1024.0), QuantizeOptions.create(bits=4), None)

    with pytest.raises(ShimFault, match="decode_64: memory: block"):
        GpuBackend(device).dequantize(q)
