"""Error feedback: nothing is lost, nothing is forgotten, nothing diverges unless asked to."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quiver_kernels as qk
from quiver_client import Client, LocalClient
from quiver_client.errors import Invalid
from quiver_client.ps import Policy, Signs, Tag, restore
from quiver_client.ps.contraction import NotAContraction, contracted, scaled
from quiver_client.ps.feedback import ErrorFeedback, FeedbackDiverged
from quiver_client.ps.residuals import FeedbackError, MissingResidual, ResidualMismatch
from quiver_kernels.tree import Group, Leaf, QuantizedSection, QuantizedTree, RawSection


def minmax(seed: int):
    """Stochastic rounding to the minimum and the maximum: unbiased, and far from a contraction."""
    draws = np.random.default_rng(seed)

    def quantize(u: np.ndarray) -> qk.QuantizedVector:
        return qk.quantize(u, num_levels=2, method="uniform", seed=int(draws.integers(2**53)))

    return quantize


def fractions(x: np.ndarray) -> list[Fraction]:
    return [Fraction(float(v)) for v in np.asarray(x).reshape(-1)]


def owed(feedback: ErrorFeedback, size: int, **where: Any) -> list[Fraction]:
    parts = feedback.residual_parts(**where)
    return [sum((Fraction(float(p[i])) for p in parts), Fraction(0)) for i in range(size)]


def identity_holds(xs: list, ds: list, rest: list[Fraction]) -> bool:
    """sum of d + e == sum of x, in rational numbers."""
    size = len(rest)
    put_in, sent = [Fraction(0)] * size, list(rest)
    for x, d in zip(xs, ds, strict=True):
        put_in = [a + b for a, b in zip(put_in, fractions(x), strict=True)]
        sent = [a + b for a, b in zip(sent, fractions(d), strict=True)]
    return put_in == sent


# -- the identity --------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["float16", "float32", "float64"]),
    st.lists(st.tuples(st.integers(-60, 12), st.integers(0, 2**32)), min_size=1, max_size=12),
    st.booleans(),
)
def test_what_was_sent_and_what_is_owed_is_what_was_put_in(dtype, steps, signs):
    """Exactly, for magnitudes that float64 cannot hold in one number."""
    feedback = ErrorFeedback()
    xs, ds = [], []
    for exponent, seed in steps:
        x = np.random.default_rng(seed).standard_normal(5) * 2.0**exponent
        x = x.astype(dtype)
        quantizer = qk.sign_quantize if signs else minmax(seed)
        q = feedback.quantize(x, quantizer, leaf="w")
        xs.append(x)
        ds.append(qk.dequantize(q))

    assert identity_holds(xs, ds, owed(feedback, 5, leaf="w"))


def test_residuals_in_plain_float64_would_lose_something():
    """Control of the test above: the usual ``e = x + e - d`` breaks the identity."""
    rng = np.random.default_rng(0)
    e, xs, ds = np.zeros(5), [], []
    for exponent in (-50, 3, -40, 0, 10):
        x = rng.standard_normal(5) * 2.0**exponent
        u = x + e
        d = qk.dequantize(qk.sign_quantize(u))
        e = u - d
        xs.append(x)
        ds.append(d)

    assert not identity_holds(xs, ds, fractions(e))


def test_the_identity_over_a_long_run_of_real_sizes():
    rng = np.random.default_rng(1)
    feedback = ErrorFeedback()
    xs, ds = [], []
    for t in range(100):
        x = (rng.lognormal(0, 2, 300) * rng.choice([-1, 1], 300)).astype(np.float32)
        quantizer = qk.sign_quantize if t % 2 else minmax(t)
        ds.append(qk.dequantize(feedback.quantize(x, quantizer)))
        xs.append(x)

    assert identity_holds(xs, ds, owed(feedback, 300))
    # And the residual stays of the size of one input: feedback does not run away.
    assert np.linalg.norm(feedback.residual()) < 10 * np.linalg.norm(xs[-1])


def test_a_message_of_another_type_owes_its_rounding():
    """A float64 mean sent as float32."""
    feedback = ErrorFeedback()
    xs, ds = [], []
    for t in range(5):
        x = np.random.default_rng(t).standard_normal(20) / 3
        q = feedback.quantize(x, qk.sign_quantize, direction="down", dtype="float32")
        assert q.dtype == "float32"
        xs.append(x)
        ds.append(qk.dequantize(q))
    assert identity_holds(xs, ds, owed(feedback, 20, direction="down"))


def test_the_first_residual_is_zero_and_the_update_is_the_definition():
    x = np.array([1.0, -2.0, 0.5, 4.0])
    feedback = ErrorFeedback()

    first = feedback.quantize(x, qk.sign_quantize)
    e = feedback.residual()
    second = feedback.quantize(x, qk.sign_quantize)

    assert first.to_bytes()[:50] == qk.sign_quantize(x).to_bytes()[:50]
    assert np.array_equal(e, x - qk.dequantize(first))
    assert np.array_equal(qk.dequantize(second), qk.dequantize(qk.sign_quantize(x + e)))


def test_senders_leaves_and_directions_are_apart():
    feedback = ErrorFeedback()
    owners = [("a", "w", "up"), ("a", "b", "up"), ("b", "w", "up"), ("a", "w", "down")]
    for i, (sender, leaf, direction) in enumerate(owners):
        x = np.arange(4.0) * (i + 1)
        feedback.quantize(x, qk.sign_quantize, leaf=leaf, sender=sender, direction=direction)

    for i, (sender, leaf, direction) in enumerate(owners):
        x = np.arange(4.0) * (i + 1)
        expected = x - qk.dequantize(qk.sign_quantize(x))
        found = feedback.residual(leaf, sender=sender, direction=direction)
        assert np.array_equal(found, expected)
    assert [(k.sender, k.leaf, k.direction) for k in feedback.known()] == sorted(owners)


# -- contraction ---------------------------------------------------------------------------


def run_two_ways(steps: int, **options: Any) -> float:
    """Norm of the worker's residual after feedback both ways on a fixed gradient."""
    rng = np.random.default_rng(5)
    gradient = rng.standard_normal(100).astype(np.float32)
    feedback = ErrorFeedback(**options)
    for t in range(steps):
        up = feedback.quantize(gradient, minmax(2 * t))
        down = feedback.quantize(qk.dequantize(up), minmax(2 * t + 1), direction="down")
        assert np.isfinite(qk.dequantize(down)).all()
    return float(np.linalg.norm(feedback.residual()) / np.linalg.norm(gradient))


