"""The service on Ray Serve: the same answers, refusals of its own, and a node that is lost."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from ray import serve
from ray.serve.schema import ServeDeploySchema

import quiver_kernels as qk
from quiver_client import Client, RetryPolicy
from quiver_client.errors import QuiverClientError
from quiver_service.ray_serve.app import NAME, build
from quiver_service.ray_serve.options import ServeOptions
from ray_cluster import LocalCluster

X = np.random.default_rng(3).standard_normal(200_000).astype(np.float32)
ROOT = Path(__file__).parents[2]
LOST_AFTER = 2.0
RECOVERED_WITHIN = 15.0


@pytest.fixture(scope="module")
def url(cluster: LocalCluster) -> Iterator[str]:
    """Two replicas, on a node each, behind the head's proxy."""
    for _ in range(2):
        cluster.add()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    options = ServeOptions(
        replicas=2,
        max_replicas_per_node=1,
        settings={"QUIVER_BUDGET_BYTES": str(64 << 20), "QUIVER_QUEUE_SIZE": "4"},
    )
    serve.run(build(options), name=NAME, route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def digest(q: qk.QuantizedVector) -> bytes:
    """A message without the time that it took."""
    return replace(q, timings_ms={}).to_bytes()


def fetched(url: str) -> dict[str, object]:
    """A page of JSON."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        found = json.load(answer)
    assert isinstance(found, dict)
    return found


def running() -> int:
    """Replicas that serve."""
    states = serve.status().applications[NAME].deployments["quiver"].replica_states
    return int(states.get("RUNNING", 0))


def test_the_calls_of_a_client_give_the_bits_of_the_library(url: str):
    here = qk.quantize(X, bits=4, seed=7)
    with Client(url) as client:
        there = client.quantize(X, bits=4, seed=7)

        assert digest(there) == digest(here)
        np.testing.assert_array_equal(client.dequantize(there), qk.dequantize(here))
        np.testing.assert_array_equal(client.aggregate([there, here]), qk.aggregate([here, here]))


def test_probes_and_limits(url: str):
    assert fetched(f"{url}/readyz")["status"] == "ready"
    limits = fetched(f"{url}/info")["limits"]

    assert isinstance(limits, dict)
    assert limits["budget_bytes"] == 64 << 20
    assert limits["threads"] == 1


def test_too_much_at_once_is_refused_and_does_not_hang(url: str):
    """More than both replicas have room for: an answer or 503 for each."""
    large = np.ones(5 << 20, np.float32)
    patience = RetryPolicy(max_retries=0)

    def ask(_: int) -> int:
        with Client(url, retry=patience, timeout=60) as client:
            try:
                client.quantize(large, bits=4, method="uniform", seed=1)
            except QuiverClientError as error:
                return error.status or 0
            return 200

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, range(12)))

    assert set(found) == {200, 503}


class Load:
    """Clients that ask for the same again and again, and what becomes of it."""

    def __init__(self, url: str, retry: RetryPolicy) -> None:
        self._url, self._retry = url, retry
        self._wanted = digest(qk.quantize(X, bits=4, seed=7))
        self._over = threading.Event()
        self.right = 0
        self.wrong: list[str] = []

    def ask(self) -> None:
        """Until it is over."""
        with Client(self._url, retry=self._retry, timeout=60) as client:
            while not self._over.is_set():
                try:
                    same = digest(client.quantize(X, bits=4, seed=7)) == self._wanted
                except QuiverClientError as error:
                    self.wrong.append(f"{type(error).__name__}: {error}"[:200])
                else:
                    self.right += 1
                    if not same:
                        self.wrong.append("other bits")

    def around(self, cluster: LocalCluster) -> float:
        """While a node is lost and another comes; seconds until both replicas run again."""
        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(self.ask) for _ in range(4)]
            try:
                time.sleep(LOST_AFTER)
                cluster.kill(cluster.nodes[0].node_id)
                while running() == 2:
                    time.sleep(0.1)
                cluster.add()
                begun = time.monotonic()
                while running() < 2 and time.monotonic() < begun + 60:
                    time.sleep(0.2)
                took = time.monotonic() - begun
                time.sleep(1.0)
            finally:
                self._over.set()
            for done in asking:
                done.result()
        return took


def test_a_lost_node_is_not_seen_by_clients(url: str, cluster: LocalCluster):
    load = Load(url, RetryPolicy(max_retries=8))

    took = load.around(cluster)

    assert load.wrong == []
    assert load.right > 20
    assert took < RECOVERED_WITHIN


def test_without_retries_a_lost_node_is_seen(url: str, cluster: LocalCluster):
    """The control: the same loss, and clients that give up at once."""
    load = Load(url, RetryPolicy(max_retries=0))

    load.around(cluster)

    assert load.wrong
    assert load.right > 20


def test_the_command_deploys_on_a_cluster_and_takes_its_own_away(cluster: LocalCluster, url: str):
    """Beside what runs there: the replicas stop with the command, the cluster stays."""
    serve.delete(NAME)
    port = url.rpartition(":")[2]
    address = cluster.cluster.address
    command = [sys.executable, "-m", "quiver_service.ray_serve", "--address", address]
    environment = {**os.environ, "QUIVER_PORT": port, "QUIVER_QUEUE_SIZE": "5"}
    with subprocess.Popen(
        [*command, "--max-replicas", "1"], stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            assert next(line for line in lines if line.startswith("QUIVER")).split()[-1] == url
            limits = fetched(f"{url}/info")["limits"]
            assert isinstance(limits, dict)
            assert limits["queue_size"] == 5
        finally:
            process.terminate()
        assert process.wait(90) == 0
    assert NAME not in serve.status().applications


def test_bytes_that_are_held_bring_a_second_replica(cluster: LocalCluster, url: str):
    """And with as many requests that hold next to nothing there is one."""
    serve.delete(NAME)
    options = ServeOptions(
        max_replicas=2,
        max_replicas_per_node=1,
        target_held=0.2,
        upscale_seconds=1,
        settings={"QUIVER_BUDGET_BYTES": str(64 << 20)},
    )
    serve.run(build(options), name=NAME, route_prefix="/")
    over = threading.Event()

    def ask(x: NDArray[np.float32]) -> None:
        with Client(url, timeout=60) as client:
            while not over.is_set():
                client.quantize(x, bits=4, method="uniform", seed=1)

    def most(x: NDArray[np.float32], seconds: float) -> int:
        over.clear()
        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(ask, x) for _ in range(3)]
            begun = time.monotonic()
            while running() < 2 and time.monotonic() < begun + seconds:
                time.sleep(0.2)
            found = running()
            over.set()
            for done in asking:
                done.result()
        return found

    assert most(np.ones(100, np.float32), 10) == 1
    assert most(np.ones(4 << 20, np.float32), 90) == 2
    serve.delete(NAME)


def test_the_config_file_is_one():
    config = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())

    (application,) = ServeDeploySchema.model_validate(config).applications
    module, _, name = application.import_path.partition(":")
    built = getattr(importlib.import_module(module), name)(ServeOptions(**application.args))
    assert isinstance(built, serve.Application)
    with pytest.raises(ValueError, match="replica_count"):
        ServeOptions(**{**application.args, "replica_count": 2})
