"""The network: fully connected layers with rectified linear units, in NumPy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from parameter_server.data import Images

# A model, its gradient and its update: arrays by name, such as "layer0.weight".
Tree = dict[str, NDArray[np.float32]]


def initial(sizes: tuple[int, ...], seed: int) -> Tree:
    """Random weights (He et al. 2015: variance 2 / inputs) and zero biases.

    Parameters
    ----------
    sizes
        Inputs, hidden units of each layer, classes.
    seed
        The same seed gives the same model.
    """
    rng = np.random.default_rng(seed)
    model: Tree = {}
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        weight = rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)
        model[f"layer{number}.weight"] = weight.astype(np.float32)
        model[f"layer{number}.bias"] = np.zeros(outputs, np.float32)
    return model


def loss_and_gradient(model: Tree, images: Images) -> tuple[float, Tree]:
    """Mean cross-entropy over the images, and its gradient by backpropagation."""
    outputs = _outputs(model, images.pixels)
    logarithms = _log_softmax(outputs[-1])
    rows = np.arange(len(images))
    loss = -float(logarithms[rows, images.labels].mean())

    slope = np.exp(logarithms)
    slope[rows, images.labels] -= 1
    slope /= np.asarray(len(images), slope.dtype)
    found: Tree = {}
    for number in reversed(range(len(model) // 2)):
        found[f"layer{number}.bias"] = slope.sum(axis=0)
        found[f"layer{number}.weight"] = outputs[number].T @ slope
        slope = (slope @ model[f"layer{number}.weight"].T) * (outputs[number] > 0)
    return loss, {name: found[name] for name in model}


def zeros(like: Tree) -> Tree:
    """Zeros in the shapes of a model."""
    return {name: np.zeros_like(values) for name, values in like.items()}


def add(one: Tree, other: Tree) -> Tree:
    """Their sum, array by array."""
    return {name: values + other[name] for name, values in one.items()}


def subtract(one: Tree, other: Tree) -> Tree:
    """Their difference, array by array."""
    return {name: values - other[name] for name, values in one.items()}


def accuracy(model: Tree, images: Images) -> float:
    """Share of the images whose most likely class is the right one."""
    guesses = _outputs(model, images.pixels)[-1].argmax(axis=1)
    return float((guesses == images.labels).mean())


def _outputs(model: Tree, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The pixels and what each layer makes of them; the last entry holds the scores."""
    layers = len(model) // 2
    found = [pixels]
    for number in range(layers):
        scores = found[-1] @ model[f"layer{number}.weight"] + model[f"layer{number}.bias"]
        found.append(scores if number == layers - 1 else np.maximum(scores, 0))
    return found


def _log_softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = scores - scores.max(axis=1, keepdims=True)
    found: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