def test_naive_feedback_of_an_unbiased_quantizer_overflows():
    """Two levels, both ways: the residual outgrows float32, and the leaf is named."""
    with pytest.raises(FeedbackDiverged, match=r"leaf 'value', (up|down).*beyond float32"):
        run_two_ways(20_000, contraction="unchecked")


def test_a_residual_beyond_float64_is_an_error_and_changes_nothing():
    feedback = ErrorFeedback(contraction="unchecked")

    def wrong(u: np.ndarray) -> qk.QuantizedVector:
        return qk.sign_quantize(-u)

    with pytest.raises(FeedbackDiverged, match="beyond float64"):
        feedback.quantize(np.full(3, 1.7e308), wrong)
    assert feedback.known() == []


def test_by_default_it_is_scaled_and_stays_bounded():
    assert run_two_ways(400) < 50


def test_or_refused_by_the_leafs_name():
    feedback = ErrorFeedback(contraction="refuse")
    x = np.random.default_rng(0).standard_normal(100)
    with pytest.raises(NotAContraction, match=r"leaf 'layers.0.w' of 'w3', up.*threshold 0.25"):
        feedback.quantize(x, minmax(0), leaf="layers.0.w", sender="w3")
    assert feedback.known() == []
    fine = feedback.quantize(x, lambda u: qk.quantize(u, bits=4, seed=1))
    assert fine.vnmse < 0.25


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_scaling_is_that_of_the_decoded_values(dtype):
    x = np.random.default_rng(3).standard_normal(64).astype(qk.dtypes.WIRE_DTYPES[dtype])
    q = qk.quantize(x, num_levels=2, seed=9)
    omega = q.vnmse
    assert omega > 1

    small = scaled(q)

    wide = qk.dequantize(q).astype(np.float64) / (1 + omega)
    assert np.array_equal(qk.dequantize(small), wide.astype(x.dtype))
    assert small.vnmse == pytest.approx(omega / (1 + omega))
    assert qk.QuantizedVector.from_bytes(small.to_bytes()).vnmse == small.vnmse


