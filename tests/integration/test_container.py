"""`make up` and `make down` with a real engine: what starts, how it is confined, what is left."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quiver_client import Client

ROOT = Path(__file__).parents[2]
BUILD_SECONDS = 1200

pytestmark = [pytest.mark.docker, pytest.mark.timeout(BUILD_SECONDS + 300)]


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, check=check, timeout=60
    )


@dataclass(frozen=True)
class Project:
    """One Compose project of this repository, under a name and on a port of its own."""

    name: str
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def make(self, target: str) -> str:
        """Run `make TARGET`; the environment's own settings and profile stay out of it."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("QUIVER_") and name not in {"PROFILE", "MAKEFLAGS"}
        }
        environment |= {"COMPOSE_PROJECT_NAME": self.name, "QUIVER_PORT": str(self.port)}
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

    def left(self, kind: str) -> list[str]:
        """What the engine holds of this project: `kind` is container, network or volume."""
        everything = ["--all"] if kind == "container" else []
        label = f"label=com.docker.compose.project={self.name}"
        return docker(kind, "ls", *everything, "--quiet", "--filter", label).stdout.split()

    def execute(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return docker("exec", self.left("container")[0], *command, check=check)

    def inspect(self) -> dict[str, Any]:
        return json.loads(docker("inspect", self.left("container")[0]).stdout)[0]


@pytest.fixture(scope="module")
def project(unused_tcp_port_factory: Callable[[], int]) -> Iterator[Project]:
    project = Project(f"quiver-test-{secrets.token_hex(4)}", unused_tcp_port_factory())
    try:
        said = project.make("up")
        assert f"QUIVER is healthy at {project.url}" in said
        yield project
    finally:
        project.make("down")


def test_the_compose_file_holds_with_what_watches():
    modern = subprocess.run(["docker", "compose", "version"], capture_output=True)
    compose = ["docker-compose"] if modern.returncode else ["docker", "compose"]
    read = subprocess.run(
        [*compose, "--profile", "obs", "config", "--services"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert {"quiver", "prometheus", "grafana"} <= set(read.stdout.split())


def test_the_python_client_talks_to_it(project: Project):
    x = np.random.default_rng(1).normal(size=100_000).astype(np.float32)

    with Client(project.url) as client:
        q = client.quantize(x, bits=4, seed=7)
        y = client.dequantize(q)

    error = float(np.sum((y - x) ** 2) / np.sum(x**2))
    assert y.shape == x.shape
    assert error == pytest.approx(q.vnmse, rel=0.05)


def test_it_is_healthy_and_published_on_loopback_only(project: Project):
    state = project.inspect()

    assert state["State"]["Health"]["Status"] == "healthy"
    assert state["NetworkSettings"]["Ports"] == {
        "8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(project.port)}]
    }


def test_it_is_not_root_and_can_do_nothing_more(project: Project):
    status = project.execute("cat", "/proc/1/status").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)

    assert project.execute("id", "-u").stdout.strip() == "10001"
    assert set(fields["Uid"].split()) == {"10001"}
    assert int(fields["CapBnd"], 16) == int(fields["CapEff"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"


def test_its_root_is_read_only(project: Project):
    refused = project.execute("touch", "/opt/quiver/file", check=False)

    assert refused.returncode != 0
    assert "Read-only file system" in refused.stderr
    assert project.execute("touch", "/tmp/file").returncode == 0


def test_the_bare_image_does_not_open_its_door_to_everybody(project: Project):
    done = docker("run", "--rm", "quiver:cpu", check=False)

    assert done.returncode == 2
    assert "QUIVER_ALLOW_INSECURE" in done.stderr


def test_it_holds_what_it_runs_and_no_tools(project: Project):
    code = "import importlib.metadata as m; print(*(d.name.lower() for d in m.distributions()))"
    installed = set(project.execute("python", "-c", code).stdout.split())

    assert {"quiver-kernels", "quiver-service", "numba"} <= installed
    assert installed.isdisjoint({"pip", "setuptools", "pytest", "quiver-client", "hatchling"})


def test_down_leaves_nothing(project: Project):
    before = {kind: project.left(kind) for kind in ("container", "network")}

    project.make("down")

    assert all(before.values())
    assert {kind: project.left(kind) for kind in ("container", "network", "volume")} == {
        "container": [],
        "network": [],
        "volume": [],
    }
