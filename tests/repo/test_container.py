"""What the Dockerfile and the Compose file promise, read without a container engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from quiver_service.settings import Settings

ROOT = Path(__file__).parents[2]
SERVICES = ("quiver", "quiver-gpu")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), continuation lines joined, comments left out."""
    without_comments = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    joined = re.sub(r"\s*\\\n\s*", " ", without_comments)
    return [(words[0], words[1]) for line in joined.splitlines() if (words := line.split(None, 1))]


def final_stage() -> list[tuple[str, str]]:
    every = instructions()
    last = max(number for number, (name, _) in enumerate(every) if name == "FROM")
    return every[last:]


def arguments(name: str, of: list[tuple[str, str]]) -> list[str]:
    return [value for instruction, value in of if instruction == name]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_every_stage_starts_from_the_one_base_image():
    assert arguments("ARG", instructions())[0] == "BASE_IMAGE=python:3.11-slim-bookworm"
    assert {base.split()[0] for base in arguments("FROM", instructions())} == {"${BASE_IMAGE}"}


def test_any_builder_can_build_it():
    newer = re.compile(
        r"--mount|--link|--chmod|--start-interval|<<-?['\"]?[A-Z]|^# *syntax", re.MULTILINE
    )

    assert not newer.search((ROOT / "Dockerfile").read_text())


def test_what_is_installed_from_elsewhere_is_hashed():
    commands = " && ".join(arguments("RUN", instructions())).split(" && ")
    installs = [command for command in commands if " install " in command]

    assert installs
    assert all("--require-hashes" in one or "--no-index" in one for one in installs)


@pytest.mark.parametrize("variant", ["cpu", "gpu", "ray"])
def test_each_variant_has_its_lock(variant: str):
    assert (ROOT / f"requirements/service-{variant}.txt").exists()
    assert any("service-${VARIANT}.txt" in copied for copied in arguments("COPY", instructions()))


def test_only_the_gpu_lock_brings_cuda():
    cuda = re.compile(r"^(cupy-cuda12x|nvidia-cuda-nvrtc-cu12)==", re.MULTILINE)
    gpu = (ROOT / "requirements/service-gpu.txt").read_text()

    assert len(cuda.findall(gpu)) == 2
    # The compiler and the headers, and not the toolkit: its libraries are gigabytes.
    assert set(re.findall(r"^(nvidia-[a-z0-9-]+)==", gpu, re.MULTILINE)) == {
        "nvidia-cuda-nvrtc-cu12",
        "nvidia-cuda-runtime-cu12",
    }
    assert not cuda.search((ROOT / "requirements/service-cpu.txt").read_text())


def test_the_image_runs_as_nobody_in_particular():
    assert arguments("USER", final_stage()) == ["10001:10001"]
    assert not {"ADD", "VOLUME"} & {name for name, _ in final_stage()}


def test_the_process_gets_the_signals():
    [entrypoint] = arguments("ENTRYPOINT", final_stage())

    assert json.loads(entrypoint) == ["python", "-m", "quiver_service"]
    assert not arguments("CMD", final_stage())


def test_the_image_says_whether_it_is_healthy(compose: dict[str, Any]):
    image = arguments("HEALTHCHECK", final_stage())[0]
    command = ["python", "-m", "quiver_service.healthcheck"]

    assert json.loads(image.partition("CMD ")[2]) == command
    assert compose["services"]["quiver"]["healthcheck"]["test"] == ["CMD", *command]


def test_nothing_but_sources_and_locks_goes_into_the_build():
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"]

    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule[:1] == "!"} == {
        "requirements/*.txt",
        "kernels",
        "service",
        "clients/python",
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(compose: dict[str, Any], name: str):
    service = compose["services"][name]

    assert service["read_only"] is True
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] > 0
    assert "mem_limit" in service
    [(folder, _, options)] = [mount.partition(":") for mount in service["tmpfs"]]
    assert folder == "/tmp"
    assert {"noexec", "nosuid", "nodev"} <= set(options.split(","))
    assert "volumes" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_listens_on_loopback_only(compose: dict[str, Any], name: str):
    assert compose["services"][name]["ports"] == ["127.0.0.1:${QUIVER_PORT:-8000}:8000"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_setting_but_where_to_listen_reaches_a_service(compose: dict[str, Any], name: str):
    environment = compose["services"][name]["environment"]
    passed = {key for key, value in environment.items() if value is None}
    where = {"host", "port", "uds", "allow_insecure"}
    files = {field for field in Settings.model_fields if field.endswith("_file")}
    # The image has its own folder of kernels, and not the extra that traces need.
    of_the_image = {"precompiled_dir", "traces"}

    assert passed == {
        f"QUIVER_{field.upper()}"
        for field in set(Settings.model_fields) - where - files - of_the_image
    }


@pytest.mark.parametrize("name", SERVICES)
def test_only_what_listens_on_loopback_goes_without_a_key(compose: dict[str, Any], name: str):
    service = compose["services"][name]
    image = " ".join(arguments("ENV", final_stage()))

    assert service["environment"]["QUIVER_ALLOW_INSECURE"] == "${QUIVER_ALLOW_INSECURE:-true}"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "QUIVER_HOST=0.0.0.0" in image
    assert "QUIVER_ALLOW_INSECURE" not in image


@pytest.mark.docker
@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_compose_itself_reads_the_file(profile: str):
    """Compose of either generation; it needs no engine for this."""
    command = ["docker", "compose"] if _runs("docker", "compose") else ["docker-compose"]
    shown = subprocess.run(
        [*command, "--profile", profile, "config"],
        cwd=ROOT,
        env={**os.environ, "QUIVER_DEVICE": "gpu", "QUIVER_GPU_MEMORY": "0.5"},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert shown.returncode == 0, shown.stderr
    service = yaml.safe_load(shown.stdout)["services"][
        "quiver" if profile == "cpu" else SERVICES[1]
    ]
    assert service["environment"]["QUIVER_DEVICE"] == "gpu"
    assert str(service["environment"]["QUIVER_GPU_MEMORY"]) == "0.5"


def _runs(*command: str) -> bool:
    try:
        return (
            subprocess.run([*command, "version"], capture_output=True, timeout=30).returncode == 0
        )
    except OSError:
        return False


def test_a_stop_leaves_time_to_finish(compose: dict[str, Any]):
    assert compose["services"]["quiver"]["stop_grace_period"] == "40s"


def test_the_gpu_service_starts_only_when_asked_for(compose: dict[str, Any]):
    cpu, gpu = (compose["services"][name] for name in SERVICES)
    device = gpu["deploy"]["resources"]["reservations"]["devices"][0]

    assert "profiles" not in cpu
    assert gpu["profiles"] == ["gpu"]
    assert (device["driver"], device["count"]) == ("nvidia", 1)
    assert "gpu" in device["capabilities"]
    assert gpu["build"]["args"] == {"VARIANT": "gpu"}
    assert cpu["build"]["args"] == {"VARIANT": "cpu"}
