"""`make up PROFILE=cluster` with a real engine: nodes that are lost, cut off, added, replaced."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from projects import (
    BUILD_SECONDS,
    Bare,
    calls_give_the_bits_of_the_library,
    docker,
    inspected,
    under_load,
)
from quiver_client import Client, RetryPolicy
from quiver_client.errors import QuiverClientError
from ray_containers import RayProject, waited

REPLICAS = 2
NODES = REPLICAS + 1
# From the loss of a node until as many replicas serve as before.
RECOVERED_WITHIN = 15.0
BUDGET = 256 << 20
NEXT_VERSION = "0.1.1"

pytestmark = pytest.mark.timeout(BUILD_SECONDS + 600)

Say = Callable[[str], None]


@pytest.fixture(scope="module")
def project(unused_tcp_port_factory: Callable[[], int]) -> Iterator[RayProject]:
    """The cluster, with two replicas on three nodes."""
    environment = {
        "PROFILE": "cluster",
        "REPLICAS": str(REPLICAS),
        "QUIVER_BUDGET_BYTES": str(BUDGET),
        "QUIVER_QUEUE_SIZE": "4",
    }
    name = f"quiver-cluster-{secrets.token_hex(4)}"
    project = RayProject(name, unused_tcp_port_factory(), environment)
    try:
        said = project.make("up")
        assert f"QUIVER is healthy at {project.url}" in said
        yield project
    finally:
        project.make("down")


@pytest.fixture
def settled(project: RayProject) -> Iterator[RayProject]:
    """All nodes there, all replicas ready; put back in order afterwards."""
    project.wait_for_nodes(1 + NODES, 120)
    project.wait_for(REPLICAS, 120)
    yield project
    for container in project.containers("ray-worker"):
        if project.network not in inspected(container)["NetworkSettings"]["Networks"]:
            docker("network", "connect", "--alias", "ray-worker", project.network, container)
        docker("start", container)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Tell what was measured, whether the test fails or not."""

    def tell(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")

    return tell


def persistent(project: RayProject) -> Callable[[], Client]:
    """Clients as they are."""
    return lambda: Client(project.url)


def fetched(url: str) -> Any:
    """A page of JSON."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def test_the_calls_of_a_client_give_the_bits_of_the_library(settled: RayProject):
    calls_give_the_bits_of_the_library(settled.url)

    for place in settled.places():
        with urllib.request.urlopen(f"{settled.url}/replicas/{place}/metrics") as answer:
            assert b'quiver_requests_total{code="200"' in answer.read()


@pytest.mark.parametrize("service", ["ray-head", "ray-worker"])
def test_a_node_is_confined(settled: RayProject, service: str):
    container = settled.containers(service)[0]
    found = inspected(container)
    status = docker("exec", container, "cat", "/proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert set(fields["Uid"].split()) == {"10001"}
    assert int(fields["CapBnd"], 16) == int(fields["CapEff"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"
    assert found["HostConfig"]["ReadonlyRootfs"] is True
    assert found["HostConfig"]["PidsLimit"] > 0
    assert not any(found["NetworkSettings"]["Ports"].values())
    assert list(found["NetworkSettings"]["Networks"]) == [settled.network]
    assert json.loads(docker("network", "inspect", settled.network))[0]["Internal"] is True


def test_nobody_joins_without_the_token(settled: RayProject):
    """A process beside the nodes, on their network, with another token or none."""
    model = inspected(settled.containers("ray-worker")[0])
    code = "import ray; ray.init(address='ray-head:6379'); print('joined')"
    for token in ("RAY_AUTH_MODE=disabled", f"RAY_AUTH_TOKEN={secrets.token_hex(32)}"):
        done = subprocess.run(
            [
                *("docker", "run", "--rm", "--network", settled.network, "--entrypoint", "timeout"),
                *("--env", "RAY_AUTH_MODE=token", "--env", token),
                *(model["Config"]["Image"], "60", "python", "-c", code),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode != 0
        assert "joined" not in done.stdout
        assert "token" in done.stderr.lower() or "authenticat" in done.stderr.lower()


def lost(project: RayProject, how: str) -> float:
    """Lose a node that has a replica; seconds until another node serves in its place."""
    victim = project.serving()[0]
    begun = time.monotonic()
    if how == "killed":
        docker("kill", victim)
    else:
        docker("network", "disconnect", project.network, victim)
    project.wait_for(REPLICAS - 1, 30)
    project.wait_for(REPLICAS, 90)
    return time.monotonic() - begun


@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_nobody_notices_that_a_node_is_lost(settled: RayProject, how: str, say: Say):
    took: list[float] = []

    answered = under_load(persistent(settled), lambda: took.append(lost(settled, how)))

    say(
        f"a node {how}: {answered.right} requests, the longest {answered.longest:.1f} s; as many "
        f"replicas as before after {took[0]:.1f} s"
    )
    assert answered.wrong == []
    assert answered.right > 10
    assert took[0] <= RECOVERED_WITHIN


@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_without_retries_a_lost_node_is_seen(settled: RayProject, how: str):
    """The control: the same, and clients that give up at once."""
    answered = under_load(lambda: Bare(settled.url), lambda: lost(settled, how))

    assert answered.wrong
    assert answered.right > 10


def test_a_node_that_was_cut_off_comes_back(settled: RayProject, say: Say):
    victim = settled.serving()[0]
    docker("network", "disconnect", settled.network, victim)
    settled.wait_for_nodes(NODES, 30)

    docker("network", "connect", "--alias", "ray-worker", settled.network, victim)

    took = settled.wait_for_nodes(1 + NODES, 120)
    say(f"a node is back {took:.1f} s after its network")
    assert victim in settled.workers()


def test_a_node_is_added_and_takes_a_replica(settled: RayProject, say: Say):
    """Two nodes are gone, so one replica has no place, until another node comes."""
    serving = settled.serving()
    (spare,) = set(settled.workers()) - set(serving)
    docker("kill", spare, serving[0])
    settled.wait_for(REPLICAS - 1, 30)
    # The replica without a place finds none in the meantime.
    time.sleep(3)
    assert len(settled.places()) == REPLICAS - 1
    took: list[float] = []

    def add() -> None:
        begun = time.monotonic()
        name = stack.enter_context(settled.another_node())
        # The balancer takes a new place for ready until it has looked twice.
        waited(lambda: settled.has_replica(name), 120, "replica on the new node")
        settled.wait_for(REPLICAS, 10)
        took.append(time.monotonic() - begun)

    with contextlib.ExitStack() as stack:
        answered = under_load(persistent(settled), add)
        say(f"a node that is added serves {took[0]:.1f} s after its start")
    assert answered.wrong == []


@pytest.fixture(scope="module")
def next_image(project: RayProject) -> Iterator[str]:
    """The same code with another version's name."""
    image = inspected(project.containers("ray-worker")[0])["Config"]["Image"]
    name = f"{project.name}:next"
    places = "/opt/quiver/lib/python3.*/site-packages/quiver_service/_version.py"
    text = (
        f"FROM {image}\nUSER 0\n"
        f"RUN sed -i 's/^__version__ = .*/__version__ = \"{NEXT_VERSION}\"/' {places}\nUSER 10001\n"
    )
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", name, "-"],
        input=text,
        text=True,
        capture_output=True,
        check=True,
        timeout=300,
    )
    yield name
    docker("rmi", "--force", name)


