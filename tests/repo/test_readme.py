"""The code in README and docs runs: every marked block, against a live server.

A block runs when an HTML comment stands right above its fence: ``<!-- test: NAME -->``. Blocks of
one file with the same name run as one script, in order. A block that cannot run in a test says
why: ``<!-- untested: REASON -->``; what needs PyTorch is run in tests/adapters: ``<!-- adapters:
NAME -->``. In what newcomers read, every bash and python block has one of the three.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / name
    for name in ("README.md", "kernels/README.md", "service/README.md", "clients/python/README.md")
] + sorted((ROOT / "docs").rglob("*.md"))
# Whoever starts reads these and tries every line.
FOR_NEWCOMERS = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("index", "quick-start", "concepts")),
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
]
DOCUMENTED_ADDRESS = re.compile(r"(127\.0\.0\.1|localhost):8000\b")
SECONDS = 120

BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>test|untested|adapters): (?P<text>.+?) -->\n)?"
    r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
COMMANDS = {
    "bash": ("bash", "-euo", "pipefail", "-c"),
    "python": (sys.executable, "-c"),
}


@dataclass(frozen=True)
class Block:
    """One fenced block, and what the comment above it says: `mark` is test, untested or None."""

    language: str
    code: str
    mark: str | None
    text: str | None


@dataclass(frozen=True)
class Example:
    """The blocks of one name and one language, as one script."""

    name: str
    language: str
    code: str

    def run(self, address: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run it in `folder`, with `address` in place of the documented one."""
        executables = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [*COMMANDS[self.language], DOCUMENTED_ADDRESS.sub(address, self.code)],
            cwd=folder,
            env=os.environ | {"PATH": executables, "MPLBACKEND": "agg"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )


def blocks(text: str) -> Iterator[Block]:
    for match in BLOCK.finditer(text):
        yield Block(match["language"], match["code"], match["mark"], match["text"])


def examples(text: str) -> list[Example]:
    """The scripts that `text` holds, in order of their first blocks."""
    scripts: dict[tuple[str, str], str] = {}
    for block in blocks(text):
        if block.mark == "test":
            key = (str(block.text), block.language)
            scripts[key] = scripts.get(key, "") + block.code
    return [Example(name, language, code) for (name, language), code in scripts.items()]


def unmarked(text: str) -> list[str]:
    """The first lines of runnable blocks that say neither that they are tested nor why not."""
    return [
        block.code.partition("\n")[0]
        for block in blocks(text)
        if block.language in COMMANDS and block.mark is None
    ]


def documented_examples() -> list[pytest.ParameterSet]:
    return [
        pytest.param(
            example,
            id=f"{document.relative_to(ROOT)}:{example.name}",
            marks=[pytest.mark.faces] if document.is_relative_to(ROOT / "docs") else [],
        )
        for document in DOCUMENTS
        if document.exists()
        for example in examples(document.read_text())
    ]


@pytest.mark.parametrize("example", documented_examples())
def test_documented_code_runs(example: Example, live_server: str, tmp_path: Path):
    done = example.run(urlsplit(live_server).netloc, tmp_path)

    assert done.returncode == 0, f"{example.code}\n{done.stdout}\n{done.stderr}"


def test_the_readme_shows_the_shell_and_python():
    shown = {example.language for example in examples((ROOT / "README.md").read_text())}

    assert {"bash", "python"} <= shown


@pytest.mark.parametrize("page", FOR_NEWCOMERS, ids=lambda page: page.stem)
def test_every_block_that_a_newcomer_reads_is_tested_or_says_why_not(page: Path):
    assert unmarked(page.read_text()) == []


SAMPLE = """
<!-- test: greet -->
```bash
echo hello > greeting
```

Then:

<!-- test: greet -->
```bash
test "$(cat greeting) http://127.0.0.1:8000" = "hello http://192.0.2.1:9" # localhost:8000
```

<!-- test: fails -->
```python
import sys

sys.exit("the address is localhost:8000")
```

<!-- untested: starts a server -->
```bash
make serve
```

```python
nobody_ran(this)
```

```text
no code
```
"""


def test_the_harness_joins_blocks_and_puts_the_address_in(tmp_path: Path):
    greet, fails = examples(SAMPLE)

    assert greet.run("192.0.2.1:9", tmp_path).returncode == 0
    assert "the address is 192.0.2.1:9" in fails.run("192.0.2.1:9", tmp_path).stderr


def test_the_harness_sees_a_failing_block(tmp_path: Path):
    failing = [
        Example("x", "bash", "false | true\n"),
        Example("x", "bash", "echo $undefined\n"),
        Example("x", "python", "raise SystemExit(3)\n"),
    ]

    assert all(example.run("192.0.2.1:9", tmp_path).returncode for example in failing)


def test_the_harness_names_unmarked_blocks():
    assert unmarked(SAMPLE) == ["nobody_ran(this)"]
