"""Wrappers: outliers kept exactly, entropy coding, a scale for error feedback, on any method."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import quiver_kernels as qk
from quiver_kernels import dispatch
from quiver_kernels.errors import InvalidInput, QuiverError
from quiver_kernels.homomorphic import IntegerSum
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.packing import pack_codes
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.request import option_fields
from quiver_kernels.schemes import entropy
from quiver_kernels.tree import Group, Leaf, QuantizedSection, QuantizedTree
from quiver_kernels.tree_mean import aggregate_trees
from quiver_kernels.wire import (
    LevelsRequest,
    QuantizeRequest,
    decode_levels_request,
    decode_quantize_json,
    decode_quantize_request,
    encode_quantize_request,
    quantize_request_from_raw,
)
from quiver_kernels.wrapping import payload
from quiver_kernels.wrapping.clamp import clamp
from quiver_kernels.wrapping.parts import Exact, Packed, Wrap
from quiver_kernels.wrapping.ranks import values_at

METHODS: dict[str, dict[str, Any]] = {
    "exact": {"bits": 3},
    "approx": {"bits": 4, "block_size": 100},
    "uniform": {"num_levels": 5, "block_size": 7},
    "simba": {"bits": 2},
    "fp4": {"parameters": {"scale": "mx"}},
    "seq": {"num_levels": 3},
    "eden": {"bits": 3},
    "pow2": {"bits": 4, "block_size": 24},
    "ectcq": {},
    "sign": {},
    "amq": {"bits": 3},
}
EVERYTHING: dict[str, Any] = {"outliers": 0.97, "entropy": True}


def heavy(size: int, seed: int = 0, dtype: str = "float32") -> NDArray[Any]:
    return np.random.default_rng(seed).standard_t(2, size).astype(dtype)


def vnmse(decoded: NDArray[Any], x: NDArray[Any]) -> float:
    wide = x.astype(np.float64)
    return float(np.sum((decoded.astype(np.float64) - wide) ** 2) / np.sum(wide**2))


# -- all methods --------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_any_method_can_be_wrapped(method: str, dtype: str):
    x = heavy(3000).astype(dtype).reshape(3, 1000)
    q = qk.quantize(x, method=method, seed=5, **METHODS[method], **EVERYTHING)
    assert q.wrap is not None
    assert q.wrap.outliers is not None
    data = q.to_bytes()
    read = QuantizedVector.from_bytes(data)
    decoded = qk.dequantize(read)
    assert decoded.dtype == x.dtype
    assert decoded.shape == x.shape
    assert decoded.tobytes() == qk.dequantize(q).tobytes()
    assert read.nbytes == q.nbytes
    # A head of a few hundred bytes; all else is counted.
    assert 0 < len(data) - q.nbytes < 500
    # Outliers are exact, and the message says what the error is.
    positions = q.wrap.outliers.positions(q.size)
    assert decoded.reshape(-1)[positions].tobytes() == x.reshape(-1)[positions].tobytes()
    assert q.vnmse == pytest.approx(vnmse(decoded, x), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_inside_is_the_methods_own_message(method: str):
    x = heavy(2500)
    chosen = METHODS[method]
    q = qk.quantize(x, method=method, seed=5, **chosen, **EVERYTHING)
    plain = qk.quantize(clamp(x, 0.97).inside, method=method, seed=5, **chosen)
    wanted = qk.dequantize(plain)
    assert q.wrap is not None
    assert q.wrap.outliers is not None
    wanted[q.wrap.outliers.positions(q.size)] = q.wrap.outliers.values
    assert qk.dequantize(q).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_entropy_coding_changes_no_value_and_grows_no_message(method: str):
    for x in (heavy(3000), np.zeros(3000, np.float32), heavy(3)):
        plain = qk.quantize(x, method=method, seed=5, **METHODS[method])
        coded = qk.quantize(x, method=method, seed=5, entropy=True, **METHODS[method])
        # Times of stages are of different lengths.
        sizes = [len(replace(q, timings_ms={}).to_bytes()) for q in (plain, coded)]
        assert sizes[1] <= sizes[0]
        assert qk.dequantize(coded).tobytes() == qk.dequantize(plain).tobytes()
        assert coded.vnmse == plain.vnmse


def test_a_coder_that_does_not_look_whether_it_pays_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """The negative control of the test above."""
    monkeypatch.setattr(payload, "_ROOM", -(1 << 20))
    x = heavy(300)
    plain, coded = (qk.quantize(x, bits=4, seed=5, entropy=on) for on in (False, True))
    sizes = [len(replace(q, timings_ms={}).to_bytes()) for q in (plain, coded)]
    assert sizes[1] > sizes[0]


def test_means_of_wrapped_and_other_messages():
    x = heavy(500)
    wrapped = qk.quantize(x, bits=3, seed=1, feedback_scale=True, **EVERYTHING)
    vectors = [wrapped, qk.quantize(x, bits=2, seed=2), qk.quantize(x, method="fp4", seed=3)]
    mean = qk.aggregate(vectors, [3, 1, 2])
    parts = [qk.dequantize(q).astype(np.float64) for q in vectors]
    wanted = 3 / 6 * parts[0] + 1 / 6 * parts[1] + 2 / 6 * parts[2]
    np.testing.assert_allclose(mean, wanted, rtol=1e-6, atol=1e-6)
    out = np.empty_like(x)
    assert qk.aggregate(vectors, [3, 1, 2], out=out).tobytes() == mean.tobytes()
    assert qk.dequantize(wrapped, out=out).tobytes() == qk.dequantize(wrapped).tobytes()


def test_the_reference_backend_wraps_and_unwraps_alike():
    x = heavy(300)
    options = QuantizeOptions.create(method="uniform", bits=3, seed=4, **EVERYTHING)
    found = [dispatch.load(name).quantize(x, options, None) for name in ("cpu", "reference")]
    messages = [replace(q, device="cpu", timings_ms={}, vnmse=0).to_bytes() for q in found]
    assert messages[0] == messages[1]
    decoded = {dispatch.load(name).dequantize(found[0]).tobytes() for name in ("cpu", "reference")}
    assert len(decoded) == 1


def test_threads_change_nothing():
    x = heavy((1 << 18) + 4099)
    messages = [
        replace(
            qk.quantize(x, method="uniform", bits=4, seed=1, threads=threads, **EVERYTHING),
            timings_ms={},
        )
        for threads in (1, 4)
    ]
    assert messages[0].to_bytes() == messages[1].to_bytes()
    decoded = {qk.dequantize(messages[0], threads=threads).tobytes() for threads in (1, 4)}
    assert len(decoded) == 1


# -- outliers -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(
    x=st.lists(st.sampled_from([-7.0, -1.0, 0.0, 0.5, 1.0, 2.0, 9.0]), min_size=1, max_size=60),
    share=st.floats(0.5, 1, exclude_max=True),
)
@example(x=[1.0] * 10, share=0.5)
def test_outliers_are_beyond_the_two_ranks(x: list[float], share: float):
    ordered = sorted(x)
    low = ordered[int((1 - share) * len(x))]
    high = max(low, ordered[min(int(share * len(x)), len(x) - 1)])
    clamped = clamp(np.array(x), share)
    wanted = [place for place, value in enumerate(x) if not low <= value <= high]
    assert clamped.positions.tolist() == wanted
    assert clamped.inside.tolist() == [min(max(value, low), high) for value in x]
    if wanted:
        assert clamped.exact is not None
        assert clamped.exact.positions(len(x)).tolist() == wanted
        assert clamped.exact.values.tolist() == [x[place] for place in wanted]
    else:
        assert clamped.exact is None


@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
    size=st.integers(1, 300),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_counting_digits_finds_the_values_of_sorting(
    dtype: str, size: int, seed: int, data: st.DataObject
):
    rng = np.random.default_rng(seed)
    x = np.ldexp(rng.normal(size=size), rng.integers(-3, 4, size) * rng.integers(0, 40)) * 1.0
    x = np.where(rng.random(size) < 0.2, 0.0, x)
    with np.errstate(over="ignore"):
        x = np.clip(x, -6e4, 6e4).astype(dtype)
    ranks = sorted(data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=2)))
    ordered = np.sort(x.astype(np.float64))
    for short in (0, size):
        assert values_at(x, ranks, short) == [ordered[rank] for rank in ranks]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_values_of_any_type_are_kept(dtype: str):
    top = float(ml_dtypes.finfo(dtype).max)
    x = np.concatenate([np.linspace(-1, 1, 98), [top, -top]]).astype(dtype)
    q = QuantizedVector.from_bytes(qk.quantize(x, bits=1, seed=1, outliers=0.98).to_bytes())
    decoded = qk.dequantize(q)
    assert decoded[-2:].tobytes() == x[-2:].tobytes()
    # The negative control: without them all levels are at the ends.
    assert vnmse(decoded[:98], x[:98]) < 3
    assert np.abs(qk.dequantize(qk.quantize(x, bits=1, seed=1))[:98].astype(float)).min() > 1e4


def test_where_nothing_is_an_outlier_the_message_is_not_wrapped():
    for x in (np.ones(1000, np.float32), heavy(10)):
        q = qk.quantize(x, bits=4, seed=1, outliers=0.99)
        assert q.wrap is None
        plain = qk.quantize(x, bits=4, seed=1)
        assert qk.dequantize(q).tobytes() == qk.dequantize(plain).tobytes()


def sample(kind: str) -> NDArray[np.float32]:
    rng, n = np.random.default_rng(0), 1 << 21
    drawn = {
        "normal": lambda: rng.standard_normal(n),
        "student": lambda: rng.standard_t(3, n),
        "lognormal": lambda: rng.lognormal(0, 1.5, n) * rng.choice([-1, 1], n),
    }
    return drawn[kind]().astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "direct", "clamped", "compensated"),
    [
        ("normal", 0.0212, 0.0148, {0.99: 0.0106, 0.999: 0.0125, 0.97: 0.0084}),
        ("student", 0.84, 0.19, {0.99: 0.0077, 0.999: 0.0234, 0.97: 0.0049}),
        ("lognormal", 0.51, 0.51, {0.99: 0.0039, 0.999: 0.0239, 0.97: 0.0013}),
    ],
)
def test_fp4_with_outliers_has_the_errors_of_the_reference(
    kind: str, direct: float, clamped: float, compensated: dict[float, float]
):
    """Clamping and compensation per tensor; direct and clamped-only values vary by draw."""
    x = sample(kind)

    def quantized(share: float | None) -> QuantizedVector:
        chosen: dict[str, Any] = {"block_size": x.size, "parameters": {"scale": "float32"}}
        return qk.quantize(x, method="fp4", outliers=share, **chosen)

    assert quantized(None).vnmse == pytest.approx(direct, rel=0.2)
    for share, wanted in compensated.items():
        q = quantized(share)
        assert vnmse(qk.dequantize(q), x) == pytest.approx(wanted, rel=0.06)
        assert q.wrap is not None
        assert q.wrap.outliers is not None
        assert q.wrap.outliers.values.size == pytest.approx(2 * (1 - share) * x.size, rel=0.001)
        if share == 0.99:
            # The negative control: without compensation heavy tails are lost.
            alone = vnmse(qk.dequantize(replace(q, wrap=None)), x)
            assert alone == pytest.approx(clamped, rel=0.2)


# -- entropy coding -----------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    bits=st.integers(1, 8),
    block=st.sampled_from([None, 1, 3, 8, 50]),
    size=st.integers(1, 400),
    skew=st.floats(0, 1),
    seed=st.integers(0, 5),
)
def test_payloads_go_there_and_back_and_never_grow(
    bits: int, block: int | None, size: int, skew: float, seed: int
):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, size) * (rng.random(size) < skew)
    packed = pack_codes(codes.astype(np.uint8), bits, block)
    found = payload.coded(packed, size, bits, block)
    if found is None:
        return
    stream, how = found
    assert how == Packed("codes", packed.size)
    assert stream.size + 60 < packed.size
    assert payload.payload(stream, how, size, bits, block).tobytes() == packed.tobytes()


def test_payloads_are_coded_where_that_pays():
    """The negative control of the test above: some are, to about their entropy."""
    rng = np.random.default_rng(0)
    codes = rng.choice(16, 100_000, p=np.array([1.0, *[1 / 60] * 15]) / 1.25).astype(np.uint8)
    shares = np.bincount(codes) / codes.size
    found = payload.coded(pack_codes(codes, 4), codes.size, 4, None)
    assert found is not None
    bits = -float(np.sum(shares * np.log2(shares)))
    assert 8 * found[0].size == pytest.approx(bits * codes.size, rel=0.01)
    assert payload.coded(rng.integers(0, 256, 5000, np.uint8), 10_000, 4, None) is None


@pytest.mark.parametrize("odd", ["more bytes", "bits behind a block"])
def test_payloads_of_another_packing_are_coded_as_bytes(odd: str):
    codes = np.zeros(900, np.uint8)
    packed, size, block = pack_codes(codes, 3, 3), codes.size, 3
    if odd == "more bytes":
        packed = np.concatenate([packed, np.zeros(5, np.uint8)])
    else:
        # One past the 9 bits of three codes.
        packed[1::2] = 2
    found = payload.coded(packed, size, 3, block)
    assert found is not None
    assert found[1] == Packed("bytes", packed.size)
    assert payload.payload(*found, size, 3, block).tobytes() == packed.tobytes()


def test_without_numba_the_bytes_are_the_same(monkeypatch: pytest.MonkeyPatch):
    x = heavy(700)
    chosen: dict[str, Any] = {"method": "uniform", "num_levels": 5, "block_size": 7, "seed": 3}
    q = replace(qk.quantize(x, entropy=True, **chosen), timings_ms={})
    decoded = qk.dequantize(q)
    monkeypatch.setattr(payload, "_kernels", lambda: None)
    assert replace(qk.quantize(x, entropy=True, **chosen), timings_ms={}).to_bytes() == q.to_bytes()
    assert qk.dequantize(q).tobytes() == decoded.tobytes()


def test_codes_of_many_values_are_decoded_in_parts():
    codes = (np.arange(600_001) % 50 == 0).astype(np.uint8)
    packed = pack_codes(codes, 1)
    found = payload.coded(packed, codes.size, 1, None)
    assert found is not None
    stream = entropy.open_stream(found[0], codes.size, entropy.Walk.single(2))
    assert len(stream.spans()) > 1
    assert payload.payload(*found, codes.size, 1, None).tobytes() == packed.tobytes()


# -- error feedback -----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["exact", "uniform", "eden", "amq"])
def test_scaled_messages_contract(method: str):
    x = heavy(400)
    x[0] = 60
    chosen: dict[str, Any] = {"method": method, "bits": 2 if method == "amq" else 1}
    errors = []
    for seed in range(120):
        q = qk.quantize(x, seed=seed, feedback_scale=True, **chosen)
        plain = qk.quantize(x, seed=seed, **chosen)
        assert q.wrap is not None
        assert q.wrap.scale == 1 / (1 + plain.vnmse)
        assert q.vnmse == pytest.approx(plain.vnmse / (1 + plain.vnmse))
        products = qk.dequantize(plain).astype(np.float64) * q.wrap.scale
        assert np.array_equal(qk.dequantize(q), products.astype(np.float32))
        errors.append((vnmse(qk.dequantize(q), x), q.vnmse, plain.vnmse))
    actual, told, unscaled = np.array(errors).T
    spread = 5 * actual.std() / np.sqrt(actual.size)
    assert abs(actual.mean() - told.mean()) <= spread + 1e-3
    assert actual.mean() < 1
    if method != "eden":
        # The negative control: without the scale these are no contractions.
        assert unscaled.mean() > 1


def test_what_contracts_by_itself_is_left_as_it_is():
    x = heavy(400)
    q = qk.quantize(x, method="fp4", feedback_scale=True)
    assert q.wrap is None
    assert qk.dequantize(q).tobytes() == qk.dequantize(qk.quantize(x, method="fp4")).tobytes()
    assert qk.quantize(np.zeros(9), bits=2, feedback_scale=True).wrap is None


def test_what_has_a_bias_and_does_not_contract_is_refused():
    parameters = {"scale": "mx", "rounding": "stochastic"}
    with pytest.raises(InvalidInput, match="feedback_scale must be false") as caught:
        qk.quantize(heavy(9), method="fp4", parameters=parameters, feedback_scale=True)
    assert caught.value.field == "feedback_scale"


def test_with_outliers_the_scale_is_that_of_the_others():
    x = heavy(5000)
    q = qk.quantize(x, bits=1, seed=1, outliers=0.99, feedback_scale=True)
    assert q.wrap is not None
    assert q.wrap.scale is not None
    assert q.wrap.outliers is not None
    inside = np.ones(x.size, np.bool_)
    inside[q.wrap.outliers.positions(x.size)] = False
    errors = [
        vnmse(qk.dequantize(one)[inside], x[inside])
        for seed in range(30)
        for one in [qk.quantize(x, bits=1, seed=seed, outliers=0.99, feedback_scale=True)]
    ]
    assert np.mean(errors) < 1
    assert np.mean(errors) == pytest.approx(1 - q.wrap.scale, rel=0.05)


# -- where codes are used as they are -------------------------------------------------------


def test_sums_of_codes_refuse_wrapped_messages():
    x = np.linspace(-1, 1, 200).astype(np.float32)
    levels = np.array([-1, -0.5, 0, 0.5, 1], np.float32)
    total = IntegerSum(levels, x.shape, 4)
    total.add(qk.quantize(x, levels=levels, seed=1))
    q = qk.quantize(x, levels=levels, seed=1, feedback_scale=True)
    with pytest.raises(InvalidInput, match=r"must not be wrapped.*scale"):
        total.add(q)
    table = np.zeros((1, 5), np.int64)
    for name in ("cpu", "reference"):
        with pytest.raises(InvalidInput, match="must not be wrapped"):
            dispatch.load(name).add_codes(q, 0, x.size, [table], [np.zeros(x.size, np.int64)])


def test_integer_sums_of_powers_of_two_refuse_wrapped_messages():
    from quiver_kernels.schemes.pow2.sums import power_sum

    x = heavy(300)
    power_sum([qk.quantize(x, method="pow2")])
    with pytest.raises(InvalidInput, match="must not be wrapped"):
        power_sum([qk.quantize(x, method="pow2", outliers=0.9)])


def test_coded_indices_are_refused():
    x = (np.arange(5000) % 100 == 0).astype(np.float32)
    q = qk.quantize(x, bits=1, seed=1, entropy=True)
    assert q.wrap is not None
    with pytest.raises(InvalidInput, match="entropy coded"):
        q.indices()
    assert qk.quantize(x, bits=1, seed=1).indices().sum() == 50


def test_trees_with_wrapped_sections_have_exact_means():
    x = heavy(2000)
    trees = []
    for seed in range(3):
        q = qk.quantize(x * (seed + 1), bits=3, seed=seed, feedback_scale=True, **EVERYTHING)
        group = Group((Leaf("w", "float32", x.shape),), (QuantizedSection(q),))
        tree = QuantizedTree(groups=(group,), order=(0,))
        trees.append(QuantizedTree.from_bytes(tree.to_bytes()))
    outliers = _vector(trees[0]).wrap
    assert outliers is not None
    assert outliers.outliers is not None
    assert trees[0].ledger(errors=False).outliers == outliers.outliers.nbytes
    mean = aggregate_trees(trees, [1, 2, 4]).arrays()["w"]
    decoded = [qk.dequantize(_vector(tree)).astype(np.float64) for tree in trees]
    wanted = (decoded[0] + 2 * decoded[1] + 4 * decoded[2]) / 7
    np.testing.assert_allclose(mean, wanted, rtol=1e-6)


def _vector(tree: QuantizedTree) -> QuantizedVector:
    section = tree.groups[0].sections[0]
    assert isinstance(section, QuantizedSection)
    assert section.vector.wrap is not None
    return section.vector


# -- messages -----------------------------------------------------------------------------


def message() -> dict[str, Any]:
    x = heavy(4000)
    q = qk.quantize(x, bits=4, method="uniform", seed=1, feedback_scale=True, **EVERYTHING)
    found: dict[str, Any] = msgspec.msgpack.decode(q.to_bytes())
    assert set(found["wrap"]) == {"outliers", "entropy", "scale"}
    return found


def damage() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, field of the error, and what to change of the key ``wrap``."""
    values = np.ones(3, np.float32).tobytes()
    yield "nothing", "wrap", {"outliers": None, "entropy": None, "scale": None}
    yield "unknown key", "wrap", {"more": 1}
    for scale in (0.0, 1.0, -0.5, float("nan"), float("inf")):
        yield f"scale {scale}", "wrap.scale", {"scale": scale}
    yield "scale is text", "wrap.scale", {"scale": "half"}
    yield "odd values", "wrap.outliers.values", {"outliers": {"indices": b"\0", "values": b"abc"}}
    yield "no values", "wrap.outliers.values", {"outliers": {"indices": b"", "values": b""}}
    infinite = np.full(1, np.inf, np.float32).tobytes()
    yield (
        "infinite value",
        "wrap.outliers.values",
        {"outliers": {"indices": b"\0", "values": infinite}},
    )
    for name, indices in {
        "too few positions": b"\0\0",
        "too many positions": b"\0\0\0\0",
        "a position beyond": b"\0\0\xa0\x1f",
        "a long varint": b"\0\0\x80\0",
        "an endless varint": b"\0\0" + b"\xff" * 9 + b"\1",
        "an open varint": b"\0\0\0\x80",
    }.items():
        outliers = {"indices": indices, "values": values}
        yield name, "wrap.outliers.indices", {"outliers": outliers}
    yield "missing positions", "wrap.outliers", {"outliers": {"values": values}}
    for name, entropy_map, field in [
        ("a size of 0", {"symbols": "codes", "size": 0}, "wrap.entropy.size"),
        ("another size", {"symbols": "codes", "size": 1999}, "wrap.entropy.size"),
        ("a huge size", {"symbols": "codes", "size": 2**62}, "wrap.entropy.size"),
        ("bytes of a table method", {"symbols": "bytes", "size": 2000}, "wrap.entropy.symbols"),
        ("unknown symbols", {"symbols": "words", "size": 2000}, "wrap.entropy.symbols"),
        ("no size", {"symbols": "codes"}, "wrap.entropy"),
    ]:
        yield name, field, {"entropy": entropy_map}
    yield "codes that are not coded", "codes", {"entropy": None}