def test_the_scaled_error_is_the_expected_one():
    """E|x - Q(x)/(1+w)|^2 = w/(1+w) |x|^2: over 1,000 seeds, within five standard errors."""
    x = np.random.default_rng(4).standard_normal(50)
    errors = []
    for seed in range(1000):
        small = scaled(qk.quantize(x, num_levels=2, seed=seed))
        errors.append(np.sum(np.square(qk.dequantize(small) - x)) / np.sum(x * x))
    spread = np.std(errors) / np.sqrt(len(errors))
    assert abs(np.mean(errors) - small.vnmse) < 5 * spread
    assert small.vnmse < 1


def test_fine_quantizers_are_left_alone():
    x = np.random.default_rng(0).standard_normal(1000)
    q = qk.quantize(x, bits=4, seed=1)
    assert contracted(q, policy="scale", threshold=0.25, where="w") is q
    assert contracted(q, policy="scale", threshold=0.0, where="w").vnmse < q.vnmse
    sign = qk.sign_quantize(x)
    assert contracted(sign, policy="refuse", threshold=0.0, where="w") is sign


@pytest.mark.parametrize("wrapped", [{}, {"outliers": 0.9}])
def test_schemes_without_bias_are_scaled_by_a_wrapper(wrapped: dict[str, Any]):
    x = np.random.default_rng(0).standard_t(2, 400).astype(np.float32)
    q = qk.quantize(x, method="qsgd", num_levels=3, seed=1, **wrapped)
    small = contracted(q, policy="scale", threshold=0.0, where="w")
    assert small.vnmse == q.vnmse / (1 + q.vnmse)
    assert small.wrap is not None
    read = qk.QuantizedVector.from_bytes(small.to_bytes())
    decoded = qk.dequantize(read).astype(np.float64)
    wanted = qk.dequantize(q).astype(np.float64) / (1 + q.vnmse)
    if small.wrap.outliers is not None:
        # What is exact stays so.
        wanted[small.wrap.outliers.positions(x.size)] = small.wrap.outliers.values
    np.testing.assert_allclose(decoded, wanted, rtol=1e-6)


def test_schemes_with_a_bias_contract_by_themselves_or_are_refused():
    x = np.random.default_rng(0).standard_t(2, 400).astype(np.float32)
    lsq = qk.quantize(x, method="lsq", bits=3)
    assert contracted(lsq, policy="refuse", threshold=0.0, where="w") is lsq
    parameters = {"scale": "mx", "rounding": "stochastic"}
    biased = qk.quantize(x, method="fp4", seed=1, parameters=parameters)
    assert contracted(biased, policy="scale", threshold=0.25, where="w") is biased
    with pytest.raises(NotAContraction, match="no scale makes it fit"):
        contracted(biased, policy="scale", threshold=0.0, where="w")


def test_a_sign_message_that_is_too_large_is_refused():
    """With the scale |x|/sqrt(d) a sparse vector is no contraction."""
    x = np.zeros(100)
    x[:3] = 1.0

    def by_norm(u: np.ndarray) -> qk.QuantizedVector:
        q = qk.sign_quantize(u)
        m = np.linalg.norm(u) / np.sqrt(u.size)
        error = np.sum(np.square(u - np.where(u >= 0, m, -m))) / np.sum(u * u)
        return replace(q, levels=np.array([-m, m]), vnmse=float(error))

    with pytest.raises(NotAContraction, match=r"vNMSE is 1\.65"):
        ErrorFeedback().quantize(x, by_norm)


def test_values_too_small_for_their_type_stay_owed():
    """Their mean magnitude rounds to 0 in float16; they are sent once there is enough of them."""
    feedback = ErrorFeedback()
    x = np.array([6e-8, 0, 0, 0], np.float16)
    sent = [qk.dequantize(feedback.quantize(x, qk.sign_quantize)) for _ in range(20)]
    assert not sent[0].any()
    assert any(d.any() for d in sent)
    assert identity_holds([x] * 20, sent, owed(feedback, 4))


