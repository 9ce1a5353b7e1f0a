"""`make up PROFILE=scale` with a real engine: replicas that are killed, stopped and come back."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import quiver_kernels as qk
from quiver_client import Client

ROOT = Path(__file__).parents[2]
BUILD_SECONDS = 1200
REPLICAS = 2

pytestmark = [pytest.mark.docker, pytest.mark.timeout(BUILD_SECONDS + 300)]


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Project:
    """The profile under a name and on a port of its own."""

    name: str
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def make(self, target: str) -> str:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("QUIVER_") and name not in {"OBS", "MAKEFLAGS"}
        }
        environment |= {
            "COMPOSE_PROJECT_NAME": self.name,
            "QUIVER_PORT": str(self.port),
            "PROFILE": "scale",
            "REPLICAS": str(REPLICAS),
        }
        done = subprocess.run(
            ["make", "--no-print-directory", target],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_SECONDS,
        )
        assert done.returncode == 0, done.stdout[-8000:]
        return done.stdout

    def containers(self, service: str) -> list[str]:
        label = "label=com.docker.compose"
        return docker(
            *("container", "ls", "--all", "--quiet"),
            *("--filter", f"{label}.project={self.name}", "--filter", f"{label}.service={service}"),
        ).split()

    def ready(self) -> list[str]:
        """Which of the balancer's places have a replica that is ready."""
        code = (
            "import urllib.request as r;"
            "print(r.urlopen('http://127.0.0.1:8405/metrics').read().decode())"
        )
        text = docker("exec", self.containers("balancer")[0], "python", "-c", code)
        pattern = r'haproxy_server_status\{proxy="replicas",server="(\w+)",state="UP"\} 1'
        return re.findall(pattern, text)

    def wait_for(self, count: int, seconds: float) -> float:
        """Seconds until so many replicas are ready."""
        begun = time.monotonic()
        while time.monotonic() < begun + seconds:
            if len(self.ready()) == count:
                return time.monotonic() - begun
            time.sleep(0.2)
        pytest.fail(f"not {count} replicas after {seconds} s but {self.ready()}")


@pytest.fixture(scope="module")
def project(unused_tcp_port_factory: Callable[[], int]) -> Iterator[Project]:
    project = Project(f"quiver-scale-{secrets.token_hex(4)}", unused_tcp_port_factory())
    try:
        said = project.make("up")
        assert f"QUIVER is healthy at {project.url}" in said
        yield project
    finally:
        project.make("down")


def test_all_replicas_serve(project: Project):
    x = np.random.default_rng(1).normal(size=100_000).astype(np.float32)
    here = qk.quantize(x, bits=4, seed=7)
    project.wait_for(REPLICAS, 30)

    with Client(project.url) as client, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: client.quantize(x, bits=4, seed=7), range(16)))
        back = client.dequantize(answers[0])
        mean = client.aggregate(answers[:2])
        levels = client.optimal_levels(x, 16)

    assert all(np.array_equal(q.codes, here.codes) for q in answers)
    assert np.array_equal(levels, here.levels)
    assert np.array_equal(back, qk.dequantize(here))
    assert np.allclose(mean, back)
    for place in project.ready():
        with urllib.request.urlopen(f"{project.url}/replicas/{place}/metrics") as answer:
            assert b'quiver_requests_total{code="200"' in answer.read()


@dataclass(eq=False)
class Answered:
    """How many requests were right, and what went wrong with others."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, wrong: str | None) -> None:
        with self.lock:
            self.right += wrong is None
            self.wrong += [] if wrong is None else [wrong]

    def wait_for(self, count: int, seconds: float = 240.0) -> None:
        """Return when so many more requests have ended, whatever came of them."""
        begun, before = time.monotonic(), self.right + len(self.wrong)
        while self.right + len(self.wrong) < before + count:
            assert time.monotonic() < begun + seconds, f"{count} requests did not end"
            time.sleep(0.01)


def under_load(project: Project, disturb: Callable[[], object]) -> Answered:
    """Requests of 4 MB while `disturb` runs."""
    x = np.random.default_rng(2).normal(size=1_000_000).astype(np.float32)
    right = qk.quantize(x, bits=4, seed=3)
    stop = threading.Event()

    answered = Answered()

    def ask(_: int) -> None:
        while not stop.is_set():
            try:
                q = client.quantize(x, bits=4, seed=3)
            except Exception as error:  # noqa: BLE001 - whatever it is, the user would have seen it
                answered.note(repr(error))
            else:
                answered.note(None if np.array_equal(q.codes, right.codes) else "other bits")

    with Client(project.url) as client, ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(ask, i) for i in range(3)]
        try:
            answered.wait_for(5)
            disturb()
            answered.wait_for(10)
        finally:
            stop.set()
        for future in asking:
            future.result()
    return answered


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_nobody_notices_that_a_replica_ends(project: Project, end: str):
    victim = project.containers("replica")[0]
    project.wait_for(REPLICAS, 60)

    answered = under_load(project, lambda: docker(end, victim))
    gone = project.wait_for(REPLICAS - 1, 10)
    docker("start", victim)
    back = project.wait_for(REPLICAS, 60)

    print(f"{end}: {answered.right} requests, noticed in {gone:.1f} s, back in {back:.1f} s")
    assert answered.right > 10
    assert answered.wrong == []


def test_a_load_without_the_balancers_replicas_is_seen_to_fail(project: Project):
    """The control: what ends all replicas is noticed by what counts."""
    victims = project.containers("replica")
    project.wait_for(REPLICAS, 60)

    try:
        # The client tries for a while before it gives up, so ten more ends are failures.
        wrong = under_load(project, lambda: docker("kill", *victims)).wrong
    finally:
        docker("start", *victims)
    project.wait_for(REPLICAS, 60)

    assert wrong
