"""Vectors worth compressing: weights, gradients and embeddings of a small network.

A network with two hidden layers learns scikit-learn's digits (1,797 images of 8 x 8 pixels)
for a second. Everything is seeded: every run gives the same vectors, up to the last
digits of the machine's matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

Array = NDArray[np.float32]

SIZES = (64, 512, 256, 10)  # pixels, two hidden layers, digits
BATCH = 64
RATE = 0.05
STEPS = 230  # ten times through the training images
EARLY = 10
TRAINING_IMAGES = 1437


@dataclass(frozen=True)
class Study:
    """What one training run gives.

    Attributes
    ----------
    vectors
        Name to float32 array, in the order of the table. Weights and gradients are those of the
        second layer, activations and embeddings the outputs of the first and second one.
    accuracy
        Share of the held-out images that the network names rightly.
    """

    vectors: dict[str, Array]
    accuracy: float


def collect() -> Study:
    """Train the network; return its weights, two gradients and its outputs for new images."""
    # These matrix products are small: threads would cost more than they gain.
    with threadpool_limits(limits=1, user_api="blas"):
        return _train()


def _train() -> Study:
    rng = np.random.default_rng(0)
    images, labels = _digits(rng)
    weights = [
        (rng.standard_normal((m, n)) * np.sqrt(2 / m)).astype(np.float32)
        for m, n in pairwise(SIZES)
    ]
    gradients = {}
    for step in range(1, STEPS + 1):
        batch = rng.integers(0, TRAINING_IMAGES, BATCH)
        slopes = _gradients(weights, images[batch], labels[batch])
        weights = [w - RATE * slope for w, slope in zip(weights, slopes, strict=True)]
        if step in (EARLY, STEPS):
            gradients[f"gradient, step {step}"] = slopes[1]

    held_out = images[TRAINING_IMAGES:]
    _, hidden, embedding = _activations(weights, held_out)
    right = (embedding @ weights[2]).argmax(axis=1) == labels[TRAINING_IMAGES:]
    vectors = {
        "weights": weights[1],
        **gradients,
        "activations": hidden,
        "embeddings": embedding,
    }
    return Study(vectors, float(right.mean()))


def _digits(rng: np.random.Generator) -> tuple[Array, NDArray[np.int64]]:
    data = load_digits()
    order = rng.permutation(len(data.target))
    return (data.data[order] / 16).astype(np.float32), data.target[order]


def _activations(weights: list[Array], images: Array) -> list[Array]:
    """The images and the outputs of both hidden layers: rectified linear units, no biases."""
    layers = [images]
    for weight in weights[:-1]:
        layers.append(np.maximum(layers[-1] @ weight, 0))
    return layers


def _gradients(weights: list[Array], images: Array, labels: NDArray[np.int64]) -> list[Array]:
    """Gradient of the mean cross-entropy in every weight, by backpropagation."""
    layers = _activations(weights, images)
    scores = layers[-1] @ weights[-1]
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    delta = odds / odds.sum(axis=1, keepdims=True)
    delta[np.arange(len(labels)), labels] -= 1
    delta /= np.float32(len(labels))
    found: list[Array] = []
    for weight, layer in zip(weights[::-1], layers[::-1], strict=True):
        found.insert(0, layer.T @ delta)
        delta = (delta @ weight.T) * (layer > 0)
    return found