def versions(project: RayProject) -> set[str]:
    """What the replicas that are ready call themselves."""
    return {fetched(f"{project.url}/replicas/{at}/info")["version"] for at in project.places()}


def test_an_upgrade_node_by_node_is_not_noticed(settled: RayProject, next_image: str, say: Say):
    """New nodes come, old ones are stopped: their replicas move first."""
    seen: list[set[str]] = [versions(settled)]
    took: list[float] = []

    def upgrade() -> None:
        for old in settled.containers("ray-worker"):
            stack.enter_context(settled.another_node(next_image))
            settled.wait_for_nodes(1 + NODES + 1, 90)
            begun = time.monotonic()
            docker("stop", "--time", "75", old)
            took.append(time.monotonic() - begun)
            settled.wait_for(REPLICAS, 60)
            seen.append(versions(settled))

    with contextlib.ExitStack() as stack:
        # Even without second tries: nothing is lost on purpose.
        answered = under_load(lambda: Bare(settled.url), upgrade)
        say(f"upgraded: stops took {[round(s, 1) for s in took]} s, versions {seen}")
        assert seen[-1] == {NEXT_VERSION}
    assert NEXT_VERSION not in seen[0]
    assert any(len(now) == 2 for now in seen)
    assert answered.wrong == []
    assert answered.right > 10


def test_too_much_at_once_is_refused_and_does_not_hang(settled: RayProject, say: Say):
    """Many times what both replicas have room for: an answer or 503 for each."""
    large = np.ones(8 << 20, np.float32)

    def ask(_: int) -> tuple[int | str, float]:
        begun = time.monotonic()
        with Client(settled.url, retry=RetryPolicy(max_retries=0)) as client:
            try:
                client.quantize(large, bits=4, method="uniform", seed=1)
            except QuiverClientError as error:
                return error.status or str(error), time.monotonic() - begun
        return 200, time.monotonic() - begun

    with ThreadPoolExecutor(32) as threads:
        found = list(threads.map(ask, range(64)))

    counts = {status: [s for s, _ in found].count(status) for status, _ in found}
    say(
        f"64 requests of 32 MiB, 32 at once: {counts}, the longest {max(t for _, t in found):.1f} s"
    )
    assert set(counts) == {200, 503}
    assert max(seconds for _, seconds in found) < 60


def test_the_head_comes_back_with_all_nodes(settled: RayProject, say: Say):
    """The one place that has no second: replicas serve on for a while, then the cluster is new."""
    (head,) = settled.containers("ray-head")
    docker("kill", head)
    with Client(settled.url) as client:
        assert client.quantize(np.arange(10.0), bits=2, seed=1).size == 10
    begun = time.monotonic()
    docker("start", head)

    waited(lambda: len(settled.nodes()) == 1 + NODES, 180, "all nodes")
    settled.wait_for(REPLICAS, 180)
    say(f"a head that was killed has all replicas {time.monotonic() - begun:.1f} s after its start")
