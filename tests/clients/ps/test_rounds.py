"""Rounds: any order, duplicates, late messages, restarts: the mean of the valid distinct ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quiver_client import LocalClient, ps
from quiver_client.errors import BadRequest, Invalid
from quiver_client.ps import Aggregator, Late, Verdict
from quiver_client.ps.journal import Journal

CLIENTS, ROUNDS = 4, 4
RNG = np.random.default_rng(2)


def tree_of(number: int) -> dict[str, Any]:
    """A worker's tree; magnitudes differ, so that another order would round another way."""
    scale = 10.0 ** RNG.integers(-3, 4)
    return {
        "w": (scale * RNG.normal(size=(6, 9))).astype(np.float32),
        "rest": [np.int64(number), RNG.normal(size=5)],
    }


@pytest.fixture(scope="module")
def local() -> Iterator[LocalClient]:
    with LocalClient() as client:
        yield client


@pytest.fixture(scope="module")
def sent(local: LocalClient) -> dict[tuple[int, int], bytes]:
    """What each client sends in each round; round r is of model version 10 r."""
    return {
        (number, who): ps.compress(
            tree_of(who),
            ps.Policy(bits=1 + who, min_size=10),
            client=local,
            tag=ps.Tag(number, 10 * number, f"client {who}", weight=0.1 + who),
            seed=6,
        ).to_bytes()
        for number in range(1, ROUNDS + 1)
        for who in range(CLIENTS)
    }


def exact_mean(messages: Sequence[bytes], factors: Sequence[float]) -> dict[str, list[Any]]:
    """The weighted mean by rational numbers, rounded once: slow and obvious."""
    trees = [ps.QuantizedTree.from_bytes(message) for message in messages]
    weights = [Fraction(tree.tag.weight * f) for tree, f in zip(trees, factors, strict=True)]
    found: dict[str, list[Any]] = {}
    for name, leaf in trees[0].arrays().items():
        columns = [tree.arrays()[name].reshape(-1).tolist() for tree in trees]
        sums = [
            sum(w * Fraction(v) for w, v in zip(weights, column, strict=True))
            for column in zip(*columns, strict=True)
        ]
        means = [value / sum(weights) for value in sums]
        if leaf.dtype.kind == "i":
            found[name] = [round(mean) for mean in means]
        else:
            found[name] = np.array([float(m) for m in means]).astype(leaf.dtype).tolist()
    return found


def flat(mean: ps.RoundMean) -> dict[str, list[Any]]:
    leaves = ps.flatten(mean.tree).leaves
    return {name: leaf.reshape(-1).tolist() for name, leaf in leaves.items()}


class Model:
    """What shall happen, kept in lists."""

    def __init__(self, late: Late) -> None:
        self.late, self.round, self.counted, self.seen = late, 1, [], set()

    def add(self, key: tuple[int, int]) -> Verdict:
        number, _ = key
        behind = self.round - number
        if behind > self.late.rounds:
            return Verdict.LATE  # whoever sent it: that is forgotten
        if key in self.seen:
            return Verdict.DUPLICATE
        if behind < 0:
            return Verdict.UNKNOWN
        if behind and self.late.kind == "reject":
            return Verdict.LATE
        self.seen.add(key)
        self.counted.append((key, (1 + behind) ** -self.late.exponent if behind else 1.0))
        return Verdict.ACCEPTED


LATE = [Late.reject(), Late.discount(0.5), Late.discount(1.0, rounds=1), Late.buffer(3)]
deliveries = st.lists(
    st.tuples(st.integers(1, ROUNDS), st.integers(0, CLIENTS - 1)) | st.just("next"),
    min_size=1,
    max_size=30,
)


def follow(
    make: Callable[[], Aggregator],
    late: Late,
    sent: dict[tuple[int, int], bytes],
    steps: Sequence[Any],
) -> None:
    """Play deliveries to an aggregator, made anew whenever `make` makes another."""
    model = Model(late)
    aggregator = make()
    aggregator.open(1, 10)
    for step in [*steps, "next"]:
        aggregator = make()
        if step != "next":
            assert aggregator.add(sent[step]) is model.add(step)
            continue
        if not model.counted:
            with pytest.raises(Invalid, match="at least one tree"):
                aggregator.close()
            continue
        keys, factors = zip(*model.counted, strict=True)
        found = aggregator.close()
        assert flat(found) == exact_mean([sent[key] for key in keys], factors)
        assert {(c.round, c.client) for c in found.contributions} == {
            (number, f"client {who}") for number, who in keys
        }
        assert flat(make().result()) == flat(found)
        if model.round == ROUNDS:
            return
        model.round, model.counted = model.round + 1, []
        make().open(model.round, 10 * model.round)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(LATE), deliveries)
