"""Efficient-Adam's two halves: the formulas, checkpoints, and errors that name the array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import quiver_kernels as qk
from quiver_client import LocalClient
from quiver_client.errors import Invalid
from quiver_client.ps import (
    ByPolicy,
    EfficientAdam,
    EfficientAdamServer,
    EfficientAdamWorker,
    Exact,
    FeedbackError,
    MissingResidual,
    PerArray,
    Policy,
    ResidualMismatch,
    Signs,
    TwoWay,
    inverse_sqrt,
)
from quiver_client.ps.links import mean, read
from quiver_client.ps.optim import apply

SIGN = PerArray(qk.sign_quantize)
SHAPES = {"w": (30, 20), "b": (7,)}


def trees(count: int, dtype: str = "float64", seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}
        for _ in range(count)
    ]


def test_the_steps_are_the_formulas():
    """Two workers, three steps, sign both ways, written out in plain NumPy."""
    optimizer = EfficientAdam(TwoWay(SIGN, SIGN), workers=2, step_size=inverse_sqrt(0.1))
    x = {"w": np.zeros(40)}
    y = np.zeros(40)
    v, m, e = np.zeros((2, 40)), np.zeros((2, 40)), np.zeros((2, 40))
    owed = np.zeros(40)
    rng = np.random.default_rng(0)
    for t in range(1, 4):
        g = rng.standard_normal((2, 40))
        x = optimizer.step(x, [{"w": row} for row in g])

        v = 0.99 * v + 0.01 * g * g
        m = 0.9 * m + 0.1 * g
        u = 0.1 / np.sqrt(t) * m / np.sqrt(v + 1e-8) + e
        d = np.where(u >= 0, 1, -1) * np.abs(u).mean(axis=1, keepdims=True)
        e = u - d
        u = d.mean(axis=0) + owed
        d = np.where(u >= 0, 1, -1) * np.abs(u).mean()
        owed = u - d
        y = y - d
        assert np.allclose(x["w"], y, rtol=1e-12, atol=1e-15)


LINKS = {
    "signs": lambda: TwoWay(SIGN, SIGN),
    "one way": lambda: TwoWay(SIGN, Exact(), feedback_down=False),
    "two levels, scaled": lambda: TwoWay(
        PerArray(lambda u: qk.quantize(u, num_levels=2, seed=3)), SIGN
    ),
    "trees": lambda: TwoWay(
        ByPolicy(LocalClient(), Policy(bits=2, min_size=100), seed=5),
        ByPolicy(Signs(), Policy(min_size=1)),
    ),
}


def run(
    optimizer: EfficientAdam, x: dict[str, np.ndarray], first: int, steps: int
) -> dict[str, np.ndarray]:
    for t in range(first, first + steps):
        x = optimizer.step(x, trees(3, "float32", seed=t))
    return x


@pytest.mark.parametrize("link", LINKS)
def test_resumed_training_is_uninterrupted_training_bit_for_bit(link):
    def fresh() -> EfficientAdam:
        return EfficientAdam(LINKS[link](), workers=3, step_size=inverse_sqrt(0.01))

    [start] = trees(1, "float32", seed=99)
    through = fresh()
    half = run(through, start, 0, 6)
    saved = [w.to_bytes() for w in through.workers], through.server.to_bytes()
    state = through.state_dict()
    whole = run(through, half, 6, 6)

    by_bytes, by_dict = fresh(), fresh()
    for worker, blob in zip(by_bytes.workers, saved[0], strict=True):
        worker.load_bytes(blob)
    by_bytes.server.load_bytes(saved[1])
    by_dict.load_state_dict(state)
    for resumed in (by_bytes, by_dict):
        again = run(resumed, half, 6, 6)
        assert all(again[name].tobytes() == whole[name].tobytes() for name in SHAPES)
        for a, b in zip(resumed.workers, through.workers, strict=True):
            assert a.to_bytes() == b.to_bytes()
        assert resumed.server.to_bytes() == through.server.to_bytes()

    # Control: without the residuals, or without the moments, it is another run.
    forgetful = fresh()
    assert any(
        run(forgetful, half, 6, 6)[name].tobytes() != whole[name].tobytes() for name in SHAPES
    )


def test_a_checkpoint_of_before_the_first_step_is_a_start():
    one, other = (
        EfficientAdam(LINKS["signs"](), workers=3, step_size=inverse_sqrt(0.01)) for _ in range(2)
    )
    other.load_state_dict(one.state_dict())
    [start] = trees(1, "float32")
    assert np.array_equal(run(one, start, 0, 2)["w"], run(other, start, 0, 2)["w"])


def test_without_residuals_it_is_another_run():
    [start] = trees(1, "float32", seed=99)
    through = EfficientAdam(LINKS["signs"](), workers=3, step_size=inverse_sqrt(0.01))
    half = run(through, start, 0, 6)
    state = through.state_dict()
    whole = run(through, half, 6, 6)
    resumed = EfficientAdam(LINKS["signs"](), workers=3, step_size=inverse_sqrt(0.01))
    resumed.load_state_dict(state)
    resumed.server.feedback.reset()
    assert run(resumed, half, 6, 6)["w"].tobytes() != whole["w"].tobytes()


def test_a_worker_that_fails_can_step_again():
    """The service is away for the second array: nothing has changed, and the retry is the step."""
    calls: list[int] = []

    def flaky(u: np.ndarray) -> qk.QuantizedVector:
        calls.append(u.size)
        if len(calls) == 4:
            raise ConnectionError
        return qk.sign_quantize(u)

    def worker(link: PerArray) -> EfficientAdamWorker:
        return EfficientAdamWorker(TwoWay(link, SIGN), client="a", step_size=inverse_sqrt(0.1))

    one, other = worker(PerArray(flaky)), worker(SIGN)
    first, second = trees(2)
    one.step(first)
    other.step(first)
    before = one.to_bytes()
    with pytest.raises(ConnectionError):
        one.step(second)
    assert one.to_bytes() == before
    found, expected = read(one.step(second)), read(other.step(second))
    assert all(np.array_equal(found[name], expected[name]) for name in SHAPES)


def test_what_changes_is_named():
    worker = EfficientAdamWorker(TwoWay(SIGN, SIGN), client="a", step_size=inverse_sqrt(0.1))
    [tree] = trees(1)
    worker.step(tree)
    with pytest.raises(MissingResidual, match="differ in 'b'"):
        worker.step({"w": tree["w"], "bias": tree["b"]})
    with pytest.raises(ResidualMismatch, match=r"'b' must have the shape \[7\].*\[6\]"):
        worker.step({"w": tree["w"], "b": tree["b"][:6]})
    with pytest.raises(ResidualMismatch, match="moments of float64; got float32"):
        worker.step({"w": tree["w"], "b": tree["b"].astype("f4")})


def test_means_are_weighted_and_checked():
    one, two = ({"w": np.array([1.0, 2.0])}, {"w": np.array([3.0, 6.0])})
    assert mean([one, two])["w"].tolist() == [2.0, 4.0]
    assert mean([one, two], [3, 1])["w"].tolist() == [1.5, 3.0]
    q = {"w": qk.sign_quantize(np.array([1.0, -3.0]))}
    assert mean([q, one], [1, 1])["w"].tolist() == [1.5, 0.0]
    for messages, weights, text in (
        ([], None, "at least one"),
        ([one, two], [1], "2 finite numbers"),
        ([one, two], [0, 0], "not all zero"),
        ([one, two], [1, -1], "not negative"),
        ([one, {"v": one["w"]}], None, "differ in 'v'"),
        ([one, {"w": np.ones(3)}], None, r"'w' must have the shape \[2\].*message 1"),
    ):
        with pytest.raises(Invalid, match=text):
            mean(messages, weights)


def test_the_servers_type_is_the_messages():
    server = EfficientAdamServer(TwoWay(SIGN, SIGN))
    worker = EfficientAdamWorker(TwoWay(SIGN, SIGN), client="a", step_size=inverse_sqrt(0.1))
    [tree] = trees(1, "float16")
    down = server.step([worker.step(tree)])
    assert {q.dtype for q in down.values()} == {"float16"}
    [x] = trees(1, "float16", seed=1)
    assert {a.dtype.name for a in apply(x, down).values()} == {"float16"}
    with pytest.raises(Invalid, match="differ in 'b'"):
        apply({"w": x["w"]}, down)
    with pytest.raises(Invalid, match=r"'b' must have the shape \[3\]"):
        apply({"w": x["w"], "b": x["b"][:3]}, down)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"},
        {"version": 2},
        {"step": -1},
        {"step": True},
        {"means": {}},
        {"means": 3},
        {"squares": {"w": np.full((30, 20), np.nan), "b": np.zeros(7)}},
        {"squares": {"w": np.zeros((30, 20), int), "b": np.zeros(7)}},
        {"feedback": None},
        {"feedback": {}},
        {"more": 1},
    ],
    ids=str,
)
def test_a_state_that_is_none_changes_nothing(changes: dict[str, Any]):
    worker = EfficientAdamWorker(TwoWay(SIGN, SIGN), client="a", step_size=inverse_sqrt(0.1))
    for tree in trees(2):
        worker.step(tree)
    before = worker.to_bytes()
    with pytest.raises(FeedbackError):
        worker.load_state_dict({**worker.state_dict(), **changes})
    assert worker.to_bytes() == before
    for broken in (before[:-1], before + b"\0", before.replace(b"squares", b"squared")):
        with pytest.raises((qk.MalformedMessage, qk.InvalidInput)):
            worker.load_bytes(broken)


@pytest.mark.parametrize("settings", [{"beta": 1.0}, {"theta": -0.1}, {"eps": 0.0}, {"workers": 0}])
def test_settings_are_checked(settings: dict[str, Any]):
    with pytest.raises(Invalid):
        EfficientAdam(
            TwoWay(SIGN, SIGN), **{"workers": 2, "step_size": inverse_sqrt(0.1), **settings}
        )