@pytest.mark.parametrize(
    "options", [{"contraction": "hope"}, {"threshold": 1.0}, {"threshold": -0.1}]
)
def test_options_are_checked(options):
    with pytest.raises(Invalid, match="must be"):
        ErrorFeedback(**options)


# -- never silently reset --------------------------------------------------------------------


def started() -> ErrorFeedback:
    feedback = ErrorFeedback()
    rng = np.random.default_rng(0)
    for sender in ("a", "b"):
        for leaf in ("w", "v"):
            x = rng.standard_normal((3, 4)).astype(np.float32)
            feedback.quantize(x, qk.sign_quantize, leaf=leaf, sender=sender)
    return feedback


SAVED = started().to_bytes()


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (np.ones((4, 3), np.float32), r"float32 of shape \[3, 4\]; got float32 of shape \[4, 3\]"),
        (np.ones((3, 4)), r"float32 of shape \[3, 4\]; got float64 of shape \[3, 4\]"),
    ],
)
def test_another_shape_or_type_is_an_error_that_names_the_leaf(x, text):
    feedback = started()
    before = feedback.to_bytes()
    with pytest.raises(ResidualMismatch, match=f"leaf 'w' of 'a', up: .*{text}"):
        feedback.quantize(x, qk.sign_quantize, leaf="w", sender="a")
    assert feedback.to_bytes() == before


def test_a_leaf_that_the_checkpoint_lacks_is_an_error_that_names_it():
    saved = started().state_dict()
    fresh = ErrorFeedback()
    with pytest.raises(MissingResidual, match=r"leaf 'u' of 'a', up: no residual.*'v', 'w'"):
        fresh.load_state_dict(saved, leaves=["w", "u"], sender="a")
    assert fresh.known() == []

    fresh.load_state_dict(saved)
    x = np.ones((3, 4), np.float32)
    for leaf, sender in (("u", "a"), ("w", "c")):
        with pytest.raises(MissingResidual, match=f"leaf '{leaf}' of '{sender}', up"):
            fresh.quantize(x, qk.sign_quantize, leaf=leaf, sender=sender)
    fresh.begin(sender="c")
    fresh.quantize(x, qk.sign_quantize, leaf="w", sender="c")
    with pytest.raises(MissingResidual, match="leaf 'u' of 'a', up"):
        fresh.quantize(x, qk.sign_quantize, leaf="u", sender="a")


def test_a_step_that_fails_changes_nothing():
    feedback = started()
    before = feedback.to_bytes()

    def broken(_: np.ndarray) -> qk.QuantizedVector:
        raise ConnectionError

    x = np.ones((3, 4), np.float32)
    with pytest.raises(ConnectionError):
        feedback.quantize(x, broken, leaf="w", sender="a")
    with pytest.raises(qk.InvalidInput, match="must keep float32 of shape"):
        feedback.quantize(x, lambda u: qk.sign_quantize(u[0]), leaf="w", sender="a")
    x[1, 2] = np.nan
    with pytest.raises(qk.InvalidInput, match=r"leaf 'w' of 'a', up: .*nan at index 6"):
        feedback.quantize(x, qk.sign_quantize, leaf="w", sender="a")
    assert feedback.to_bytes() == before


def test_changes_are_made_on_purpose_and_only_where_asked():
    feedback = started()
    w, v = (feedback.residual(leaf, sender="a") for leaf in ("w", "v"))

    assert len(feedback.change("keep")) == 4
    feedback.change("decay", sender="a", leaf="w", factor=0.5)
    assert np.array_equal(feedback.residual("w", sender="a"), w / 2)
    assert np.array_equal(feedback.residual("v", sender="a"), v)

    assert [key.sender for key in feedback.reset(sender="b")] == ["b", "b"]
    assert not feedback.residual("w", sender="b").any()
    feedback.change("drop", leaf="v")
    assert {key.leaf for key in feedback.known()} == {"w"}
    with pytest.raises(MissingResidual, match="leaf 'v' of 'a', up"):
        feedback.residual("v", sender="a")
    with pytest.raises(MissingResidual, match="no residual matches leaf='v'"):
        feedback.reset("v")


