"""The code of docs/adapters.md and docs/codecs.md runs, and that of the tutorial on DDP."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flower_threads import simulate

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "adapters.md").read_text()
CODECS = (DOCS / "codecs.md").read_text()
TUTORIAL = (DOCS / "tutorials" / "ddp.md").read_text()
BLOCK = re.compile(
    r"(?:^<!-- adapters: (\w+) -->\n)?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
SECONDS = 240


def code_of(name: str, page: str = PAGE) -> str:
    [found] = [code for mark, code in BLOCK.findall(page) if mark == name]
    return str(found)


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_block_is_run():
    assert sorted(mark for mark, _ in BLOCK.findall(PAGE)) == [
        "flower",
        "safetensors",
        "states",
        "torchrun",
    ]


def test_the_example_of_the_hook(tmp_path: Path):
    (tmp_path / "train.py").write_text(code_of("torchrun"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

    told = run([*command, "train.py"], tmp_path)
    assert told.count("Traffic(") == 2
    assert {path.name for path in tmp_path.glob("*.pt")} == {"rank0.pt", "rank1.pt"}


def test_the_tutorial(tmp_path: Path):
    (tmp_path / "train.py").write_text(code_of("tutorial", TUTORIAL))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

    told = run([*command, "train.py"], tmp_path)
    assert told.count("Traffic(") == 2


def test_the_example_of_files(tmp_path: Path):
    run([sys.executable, "-c", code_of("safetensors")], tmp_path)

    assert (tmp_path / "restored.safetensors").stat().st_size > 4 * 300 * 200


def test_the_example_of_states(tmp_path: Path):
    run([sys.executable, "-c", code_of("states")], tmp_path)

    assert (tmp_path / "small.safetensors").is_file()


def test_the_example_of_codecs(tmp_path: Path):
    run([sys.executable, "-c", code_of("codecs", CODECS)], tmp_path)

    assert (tmp_path / "embeddings.zarr" / "zarr.json").is_file()


def test_the_example_of_flower(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    apps: dict[str, Any] = {}
    exec(compile(code_of("flower"), "flower example", "exec"), apps)

    simulate(monkeypatch, apps["server_app"], apps["client_app"], 2)
    assert "[RoundBytes(round=1, " in capsys.readouterr().out
