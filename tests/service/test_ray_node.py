"""A node of a cluster in a container, without Ray: what it starts, watches and ends with."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quiver_service.ray_serve.node import (
    NODE_PORT,
    PORT,
    NodeOptions,
    Watched,
    listens,
    main,
    ray_command,
)

# Nobody else's, though it is this machine.
HEAD = "127.83.79.1"


@pytest.fixture
def head() -> Iterator[str]:
    """Something that listens where a head would."""
    with socket.create_server((HEAD, PORT)):
        yield HEAD


def started(folder: Path, script: str, *arguments: str) -> subprocess.Popen[str]:
    """A node whose `ray` is a script of ours."""
    ray = folder / "ray"
    ray.write_text(f"#!/bin/sh\n{script}\n")
    ray.chmod(0o755)
    return subprocess.Popen(
        [sys.executable, "-m", "quiver_service.ray_serve.node", *arguments],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_head_does_no_work_and_a_worker_joins_it():
    head = ray_command(NodeOptions("head", store_bytes=1000), "10.0.0.1")
    worker = ray_command(NodeOptions("worker", head="there", num_cpus=3), "10.0.0.2")

    assert head[:2] == worker[:2] == ["ray", "start"]
    assert {"--head", "--num-cpus=0", f"--port={PORT}", "--include-dashboard=false"} <= set(head)
    assert "--object-store-memory=1000" in head
    assert {f"--address=there:{PORT}", "--num-cpus=3"} <= set(worker)
    assert "--head" not in worker
    for command, address in ((head, "10.0.0.1"), (worker, "10.0.0.2")):
        assert {"--block", "--disable-usage-stats", f"--node-ip-address={address}"} <= set(command)
    assert not any(part.startswith("--num-cpus") for part in ray_command(NodeOptions("worker"), ""))


def test_what_was_seen_and_is_missed_three_times_is_gone():
    watched = Watched(HEAD)
    assert not any(watched.is_gone() for _ in range(5))

    with socket.create_server((HEAD, NODE_PORT)):
        assert listens(HEAD, NODE_PORT)
        assert not watched.is_gone()
    assert [watched.is_gone() for _ in range(3)] == [False, False, True]

    with socket.create_server((HEAD, NODE_PORT)):
        assert not watched.is_gone()
    assert not watched.is_gone()


def test_a_worker_without_a_head_waits_until_it_is_told_to_stop(tmp_path: Path):
    with started(tmp_path, f"touch {tmp_path}/called", "worker", "--head", HEAD) as node:
        assert node.stdout is not None
        assert f"waiting for a head at {HEAD}:{PORT}" in node.stdout.readline()
        node.send_signal(signal.SIGTERM)
        assert node.wait(20) == 0
    assert not (tmp_path / "called").exists()


def test_a_worker_ends_with_its_ray(tmp_path: Path, head: str):
    script = f'echo "$@" > {tmp_path}/called; exit 3'
    with started(tmp_path, script, "worker", "--head", head) as node:
        said, _ = node.communicate(timeout=30)

    assert node.returncode == 1
    assert "Ray has ended" in said
    assert f"--address={head}:{PORT}" in (tmp_path / "called").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["worker", "--replicas", "2"], "a worker deploys nothing; got --replicas 2"),
        (["worker", "--store-bytes", "0"], "--store-bytes must be positive; got 0"),
        (["worker", "--leave-seconds", "-1"], "--leave-seconds must be from 0 to 3600; got -1.0"),
        (["tail"], "invalid choice: 'tail'"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2
    assert told in capsys.readouterr().err
