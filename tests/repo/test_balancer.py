"""haproxy's configuration: read by haproxy itself, in step with the service and with Compose."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from quiver_service.ray_serve.node import NodeOptions
from quiver_service.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "haproxy"
DEPLOYED = (FOLDER / "haproxy.cfg").read_text()
SYSTEM = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
UNITS = {"ms": 0.001, "s": 1.0}


def words(keyword: str, text: str = DEPLOYED) -> list[str]:
    """The words after `keyword`, of the one line that begins with it."""
    [found] = re.findall(rf"^ +{keyword} (.*)$", text, re.MULTILINE)
    return found.split()


def seconds(word: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(ms|s)", word).groups()
    return int(number) * UNITS[unit]


def default(setting: str) -> float:
    return Settings.model_fields[setting].default


def checks() -> dict[str, str]:
    """How replicas are looked at: option and value."""
    line = words("default-server check")
    return dict(zip(line[::2], line[1::2], strict=True))


def complaints(text: str, folder: Path) -> str:
    """What haproxy says of a configuration; empty if it would start."""
    found = shutil.which("haproxy", path=SYSTEM)
    if found is None:
        reason = "haproxy is not installed: nothing can read its configuration"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    file = folder / "haproxy.cfg"
    file.write_text(text)
    done = subprocess.run([found, "-c", "-f", str(file)], capture_output=True, text=True)
    warned = "[WARNING]" in done.stderr
    return done.stderr if done.returncode or warned else ""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def scenario() -> str:
    """The configuration that the scenarios run with."""
    code = "from reliability.haproxy import configuration as text; print(text(81, [82, 83], 84))"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "benchmarks",
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_haproxy_reads_what_is_deployed(tmp_path: Path):
    assert complaints(DEPLOYED, tmp_path) == ""


def test_haproxy_reads_it_for_a_ray_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QUIVER_RAY_NODES", "nodes")

    assert complaints(DEPLOYED, tmp_path) == ""
    # The control: that part is read only then.
    broken = DEPLOYED.replace("uri /-/healthz", "url /-/healthz")
    assert complaints(broken, tmp_path)
    monkeypatch.delenv("QUIVER_RAY_NODES")
    assert complaints(broken, tmp_path) == ""


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("option redispatch", "option redispatching"),
        ("retry-on conn-failure", "retry-on connection-failure"),
        ("resolvers network init-addr", "resolvers nowhere init-addr"),
        ("timeout server 180s\n", "\n"),
    ],
)
def test_haproxy_finds_a_planted_mistake(right: str, wrong: str, tmp_path: Path):
    assert right in DEPLOYED
    assert complaints(DEPLOYED.replace(right, wrong), tmp_path)


def test_the_scenarios_run_with_what_is_deployed_but_for_addresses(tmp_path: Path):
    text = scenario()
    where = {line for line in DEPLOYED.splitlines() if line.endswith(" # where")}

    assert complaints(text, tmp_path) == ""
    assert len(where) == 3
    assert set(DEPLOYED.splitlines()) - set(text.splitlines()) == where
    assert set(text.splitlines()) - set(DEPLOYED.splitlines()) == {
        "    bind 127.0.0.1:81",
        "    bind 127.0.0.1:84",
        "    server replica1 127.0.0.1:82",
        "    server replica2 127.0.0.1:83",
    }


def test_only_what_is_safe_is_sent_again():
    assert set(words("retry-on")) == {"conn-failure", "empty-response"}
    # It would answer `Expect: 100-continue` in place of the replica.
    assert not re.search(r"^ +option http-buffer-request", DEPLOYED, re.MULTILINE)


def test_the_balancer_waits_longer_than_the_service():
    deadline = default("deadline_seconds")

    assert seconds(words("timeout server")[0]) > deadline + default("grace_seconds")
    assert seconds(words("timeout client")[0]) > deadline + default("grace_seconds")
    assert seconds(words("timeout http-request")[0]) == default("header_seconds")
    assert seconds(words("default-server pool-purge-delay")[0]) < default("keep_alive_seconds")


def test_a_draining_replica_is_left_alone_in_time(compose: dict[str, Any]):
    looked = checks()
    fall = int(looked["fall"])
    # The first look may come a whole interval late, the others follow quickly.
    noticed = seconds(looked["inter"]) + (fall - 1) * seconds(looked["fastinter"])
    waiting = compose["replica"]["environment"]["QUIVER_DRAIN_SECONDS"]
    drain = float(re.fullmatch(r"\$\{QUIVER_DRAIN_SECONDS:-(\d+)\}", waiting)[1])
    grace = seconds(compose["replica"]["stop_grace_period"])

    assert words("option httpchk") == ["GET", "/readyz"]
    # One answer to a look may take until its timeout.
    assert drain > noticed + seconds(words("timeout check")[0])
    assert grace >= drain + default("grace_seconds") + 5


def test_what_is_cut_off_is_found_out(compose: dict[str, Any]):
    """Both ways: no answer to probes, and no acknowledgement of what is sent."""
    probing = seconds(words("srvtcpka-idle")[0]) + int(words("srvtcpka-cnt")[0]) * seconds(
        words("srvtcpka-intvl")[0]
    )
    # The first wait of Linux is 0.2 s, and each is twice the one before.
    retries = compose["balancer"]["sysctls"]["net.ipv4.tcp_retries2"]
    assert re.search(r"^ +option srvtcpka$", DEPLOYED, re.MULTILINE)
    assert probing < 10
    assert sum(0.2 * 2**n for n in range(retries + 1)) < 10
    assert compose["ray-balancer"]["sysctls"] == compose["balancer"]["sysctls"]


def test_a_stop_of_the_balancer_lets_requests_finish(compose: dict[str, Any]):
    balancer = compose["balancer"]
    file = (FOLDER / "Dockerfile").read_text()

    assert balancer["stop_signal"] == "SIGUSR1"
    assert "STOPSIGNAL SIGUSR1" in file
    assert default("grace_seconds") < seconds(words("hard-stop-after")[0])
    assert seconds(words("hard-stop-after")[0]) < seconds(balancer["stop_grace_period"])


def test_the_balancer_finds_replicas_by_the_name_of_their_service(compose: dict[str, Any]):
    [places, address] = words("server-template replica")[:2]
    name, _, port = address.partition(":")
    most = int(places.partition("-")[2])
    script = (ROOT / "scripts" / "compose").read_text()

    assert name in compose
    assert port == "8000"
    assert f"count_replicas {most}\n" in script


def test_only_the_balancer_can_be_reached(compose: dict[str, Any]):
    assert compose["balancer"]["ports"] == ["127.0.0.1:${QUIVER_PORT:-8000}:8000"]
    assert compose["replica"]["ports"] == []
    assert compose["replica"]["profiles"] == compose["balancer"]["profiles"] == ["scale"]


def test_a_replica_is_the_service_otherwise(compose: dict[str, Any]):
    single, replica = compose["quiver"], compose["replica"]
    differing = {
        key for key in single.keys() | replica.keys() if single.get(key) != replica.get(key)
    }
    settings = {
        key
        for key in single["environment"]
        if single["environment"][key] != replica["environment"][key]
    }

    assert differing == {"environment", "ports", "profiles"}
    assert settings == {"QUIVER_DRAIN_SECONDS"}


def test_a_ray_cluster_has_a_place_for_every_replica(compose: dict[str, Any]):
    balancer, node = compose["ray-balancer"], compose["ray-worker"]
    first, second = words("server-template node"), words("server-template second")
    most = int(first[0].partition("-")[2])
    script = (ROOT / "scripts" / "compose").read_text()
    drain = node["environment"]["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"]

    assert balancer["environment"] == {"QUIVER_RAY_NODES": "ray-worker"}
    assert [first[1], second[1]] == [f'"${{QUIVER_RAY_NODES}}:{port}"' for port in (30000, 30001)]
    # One node is spare, so there is one replica less.
    assert f"count_replicas {most - 1}\n" in script
    assert words("http-check send") == ["meth", "GET", "uri", "/-/healthz"]
    assert float(re.fullmatch(r"\$\{QUIVER_DRAIN_SECONDS:-(\d+)\}", drain)[1]) > seconds("2s")
    assert seconds(node["stop_grace_period"]) > NodeOptions("worker").leave_seconds + 10


def test_nodes_of_a_ray_cluster_are_confined_and_alone(compose: dict[str, Any]):
    for name in ("ray-head", "ray-worker"):
        node, single = compose[name], compose["quiver"]
        for key in ("init", "read_only", "cap_drop", "security_opt", "restart", "mem_limit"):
            assert node[key] == single[key]
        assert node["networks"] == ["cluster"]
        assert node["ports"] == []
        assert node["pids_limit"] > 0
        assert "noexec,nosuid,nodev" in node["tmpfs"][0]
        assert "volumes" not in node
        own = {key for key in node["environment"] if key not in single["environment"]}
        assert all(key.startswith("RAY_") for key in own)
        assert node["environment"].items() >= single["environment"].items()
    assert compose["ray-balancer"]["networks"] == ["cluster", "default"]
    assert compose["ray-balancer"]["ports"] == compose["balancer"]["ports"]


def test_the_network_of_a_ray_cluster_leads_nowhere():
    networks = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["networks"]

    assert networks == {"cluster": {"internal": True}}


def test_the_balancer_is_confined(compose: dict[str, Any]):
    balancer = compose["balancer"]
    file = (FOLDER / "Dockerfile").read_text()

    assert balancer["read_only"] is True
    assert balancer["cap_drop"] == ["ALL"]
    assert balancer["security_opt"] == ["no-new-privileges:true"]
    assert balancer["pids_limit"] > 0
    assert {"mem_limit", "init"} <= set(balancer)
    assert "volumes" not in balancer
    assert re.search(r"^USER haproxy$", file, re.MULTILINE)


def test_prometheus_scrapes_each_replica_and_the_balancer(compose: dict[str, Any]):
    jobs = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    asked = {job["job_name"]: job["dns_sd_configs"][0] for job in jobs}

    assert set(asked["quiver"]["names"]) == {"quiver", "quiver-gpu", "replica"}
    assert asked["balancer"]["names"] == ["balancer"]
    assert f"bind :{asked['balancer']['port']} " in DEPLOYED
    assert {name for one in asked.values() for name in one["names"]} <= set(compose)


@pytest.mark.parametrize(
    ("profile", "number"),
    [
        *(("scale", number) for number in ("0", "33", "two", "-1", "1;ls")),
        ("cluster", "0"),
        ("cluster", "16"),
    ],
)
def test_a_number_of_replicas_that_cannot_be_is_refused(profile: str, number: str):
    done = subprocess.run(
        [ROOT / "scripts" / "compose", "up"],
        env={**os.environ, "PROFILE": profile, "REPLICAS": number},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 2
    assert f"got '{number}'" in done.stderr
