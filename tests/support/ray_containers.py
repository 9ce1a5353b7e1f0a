"""`make up PROFILE=cluster`, as tests need it: which node serves, nodes beside those of Compose."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from projects import Project, docker, inspected

NODES_CODE = (
    "import json, socket; from ray._raylet import GcsClient;"
    "gcs = GcsClient(address=socket.gethostbyname('ray-head') + ':6379');"
    "print(json.dumps([n.node_manager_address for n in gcs.get_all_node_info().values()"
    " if n.state == 0]))"
)
SERVING_CODE = (
    "import urllib.request as r;print(r.urlopen('http://127.0.0.1:8405/metrics').read().decode())"
)
SERVING = re.compile(r'haproxy_server_status\{proxy="replicas",server="(\w+)",state="UP"\} 1')
ADDRESSES_CODE = "import json, socket; print(json.dumps(socket.gethostbyname_ex('ray-worker')[2]))"


@dataclass(frozen=True)
class RayProject(Project):
    """The profile `cluster`."""

    @property
    def network(self) -> str:
        """That of the nodes."""
        return f"{self.name}_cluster"

    def places(self) -> list[str]:
        """Which of the balancer's places have a replica that is ready."""
        (balancer,) = self.containers("ray-balancer")
        return SERVING.findall(docker("exec", balancer, "python", "-c", SERVING_CODE))

    def nodes(self) -> set[str]:
        """Addresses of the nodes that the head counts, itself among them."""
        (head,) = self.containers("ray-head")
        return set(json.loads(docker("exec", head, "python", "-c", NODES_CODE).splitlines()[-1]))

    def serving(self) -> list[str]:
        """Containers of nodes, those of Compose and others, that have a replica."""
        return [one for one in self.workers() if self.has_replica(one)]

    def workers(self) -> list[str]:
        """Containers of nodes that run, but for the head."""
        found = docker("ps", "--quiet", "--filter", f"label=quiver.test={self.name}").split()
        own = set(docker("ps", "--quiet").split())
        return [one for one in self.containers("ray-worker") if one in own] + found

    def has_replica(self, container: str) -> bool:
        """Whether something listens on a node's first two ports for replicas."""
        code = (
            "import socket; ip = socket.gethostbyname(socket.gethostname());"
            "print(any(socket.socket().connect_ex((ip, 30000 + n)) == 0 for n in (0, 1)))"
        )
        return docker("exec", container, "python", "-c", code).strip() == "True"

    def wait_for(self, count: int, seconds: float) -> float:
        """Seconds until so many replicas are ready."""
        return waited(lambda: len(self.places()) == count, seconds, f"{count} replicas")

    def wait_for_nodes(self, count: int, seconds: float) -> float:
        """Seconds until the head counts so many nodes, itself among them."""
        return waited(lambda: len(self.nodes()) == count, seconds, f"{count} nodes")

    @contextlib.contextmanager
    def another_node(self, image: str | None = None) -> Iterator[str]:
        """A node that Compose has not started, confined as its own are; its container."""
        model = inspected(self.containers("ray-worker")[0])
        name = f"{self.name}-{secrets.token_hex(3)}"
        docker("run", "--detach", "--name", name, *as_model(self, model, image))
        try:
            yield name
        finally:
            docker("rm", "--force", "--volumes", name)


def as_model(project: RayProject, model: dict[str, Any], image: str | None) -> list[str]:
    """Arguments of `docker run` for a container like `model`."""
    host, own = model["HostConfig"], model["Config"]
    options = [
        *("--network", project.network, "--network-alias", "ray-worker", "--init", "--read-only"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges:true"),
        *("--label", f"quiver.test={project.name}", "--entrypoint", own["Entrypoint"][0]),
        *("--memory", str(host["Memory"]), "--pids-limit", str(host["PidsLimit"])),
        *("--shm-size", str(host["ShmSize"]), "--restart", "unless-stopped"),
    ]
    for place, how in host["Tmpfs"].items():
        options += ["--tmpfs", f"{place}:{how}"]
    for setting in own["Env"]:
        options += ["--env", setting]
    return [*options, image or own["Image"], *own["Entrypoint"][1:], *own["Cmd"]]


def waited(true: Callable[[], bool], seconds: float, what: str) -> float:
    """Seconds until it is so."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() < begun + seconds, f"not {what} after {seconds} s"
        time.sleep(0.1)
    return time.monotonic() - begun
