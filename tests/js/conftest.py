"""Node where it is installed, and a user's folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.js.node import PACKAGE, Node

OLDEST = 18


@pytest.fixture(scope="session")
def node() -> Node:
    """Node, where it is installed and not too old; a complete run has one."""
    reason = f"node {OLDEST} or later is not installed: the JavaScript client cannot be tested"
    found = shutil.which("node")
    if found is not None:
        shown = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
        if int(shown.stdout.removeprefix("v").partition(".")[0]) >= OLDEST:
            return Node()
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of a user's, with the package installed."""
    modules = tmp_path / "node_modules"
    modules.mkdir()
    (modules / "quiver-client").symlink_to(PACKAGE, target_is_directory=True)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    return tmp_path
