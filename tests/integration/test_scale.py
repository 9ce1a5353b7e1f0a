"""`make up PROFILE=scale` with a real engine: replicas that are killed, stopped and come back."""

from __future__ import annotations

import re
import secrets
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from projects import (
    BUILD_SECONDS,
    Project,
    calls_give_the_bits_of_the_library,
    docker,
    under_load,
)
from quiver_client import Client

REPLICAS = 2

pytestmark = [pytest.mark.docker, pytest.mark.timeout(BUILD_SECONDS + 300)]


@dataclass(frozen=True)
class Replicas(Project):
    """The profile, and what its balancer says of the replicas."""

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
def project(unused_tcp_port_factory: Callable[[], int]) -> Iterator[Replicas]:
    chosen = {"PROFILE": "scale", "REPLICAS": str(REPLICAS)}
    name = f"quiver-scale-{secrets.token_hex(4)}"
    project = Replicas(name, unused_tcp_port_factory(), chosen)
    try:
        said = project.make("up")
        assert f"QUIVER is healthy at {project.url}" in said
        yield project
    finally:
        project.make("down")


def test_all_replicas_serve(project: Replicas):
    project.wait_for(REPLICAS, 30)

    calls_give_the_bits_of_the_library(project.url)

    for place in project.ready():
        with urllib.request.urlopen(f"{project.url}/replicas/{place}/metrics") as answer:
            assert b'quiver_requests_total{code="200"' in answer.read()


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_nobody_notices_that_a_replica_ends(project: Replicas, end: str):
    victim = project.containers("replica")[0]
    project.wait_for(REPLICAS, 60)

    answered = under_load(lambda: Client(project.url), lambda: docker(end, victim))
    gone = project.wait_for(REPLICAS - 1, 10)
    docker("start", victim)
    back = project.wait_for(REPLICAS, 60)

    print(f"{end}: {answered.right} requests, noticed in {gone:.1f} s, back in {back:.1f} s")
    assert answered.right > 10
    assert answered.wrong == []


def test_a_load_without_the_balancers_replicas_is_seen_to_fail(project: Replicas):
    """The control: what ends all replicas is noticed by what counts."""
    victims = project.containers("replica")
    project.wait_for(REPLICAS, 60)

    try:
        # The client tries for a while before it gives up, so ten more ends are failures.
        wrong = under_load(lambda: Client(project.url), lambda: docker("kill", *victims)).wrong
    finally:
        docker("start", *victims)
    project.wait_for(REPLICAS, 60)

    assert wrong
