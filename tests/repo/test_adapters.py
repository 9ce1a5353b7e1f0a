"""The adapters' tests need an environment of their own: they are a command, and no silent gap."""

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

    assert "tests/adapters" in settings["ini_options"]["norecursedirs"]
    assert "make test-adapters" in recipe("test")


def test_a_command_runs_all_of_them():
    # A folder that is named is looked into, whatever norecursedirs says.
    assert " tests/adapters " in recipe("test-adapters")
    assert list((ROOT / "tests" / "adapters").glob("test_*.py"))


def test_it_runs_before_a_change_lands_and_people_know_it():
    assert re.search(
        r"^ *part test-adapters \d+$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE
    )
    assert "`make test-adapters`" in (ROOT / "README.md").read_text()
