"""A fresh container is ready within seconds: its image brings the kernels' machine code."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from quiver_client import Client, LocalClient

ROOT = Path(__file__).parents[2]
BUILD_SECONDS = 1200
STARTS = 10
READY_SECONDS = 3.0
FIRST_OVER_MEDIAN = 2.0
# How the service of the Compose file is confined.
CONFINED = (
    *("--read-only", "--tmpfs", "/tmp:size=256m,mode=1777", "--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges:true", "--memory", "4g", "--init"),
)
WITHOUT = {"QUIVER_PRECOMPILED_DIR": ""}
NO_WARM_UP = (
    "from quiver_service.engine import Engine\n"
    "from quiver_service.__main__ import command\n"
    "Engine.warm_up = lambda self: None\n"
    "command()"
)
LOWER_LEVEL = (
    "from quiver_kernels import precompiled\n"
    "from quiver_service.__main__ import command\n"
    "del precompiled.LEVELS['x86-64-v4']\n"
    "command()"
)

pytestmark = [pytest.mark.docker, pytest.mark.timeout(BUILD_SECONDS + 600)]


def docker(*arguments: str, timeout: float = 60) -> str:
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, check=True, timeout=timeout
    )
    return done.stdout.strip()


@dataclass(frozen=True)
class Container:
    """One running container; `ready_seconds` from its start to the line that says so."""

    name: str
    url: str
    ready_seconds: float

    def machine_code(self, kind: str) -> list[str]:
        """What lies in Numba's cache: `kind` l for links to the image's, f for files of its own."""
        return docker("exec", self.name, "find", "/tmp/numba", "-type", kind).split()

    def log(self) -> list[dict[str, object]]:
        lines = docker("logs", self.name).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


@contextlib.contextmanager
def started(image: str, code: str | None = None, **environment: str) -> Iterator[Container]:
    """A container of `image` that is ready; `code` runs in place of the service's own entry."""
    names = {"QUIVER_ALLOW_INSECURE": "1"} | environment
    options = [part for name, value in names.items() for part in ("--env", f"{name}={value}")]
    entry = () if code is None else ("--entrypoint", "python")
    arguments = () if code is None else ("-c", code)
    name = docker(
        *("run", "--detach", "--publish", "127.0.0.1::8000", *CONFINED, *options, *entry),
        *(image, *arguments),
    )
    try:
        port = docker("port", name, "8000/tcp").rpartition(":")[2]
        wait_until_ready(int(port), name)
        yield Container(name, f"http://127.0.0.1:{port}", seconds_to_ready(name))
    finally:
        docker("rm", "--force", "--volumes", name)


def wait_until_ready(port: int, name: str) -> None:
    deadline = time.monotonic() + 400
    url = f"http://127.0.0.1:{port}/readyz"
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError as refused:
            refused.close()
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.05)
    pytest.fail(f"not ready: {docker('logs', '--tail', '20', name)}")


def seconds_to_ready(name: str) -> float:
    """By the engine's own clock: from the start of the process to its line."""
    begun = docker("inspect", "--format", "{{.State.StartedAt}}", name)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for line in docker("logs", "--timestamps", name).splitlines():
            if "QUIVER is ready" in line:
                return (moment(line.split()[0]) - moment(begun)).total_seconds()
        time.sleep(0.05)
    pytest.fail("the line that says when it is ready did not come")


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def first_over_median(url: str, count: int = 21) -> float:
    """The first request's time over the median of those that follow, on one connection."""
    x = np.random.default_rng(5).normal(size=4096).astype(np.float32)
    spent = []
    with Client(url) as client:
        client.info()
        for _ in range(count):
            begun = time.perf_counter()
            client.quantize(x, bits=4, seed=7)
            spent.append(time.perf_counter() - begun)
    return spent[0] / statistics.median(spent[1:])


def shown(values: Sequence[float]) -> str:
    return f"median {statistics.median(values):.2f}, {min(values):.2f} to {max(values):.2f}"


@pytest.fixture(scope="module")
def image() -> str:
    return docker("build", "--quiet", str(ROOT), timeout=BUILD_SECONDS).splitlines()[-1]


