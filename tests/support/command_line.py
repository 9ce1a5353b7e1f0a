"""Runs of the ``quiver`` command in the test's own process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from quiver_client.cli.app import run


@dataclass(frozen=True)
class Ran:
    """What a run gave: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Standard output as JSON; the run must have succeeded."""
        assert self.code == 0, self.err
        return json.loads(self.out)


class Command:
    """Runs commands; made for a test by `capsys`."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Ran:
        """Run ``quiver arguments...``."""
        self._capsys.readouterr()
        code = run([str(one) for one in arguments])
        told = self._capsys.readouterr()
        return Ran(code, told.out, told.err)