@pytest.mark.parametrize(
    ("name", "field", "change"), list(damage()), ids=lambda part: str(part)[:30]
)
def test_wraps_that_do_not_fit_are_refused(name: str, field: str, change: dict[str, Any]):
    found = message()
    QuantizedVector.from_bytes(msgspec.msgpack.encode(found))
    found["wrap"] = {**found["wrap"], **change}
    with pytest.raises(InvalidInput) as caught:
        QuantizedVector.from_bytes(msgspec.msgpack.encode(found))
    assert caught.value.field == field, name


def test_a_reader_that_does_not_look_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """The negative control of the list above: with positions unchecked, some of it is taken."""
    found = message()
    monkeypatch.setattr(Exact, "positions", lambda *_: np.zeros(3, np.int64))
    taken = []
    for name, field, change in damage():
        changed = {**found, "wrap": {**found["wrap"], **change}}
        with contextlib.suppress(InvalidInput):
            QuantizedVector.from_bytes(msgspec.msgpack.encode(changed))
            taken.append((name, field))
    assert len(taken) == 6
    assert {field for _, field in taken} == {"wrap.outliers.indices"}


def test_streams_of_schemes_are_bounded_by_what_their_messages_can_be():
    q = qk.quantize(np.zeros(5000, np.float32), method="fp4", entropy=True)
    assert q.wrap is not None
    wrap = replace(q.wrap, entropy=Packed("bytes", 1 << 40))
    data = replace(q, wrap=wrap).to_bytes()
    with pytest.raises(InvalidInput, match="must be at most") as caught:
        QuantizedVector.from_bytes(data)
    assert caught.value.field == "wrap.entropy.size"