@example(LATE[2], [(1, 0), "next", (1, 1), "next", (1, 0)])
@example(LATE[1], [(1, 0), "next", (1, 1), (1, 1), (1, 0), (2, 1), "next", (1, 2), (2, 1)])
def test_any_deliveries_give_the_mean_of_the_valid_distinct_messages(
    sent: dict[tuple[int, int], bytes], late: Late, steps: list[Any]
):
    aggregator = Aggregator(late=late)
    follow(lambda: aggregator, late, sent, steps)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(LATE), deliveries)
def test_a_server_that_restarts_between_any_two_steps(
    tmp_path_factory: pytest.TempPathFactory,
    sent: dict[tuple[int, int], bytes],
    late: Late,
    steps: list[Any],
):
    path = tmp_path_factory.mktemp("rounds") / "journal"
    follow(lambda: Aggregator(late=late, journal=path), late, sent, steps)


STEPS = [(1, 0), (1, 1), (1, 0), (1, 2)]


def test_control_without_the_duplicate_check_the_mean_is_wrong(
    sent: dict[tuple[int, int], bytes], monkeypatch: pytest.MonkeyPatch
):
    aggregator = Aggregator()
    follow(lambda: aggregator, Late.reject(), sent, STEPS)
    monkeypatch.setattr(Aggregator, "_is_duplicate", lambda self, key: False)
    careless = Aggregator()
    with pytest.raises(AssertionError):
        follow(lambda: careless, Late.reject(), sent, STEPS)


