"""What a worker writes down before it sends, so that its death costs and repeats nothing.

After computing round r the worker's optimizer has moved on and its residual no longer holds what
is in the message. Whether that message was counted is known to the server alone. So the state
after round r and the message go into one file before the message goes out. Whoever starts again
sends the same bytes once more if the round is still open, or takes them back if it ended without
them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from parameter_server import trees

from quiver_client.ps import Tag

_NAME = re.compile(r"round-(\d+)\.tree")


@dataclass(frozen=True)
class Entry:
    """One round of one worker.

    Attributes
    ----------
    round_id
        The round.
    state
        What the worker keeps, after it computed the message of the round.
    message
        That message in bytes; empty when it is known that it was not counted, and the state
        already holds what was in it.
    """

    round_id: int
    state: trees.Arrays
    message: bytes


class Journal:
    """The entries of one worker: the last one, and one for each checkpoint of the server.

    Parameters
    ----------
    folder
        Of this worker alone; made if it is not there.
    checkpoint_every
        Entries of the rounds right before a checkpoint are kept, for a return to it.
    """

    def __init__(self, folder: Path, checkpoint_every: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._every = checkpoint_every

    def write(self, entry: Entry) -> None:
        """Keep an entry, drop the one before it."""
        message = np.frombuffer(entry.message, np.uint8)
        arrays = trees.named("state", entry.state) | {"message": message}
        trees.save(self._path(entry.round_id), arrays, Tag(round=entry.round_id))
        before = entry.round_id - 1
        if (before + 1) % self._every:
            self._path(before).unlink(missing_ok=True)

    def before(self, round_id: int) -> Entry | None:
        """The last entry of a round before `round_id`; None: there is none."""
        return self._read([number for number in self._rounds() if number < round_id])

    def at(self, round_id: int) -> Entry | None:
        """The entry of a round, if there is one."""
        return self._read([number for number in self._rounds() if number == round_id])

    def forget_after(self, round_id: int) -> None:
        """Drop the entries of later rounds: the server has gone back to a checkpoint."""
        for number in self._rounds():
            if number > round_id:
                self._path(number).unlink()

    def _rounds(self) -> list[int]:
        found = (_NAME.fullmatch(path.name) for path in self._folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def _read(self, rounds: list[int]) -> Entry | None:
        if not rounds:
            return None
        arrays = trees.load(self._path(rounds[-1])).arrays()
        return Entry(rounds[-1], trees.part(arrays, "state"), arrays["message"].tobytes())

    def _path(self, round_id: int) -> Path:
        return self._folder / f"round-{round_id:06d}.tree"
