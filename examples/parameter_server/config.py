"""What a training run is: one value, in a JSON file that all its processes read."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

SERVER = "server"


def worker_name(number: int) -> str:
    """How a worker is called in tags and seeds."""
    return f"worker-{number}"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A training run.

    Attributes
    ----------
    scheme
        How messages are compressed; a name that `compression.Scheme` knows.
    service
        URL of the quantization service; ``local:`` computes in each process.
    folder
        Where server and workers keep what they need after a restart.
    data
        File of the images, see `data.export`.
    seed
        Of the first model, the batches and the rounding.
    sizes
        Pixels, hidden units of each layer, classes.
    workers, rounds, batch
        How many workers and rounds; images that each worker looks at in a round.
    rate, decay
        Step length at round r: ``rate / sqrt(1 + decay * r)``.
    evaluate_every, checkpoint_every
        In rounds.
    round_seconds
        How long a round waits for others after its first message.
    absence_seconds
        How long it waits for a worker that has lost its connection.
    patience
        Seconds for which a process waits for another one that restarts.
    """

    scheme: str
    service: str
    folder: str
    data: str
    seed: int = 0
    sizes: tuple[int, ...] = (64, 256, 128, 10)
    workers: int = 4
    rounds: int = 150
    batch: int = 32
    rate: float = 0.01
    decay: float = 0.02
    evaluate_every: int = 10
    checkpoint_every: int = 50
    round_seconds: float = 60.0
    absence_seconds: float = 0.0
    patience: float = 60.0

    @property
    def home(self) -> Path:
        """`folder` as a path."""
        return Path(self.folder)

    def rate_of(self, round_id: int) -> float:
        """Step length at a round."""
        return self.rate / math.sqrt(1 + self.decay * round_id)

    def write(self, path: Path) -> None:
        """Write it."""
        path.write_bytes(msgspec.json.encode(self))

    @classmethod
    def read(cls, path: Path) -> Config:
        """Read it; msgspec.ValidationError names what is wrong."""
        return msgspec.json.decode(path.read_bytes(), type=cls)