def test_control_a_server_that_forgets_is_found(
    sent: dict[tuple[int, int], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "journal"
    monkeypatch.setattr(Journal, "append", lambda self, record: None)
    with pytest.raises(AssertionError):
        follow(lambda: Aggregator(journal=path), Late.reject(), sent, STEPS)


def test_every_order_gives_the_same_bits(sent: dict[tuple[int, int], bytes]):
    means = set()
    for seed in range(6):
        aggregator = Aggregator()
        aggregator.open(2, 20)
        for who in np.random.default_rng(seed).permutation(CLIENTS):
            assert aggregator.add(sent[2, int(who)]) is Verdict.ACCEPTED
        means.add(
            b"".join(x.tobytes() for x in ps.flatten(aggregator.close().tree).leaves.values())
        )

    assert len(means) == 1


def test_a_killed_server_left_a_torn_record(sent: dict[tuple[int, int], bytes], tmp_path: Path):
    """Cut the journal anywhere in its last record; what is sent again counts once."""
    path = tmp_path / "journal"
    whole = Aggregator(journal=path)
    whole.open(1, 10)
    sizes = [path.stat().st_size]
    for who in range(3):
        whole.add(sent[1, who])
        sizes.append(path.stat().st_size)
    data, wanted = path.read_bytes(), flat(whole.result())
    for cut in (*range(sizes[2], sizes[3], 97), sizes[3] - 1):
        path.write_bytes(data[:cut])
        again = Aggregator(journal=path)
        assert [again.add(sent[1, who]) for who in range(3)] == [
            *(Verdict.DUPLICATE, Verdict.DUPLICATE),
            Verdict.ACCEPTED,
        ]
        assert flat(again.result()) == wanted
        assert path.read_bytes() == data
    damaged = bytearray(data)
    damaged[sizes[1] + 100] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(Invalid, match="damaged") as caught:
        Aggregator(journal=path)
    assert caught.value.field == "journal"


def test_what_could_not_be_noted_does_not_count(
    sent: dict[tuple[int, int], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    aggregator = Aggregator(journal=tmp_path / "journal")
    aggregator.open(1, 10)
    aggregator.add(sent[1, 0])
    before = flat(aggregator.result())

    def full(self: Journal, record: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append", full)
        with pytest.raises(OSError, match="no space"):
            aggregator.add(sent[1, 1])
    assert flat(aggregator.result()) == before
    assert aggregator.add(sent[1, 1]) is Verdict.ACCEPTED
    assert flat(aggregator.close()) == exact_mean([sent[1, 0], sent[1, 1]], [1, 1])


def test_a_journal_keeps_the_messages_of_one_round(
    sent: dict[tuple[int, int], bytes], tmp_path: Path
):
    path = tmp_path / "journal"
    aggregator = Aggregator(journal=path, sync=True)
    for number in range(1, ROUNDS + 1):
        aggregator.open(number, 10 * number)
        assert path.stat().st_size < 1000
        aggregator.add(sent[number, 0])
        aggregator.close()
    again = Aggregator(journal=path)
    assert not again.is_open
    assert again.round == ROUNDS
    assert flat(again.result()) == flat(aggregator.result())
    with pytest.raises(Invalid, match="journal must be of"):
        Aggregator(journal=path, late=Late.discount())


def message(client: Any, local: LocalClient, tree: Any = None, **tag: Any) -> ps.QuantizedTree:
    tree = {"w": np.ones(3)} if tree is None else tree
    return ps.compress(tree, client=local, tag=ps.Tag(client=client, **tag))


def test_verdicts(local: LocalClient):
    aggregator = Aggregator(clients={"a", "b"})
    good = message("a", local, round=5, model_version=1)
    assert aggregator.add(good) is Verdict.UNKNOWN
    aggregator.open(5, 1)
    assert aggregator.add(message("a", local, round=6, model_version=1)) is Verdict.UNKNOWN
    assert aggregator.add(message("c", local, round=5, model_version=1)) is Verdict.UNKNOWN
    assert aggregator.add(message(None, local, round=5, model_version=1)) is Verdict.UNKNOWN
    assert aggregator.add(message("a", local, model_version=1)) is Verdict.UNKNOWN
    assert aggregator.add(message("a", local, round=5, model_version=2)) is Verdict.WRONG_VERSION
    assert aggregator.add(message("a", local, round=5)) is Verdict.WRONG_VERSION
    assert aggregator.add(message("a", local, round=4, model_version=1)) is Verdict.LATE
    assert aggregator.add(good) is Verdict.ACCEPTED
    assert aggregator.add(good) is Verdict.DUPLICATE
    assert aggregator.counted == (ps.Contribution("a", 5, 1.0),)
    assert not aggregator.ready
    aggregator.add(message("b", local, round=5, model_version=1), weight=3)
    assert aggregator.ready
    assert [each.weight for each in aggregator.close().contributions] == [1.0, 3.0]
    # A client that sends again because it heard nothing is told that it counts.
    assert aggregator.add(good) is Verdict.DUPLICATE
    aggregator.open(7, 2)
    assert aggregator.add(good) is Verdict.DUPLICATE
    assert aggregator.add(message("a", local, round=6, model_version=1)) is Verdict.UNKNOWN


def test_between_rounds(local: LocalClient):
    for late, verdict in ((Late.reject(), Verdict.LATE), (Late.discount(), Verdict.UNKNOWN)):
        aggregator = Aggregator(late=late)
        aggregator.open(1, 0)
        aggregator.add(message("a", local, round=1, model_version=0))
        aggregator.close()
        tardy = message("b", local, round=1, model_version=0)
        assert aggregator.add(tardy) is verdict
        aggregator.open(2, 0)
        wanted = Verdict.LATE if verdict is Verdict.LATE else Verdict.ACCEPTED
        assert aggregator.add(tardy) is wanted


def test_a_buffer_is_ready_when_it_is_full(local: LocalClient):
    aggregator = Aggregator(late=Late.buffer(2, exponent=1))
    aggregator.open(1, 0)
    aggregator.add(message("a", local, round=1, model_version=0))
    assert not aggregator.ready
    aggregator.close()
    aggregator.open(4, 1)
    aggregator.add(message("b", local, round=1, model_version=0, weight=8.0))
    aggregator.add(message("a", local, round=4, model_version=1))
    assert aggregator.ready
    assert [each.weight for each in aggregator.counted] == [1.0, 2.0]


def test_messages_with_other_leaves_are_refused_and_do_not_count(local: LocalClient):
    good = message("a", local, round=1, model_version=0)
    others = [{"w": np.ones(4)}, {"w": np.ones(3, np.float32)}, {"v": np.ones(3)}, [np.ones(3)]]
    for like in (None, {"w": np.zeros(3)}):
        aggregator = Aggregator(like=like)
        aggregator.open(1)
        if like is None:
            aggregator.add(good)
        for tree in others:
            with pytest.raises(Invalid) as caught:
                aggregator.add(message("b", local, tree, round=1, model_version=0))
            assert caught.value.code == "shape_mismatch"
        with pytest.raises(BadRequest):
            aggregator.add(b"\xc1")
        with pytest.raises(Invalid, match="weight"):
            aggregator.add(message("b", local, round=1, model_version=0), weight=-1)
        assert aggregator.add(message("b", local, round=1, model_version=0)) is Verdict.ACCEPTED


def test_rounds_come_one_after_the_other(local: LocalClient):
    aggregator = Aggregator()
    for call in (aggregator.close, aggregator.result, aggregator.broadcast):
        with pytest.raises(Invalid) as caught:
            call()
        assert caught.value.code == "invalid_round"
    aggregator.open(3)
    with pytest.raises(Invalid, match="close it first"):
        aggregator.open(4)
    with pytest.raises(Invalid, match="close it first"):
        aggregator.broadcast()
    aggregator.add(message("a", local, round=3, model_version=0))
    aggregator.close()
    for number in (2, 3):
        with pytest.raises(Invalid, match="above 3"):
            aggregator.open(number)
    for number in (-1, 1.5, True, 2**63):
        with pytest.raises(Invalid, match="integer"):
            aggregator.open(number)  # type: ignore[arg-type]


class Counting:
    """A client that counts what it is asked for."""

    def __init__(self, client: LocalClient) -> None:
        self.client, self.calls = client, 0

    def quantize_many(self, vectors: Any, *, per_vector: Any = None) -> Any:
        self.calls += 1
        return self.client.quantize_many(vectors, per_vector=per_vector)


def test_a_broadcast_is_quantized_once_for_each_round_and_policy(local: LocalClient):
    counting, policy = Counting(local), ps.Policy(bits=2)
    aggregator = Aggregator()
    mean = RNG.normal(size=2000).astype(np.float32)
    for number in (1, 2):
        aggregator.open(number, 7)
        aggregator.add(message("a", local, {"w": mean}, round=number, model_version=7))
        aggregator.close()
        sent = [aggregator.broadcast(policy, client=counting, seed=1) for _ in range(5)]
        assert all(each is sent[0] for each in sent)
        assert counting.calls == number
        assert sent[0].tag == ps.Tag(round=number, model_version=7)
        raw = aggregator.broadcast(model_version=8)
        np.testing.assert_array_equal(ps.restore(raw)["w"], aggregator.result().tree["w"])
        assert raw.tag.model_version == 8
        other = aggregator.broadcast(ps.Policy(bits=3), client=counting, tree={"v": mean})
        assert list(ps.restore(other)) == ["v"]
        counting.calls -= 1
    with pytest.raises(Invalid, match="client"):
        aggregator.broadcast(ps.Policy(bits=5))


def test_threads_may_share_it(sent: dict[tuple[int, int], bytes]):
    aggregator = Aggregator()
    aggregator.open(1, 10)
    verdicts: list[Verdict] = []

    def deliver() -> None:
        verdicts.extend(aggregator.add(sent[1, who]) for who in range(CLIENTS))

    threads = [threading.Thread(target=deliver) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert verdicts.count(Verdict.ACCEPTED) == CLIENTS
    assert flat(aggregator.close()) == exact_mean([sent[1, w] for w in range(CLIENTS)], [1] * 4)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Late.discount(-1), "exponent"),
        (lambda: Late.discount(float("nan")), "exponent"),
        (lambda: Late.reject(rounds=0), "rounds"),
        (lambda: Late.buffer(0), "size"),
    ],
)
def test_late_policies_are_checked(make: Callable[[], Late], field: str):
    with pytest.raises(Invalid) as caught:
        make()
    assert caught.value.field == field
