"""What a run leaves behind: accuracy against bytes, and what became of every round."""

from __future__ import annotations

import msgspec


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The run after some rounds.

    Attributes
    ----------
    rounds
        Rounds done.
    accuracy
        Share of the test images that the workers' model names rightly.
    up, down
        Bytes that have crossed the server's sockets since the beginning, frames, side
        information and the first model included: from the workers and to them.
    """

    rounds: int
    accuracy: float
    up: int
    down: int


class RoundRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One round.

    Attributes
    ----------
    counted
        Numbers of the workers in the mean.
    not_counted
        Reasons of the messages that came in during the round and were not counted.
    """

    counted: list[int]
    not_counted: list[str]


class Progress(msgspec.Struct, forbid_unknown_fields=True):
    """What the server knows of the run so far, besides the model.

    Attributes
    ----------
    version
        Of the model: updates made.
    last_counted
        By worker: the last round in which a message of it was counted.
    up, down
        Bytes, as in `Point`.
    """

    version: int
    last_counted: list[int]
    up: int = 0
    down: int = 0
    points: list[Point] = []
    rounds: list[RoundRecord] = []


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A finished run.

    Attributes
    ----------
    digest
        SHA-256 of the final model's arrays, in hexadecimal.
    seconds
        From the first round to the last one, since the server's last start.
    """

    scheme: str
    seed: int
    workers: int
    digest: str
    seconds: float
    points: list[Point]
    rounds: list[RoundRecord]
