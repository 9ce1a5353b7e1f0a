"""The worker's half of Efficient-Adam: Adam's moments stay here, only steps travel."""

from __future__ import annotations

import numpy as np
from parameter_server import trees
from parameter_server.model import Tree, zeros

BETA1 = 0.9
BETA2 = 0.99
EPSILON = 1e-8


class LocalAdam:
    """Steps of Adam for one worker, from its own gradients (arXiv 2205.14473)."""

    def __init__(self, like: Tree) -> None:
        self._first = zeros(like)
        self._second = zeros(like)

    def step(self, gradient: Tree, rate: float) -> Tree:
        """What to subtract from the model: ``rate * m / sqrt(v + eps)``."""
        found: Tree = {}
        for name, g in gradient.items():
            m, v = self._first[name], self._second[name]
            m += (1 - BETA1) * (g - m)
            v += (1 - BETA2) * (np.square(g) - v)
            found[name] = rate * m / np.sqrt(v + EPSILON)
        return found

    def state(self) -> trees.Arrays:
        """Both moments."""
        return trees.named("first", self._first) | trees.named("second", self._second)

    def load(self, state: trees.Arrays) -> None:
        """Go on from `state`."""
        self._first, self._second = trees.part(state, "first"), trees.part(state, "second")
