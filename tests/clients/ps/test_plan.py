"""Plans for trees: what is promised in bytes and errors is what `compress` then makes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from client_trees import mixed_tree
from quiver_client import Client, LocalClient, ps
from quiver_client.errors import Invalid
from quiver_client.ps import planning

RNG = np.random.default_rng(4)
TAG = ps.Tag(round=2**40, model_version=3, client="a worker", weight=2.5)


def model() -> dict[str, Any]:
    """Layers of different sizes and scales, some small, some not floating."""
    return {
        f"layer{i}": {
            "w": (RNG.normal(size=size) * 10.0**-i).astype(np.float32),
            "scale": RNG.lognormal(size=1500).astype(np.float32),
            "bias": RNG.normal(size=20).astype(np.float32),
            "step": np.int64(i),
        }
        for i, size in enumerate((6000, 9000, 5000))
    }


@pytest.fixture(scope="module")
def local() -> Iterator[LocalClient]:
    with LocalClient() as client:
        yield client


POLICIES = [
    ps.Policy(),
    ps.Policy(outliers=0.01, chunk_values=4096, block_size=512),
    ps.Policy(
        small="pack",
        pack_below=2000,
        overrides={"*1.w": {"method": "approx"}, "*2.w": {"block_size": 100}},
    ),
]


@pytest.mark.parametrize("policy", POLICIES, ids=range(3))
@pytest.mark.parametrize(
    "budget",
    [{"bits_per_value": 3.0}, {"budget_bytes": 20_000}, {"max_error": 20.0}],
    ids=lambda budget: next(iter(budget)),
)
def test_promises_are_kept(local: LocalClient, policy: ps.Policy, budget: dict[str, Any]):
    tree = model()
    size = sum(leaf.size for leaf in ps.flatten(tree).leaves.values())
    plan = ps.plan(tree, policy, client=local, **budget)
    message = ps.compress(tree, policy, client=local, plan=plan, tag=TAG, seed=1)
    # The tag, and a section's device and seed, may be shorter than what was reckoned with.
    sections = sum(len(group.sections) for group in message.groups)

    assert plan.nbytes - 150 - 16 * sections <= message.nbytes <= plan.nbytes
    assert plan.optimal
    if "max_error" in budget:
        assert plan.error <= 20
        assert plan.bound == plan.nbytes
    else:
        assert plan.nbytes <= budget.get("budget_bytes", 3.0 * size / 8)
        assert plan.bound == plan.error
    assert plan.error == pytest.approx(_errors(message, tree), rel=1e-4)


def _errors(message: ps.QuantizedTree, tree: Any) -> float:
    """Expected squared error of a message, from its sections' shares of the values' norms."""
    leaves = ps.flatten(tree).leaves
    total = 0.0
    for group in message.groups:
        stream = np.concatenate([leaves[leaf.name].reshape(-1) for leaf in group.leaves])
        for start, section in group.placed():
            if not hasattr(section, "vector"):
                continue
            x = stream[start : start + section.size].astype(np.float64)
            if section.outliers is not None:
                x[section.outliers.indices] = np.delete(x, section.outliers.indices).min()
            total += section.vector.vnmse * float(x @ x)
    return total


def test_it_is_the_best_of_all_combinations(local: LocalClient):
    tree, bits = model(), (1, 3, 4)
    policy = ps.Policy(pack_below=0, overrides={"*.scale": {"raw": True}})
    plan = ps.plan(tree, policy, client=local, budget_bytes=30_000, bits=bits)
    rows = [unit.candidates for unit in plan.units]
    fixed = plan.nbytes - sum(unit.chosen.nbytes for unit in plan.units)
    possible = [
        sum(each.error for each in combination)
        for combination in itertools.product(*rows)
        if fixed + sum(each.nbytes for each in combination) <= 30_000
    ]

    assert [len(row) for row in rows] == [4, 4, 4]
    assert plan.error == pytest.approx(min(possible), rel=1e-12)


def test_it_beats_equal_bits(local: LocalClient):
    tree = model()
    for bits in (2, 4, 6):
        equal = ps.compress(tree, ps.Policy(bits=bits), client=local, tag=TAG, seed=1)
        plan = ps.plan(tree, ps.Policy(), client=local, budget_bytes=equal.nbytes + 200, raw=False)
        assert plan.error < 0.7 * _errors(equal, tree)


def test_server_and_local_mode_plan_alike(live_server: str, local: LocalClient):
    tree = mixed_tree()
    with Client(live_server) as remote:
        plans = [
            ps.plan(tree, ps.Policy(chunk_values=2000), client=client, bits_per_value=12)
            for client in (remote, local)
        ]

    assert plans[0] == plans[1]
    assert plans[0].rules.keys() < ps.flatten(tree).leaves.keys()


def test_methods_are_candidates_too(local: LocalClient):
    tree = {"w": RNG.lognormal(size=5000)}
    plan = ps.plan(tree, ps.Policy(), client=local, bits_per_value=5, methods=["uniform", "exact"])
    [unit] = plan.units

    assert {each.method for each in unit.candidates} == {"uniform", "exact", None}
    assert unit.rule.method == "exact"
    assert ps.compress(tree, client=local, plan=plan).groups[0].sections[0].vector.bits == 4


def test_requests_are_bounded(local: LocalClient, monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []

    class Counting:
        def plan(self, vectors: Any, **options: Any) -> Any:
            asked.append(sum(x.nbytes for x in vectors.values()))
            return local.plan(vectors, **options)

    monkeypatch.setattr(planning, "MAX_REQUEST_BYTES", 20_000)
    tree, policy = {"w": RNG.normal(size=9000)}, ps.Policy(chunk_values=1000)
    found = ps.plan(tree, policy, client=Counting(), bits_per_value=7, bits=[4])

    assert sum(asked) == 72_000
    assert max(asked) <= 20_000
    assert found == ps.plan(tree, policy, client=local, bits_per_value=7, bits=[4])


def test_a_plan_is_for_trees_with_its_leaves(local: LocalClient):
    tree = model()
    plan = ps.plan(tree, ps.Policy(), client=local, bits_per_value=4)
    tree["layer1"]["w"] = tree["layer1"]["w"] + 1
    ps.compress(tree, client=local, plan=plan)
    tree["new"] = np.ones(5000)
    with pytest.raises(Invalid, match=r"plan must have every .* no 'new'"):
        ps.compress(tree, client=local, plan=plan)


def test_leaves_that_cannot_be_quantized_need_no_plan(local: LocalClient):
    tree = {"i": np.arange(5000)}
    plan = ps.plan(tree, ps.Policy(), client=local, bits_per_value=80)

    assert plan.units == ()
    assert ps.compress(tree, client=local, plan=plan).nbytes <= plan.nbytes


@pytest.mark.parametrize(
    ("budget", "field"),
    [
        ({}, "budget_bytes"),
        ({"budget_bytes": 9000, "max_error": 1.0}, "budget_bytes"),
        ({"budget_bytes": 10}, "budget_bytes"),
        ({"bits_per_value": 0.1}, "bits_per_value"),
        ({"max_error": -1.0}, "max_error"),
        ({"bits_per_value": 4.0, "bits": []}, "bits"),
        ({"bits_per_value": 4.0, "bits": [9]}, "bits"),
        ({"bits_per_value": 4.0, "methods": ["best"]}, "method"),
        ({"max_error": 1e-9, "raw": False}, "max_error"),
    ],
    ids=range(9),
)
def test_what_cannot_be_planned(local: LocalClient, budget: dict[str, Any], field: str):
    with pytest.raises(Invalid) as caught:
        ps.plan(model(), ps.Policy(), client=local, **budget)
    assert caught.value.field == field


def test_a_table_for_people(local: LocalClient):
    plan = ps.plan(model(), ps.Policy(), client=local, bits_per_value=4)
    lines = plan.table().splitlines()

    assert len(lines) == 1 + len(plan.units)
    assert lines[1].startswith("layer0.w ")
    assert "+2" in lines[2]
