"""Starts and stops the processes of a run: the service, the parameter server, the workers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from parameter_server.config import Config
from parameter_server.records import Result

EXAMPLES = Path(__file__).resolve().parents[1]
START_SECONDS = 180.0
STOP_SECONDS = 40.0
LOOK_SECONDS = 0.02


class Service:
    """The quantization service in a process of its own, on one port, however often it starts."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "service.log"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port: int = free.getsockname()[1]

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it; `wait_until_ready` says when it serves."""
        others = {k: v for k, v in os.environ.items() if not k.startswith("QUIVER_")}
        settings = {"QUIVER_HOST": "127.0.0.1", "QUIVER_PORT": str(self._port)}
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "quiver_service"],
                env=others | settings,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_until_ready(self) -> None:
        """Return when it serves; RuntimeError with its log if it does not."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if re.search(r"^QUIVER is ready at ", self._log.read_text(), re.MULTILINE):
                return
            time.sleep(LOOK_SECONDS)
        raise RuntimeError(f"the service did not start:\n{self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """End it as a crash would."""
        _kill(self._process)

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it: politely, then by force."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _kill(self._process)


class Training:
    """One run: a parameter server and its workers, each a process.

    A worker that dies is started again while the run is waited for, unless `supervised` is false.
    """

    def __init__(self, config: Config, *, supervised: bool = True) -> None:
        self._config = config
        self._supervised = supervised
        self._path = config.home / "config.json"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        """Start all of them; a folder with a checkpoint is gone on from."""
        self._config.home.mkdir(parents=True, exist_ok=True)
        (self._config.home / "port").unlink(missing_ok=True)
        self._config.write(self._path)
        with ExitStack() as stack:
            stack.callback(self.kill)
            self.start_server()
            for number in range(self._config.workers):
                self.start_worker(number)
            stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave no process behind."""
        self.kill()

    def start_server(self) -> None:
        """Start the parameter server."""
        self._start("server")

    def start_worker(self, number: int) -> None:
        """Start a worker."""
        self._start("worker", str(number))

    def kill(self) -> None:
        """Kill everything that still runs, as a power cut would."""
        for process in self._processes.values():
            _kill(process)

    def kill_server(self) -> None:
        """Kill the parameter server."""
        _kill(self._processes["server"])

    def kill_worker(self, number: int) -> None:
        """Kill a worker."""
        _kill(self._processes[f"worker {number}"])

    def signal_worker(self, number: int, which: signal.Signals) -> None:
        """Send a signal to a worker: SIGSTOP makes it late, SIGCONT lets it go on."""
        self._processes[f"worker {number}"].send_signal(which)

    def wait(self, seconds: float) -> Result:
        """Wait for the end of the run.

        Raises
        ------
        RuntimeError
            The server failed, or a worker did for good; with what it wrote.
        TimeoutError
            The run takes longer.
        """
        deadline = time.monotonic() + seconds
        server = self._processes["server"]
        while server.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no end after {seconds} s:\n{self.log('server')}")
            if self._supervised:
                self._revive()
            time.sleep(LOOK_SECONDS)
        if server.returncode != 0:
            raise RuntimeError(f"the parameter server failed:\n{self.log('server')}")
        for name, process in self._processes.items():
            if name in {"server", *self._dead()}:
                continue
            process.wait(max(0.0, deadline - time.monotonic()))
        return msgspec.json.decode((self._config.home / "result.json").read_bytes(), type=Result)

    def log(self, name: str) -> str:
        """What a process wrote, all its starts together: ``server``, ``worker 0``, ..."""
        return (self._config.home / f"{name}.log").read_text()

    def _dead(self) -> list[str]:
        return [name for name, process in self._processes.items() if process.poll() is not None]

    def _revive(self) -> None:
        """Start workers that were killed again; one that failed by itself would fail again."""
        for name in self._dead():
            code = self._processes[name].returncode
            if name == "server" or code == 0:
                continue
            if code > 0:
                raise RuntimeError(f"{name} failed:\n{self.log(name)}")
            self.start_worker(int(name.removeprefix("worker ")))

    def _start(self, role: str, *arguments: str) -> None:
        name = " ".join([role, *arguments])
        # These matrix products are small: threads would cost more than they gain.
        single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with (self._config.home / f"{name}.log").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", f"parameter_server.{role}", str(self._path), *arguments],
                cwd=EXAMPLES,
                env=os.environ | single,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