@pytest.mark.parametrize(
    ("policy", "factor"), [("forget", None), ("decay", None), ("decay", 1.5), ("reset", 0.5)]
)
def test_a_change_must_make_sense(policy, factor):
    feedback = started()
    before = feedback.to_bytes()
    with pytest.raises(FeedbackError, match="must be"):
        feedback.change(policy, factor=factor)
    assert feedback.to_bytes() == before


def test_a_lost_message_is_owed_again():
    feedback = started()
    before = [feedback.residual_parts("w", sender="a")[0].copy()]
    x = np.random.default_rng(8).standard_normal((3, 4)).astype(np.float32)
    q = feedback.quantize(x, qk.sign_quantize, leaf="w", sender="a")

    feedback.give_back(q, leaf="w", sender="a")

    expected = [a + b for a, b in zip(fractions(before[0]), fractions(x), strict=True)]
    assert owed(feedback, 12, leaf="w", sender="a") == expected
    with pytest.raises(MissingResidual, match="leaf 'u' of 'a'"):
        feedback.give_back(q, leaf="u", sender="a")


# -- checkpoints -----------------------------------------------------------------------------


def test_a_checkpoint_goes_on_bit_for_bit():
    def steps(feedback: ErrorFeedback, first: int) -> list[bytes]:
        sent = []
        for t in range(first, first + 5):
            x = (np.random.default_rng(t).standard_normal(50) * 10.0 ** (t % 4)).astype(np.float32)
            for quantizer in (qk.sign_quantize, minmax(t)):
                q = feedback.quantize(x, quantizer, leaf=quantizer.__name__, sender="a")
                sent.append(replace(q, timings_ms={}).to_bytes())
        return sent

    through = ErrorFeedback()
    steps(through, 0)
    saved = through.to_bytes()
    rest = steps(through, 5)

    resumed = ErrorFeedback.from_bytes(saved)
    assert resumed.to_bytes() == saved
    assert steps(resumed, 5) == rest
    assert resumed.to_bytes() == through.to_bytes()
    # Control: a residual that is off by the last bit is another run.
    state = ErrorFeedback.from_bytes(saved).state_dict()
    state["residuals"][0]["parts"][0] = np.nextafter(state["residuals"][0]["parts"][0], 9.0)
    other = ErrorFeedback()
    other.load_state_dict(state)
    steps(other, 5)
    assert other.to_bytes() != through.to_bytes()


def test_a_checkpoint_of_before_the_first_step_lets_all_begin():
    feedback = ErrorFeedback.from_bytes(ErrorFeedback().to_bytes())
    feedback.quantize(np.ones(3), qk.sign_quantize, leaf="w")
    assert len(feedback.known()) == 1


def test_a_state_is_not_changed_by_later_steps():
    feedback = started()
    state = feedback.state_dict()
    copied = [part.copy() for entry in state["residuals"] for part in entry["parts"]]
    x = np.ones((3, 4), np.float32)
    feedback.quantize(x, qk.sign_quantize, leaf="w", sender="a")
    after = [part for entry in state["residuals"] for part in entry["parts"]]
    assert all(np.array_equal(a, b) for a, b in zip(copied, after, strict=True))


def _changed(**changes: Any) -> dict[str, Any]:
    state = started().state_dict()
    for name, value in changes.items():
        if name in state:
            state[name] = value
        else:
            state["residuals"][0][name] = value
    return state


@pytest.mark.parametrize(
    "state",
    [
        {},
        _changed(format="other"),
        _changed(version=2),
        _changed(residuals=3),
        _changed(residuals=[{}]),
        _changed(extra=1),
        {**_changed(), "extra": 1},
        _changed(sender="b"),
        _changed(direction="sideways"),
        _changed(dtype="float8"),
        _changed(shape=[3, 5]),
        _changed(shape=[-3, -4]),
        _changed(steps=-1),
        _changed(parts=[np.full(12, np.inf)]),
        _changed(parts=[np.zeros(12, np.float32)]),
        _changed(parts=[np.zeros(12)] * 257),
    ],
    ids=str,
)
def test_a_state_that_contradicts_itself_is_refused(state):
    feedback = started()
    before = feedback.to_bytes()
    with pytest.raises(FeedbackError):
        feedback.load_state_dict(state)
    assert feedback.to_bytes() == before