def processor_seconds(url: str) -> float:
    """What the process has used so far."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        found = re.search(rb"^process_cpu_seconds_total (\S+)$", answer.read(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def slowed_down() -> float:
    """How much longer anything takes here just now because others use the processors."""
    wall, own = time.perf_counter(), time.process_time()
    while time.process_time() - own < 0.2:
        pass
    return (time.perf_counter() - wall) / (time.process_time() - own)


@dataclass(frozen=True)
class Start:
    """One start of a fresh container, and the first request to it."""

    ready_seconds: float
    processor_seconds: float
    slowed_down: float
    first_over_median: float


@pytest.fixture(scope="module")
def starts(image: str) -> list[Start]:
    found = []
    for _ in range(STARTS + 1):
        before = slowed_down()
        with started(image) as container:
            used = processor_seconds(container.url)
            # Whatever is compiled is written there.
            assert container.machine_code("l")
            assert container.machine_code("f") == []
            slower = max(before, slowed_down())
            ratio = first_over_median(container.url)
        found.append(Start(container.ready_seconds, used, slower, ratio))
    # The first start also reads the image from disk, and the client's code was cold.
    return found[1:]


def test_a_start_takes_seconds(starts: list[Start], capsys: pytest.CaptureFixture[str]):
    ready = [start.ready_seconds for start in starts]
    used = [start.processor_seconds for start in starts]
    # A start is one thread's work: where it has no processor to itself, what it used counts.
    free = [start.ready_seconds for start in starts if start.slowed_down < 1.1]
    with capsys.disabled():
        print(
            f"\n{len(ready)} starts: ready after {shown(ready)} s, of one processor {shown(used)} s"
        )
        print(f"{len(free)} of them with a processor to themselves")

    assert statistics.median(used) <= READY_SECONDS
    assert not free or statistics.median(free) <= READY_SECONDS


def test_the_first_request_is_as_quick_as_others(
    starts: list[Start], capsys: pytest.CaptureFixture[str]
):
    ratios = [start.first_over_median for start in starts]
    with capsys.disabled():
        print(f"\n{len(ratios)} starts: first request over the median: {shown(ratios)}")

    assert statistics.median(ratios) <= FIRST_OVER_MEDIAN


def test_without_precompiled_kernels_a_start_takes_several_times_longer(
    image: str, starts: list[Start], capsys: pytest.CaptureFixture[str]
):
    with started(image, **WITHOUT) as container:
        used = processor_seconds(container.url)
        assert container.machine_code("l") == []
        assert container.machine_code("f")
    with capsys.disabled():
        print(
            f"\nwithout precompiled kernels: ready after {container.ready_seconds:.1f} s, "
            f"of one processor {used:.1f} s"
        )

    assert used > 3 * statistics.median(start.processor_seconds for start in starts)
    assert used > READY_SECONDS


def test_without_a_warm_up_the_first_request_waits_for_the_compiler(image: str):
    with started(image, NO_WARM_UP, **WITHOUT) as container:
        assert first_over_median(container.url) > 5 * FIRST_OVER_MEDIAN


@pytest.mark.parametrize(
    ("code", "accepted"), [(None, {"x86-64-v4", "x86-64-v3"}), (LOWER_LEVEL, {"x86-64-v3"})]
)
@pytest.mark.parametrize("method", ["exact", "approx", "accelerated", "uniform"])
def test_precompiled_kernels_give_the_same_bits(
    running: Callable[[str | None], Container], code: str | None, accepted: set[str], method: str
):
    container = running(code)
    [line] = [line for line in container.log() if line["event"] == "precompiled kernels"]
    generator = np.random.default_rng(11)

    with Client(container.url) as client, LocalClient() as local:
        for dtype in (np.float32, np.float64):
            for size, bits in ((300_000, 4), (5_000, 8), (1_000, 3)):
                x = generator.lognormal(size=size).astype(dtype)
                served = client.quantize(x, bits=bits, method=method, seed=3)
                own = local.quantize(x, bits=bits, method=method, seed=3)
                assert np.array_equal(served.levels, own.levels)
                assert bytes(served.codes) == bytes(own.codes)
                assert served.vnmse == own.vnmse

    assert line["target"] in accepted, line
    assert container.machine_code("f") == []


@pytest.fixture(scope="module")
def running(image: str) -> Iterator[Callable[[str | None], Container]]:
    """Containers by the code they run, each started once."""
    with contextlib.ExitStack() as stack:
        found: dict[str | None, Container] = {}

        def get(code: str | None) -> Container:
            if code not in found:
                found[code] = stack.enter_context(started(image, code))
            return found[code]

        yield get
