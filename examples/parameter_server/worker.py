"""A worker: looks at its images, sends compressed updates, follows the server's model.

``python -m parameter_server.worker CONFIG NUMBER``
"""

from __future__ import annotations

import socket
import sys
import time
from collections import deque
from pathlib import Path

from parameter_server import data, model, trees
from parameter_server.compression import compressor
from parameter_server.config import Config, worker_name
from parameter_server.journal import Entry, Journal
from parameter_server.optimizer import LocalAdam
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

from quiver_client.ps import QuantizedTree, Tag

PAUSE = 0.05


class Worker:
    """One worker; see `run`."""

    def __init__(self, config: Config, number: int) -> None:
        images, _ = data.load(Path(config.data))
        self._config = config
        self._number = number
        self._images = data.shard(images, number, config.workers)
        self._journal = Journal(config.home / worker_name(number), config.checkpoint_every)
        self._queue: deque[Frame] = deque()
        self._model: model.Tree = {}
        self._version = NEVER

    def run(self) -> None:
        """Take part until the server says stop; connects again when a connection breaks.

        Raises
        ------
        TimeoutError
            There was no server for `Config.patience` seconds.
        """
        while True:
            channel = self._connect()
            try:
                self._take_part(channel)
            except (OSError, EOFError) as error:
                self._say(f"lost the server: {error}")
            else:
                self._say(f"done; {channel.sent} bytes sent, {channel.received} received")
                return
            finally:
                channel.close()

    def _connect(self) -> Channel:
        deadline = time.monotonic() + self._config.patience
        while True:
            try:
                # The server writes its port anew whenever it starts.
                port = int((self._config.home / "port").read_text())
                return Channel(socket.create_connection(("127.0.0.1", port)))
            except (OSError, ValueError):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no server in {self._config.patience} s") from None
                time.sleep(PAUSE)

    def _take_part(self, channel: Channel) -> None:
        self._queue.clear()
        channel.send(Kind.HELLO, pack(Hello(self._number)))
        counted = NEVER
        while True:
            frame = self._queue.popleft() if self._queue else channel.receive()
            if frame.kind is Kind.WELCOME:
                counted = unpack(frame.payload, Welcome).counted
            elif frame.kind is Kind.MODEL:
                tree = QuantizedTree.from_bytes(frame.payload)
                self._model, self._version = tree.arrays(), _version(tree)
                self._catch_up(counted)
                self._deliver(channel)
            elif frame.kind is Kind.UPDATE:
                self._follow(QuantizedTree.from_bytes(frame.payload))
                if self._version < self._config.rounds:
                    self._deliver(channel)
            elif frame.kind is Kind.STOP:
                return
            else:
                raise ProtocolError(f"unexpected {frame.kind.name}")

    # -- the model -----------------------------------------------------------------------

    def _follow(self, tree: QuantizedTree) -> None:
        """Apply an update, bit by bit as the server does."""
        if _version(tree) != self._version + 1:
            raise ProtocolError(f"version {_version(tree)} does not follow {self._version}")
        self._model = model.subtract(self._model, self._compressor.restore(tree))
        self._version += 1

    def _catch_up(self, counted: int) -> None:
        """Go back to the worker's state before the present round.

        `counted`: the last round of which the server has this worker's part.
        """
        config = self._config
        self._optimizer = LocalAdam(self._model)
        self._compressor = compressor(config, worker_name(self._number), self._model)
        self._journal.forget_after(self._version)
        last = self._journal.before(self._version)
        if last is None:
            if counted != NEVER:
                self._say(f"NO STATE of round {counted}: moments and residuals begin at zero")
            return
        self._load(last)
        if last.message and last.round_id > counted:
            self._take_back(last)

    def _load(self, entry: Entry) -> None:
        self._optimizer.load(trees.part(entry.state, "optimizer"))
        self._compressor.load(trees.part(entry.state, "compressor"))

    def _take_back(self, entry: Entry) -> None:
        """What was in a message that was not counted goes into the next one."""
        self._compressor.give_back(QuantizedTree.from_bytes(entry.message))
        self._journal.write(Entry(entry.round_id, self._state(), b""))
        self._say(f"round {entry.round_id} ended without this worker; its part goes along later")

    def _state(self) -> trees.Arrays:
        optimizer = trees.named("optimizer", self._optimizer.state())
        return optimizer | trees.named("compressor", self._compressor.state())

    # -- a round -------------------------------------------------------------------------

    def _deliver(self, channel: Channel) -> None:
        """Send the message of the present round and wait for its receipt."""
        entry = self._journal.at(self._version)
        if entry is None:
            entry = self._compute()
            self._journal.write(entry)
        else:
            # It died, or lost the server, between writing this and hearing of the round's end.
            self._load(entry)
        if not entry.message:
            return
        channel.send(Kind.MESSAGE, entry.message)
        while (frame := channel.receive()).kind is not Kind.RECEIPT:
            self._queue.append(frame)
        if not unpack(frame.payload, Receipt).counted:
            self._take_back(entry)

    def _compute(self) -> Entry:
        config, round_id = self._config, self._version
        images = data.batch(self._images, config.batch, config.seed, self._number, round_id)
        _, gradient = model.loss_and_gradient(self._model, images)
        step = self._optimizer.step(gradient, config.rate_of(round_id))
        tag = Tag(round_id, self._version, worker_name(self._number), weight=1.0)
        tree = self._compressor.compress(step, tag)
        return Entry(round_id, self._state(), tree.to_bytes())

    def _say(self, text: str) -> None:
        print(f"worker {self._number}: {text}", flush=True)


def _version(tree: QuantizedTree) -> int:
    if tree.tag.model_version is None:
        raise ProtocolError("a model and an update say their version")
    return tree.tag.model_version


if __name__ == "__main__":
    Worker(Config.read(Path(sys.argv[1])), int(sys.argv[2])).run()