def test_a_hostile_stream_takes_no_memory_before_it_is_refused():
    found = message()
    size = 1 << 38
    found["shape"] = [size]
    found["wrap"]["entropy"]["size"] = size // 2
    data = msgspec.msgpack.encode(found)
    tracemalloc.start()
    with pytest.raises(InvalidInput, match="bytes at least"):
        QuantizedVector.from_bytes(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@settings(deadline=None, max_examples=250)
@given(data=st.data())
def test_changed_messages_are_refused_or_decode(data: st.DataObject):
    method = data.draw(st.sampled_from(["exact", "seq", "fp4"]))
    q = _small(method)
    changed = bytearray(q)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([0, 0, 0, 1, 7]))
    with contextlib.suppress(QuiverError):
        read = QuantizedVector.from_bytes(bytes(changed[: len(changed) - cut]))
        if read.size <= 1 << 16:
            decoded = qk.dequantize(read)
            assert decoded.size == read.size


def _small(method: str) -> bytes:
    x = np.zeros(900, np.float32)
    x[::29], x[7], x[30] = 1, 50, -50
    bits: dict[str, Any] = {"exact": {"bits": 4}, "seq": {"num_levels": 4}, "fp4": {}}[method]
    q = qk.quantize(x, method=method, seed=1, outliers=0.99, entropy=True, **bits)
    assert q.wrap is not None
    assert q.wrap.entropy is not None
    return replace(q, timings_ms={}).to_bytes()


