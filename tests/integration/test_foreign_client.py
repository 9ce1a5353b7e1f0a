"""Another language, another msgpack library: Node quantizes, unpacks and restores on its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOREIGN = Path(__file__).parent / "foreign"


@pytest.fixture(scope="module")
def node_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The foreign client with its locked dependency, outside of the source tree."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        reason = "node and npm are not installed: the foreign client cannot be checked"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("foreign") / "client"
    shutil.copytree(FOREIGN, folder, ignore=shutil.ignore_patterns("node_modules"))
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_client_in_another_language_agrees(node_project: Path, live_server: str):
    done = subprocess.run(
        ["node", "--test", "check.test.mjs"],
        cwd=node_project,
        env=os.environ | {"QUIVER_TEST_URL": live_server},
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_lock_pins_by_integrity_and_names_no_host():
    packages = json.loads((FOREIGN / "package-lock.json").read_text())["packages"]
    installed = [package for path, package in packages.items() if path]

    assert installed
    assert all(package["integrity"].startswith("sha512-") for package in installed)
    assert not any("resolved" in package for package in installed)
