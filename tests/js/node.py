"""Node, and the package in `clients/js`."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "clients" / "js"


class Node:
    """Runs programs in Node."""

    def run(self, *arguments: str | Path, cwd: Path = HERE, **environment: str) -> str:
        """What a program writes; it must end well."""
        done = subprocess.run(
            ["node", *map(str, arguments)],
            cwd=cwd,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def tests(self, name: str, **environment: str) -> int:
        """Run a file of tests; how many passed."""
        reporter = "--test-reporter=tap"
        output = self.run("--test", reporter, HERE / name, **environment)
        assert "\n# skipped 0\n" in output, output
        found = re.search(r"^# pass (\d+)$", output, re.MULTILINE)
        assert found, output
        return int(found[1])

    def agreement(self, cases: Iterable[bytes], folder: Path, source: Path) -> dict[str, Any]:
        """What the decoder in `source` says of the cases (`corpus`)."""
        corpus = folder / "corpus.bin"
        corpus.write_bytes(b"".join(cases))
        found: dict[str, Any] = json.loads(self.run(HERE / "agree.mjs", source, corpus))
        return found
