"""docs/cli.md shows what `quiver inspect` says; tests/repo/test_readme.py runs its commands."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from command_line import Command

pytestmark = pytest.mark.faces

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def test_the_picture_is_what_is_drawn(
    quiver: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script, shown = re.findall(
        r"python3 -c '(import numpy[^']*)'\n\nquiver inspect [^\n]*\n```\n\n```text\n(.*?)```",
        PAGE,
        re.DOTALL,
    )[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    exec(compile(script, "docs/cli.md", "exec"), {"np": np})

    assert quiver("inspect", "weights.npy", "--bits", 3).out == shown


def test_every_command_is_on_the_page(quiver: Command):
    from quiver_client.cli.app import COMMANDS

    assert [entry.name for entry in COMMANDS if f"quiver {entry.name}" not in PAGE] == []