def test_wraps_made_by_hand_are_checked_when_decoded():
    q = qk.quantize(heavy(100), bits=2, seed=1)
    beyond = Exact.of(np.array([100], np.int64), np.ones(1, np.float32))
    with pytest.raises(InvalidInput, match="must be below 100"):
        qk.dequantize(replace(q, wrap=Wrap(outliers=beyond)))
    with pytest.raises(InvalidInput, match="codes"):
        qk.dequantize(replace(q, wrap=Wrap(entropy=Packed("codes", 25))))


# -- options ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"outliers": 0.4}, "outliers"),
        ({"outliers": 1.0}, "outliers"),
        ({"outliers": float("nan")}, "outliers"),
        ({"outliers": True}, "outliers"),
        ({"outliers": "most"}, "outliers"),
        ({"outliers": 10**5000}, "outliers"),
        ({"entropy": 1}, "entropy"),
        ({"feedback_scale": "yes"}, "feedback_scale"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], field: str):
    with pytest.raises(InvalidInput) as caught:
        QuantizeOptions.create(**options)
    assert caught.value.field == field


def test_requests_carry_the_options_and_leave_defaults_out():
    names = {"outliers", "entropy", "feedback_scale"}
    assert not names & option_fields(QuantizeOptions.create(bits=2)).keys()
    options = QuantizeOptions.create(bits=2, feedback_scale=True, **EVERYTHING)
    x = np.ones(4, np.float32)
    data = b"".join(encode_quantize_request(x, options))
    request = decode_quantize_request(data)
    assert isinstance(request, QuantizeRequest)
    assert request.options == options
    query = [("bits", "2"), ("outliers", "0.97"), ("entropy", "true"), ("feedback_scale", "true")]
    assert quantize_request_from_raw(x.tobytes(), query).options == options
    text = b'{"vector": [1], "bits": 2, "outliers": 0.97, "entropy": true, "feedback_scale": true}'
    parsed = decode_quantize_json(text)
    assert isinstance(parsed, QuantizeRequest)
    assert parsed.options == options


