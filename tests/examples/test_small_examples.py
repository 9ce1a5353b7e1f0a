"""The small examples, against a running service."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_quickstart(live_server: str):
    output = run(sys.executable, EXAMPLES / "quickstart.py", live_server)

    assert "4,000,000 bytes became 500,064" in output
    measured, stated = map(float, re.findall(r"(0\.\d+) (?:measured|stated)", output))
    assert measured == pytest.approx(stated, rel=0.02)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(live_server: str):
    output = run("bash", EXAMPLES / "curl.sh", live_server)

    assert '"num_levels":4,"shape":[6],"dtype":"float32","block_size":null,"seed":7' in output
    assert re.search(r"^ *400037 .*decoded\.msgpack$", output, re.MULTILINE)
    assert '"code":"invalid_option"' in output