def test_bytes_are_read_strictly():
    blob = started().to_bytes()
    for broken in (blob[:-1], blob + b"\x00", b"", b"\x80", blob.replace(b"steps", b"stops")):
        with pytest.raises((qk.MalformedMessage, qk.InvalidInput)):
            ErrorFeedback.from_bytes(broken)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_broken_bytes_raise_nothing_else(data):
    """Bytes changed, cut out or doubled anywhere: read as another state, or refused."""
    blob = bytearray(SAVED)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(blob) - 1))
        end = place + data.draw(st.integers(0, 12))
        blob[place:end] = data.draw(st.binary(max_size=8))
    try:
        found = ErrorFeedback.from_bytes(bytes(blob))
    except (qk.MalformedMessage, qk.InvalidInput, FeedbackError):
        return
    assert ErrorFeedback.from_bytes(found.to_bytes()).to_bytes() == found.to_bytes()


# -- trees -----------------------------------------------------------------------------------


def quantize_tree(tree: dict[str, Any]) -> QuantizedTree:
    """`big` by two levels in two sections, `small` packed with `tiny` by its sign, others raw."""
    big = tree["big"]
    half = big.size // 2
    sections = [
        QuantizedSection(qk.quantize(part, num_levels=2, seed=i))
        for i, part in enumerate((big.reshape(-1)[:half], big.reshape(-1)[half:]))
    ]
    packed = np.concatenate([tree["small"].reshape(-1), tree["tiny"].reshape(-1)])
    groups = (
        Group((Leaf("big", "float32", big.shape),), tuple(sections)),
        Group(
            (
                Leaf("small", "float32", tree["small"].shape),
                Leaf("tiny", "float32", tree["tiny"].shape),
            ),
            (QuantizedSection(qk.sign_quantize(packed)),),
        ),
        Group((Leaf("raw", "float64", tree["raw"].shape),), (RawSection(tree["raw"].reshape(-1)),)),
        Group((Leaf("count", "int64", ()),), (RawSection(tree["count"].reshape(-1)),)),
    )
    return QuantizedTree(groups, order=(0, 1, 2, 3, 4))


def draw_tree(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "big": rng.standard_normal((10, 20)).astype(np.float32),
        "small": rng.standard_normal(7).astype(np.float32),
        "tiny": np.array(rng.standard_normal(), np.float32),
        "raw": rng.standard_normal(3),
        "count": np.array(seed),
    }


def test_every_leaf_of_a_tree_keeps_the_identity():
    feedback = ErrorFeedback()
    trees = [draw_tree(t) for t in range(6)]
    messages = [feedback.quantize_tree(tree, quantize_tree, sender="a") for tree in trees]

    for leaf in ("big", "small", "tiny", "raw"):
        xs = [tree[leaf] for tree in trees]
        ds = [message.arrays()[leaf] for message in messages]
        assert identity_holds(xs, ds, owed(feedback, xs[0].size, leaf=leaf, sender="a"))
    assert [m.arrays()["count"] for m in messages] == [0, 1, 2, 3, 4, 5]
    assert [key.leaf for key in feedback.known()] == ["big", "raw", "small", "tiny"]
    # Two levels are no contraction, so each section was scaled; raw leaves owe nothing.
    sections = messages[0].groups[0].sections
    unscaled = quantize_tree(trees[0]).groups[0].sections
    for ours, theirs in zip(sections, unscaled, strict=True):
        assert theirs.vector.vnmse > 1 > ours.vector.vnmse
    assert feedback.residual_parts("raw", sender="a") == ()