@pytest.mark.parametrize("option", [{"outliers": 0.9}, {"entropy": True}, {"feedback_scale": True}])
def test_levels_alone_take_no_wrappers(option: dict[str, Any]):
    x = np.ones(4, np.float32)
    plain = {"vector": x.tobytes(), "bits": 2}
    assert isinstance(decode_levels_request(msgspec.msgpack.encode(plain)), LevelsRequest)
    with pytest.raises(InvalidInput, match="no meaning for /levels") as caught:
        decode_levels_request(msgspec.msgpack.encode({**plain, **option}))
    assert caught.value.field == next(iter(option))


# -- golden messages ------------------------------------------------------------------------


GOLDEN = Path(__file__).parent / "golden"
WITHOUT_NUMBA = """
import json, pathlib, sys
sys.modules["numba"] = None
import quiver_kernels as qk
for name in ("codes", "bytes"):
    path = pathlib.Path(sys.argv[1]) / f"wrapped-{name}"
    q = qk.QuantizedVector.from_bytes(path.with_suffix(".msgpack").read_bytes())
    wanted = json.loads(path.with_suffix(".json").read_text())["decoded"]
    print(qk.dequantize(q).astype(float).reshape(-1).tolist() == wanted)
"""


def test_without_numba_messages_are_read():
    command = [sys.executable, "-c", WITHOUT_NUMBA, str(GOLDEN)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "True"], done.stderr


@pytest.mark.parametrize("name", ["codes", "bytes"])
def test_messages_that_were_written_once_are_read(name: str):
    """As all golden messages: they are never rewritten."""
    data = (GOLDEN / f"wrapped-{name}.msgpack").read_bytes()
    q = QuantizedVector.from_bytes(data)
    assert q.wrap is not None
    assert q.wrap.entropy is not None
    assert q.wrap.entropy.symbols == name
    assert q.wrap.outliers is not None
    wanted = json.loads((GOLDEN / f"wrapped-{name}.json").read_text())
    assert qk.dequantize(q).astype(np.float64).reshape(-1).tolist() == wanted["decoded"]
    assert (q.wrap.scale, q.vnmse) == (wanted["scale"], wanted["vnmse"])
    for backend in ("cpu", "reference"):
        assert dispatch.load(backend).dequantize(q).tobytes() == qk.dequantize(q).tobytes()
