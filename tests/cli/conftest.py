"""What the tests of the command line share."""

from __future__ import annotations

import pytest

from command_line import Command


@pytest.fixture
def quiver(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, in this process, without a service or a terminal of the caller's."""
    for name in ("QUIVER_URL", "QUIVER_API_KEY", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    return Command(capsys)