def test_a_renamed_leaf_is_an_error_and_an_absent_one_waits():
    feedback = ErrorFeedback()

    def of_big(tree: dict[str, Any]) -> QuantizedTree:
        [(name, x)] = tree.items()
        group = Group(
            (Leaf(name, "float32", x.shape),), (QuantizedSection(qk.sign_quantize(x.reshape(-1))),)
        )
        return QuantizedTree((group,), order=(0,))

    feedback.quantize_tree(draw_tree(0), quantize_tree, sender="a")
    before = feedback.residual("small", sender="a")
    feedback.quantize_tree({"big": draw_tree(1)["big"]}, of_big, sender="a")
    assert np.array_equal(feedback.residual("small", sender="a"), before)

    saved = feedback.to_bytes()
    with pytest.raises(MissingResidual, match=r"leaf 'large' of 'a', up.*Known leaves: 'big'"):
        feedback.quantize_tree({"large": draw_tree(2)["big"]}, of_big, sender="a")
    assert feedback.to_bytes() == saved
    feedback.begin(sender="a")
    feedback.quantize_tree({"large": draw_tree(2)["big"]}, of_big, sender="a")


def test_a_lost_tree_is_owed_again():
    feedback = ErrorFeedback()
    tree = draw_tree(0)
    message = feedback.quantize_tree(tree, quantize_tree, sender="a")
    feedback.give_back(message, sender="a")
    for leaf in ("big", "small", "tiny", "raw"):
        assert owed(feedback, tree[leaf].size, leaf=leaf, sender="a") == fractions(tree[leaf])


def test_a_message_of_other_leaves_is_refused():
    feedback = ErrorFeedback()
    with pytest.raises(qk.InvalidInput, match="differ in 'extra'"):
        feedback.quantize_tree({**draw_tree(0), "extra": np.ones(2)}, quantize_tree)
    assert feedback.known() == []


def test_a_clients_quantizer_fits():
    feedback = ErrorFeedback()
    client = LocalClient()
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    q = feedback.quantize(x, lambda u: client.quantize(u, bits=2, seed=1), leaf="w")
    assert identity_holds([x], [client.dequantize(q)], owed(feedback, 1000, leaf="w"))


@pytest.mark.parametrize("client", [LocalClient(), Signs()], ids=lambda c: type(c).__name__)
def test_trees_by_a_policy(client):
    """Large leaves in chunks with outliers, small ones packed, others raw; nested."""
    policy = Policy(
        bits=1,
        min_size=64,
        pack_below=600,
        chunk_values=1000,
        outliers=3,
        overrides={"head.w": {"bits": 4}},
    )
    feedback = ErrorFeedback()
    names = {"body.0": (50, 50), "body.1": (20, 20), "head.w": (1200,), "head.b": (9,)}
    put_in: dict[str, list[np.ndarray]] = {name: [] for name in names}
    sent: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for t in range(4):
        rng = np.random.default_rng(t)
        draw = {name: rng.standard_normal(shape).astype("f4") for name, shape in names.items()}
        tree = {
            "body": [draw["body.0"], draw["body.1"]],
            "head": {"w": draw["head.w"], "b": draw["head.b"]},
            "step": np.int64(t),
        }
        tag = Tag(round=t, client="w7")
        message = feedback.compress(tree, policy, client=client, tag=tag, seed=1)
        assert restore(message.to_bytes())["step"] == t
        for name in names:
            put_in[name].append(draw[name])
            sent[name].append(message.arrays()[name])

    for name, shape in names.items():
        rest = owed(feedback, int(np.prod(shape)), leaf=name, sender="w7")
        assert identity_holds(put_in[name], sent[name], rest)
    assert not any(owed(feedback, 9, leaf="head.b", sender="w7"))
    assert any(owed(feedback, 2500, leaf="body.0", sender="w7"))
    with pytest.raises(MissingResidual, match="leaf 'value' of 'w7'"):
        feedback.compress(np.ones(5), policy, client=client, tag=tag)


def test_a_service_gives_the_same_messages_and_residuals(live_server: str):
    kept = []
    with Client(live_server) as remote:
        for client in (LocalClient(), remote):
            feedback = ErrorFeedback()
            for t in range(3):
                tree = {"w": np.random.default_rng(t).standard_normal((40, 50)).astype("f4")}
                tag = Tag(round=t, client="w1")
                message = feedback.compress(tree, Policy(bits=1), client=client, tag=tag, seed=3)
            kept.append((feedback.to_bytes(), message.arrays()["w"].tobytes()))
    assert kept[0] == kept[1]
