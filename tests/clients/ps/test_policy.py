"""Policies: which rule a leaf gets, and what is refused when one is made."""

from __future__ import annotations

from typing import Any

import pytest

from quiver_client.errors import Invalid
from quiver_client.ps import Policy, Rule


def test_the_first_thing_that_says_something_counts():
    policy = Policy(
        bits=3,
        raw=["*.bias", "norm*"],
        overrides={
            "head.bias": {"bits": 8},
            "head.*": {"bits": 6, "outliers": 0.5},
            "x": {"raw": True},
        },
    )

    assert policy.rule("layer.weight", 10_000) == Rule(bits=3)
    assert policy.rule("layer.weight", 1023).raw
    assert policy.rule("layer.bias", 10_000).raw
    assert policy.rule("head.bias", 10) == Rule(bits=8)
    assert policy.rule("head.weight", 10) == Rule(bits=6, outliers=0.5)
    assert policy.rule("x", 10_000).raw
    assert not Policy(small="pack").rule("a", 1).raw


@pytest.mark.parametrize(
    ("outliers", "size", "count"),
    [(0, 10, 0), (0.25, 10, 2), (3, 10, 3), (3, 3, 2), (0.999, 1, 0), (5, 0, 0)],
)
def test_outliers_are_counted(outliers: float, size: int, count: int):
    assert Rule(outliers=outliers).count_outliers(size) == count


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"bits": 0}, "bits"),
        ({"bits": 2.5}, "bits"),
        ({"method": "best"}, "method"),
        ({"block_size": 0}, "block_size"),
        ({"outliers": 1.0}, "outliers"),
        ({"outliers": -1}, "outliers"),
        ({"outliers": float("nan")}, "outliers"),
        ({"outliers": "1%"}, "outliers"),
        ({"outliers": True}, "outliers"),
        ({"min_size": -1}, "min_size"),
        ({"pack_below": True}, "pack_below"),
        ({"chunk_values": 0}, "chunk_values"),
        ({"chunk_values": 2**28 + 1}, "chunk_values"),
        ({"small": "skip"}, "small"),
        ({"non_finite": "zero"}, "non_finite"),
        ({"raw": "*.bias"}, "raw"),
        ({"raw": [3]}, "raw"),
        ({"overrides": ["a"]}, "overrides"),
        ({"overrides": {"a": {"bits": 9}}}, "overrides['a'].bits"),
        ({"overrides": {"a": {"lvls": 9}}}, "overrides['a']"),
    ],
    ids=range(20),
)
def test_it_is_checked_when_it_is_made(given: dict[str, Any], field: str):
    with pytest.raises(Invalid) as caught:
        Policy(**given)
    assert caught.value.field == field


def test_it_does_not_change_with_what_it_was_made_of():
    raw, overrides = ["a"], {"b": {"bits": 8}}
    policy = Policy(raw=raw, overrides=overrides)
    raw.append("c")
    overrides["b"]["bits"] = 1

    assert not policy.rule("c", 10_000).raw
    assert policy.rule("b", 10_000).bits == 8
    assert hash(policy) == hash(Policy(raw=["a"], overrides={"b": {"bits": 8}}))
