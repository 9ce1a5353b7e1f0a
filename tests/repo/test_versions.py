"""One version number: in the packages, in their pins on each other, and in the changelog."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "quiver-kernels": ROOT / "kernels",
    "quiver-service": ROOT / "service",
    "quiver-client": ROOT / "clients/python",
}
PIN = re.compile(r"(quiver-\w+)(?:\[[\w,]+\])?\s*(.*)")


def project(name: str) -> dict[str, Any]:
    return tomllib.loads((PACKAGES[name] / "pyproject.toml").read_text())


def version_of(name: str) -> str:
    """The version as the build reads it."""
    path = PACKAGES[name] / project(name)["tool"]["hatch"]["version"]["path"]
    found = re.fullmatch(r'(?:""".*"""\s+)?__version__ = "([^"]+)"\s*', path.read_text(), re.DOTALL)
    assert found, f"{path} is not just a version"
    return found[1]


def pins_of(name: str) -> list[tuple[str, str]]:
    """Every requirement of `name` on one of the three, as (distribution, specifier)."""
    tables = project(name)["project"]
    requirements = [
        *tables["dependencies"],
        *(one for extra in tables.get("optional-dependencies", {}).values() for one in extra),
    ]
    return [match.groups() for one in requirements if (match := PIN.match(one))]


def test_the_three_packages_have_one_version():
    assert len({version_of(name) for name in PACKAGES}) == 1


@pytest.mark.parametrize("name", PACKAGES)
def test_pins_name_that_version(name: str):
    # An extra that asks for another of the same package needs no number.
    others = [pin for pin in pins_of(name) if pin != (name, "")]
    wrong = [pin for pin in others if pin[1] != f"=={version_of('quiver-kernels')}"]

    assert wrong == []


@pytest.mark.parametrize("name", ["quiver-service", "quiver-client"])
def test_the_kernels_are_pinned(name: str):
    assert "quiver-kernels" in {distribution for distribution, _ in pins_of(name)}


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Any:
    """scripts/version.py."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import version

    return version


def test_everything_that_names_the_version_names_the_same(versions: Any):
    assert set().union(*versions.found(ROOT).values()) == {version_of("quiver-kernels")}
    assert all(versions.found(ROOT).values()), "a place that names no version"


def test_one_command_sets_it_everywhere(versions: Any, tmp_path: Path):
    for name in versions.PLACES:
        if (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    before = version_of("quiver-kernels")
    versions.put(tmp_path, "12.34.56rc1")

    assert set().union(*versions.found(tmp_path).values()) == {"12.34.56rc1"}
    for name in versions.PLACES:
        if (ROOT / name).exists():
            changed = (tmp_path / name).read_text()
            assert changed.replace("12.34.56rc1", before) == (ROOT / name).read_text()


def test_the_changelog_has_that_version():
    changelog = (ROOT / "CHANGELOG.md").read_text()

    assert version_of("quiver-kernels") in re.findall(r"^## \[?([^]\s]+)", changelog, re.MULTILINE)
