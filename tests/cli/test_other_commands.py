"""``quiver info``, ``serve``, ``completion`` and the table of commands."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from command_line import Command
from quiver_client import LocalClient
from quiver_client._version import __version__
from quiver_client.cli import serve
from quiver_client.cli.app import COMMANDS

pytestmark = pytest.mark.faces

PROGRAM = [sys.executable, "-m", "quiver_client.cli"]


def test_every_command_has_help(quiver: Command):
    assert {entry.name for entry in COMMANDS} == {
        *("quantize", "dequantize", "inspect", "compare", "plan"),
        *("bench", "serve", "info", "completion"),
    }
    told = quiver("--help").out
    for entry in COMMANDS:
        assert entry.summary in told
        ran = quiver(entry.name, "--help")
        assert (ran.code, ran.out.startswith(f"Usage: quiver {entry.name}")) == (0, True)


def test_info_of_this_process(quiver: Command):
    data = quiver("info", "--json").data
    assert data["here"]["client"] == __version__
    assert data["info"] == LocalClient().info()
    told = quiver("info").out
    assert re.search(r"^devices +cpu(, gpu|; gpu is not here)$", told, re.MULTILINE)
    for one in data["info"]["schemes"]:
        assert f"\n{one['name']} " in told


def test_help_loads_no_kernels():
    code = (
        "import sys; from quiver_client.cli.app import run; run(['--help']); "
        "print(*{'numba', 'rich', 'quiver_kernels.cpu'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "")


# -- serve ------------------------------------------------------------------------------------


def test_serve_starts_the_service_and_stops_it(unused_tcp_port: int):
    started = subprocess.Popen(
        [*PROGRAM, "serve", "--port", str(unused_tcp_port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={n: v for n, v in os.environ.items() if not n.startswith("QUIVER_")},
    )
    try:
        assert started.stdout is not None
        url = f"http://127.0.0.1:{unused_tcp_port}"
        line = next(one for one in started.stdout if url in one)
        assert url in line
        with urllib.request.urlopen(f"{url}/livez") as answer:
            assert answer.status == 200
        # The command has become the service: the signal reaches it.
        started.send_signal(signal.SIGTERM)
        assert started.wait(30) == 0
    finally:
        started.kill()
        started.communicate()


def test_serve_without_the_service(quiver: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serve, "SERVICE", "quiver_service_that_is_not_there")
    ran = quiver("serve")
    assert ran.code == 4
    assert "the service is not installed here; pip install quiver-service" in ran.err
    assert quiver("serve", "--port", 70000).code == 2


def test_serve_where_a_process_cannot_be_replaced(quiver: Command, monkeypatch: pytest.MonkeyPatch):
    ran: list[Any] = []

    def run(arguments: list[str], *, env: dict[str, str], check: bool) -> Any:
        ran.append((arguments[1:], env["QUIVER_HOST"], env["QUIVER_PORT"]))
        return subprocess.CompletedProcess(arguments, 7)

    monkeypatch.setattr(serve, "POSIX", False)
    monkeypatch.setattr(subprocess, "run", run)
    assert quiver("serve", "--host", "::1", "--port", 0).code == 7
    assert ran == [(["-m", "quiver_service"], "::1", "0")]


# -- completion ---------------------------------------------------------------------------------


def completed(*words: str) -> set[str]:
    """What bash would be told after these words."""
    asked = {
        **os.environ,
        "_QUIVER_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("quiver", *words)),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(PROGRAM, env=asked, capture_output=True, text=True)
    return {line.partition(",")[2] for line in done.stdout.splitlines()}


def test_commands_and_options_are_completed():
    assert {"inspect", "info"} == completed("in")
    assert completed("inspect", "--ta") == {"--table-bits"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(quiver: Command, tmp_path: Path, shell: str):
    script = quiver("completion", shell).out
    assert "_QUIVER_COMPLETE" in script
    assert "quiver" in script
    if shutil.which(shell):
        path = tmp_path / "script"
        path.write_text(script)
        assert subprocess.run([shell, "-n", path], capture_output=True).returncode == 0
    assert quiver("completion", shell, "nonsense").code == 2
