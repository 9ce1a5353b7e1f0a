"""Trees for tests: every kind of leaf that state dicts have."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np


def mixed_tree() -> dict[str, Any]:
    """Nested containers with leaves of all kinds."""
    rng = np.random.default_rng(5)
    read_only = rng.normal(size=(40, 50)).astype(np.float32)
    read_only.setflags(write=False)
    return {
        "embed": {"weight": rng.lognormal(size=(60, 100)).astype(np.float32)},
        "blocks": [
            {"w": rng.normal(size=(80, 40)).astype(np.float16), "b": np.zeros(40, np.float16)},
            {"w": rng.normal(size=(80, 40)).astype(ml_dtypes.bfloat16), "b": np.ones(3, np.int8)},
        ],
        "pair": (read_only, rng.normal(size=(30, 90)).astype(">f8")[:, ::3].T),
        "step": np.int64(12),
        "flag": np.array(True),
        "empty": np.zeros((0, 7), np.float32),
        "nothing": {},
        "constant": np.full(3000, 2.5, np.float32),
        "mask": rng.random((9, 9)) > 0.5,
        "ids": rng.integers(0, 2**63, 2000, dtype=np.uint64),
    }


def leaves_of(tree: Any) -> list[Any]:
    """The arrays of a tree in order, by plain recursion."""
    if isinstance(tree, dict):
        return [leaf for child in tree.values() for leaf in leaves_of(child)]
    if isinstance(tree, list | tuple):
        return [leaf for child in tree for leaf in leaves_of(child)]
    return [tree]


def shape_of(tree: Any) -> Any:
    """The containers of a tree, with None for leaves."""
    if isinstance(tree, dict):
        return {key: shape_of(child) for key, child in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(shape_of(child) for child in tree)
    return None
