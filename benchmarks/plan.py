"""Bits chosen by a plan against the same bits for every leaf, for trees like gradients of models.

Two made-up gradients with the shapes, scales and tails that layers have: a small transformer
(embedding with few rows hit, attention, feed-forward, norms) and a convolutional network (few
values in the first layers, most in the last). Scales of layers spread over a factor of some 30.
For each number of bits the tree is quantized with it everywhere; the plan has as many bytes, all
counted, and may choose 1 to 8 bits or none for each leaf. "Error" is the expected squared error of
the tree over its squared norm; "bytes for the same error" is what another plan needs to be as good
as equal bits. Every plan is proved to be the best.

Run ``python benchmarks/plan.py``; it prints Markdown, and ``--json PATH`` writes the results.
``--quick`` takes seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common.tables import figure, table
from numpy.typing import NDArray

from quiver_client import LocalClient, ps

BITS = (2, 3, 4, 6)
Tree = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Row:
    """Equal bits and a plan with as many bytes."""

    tree: str
    values: int
    leaves: int
    bits: int
    nbytes: int
    equal: float
    planned: float
    bytes_for_equal: int
    lowest: int
    highest: int
    seconds: float


def transformer(rng: np.random.Generator, width: int, layers: int) -> Tree:
    """Gradients of an embedding and some blocks."""
    embedding = np.zeros((8 * width, width), np.float32)
    hit = rng.permutation(8 * width)[: 2 * width]
    embedding[hit] = rng.standard_t(3, (hit.size, width)) * rng.lognormal(0, 1, (hit.size, 1))
    tree: Tree = {"embedding": 0.01 * embedding}
    for i in range(layers):
        scale = 0.003 * 2.0**-i
        for name, shape, tail in (
            ("attention.qkv", (3 * width, width), 4),
            ("attention.out", (width, width), 4),
            ("mlp.up", (4 * width, width), 6),
            ("mlp.down", (width, 4 * width), 6),
            ("norm.weight", (width,), 8),
            ("mlp.bias", (4 * width,), 8),
        ):
            strength = scale * rng.lognormal(0, 0.7)
            tree[f"block{i}.{name}"] = strength * rng.standard_t(tail, shape).astype(np.float32)
    return tree


def convolutional(rng: np.random.Generator, width: int) -> Tree:
    """Gradients of convolutions, early ones small and strong, and a dense layer."""
    tree: Tree = {}
    channels = [3, width, 2 * width, 4 * width, 8 * width]
    for i, (before, after) in enumerate(itertools.pairwise(channels)):
        strength = 0.1 * 3.0**-i
        shape = (after, before, 3, 3)
        tree[f"conv{i}.weight"] = strength * rng.laplace(size=shape).astype(np.float32)
        tree[f"conv{i}.bias"] = strength * rng.normal(size=after).astype(np.float32)
    tree["dense.weight"] = 0.01 * rng.standard_t(4, (10, 128 * width)).astype(np.float32)
    return tree


def squared_error(tree: Tree, policy: ps.Policy, client: LocalClient) -> tuple[int, float]:
    """Bytes of the message with the policy's bits everywhere, and its expected error."""
    plan = ps.plan(
        tree, policy, client=client, max_error=float("1e300"), bits=[policy.bits], raw=False
    )
    return plan.nbytes, plan.error


def measured(name: str, tree: Tree, client: LocalClient) -> list[Row]:
    """A row for each number of bits."""
    norm = sum(float(np.sum(np.square(x, dtype=np.float64))) for x in tree.values())
    rows = []
    for bits in BITS:
        nbytes, error = squared_error(tree, ps.Policy(bits=bits), client)
        begun = time.perf_counter()
        plan = ps.plan(tree, ps.Policy(), client=client, budget_bytes=nbytes)
        seconds = time.perf_counter() - begun
        same = ps.plan(tree, ps.Policy(), client=client, max_error=error)
        if not (plan.optimal and same.optimal and plan.error <= error and plan.nbytes <= nbytes):
            raise SystemExit(f"the plan for {name} at {bits} bits is not what it must be")
        chosen = [unit.chosen.bits or 32 for unit in plan.units]
        rows.append(
            Row(
                tree=name,
                values=plan.size,
                leaves=len(tree),
                bits=bits,
                nbytes=nbytes,
                equal=error / norm,
                planned=plan.error / norm,
                bytes_for_equal=same.nbytes,
                lowest=min(chosen),
                highest=max(chosen),
                seconds=seconds,
            )
        )
    return rows


def markdown(rows: list[Row]) -> str:
    """The table."""
    head = [
        *("tree", "bits", "bytes", "error, equal bits", "error, plan", "ratio"),
        *("bytes for the same error", "bits chosen", "s to plan"),
    ]
    return table(
        head,
        [
            [
                f"{row.tree}, {row.leaves} leaves, {row.values:,} values",
                str(row.bits),
                f"{row.nbytes:,}",
                figure(row.equal),
                figure(row.planned),
                f"{row.equal / row.planned:.2f}x",
                f"{row.bytes_for_equal / row.nbytes:.1%}",
                f"{row.lowest} to {'raw' if row.highest == 32 else row.highest}",
                figure(row.seconds, 2),
            ]
            for row in rows
        ],
    )


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    width, layers = (32, 2) if arguments.quick else (128, 4)
    trees: dict[str, Any] = {
        "transformer": transformer(rng, width, layers),
        "convolutional": convolutional(rng, width // 4),
    }
    with LocalClient() as client:
        rows = [row for name, tree in trees.items() for row in measured(name, tree, client)]
    print(markdown(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
