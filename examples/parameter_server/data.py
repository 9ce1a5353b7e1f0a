"""The data: scikit-learn's digits, shared out among workers, in batches fixed by a seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TRAINING_IMAGES = 1197
PIXEL_MAX = 16
SPLIT_SEED = 0


@dataclass(frozen=True)
class Images:
    """Images and what they show.

    Attributes
    ----------
    pixels
        float32, one row of 64 values in 0..1 for each image.
    labels
        int64, 0..9.
    """

    pixels: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: NDArray[np.int64] | slice) -> Images:
        """Some of them."""
        return Images(self.pixels[which], self.labels[which])


def digits() -> tuple[Images, Images]:
    """1,197 images to train with and 600 others to test with; the same for every run."""
    # Imported here: the workers read `export`'s file instead, and start the sooner.
    from sklearn.datasets import load_digits

    source = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(source.target))
    pixels = (source.data[order] / PIXEL_MAX).astype(np.float32)
    images = Images(pixels, source.target[order].astype(np.int64))
    return images.take(slice(TRAINING_IMAGES)), images.take(slice(TRAINING_IMAGES, None))


def export(path: Path) -> None:
    """Write both parts of `digits` into a file for the processes of a run."""
    train, test = digits()
    np.savez(
        path, train=train.pixels, train_labels=train.labels, test=test.pixels, labels=test.labels
    )


def load(path: Path) -> tuple[Images, Images]:
    """Both parts of `digits` from the file of `export`."""
    with np.load(path, allow_pickle=False) as file:
        train = Images(file["train"], file["train_labels"])
        return train, Images(file["test"], file["labels"])


def shard(images: Images, worker: int, workers: int) -> Images:
    """The images of one worker: every `workers`-th one."""
    return images.take(slice(worker, None, workers))


def batch(images: Images, size: int, seed: int, worker: int, round_id: int) -> Images:
    """The images of one round, drawn anew from (seed, worker, round) alone.

    No generator lives on from round to round, so a worker that starts again in the middle of
    a run draws what it would have drawn.
    """
    rng = np.random.default_rng([seed, worker, round_id])
    return images.take(rng.integers(0, len(images), size))
