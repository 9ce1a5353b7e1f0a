"""Compose projects of this repository, each under a name and on a port of its own."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

import quiver_kernels as qk
from quiver_client import Client
from quiver_kernels import wire
from quiver_kernels.options import QuantizeOptions

ROOT = Path(__file__).parents[2]
BUILD_SECONDS = 1200


def docker(*arguments: str, seconds: float = 120) -> str:
    """What the command prints."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr
    return done.stdout


def inspected(container: str) -> dict[str, Any]:
    """All that the engine knows of a container."""
    found = json.loads(docker("inspect", container))[0]
    assert isinstance(found, dict)
    return found


@dataclass(frozen=True)
class Project:
    """One profile; `environment` goes to `make` beside the name and the port."""

    name: str
    port: int
    environment: dict[str, str]

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"

    def make(self, target: str) -> str:
        """Run `make TARGET`; the environment's own settings stay out of it."""
        outside = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("QUIVER_", "RAY_")) and name not in {"OBS", "MAKEFLAGS"}
        }
        named = {"COMPOSE_PROJECT_NAME": self.name, "QUIVER_PORT": str(self.port)}
        done = subprocess.run(
            ["make", "--no-print-directory", target],
            cwd=ROOT,
            env={**outside, **named, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_SECONDS,
        )
        assert done.returncode == 0, done.stdout[-8000:]
        return done.stdout

    def containers(self, service: str) -> list[str]:
        """Those of a service, running or not."""
        label = "label=com.docker.compose"
        return docker(
            *("container", "ls", "--all", "--quiet"),
            *("--filter", f"{label}.project={self.name}", "--filter", f"{label}.service={service}"),
        ).split()


@dataclass(eq=False)
class Answered:
    """How many requests were right, and what went wrong with others."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    longest: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, wrong: str | None, seconds: float) -> None:
        """One request has ended."""
        with self.lock:
            self.right += wrong is None
            self.wrong += [] if wrong is None else [wrong]
            self.longest = max(self.longest, seconds)

    def wait_for(self, count: int, seconds: float = 240.0) -> None:
        """Return when so many more requests have ended, whatever came of them."""
        begun, before = time.monotonic(), self.right + len(self.wrong)
        while self.right + len(self.wrong) < before + count:
            assert time.monotonic() < begun + seconds, f"{count} requests did not end"
            time.sleep(0.01)


@dataclass(frozen=True)
class Bare:
    """No client of ours: a connection for each request, and no second try of any kind."""

    url: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def quantize(self, x: NDArray[Any], bits: int, seed: int) -> qk.QuantizedVector:
        """One request; whatever is no answer is an error."""
        options = QuantizeOptions.create(bits=bits, seed=seed)
        request = urllib.request.Request(
            f"{self.url}/quantize",
            b"".join(wire.encode_quantize_request(x, options)),
            {"Content-Type": wire.MEDIA_TYPE},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return qk.QuantizedVector.from_bytes(answer.read())


def under_load(
    connect: Callable[[], Client | Bare], disturb: Callable[[], object], *, size: int = 1_000_000
) -> Answered:
    """Requests of `size` float32 from three threads while `disturb` runs."""
    x = np.random.default_rng(2).normal(size=size).astype(np.float32)
    right = replace(qk.quantize(x, bits=4, seed=3), timings_ms={}).to_bytes()
    stop = threading.Event()
    answered = Answered()

    def ask(_: int) -> None:
        while not stop.is_set():
            begun = time.monotonic()
            wrong = None
            try:
                q = client.quantize(x, bits=4, seed=3)
            except Exception as error:  # noqa: BLE001 - whatever it is, the user would have seen it
                wrong = repr(error)
            else:
                if replace(q, timings_ms={}).to_bytes() != right:
                    wrong = "other bits"
            answered.note(wrong, time.monotonic() - begun)

    with connect() as client, ThreadPoolExecutor(3) as threads:
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


def calls_give_the_bits_of_the_library(url: str) -> None:
    """Every operation of a client, of `quantize` as many calls as several replicas need."""
    x = np.random.default_rng(1).normal(size=100_000).astype(np.float32)
    here = qk.quantize(x, bits=4, seed=7)

    with Client(url) as client, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: client.quantize(x, bits=4, seed=7), range(16)))
        back = client.dequantize(answers[0])
        mean = client.aggregate(answers[:2])
        levels = client.optimal_levels(x, 16)

    assert all(np.array_equal(q.codes, here.codes) for q in answers)
    assert np.array_equal(levels, here.levels)
    assert np.array_equal(back, qk.dequantize(here))
    assert np.allclose(mean, back)
