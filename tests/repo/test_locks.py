"""The locks: every distribution pinned and hashed, from nowhere in particular, and up to date."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))

# What each lock serves: packages of this repository, with extras.
SERVED = {
    "adapters": ["kernels[cpu,numcodecs,zarr]", "clients/python[flower,safetensors,torch]"],
    "bench": ["kernels[cpu]"],
    "browser": [],
    "build": [],
    "deploy": [],
    "package": [],
    "site": [],
    "ray": ["kernels[cpu]", "service[ray]", "clients/python[ray]"],
    "dev": ["kernels[cpu]", "service[otel]", "clients/python[cli]"],
    "service-cpu": ["kernels[cpu]", "service"],
    "service-ray": ["kernels[cpu]", "service[ray]", "clients/python[ray]"],
    "service-gpu": ["kernels[cpu,cuda12]", "service[cuda12]"],
}
# What Flower wants in an older version than the service has; so it has an environment of its own.
HELD_BACK = {
    ("adapters", name)
    for name in ("fastapi", "packaging", "protobuf", "rich", "starlette", "uvicorn")
}


def pins(lock: Path) -> dict[str, str]:
    """The versions that a lock pins, by normalised name."""
    return dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", lock.read_text(), re.MULTILINE))


def asked_for(served: str) -> list[Requirement]:
    """The requirements of a package, as `folder[extra,...]`, on others than this repository's."""
    folder, _, extras = served.removesuffix("]").partition("[")
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    chosen = [project["optional-dependencies"][extra] for extra in extras.split(",") if extra]
    every = [Requirement(one) for group in (project["dependencies"], *chosen) for one in group]
    return [one for one in every if not one.name.startswith("quiver-")]


def test_every_input_has_its_lock():
    inputs = {path.stem for path in (ROOT / "requirements").glob("*.in")}

    assert {lock.stem for lock in LOCKS} == inputs == set(SERVED)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_distribution_is_pinned_and_hashed(lock: Path):
    text = lock.read_text().replace("\\\n", " ")
    requirements = [line for line in text.splitlines() if line and line.lstrip()[0] != "#"]

    assert requirements
    for line in requirements:
        assert re.match(r"[a-z0-9-]+==[^\s;]+ ", line), line
        assert "--hash=sha256:" in line, line


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_does_not_say_where_files_come_from(lock: Path):
    assert not re.search(r"://|^--?[a-z]|\bfile:|@ ", lock.read_text(), re.MULTILINE)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_leaves_out_the_packages_of_this_repository(lock: Path):
    assert not [name for name in pins(lock) if name.startswith("quiver-")]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_satisfies_what_the_packages_ask_for(lock: Path):
    """Fails when a pyproject.toml changed and `make lock` did not follow."""
    pinned = pins(lock)
    unmet = [
        str(requirement)
        for served in SERVED[lock.stem]
        for requirement in asked_for(served)
        if not requirement.specifier.contains(pinned.get(canonicalize_name(requirement.name), "0"))
    ]

    assert unmet == []


def test_the_locks_agree_with_each_other():
    dev = pins(ROOT / "requirements/dev.txt")
    differing = {
        (lock.stem, name)
        for lock in LOCKS
        for name, version in pins(lock).items()
        if dev.get(name, version) != version
    }

    assert differing == HELD_BACK


def test_nothing_brings_torch():
    # The benchmarks compare with it, an adapter is tested with it; neither serves anybody.
    serving = [lock for lock in LOCKS if lock.stem not in {"adapters", "bench"}]

    assert not [lock.name for lock in serving if "torch" in pins(lock)]


def test_what_is_pinned_against_a_distributions_wish_is_in_the_lock():
    overrides = sorted((ROOT / "requirements").glob("*.override"))

    assert overrides
    for override in overrides:
        wanted = re.findall(r"^([a-z0-9-]+)==(\S+)$", override.read_text(), re.MULTILINE)
        pinned = pins(override.with_suffix(".txt"))
        assert wanted
        assert dict(wanted).items() <= pinned.items()
