"""The parameter server: collects a round's messages, averages them, broadcasts one update.

``python -m parameter_server.server CONFIG``

One thread decides everything, in the order in which events come: a worker said hello, sent a
message, or is gone. The others only wait on sockets.
"""

from __future__ import annotations

import hashlib
import queue
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from parameter_server import data, model, trees
from parameter_server.averaging import Averager
from parameter_server.compression import compressor
from parameter_server.config import SERVER, Config, worker_name
from parameter_server.protocol import (
    NEVER,
    Channel,
    Frame,
    Hello,
    Kind,
    ProtocolError,
    Receipt,
    Welcome,
    pack,
    unpack,
)
from parameter_server.records import Point, Progress, Result, RoundRecord
from parameter_server.trees import exact

from quiver_client import QuiverClientError
from quiver_client.ps import QuantizedTree, Tag, Verdict
from quiver_kernels.errors import QuiverError

FAREWELL_SECONDS = 10.0
MAX_EVENTS = 64  # Then connections wait: frames are large.


@dataclass(frozen=True)
class Event:
    """Something that a connection's thread saw; `frame` is None when the worker is gone."""

    worker: int
    channel: Channel
    frame: Frame | None


class Server:
    """A parameter server; see `run`."""

    def __init__(self, config: Config) -> None:
        _, self._test = data.load(Path(config.data))
        self._config = config
        self._model = model.initial(config.sizes, config.seed)
        self._compressor = compressor(config, SERVER, self._model)
        self._averager = Averager(config, self._compressor, self._model)
        self._progress = Progress(version=0, last_counted=[NEVER] * config.workers)
        # The present round: whose messages count, what was not counted, and its end.
        self._counted: set[int] = set()
        self._not_counted: list[str] = []
        self._deadline = 0.0
        # Connections, and until when a round waits for a worker that has none.
        self._events: queue.Queue[Event] = queue.Queue(MAX_EVENTS)
        self._channels: dict[int, Channel] = {}
        start = time.monotonic() + config.patience
        self._awaited = dict.fromkeys(range(config.workers), start)

    def run(self) -> Result:
        """Train, from the last checkpoint if there is one, and tell the workers to stop.

        Raises
        ------
        TimeoutError
            No message came for `Config.patience` seconds.
        """
        self._resume()
        with socket.create_server(("127.0.0.1", 0), backlog=2 * self._config.workers) as listener:
            self._announce(listener.getsockname()[1])
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            begun = time.monotonic()
            while self._progress.version < self._config.rounds:
                self._train_round()
            seconds = time.monotonic() - begun
            self._say_farewell()
        return Result(
            scheme=self._config.scheme,
            seed=self._config.seed,
            workers=self._config.workers,
            digest=_digest(self._model),
            seconds=seconds,
            points=self._progress.points,
            rounds=self._progress.rounds,
        )

    # -- a round -------------------------------------------------------------------------

    def _train_round(self) -> None:
        round_id = self._progress.version
        self._averager.begin(round_id)
        self._counted, self._not_counted = set(), []
        self._collect()

        version = round_id + 1
        update = self._compressor.compress(self._averager.mean(), Tag(version, version, SERVER))
        # As the workers do, so that everybody has the same model.
        self._model = model.subtract(self._model, self._compressor.restore(update))
        self._progress.version = version
        self._progress.rounds.append(RoundRecord(sorted(self._counted), self._not_counted))
        self._broadcast(Kind.UPDATE, update.to_bytes())
        self._evaluate()
        if version % self._config.checkpoint_every == 0:
            self._checkpoint()

    def _collect(self) -> None:
        """Take messages in until everybody's is there, or time has passed."""
        self._deadline = time.monotonic() + self._config.patience
        while (until := self._open_until()) is not None:
            try:
                event = self._events.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                continue
            self._handle(event)
        if not self._counted:
            raise TimeoutError(f"round {self._progress.version} ended without any message")

    def _open_until(self) -> float | None:
        """Until when the round waits for another message; None: no longer."""
        now, deadline = time.monotonic(), self._deadline
        limits = [
            deadline if worker in self._channels else min(until, deadline)
            for worker, until in self._awaited.items()
            if worker not in self._counted
        ]
        if not self._counted:
            # A mean of nothing is no mean: somebody has to come back.
            limits.append(deadline)
        return max((limit for limit in limits if limit > now), default=None)

    def _handle(self, event: Event) -> None:
        if event.frame is None:
            self._lose(event)
        elif event.frame.kind is Kind.HELLO:
            self._progress.up += event.frame.nbytes
            self._welcome(event)
        else:
            self._progress.up += event.frame.nbytes
            self._take(event, event.frame)

    def _take(self, event: Event, frame: Frame) -> None:
        """Count a message, or say why not."""
        round_id, reason = NEVER, f"unexpected {frame.kind.name}"
        if frame.kind is Kind.MESSAGE:
            try:
                tree = QuantizedTree.from_bytes(frame.payload)
                round_id = NEVER if tree.tag.round is None else tree.tag.round
                reason = self._judge(event.worker, tree)
            except (QuiverError, QuiverClientError, ValueError) as error:
                reason = f"refused: {error}"
        if reason == Verdict.ACCEPTED:
            if not self._counted:
                self._deadline = time.monotonic() + self._config.round_seconds
            self._counted.add(event.worker)
            self._progress.last_counted[event.worker] = round_id
        else:
            self._not_counted.append(f"worker {event.worker}, round {round_id}: {reason}")
        receipt = Receipt(round_id, self._is_counted(event.worker, round_id), reason)
        self._send(event.worker, event.channel, Kind.RECEIPT, pack(receipt))

    def _judge(self, worker: int, tree: QuantizedTree) -> str:
        if tree.tag.client != worker_name(worker):
            return f"worker {worker} cannot speak for {tree.tag.client}"
        return self._averager.add(tree)

    def _is_counted(self, worker: int, round_id: int) -> bool:
        """Whether a message of this worker is part of that round's mean."""
        if round_id == self._progress.version:
            return worker in self._counted
        past = self._progress.rounds
        return 0 <= round_id < len(past) and worker in past[round_id].counted

    def _evaluate(self) -> None:
        progress, config = self._progress, self._config
        if progress.version % config.evaluate_every and progress.version < config.rounds:
            return
        accuracy = model.accuracy(self._model, self._test)
        point = Point(progress.version, accuracy, progress.up, progress.down)
        progress.points.append(point)
        print(
            f"{config.scheme}, seed {config.seed}, round {point.rounds}: accuracy {accuracy:.2%}, "
            f"{point.up:,} bytes up, {point.down:,} down, "
            f"{len(self._counted)} of {config.workers} workers",
            flush=True,
        )

    # -- workers come and go -------------------------------------------------------------

    def _announce(self, port: int) -> None:
        draft = self._config.home / "port.draft"
        draft.write_text(str(port))
        draft.replace(self._config.home / "port")

    def _accept(self, listener: socket.socket) -> None:
        """Thread: a thread for each connection."""
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # The training is over.
            threading.Thread(target=self._listen, args=(Channel(connection),), daemon=True).start()

    def _listen(self, channel: Channel) -> None:
        """Thread: the frames of one connection become events."""
        try:
            first = channel.receive()
            worker = self._who(first)
        except (OSError, EOFError, ProtocolError) as error:
            print(f"a stranger was turned away: {error}", flush=True)
            channel.close()
            return
        self._events.put(Event(worker, channel, first))
        try:
            while True:
                self._events.put(Event(worker, channel, channel.receive()))
        except (OSError, EOFError, ProtocolError):
            self._events.put(Event(worker, channel, None))

    def _who(self, first: Frame) -> int:
        worker = unpack(first.payload, Hello).worker if first.kind is Kind.HELLO else NEVER
        if worker not in self._awaited:
            raise ProtocolError(f"no hello of a worker 0..{self._config.workers - 1}")
        return worker

    def _welcome(self, event: Event) -> None:
        """Let a worker in: it gets the model as it is, and the round to begin with."""
        worker, version = event.worker, self._progress.version
        old = self._channels.get(worker)
        if old is not None and old is not event.channel:
            old.close()
        self._channels[worker] = event.channel
        welcome = Welcome(self._progress.last_counted[worker])
        self._send(worker, event.channel, Kind.WELCOME, pack(welcome))
        tree = exact(self._model, Tag(version, version, SERVER))
        self._send(worker, event.channel, Kind.MODEL, tree.to_bytes())

    def _lose(self, event: Event) -> None:
        if self._channels.get(event.worker) is event.channel:
            del self._channels[event.worker]
            self._awaited[event.worker] = time.monotonic() + self._config.absence_seconds
        event.channel.close()

    def _send(self, worker: int, channel: Channel, kind: Kind, payload: bytes) -> None:
        try:
            self._progress.down += channel.send(kind, payload)
        except OSError as error:
            print(f"worker {worker} is not reached: {error}", flush=True)
            channel.close()  # Its thread wakes up and says that it is gone.

    def _broadcast(self, kind: Kind, payload: bytes) -> None:
        for worker, channel in self._channels.items():
            self._send(worker, channel, kind, payload)

    def _say_farewell(self) -> None:
        """Say stop and wait until the workers have closed, for they read what is on its way."""
        self._broadcast(Kind.STOP, b"")
        deadline = time.monotonic() + FAREWELL_SECONDS
        while self._channels and (left := deadline - time.monotonic()) > 0:
            try:
                event = self._events.get(timeout=left)
            except queue.Empty:
                return
            if event.frame is None:
                self._lose(event)

    # -- checkpoints ---------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """Write all that a server needs to go on from here; keep the one before."""
        progress = np.frombuffer(msgspec.json.encode(self._progress), np.uint8)
        arrays = (
            trees.named("model", self._model)
            | trees.named("compressor", self._compressor.state())
            | {"progress": progress}
        )
        files = self._checkpoints()
        trees.save(self._config.home / f"version-{self._progress.version:06d}.tree", arrays)
        for old in files[:-1]:
            old.unlink()

    def _resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        if not (files := self._checkpoints()):
            return
        arrays = trees.load(files[-1]).arrays()
        self._model = trees.part(arrays, "model")
        self._compressor.load(trees.part(arrays, "compressor"))
        self._progress = msgspec.json.decode(arrays["progress"].tobytes(), type=Progress)
        print(f"going on from {files[-1].name}", flush=True)

    def _checkpoints(self) -> list[Path]:
        return sorted(self._config.home.glob("version-*.tree"))


def _digest(arrays: model.Tree) -> str:
    return hashlib.sha256(exact(arrays).to_bytes()).hexdigest()


def main(path: Path) -> None:
    """Run the server of a configuration; the result goes beside it."""
    config = Config.read(path)
    result = Server(config).run()
    (config.home / "result.json").write_bytes(msgspec.json.encode(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
