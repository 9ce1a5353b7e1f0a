"""A tree as one message: what is quantized and how, seeds, outliers, and both kinds of client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_trees import leaves_of, mixed_tree, shape_of
from quiver_client import Client, LocalClient, ps
from quiver_client.errors import BadRequest, Invalid
from quiver_client.ps.layout import arrange
from quiver_client.ps.outliers import largest
from quiver_client.ps.seeds import derived_seed
from quiver_kernels.tree import QuantizedSection, RawSection

RNG = np.random.default_rng(8)
TAG = ps.Tag(round=3, model_version=2, client="worker 1", weight=10.0)


@pytest.fixture(scope="module")
def local() -> Iterator[LocalClient]:
    with LocalClient() as client:
        yield client


def sections(tree: ps.QuantizedTree) -> dict[str, list[Any]]:
    """Sections by the names of their leaves."""
    return {
        " ".join(leaf.name for leaf in group.leaves): list(group.sections) for group in tree.groups
    }


def test_everything_comes_back_in_its_place(local: LocalClient):
    tree = mixed_tree()
    message = ps.compress(tree, client=local, tag=TAG, seed=1)
    again = ps.restore(message.to_bytes())

    assert ps.QuantizedTree.from_bytes(message.to_bytes()).tag == TAG
    assert shape_of(again) == shape_of(tree)
    quantized = 0
    for leaf, found in zip(leaves_of(tree), leaves_of(again), strict=True):
        assert (found.shape, found.dtype.name) == (leaf.shape, leaf.dtype.name)
        if leaf.dtype.kind in "fV" and leaf.size >= 1024:
            quantized += 1
            assert len(np.unique(found)) <= 16 * 2
            assert found.min() >= leaf.min()
            assert found.max() <= leaf.max()
        else:
            np.testing.assert_array_equal(found, leaf)
    assert quantized == 5
    assert not np.array_equal(again["embed"]["weight"], tree["embed"]["weight"])


def test_server_and_local_mode_make_the_same_bytes(live_server: str, local: LocalClient):
    policy = ps.Policy(
        bits=3, chunk_values=2500, outliers=0.01, overrides={"pair.*": {"method": "approx"}}
    )
    tree = mixed_tree()
    options: dict[str, Any] = {"tag": TAG, "seed": 2**64 - 1, "strata": ps.Strata(4, 1, 9)}
    with Client(live_server) as remote:
        theirs = ps.compress(tree, policy, client=remote, **options).to_bytes()

    assert ps.compress(tree, policy, client=local, **options).to_bytes() == theirs
    assert ps.compress(tree, policy, client=local, tag=TAG, seed=7).to_bytes() != theirs


def test_small_leaves_share_sections_and_large_ones_are_cut(local: LocalClient):
    tree = {
        "big": RNG.normal(size=2500).astype(np.float32),
        "a": RNG.normal(size=200).astype(np.float32),
        "half": RNG.normal(size=200).astype(np.float16),
        "b": RNG.normal(size=(10, 30)).astype(np.float32),
        "fine": RNG.normal(size=50).astype(np.float32),
        "i": np.arange(5),
        "bias": RNG.normal(size=3).astype(np.float32),
        "j": np.arange(6),
    }
    policy = ps.Policy(
        min_size=10, pack_below=1000, chunk_values=1000, overrides={"fine": {"bits": 8}}
    )
    found = sections(ps.compress(tree, policy, client=local, seed=1))

    assert {names: [s.size for s in parts] for names, parts in found.items()} == {
        "big": [1000, 1000, 500],
        "a b": [500],
        "half": [200],
        "fine": [50],
        "i j": [11],
        "bias": [3],
    }
    raw = {names for names, parts in found.items() if isinstance(parts[0], RawSection)}
    assert raw == {"i j", "bias"}
    seeds = {s.vector.seed for parts in found.values() for s in parts if hasattr(s, "vector")}
    assert len(seeds) == 6
    # A pack ends where a section does.
    long = {f"n{i}": np.ones(400, np.float32) for i in range(5)}
    assert list(sections(ps.compress(long, policy, client=local, seed=1))) == [
        "n0 n1",
        "n2 n3",
        "n4",
    ]


def test_seeds_differ_in_all_that_makes_a_message():
    tag = ps.Tag(round=1, client="a", model_version=4)
    known = {
        derived_seed(1, tag, ["x"], 0),
        derived_seed(2, tag, ["x"], 0),
        derived_seed(1, ps.Tag(round=2, client="a"), ["x"], 0),
        derived_seed(1, ps.Tag(round=1, client="b"), ["x"], 0),
        derived_seed(1, ps.Tag(round=1), ["x"], 0),
        derived_seed(1, tag, ["y"], 0),
        derived_seed(1, tag, ["x", "x"], 0),
        derived_seed(1, tag, ["x"], 1),
        derived_seed(1, tag, ["x"], 0, shared=True),
    }

    assert len(known) == 9
    assert max(known) < 2**53
    assert derived_seed(1, tag, ["x"], 0) in known
    for shared in (False, True):
        # Only what is the client's own depends on who it is.
        a, b = (derived_seed(1, ps.Tag(round=1, client=c), ["x"], 0, shared=shared) for c in "ab")
        assert (a == b) == shared


def test_a_message_made_again_is_the_same_and_one_without_a_seed_is_new(local: LocalClient):
    tree = {"w": RNG.normal(size=2000)}
    one, other = (ps.compress(tree, client=local, tag=TAG, seed=5).to_bytes() for _ in range(2))
    drawn, drawn_again = (ps.compress(tree, client=local, tag=TAG).to_bytes() for _ in range(2))

    assert one == other
    assert len({one, drawn, drawn_again}) == 3


@given(st.lists(st.integers(-4, 4), min_size=2, max_size=40), st.data())
def test_the_largest_entries(values: list[int], data: st.DataObject):
    count = data.draw(st.integers(0, len(values) - 1))
    x = np.array(values, np.float32)
    # Slow and obvious: by magnitude, of equal ones the first.
    wanted = sorted(sorted(range(x.size), key=lambda i: (-abs(x[i]), i))[:count])

    assert largest(x, count).tolist() == wanted


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_outliers_are_exact_and_the_rest_is_better(local: LocalClient, dtype: Any):
    x = RNG.normal(size=3000).astype(dtype)
    x[[7, 1500, 2999]] = [100, -200, 300]
    tree = {"w": x}
    plain = ps.compress(tree, ps.Policy(bits=1, chunk_values=1400), client=local, seed=1)
    spared = ps.compress(
        tree, ps.Policy(bits=1, outliers=3, chunk_values=1400), client=local, seed=1
    )
    found = ps.restore(spared)["w"]
    held = [s.outliers.indices.tolist() for s in sections(spared)["w"]]

    assert held == [[7], [100], [199]]
    np.testing.assert_array_equal(found[[7, 1500, 2999]], x[[7, 1500, 2999]])
    errors = [tree.ledger().squared_errors["w"] for tree in (plain, spared)]
    assert errors[1] < errors[0] / 20


def test_a_section_of_outliers_alone_is_raw(local: LocalClient):
    x = np.concatenate([np.full(100, 50.0), RNG.normal(size=1900)])
    tree = ps.compress({"w": x}, ps.Policy(outliers=150, chunk_values=100), client=local, seed=1)
    first, *others = sections(tree)["w"]

    assert isinstance(first, RawSection)
    assert all(isinstance(section, QuantizedSection) for section in others)
    np.testing.assert_array_equal(ps.restore(tree)["w"][:100], x[:100])


def test_outliers_and_packing_leave_it_unbiased(local: LocalClient):
    """The mean of many roundings comes within five standard errors of every value."""
    tree = {"a": RNG.normal(size=30), "b": RNG.lognormal(size=25)}
    policy = ps.Policy(bits=2, min_size=0, outliers=2)
    count = 300
    drawn = [ps.compress(tree, policy, client=local, seed=seed) for seed in range(count)]
    values = [np.concatenate(list(message.arrays().values())) for message in drawn]
    mean = np.mean(values, axis=0)
    x = np.concatenate(list(tree.values()))
    [section] = sections(drawn[0])["a b"]
    levels = section.vector.levels
    above = np.clip(np.searchsorted(levels, x), 1, levels.size - 1)
    variance = np.maximum((levels[above] - x) * (x - levels[above - 1]), 0)
    variance[section.outliers.indices] = 0

    assert np.count_nonzero(variance) > 40
    assert (np.abs(mean - x) <= 5 * np.sqrt(variance / count) + 1e-12).all()
    # Of a rounding to the nearest level the same cannot be said.
    nearest = levels[np.abs(levels - x[:, None]).argmin(axis=1)]
    assert not (np.abs(nearest - x) <= 5 * np.sqrt(variance / count) + 1e-12).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_leaves_that_are_not_finite(local: LocalClient, bad: float):
    x = RNG.normal(size=2000).astype(np.float32)
    x[77] = bad
    tree = {"good": RNG.normal(size=2000), "layer": {"w": x}}
    with pytest.raises(
        Invalid, match=r"leaf 'layer.w' must be finite; got -?(nan|inf) at index 77"
    ) as caught:
        ps.compress(tree, client=local)
    assert caught.value.code == "non_finite"
    found = ps.restore(ps.compress(tree, ps.Policy(non_finite="raw"), client=local))
    np.testing.assert_array_equal(found["layer"]["w"], x)
    # What is raw anyway may hold anything.
    raw = ps.restore(ps.compress(tree, ps.Policy(raw=["layer.*"]), client=local))
    np.testing.assert_array_equal(raw["layer"]["w"], x)


def test_a_tree_of_raw_leaves_asks_nobody():
    tree = {"i": np.arange(3), "none": np.zeros((0, 4), np.float32)}
    found = ps.restore(ps.compress(tree, client=None).to_bytes())  # type: ignore[arg-type]

    np.testing.assert_array_equal(found["i"], [0, 1, 2])
    assert found["none"].shape == (0, 4)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True])
def test_seeds_are_checked(local: LocalClient, seed: Any):
    with pytest.raises(Invalid, match="seed"):
        ps.compress({"w": np.ones(3)}, client=local, seed=seed)


def test_what_cannot_be_restored():
    with pytest.raises(BadRequest):
        ps.restore(b"\xc1")
    with pytest.raises(Invalid):
        ps.restore(b"\x80")


def test_units_cover_every_leaf_once():
    flat = ps.flatten(mixed_tree())
    names = [name for unit in arrange(flat.leaves, ps.Policy()) for name in unit.names]

    assert sorted(names) == sorted(flat.leaves)
