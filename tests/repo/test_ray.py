"""Ray's tests need an environment of their own: they are a command, and no silent gap."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()


def recipe(target: str) -> str:
    """The lines of a target in the Makefile."""
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert found is not None
    return found[1]


def test_make_test_leaves_them_out_and_says_so():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]

    assert "tests/ray" in settings["ini_options"]["norecursedirs"]
    assert "make test-ray" in recipe("test")


def test_a_command_runs_all_of_them_before_a_change_lands_and_people_know_it():
    assert " tests/ray " in recipe("test-ray")
    assert list((ROOT / "tests" / "ray").glob("test_*.py"))
    assert re.search(r"^ *part test-ray \d+$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert "`make test-ray`" in (ROOT / "README.md").read_text()


def test_the_cluster_of_containers_is_tested_by_a_command_too():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]

    assert "tests/cluster" in settings["ini_options"]["norecursedirs"]
    assert " tests/cluster " in recipe("test-cluster")
    assert list((ROOT / "tests" / "cluster").glob("test_*.py"))
    assert re.search(r"^ *part test-cluster \d+$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert "`make test-cluster`" in (ROOT / "README.md").read_text()
