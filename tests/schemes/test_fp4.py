"""FP4: the grid, its ties, published numbers, four kinds of scales, and hostile messages."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import quiver_kernels as qk
from quiver_kernels.errors import InvalidInput
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes import magnitudes, scaled
from quiver_kernels.schemes.contract import Choice, Coded
from quiver_kernels.schemes.fp4 import compiled, grid, scheme
from quiver_kernels.schemes.fp4.scales import KINDS

MAGNITUDES = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
MIDPOINTS = {0.25: 0, 0.75: 1, 1.25: 1, 1.75: 2, 2.5: 2, 3.5: 4, 5: 4}


def quantize(x: NDArray[Any], scale: str, **more: Any) -> QuantizedVector:
    rounding = more.pop("rounding", "nearest")
    parameters = {"scale": scale, "rounding": rounding}
    seed = more.pop("seed", 1)
    return qk.quantize(x, method="fp4", seed=seed, parameters=parameters, **more)


def there_and_back(x: NDArray[Any], scale: str, **more: Any) -> NDArray[Any]:
    return qk.dequantize(QuantizedVector.from_bytes(quantize(x, scale, **more).to_bytes()))


def nearest(value: Fraction) -> Fraction:
    """The slow, obvious rounding to E2M1: ties to the even code, beyond 6 to 6."""
    choices = [Fraction(m) for m in MAGNITUDES]
    size = min(abs(value), Fraction(6))
    best = min(range(8), key=lambda k: (abs(choices[k] - size), k % 2))
    return choices[best] if value >= 0 else -choices[best]


def test_the_sixteen_codes_go_there_and_back():
    x = np.array([sign * m for sign in (1, -1) for m in MAGNITUDES], np.float32)
    q = quantize(x, "float32")
    assert q.side["scales"].tolist() == [1]
    low, high = q.codes & 15, q.codes >> 4
    # The order of hardware; -0 is not written.
    assert np.stack([low, high], 1).reshape(-1).tolist() == [*range(8), 0, *range(9, 16)]
    decoded = qk.dequantize(q)
    assert decoded.tolist() == x.tolist()
    assert not np.signbit(decoded[x == 0]).any()


def test_the_code_of_minus_zero_is_read_as_zero():
    q = quantize(np.array([6, 1], np.float32), "float32")
    decoded = qk.dequantize(replace(q, codes=np.array([0x88], np.uint8)))
    assert decoded.tolist() == [0, 0]
    assert not np.signbit(decoded).any()


@pytest.mark.parametrize("scale", KINDS)
def test_midpoints_go_to_the_even_number(scale: str):
    # The greatest is 6, or 6 times 448 in another block, so that the scales are exactly 1.
    x = np.zeros(32, np.float32)
    x[0], x[16] = 6, 6 * 448
    x[1:8] = list(MIDPOINTS)
    x[8:15] = -x[1:8]
    decoded = there_and_back(x, scale, block_size=16)
    assert decoded[1:8].tolist() == list(MIDPOINTS.values())
    assert decoded[8:15].tolist() == [-value for value in MIDPOINTS.values()]


def test_a_midpoint_moved_by_a_bit_goes_the_other_way():
    """The negative control of the ties: what is no tie does not go to the even number."""
    down = np.nextafter(np.float32(0.75), np.float32(0))
    up = np.nextafter(np.float32(0.25), np.float32(1))
    assert there_and_back(np.array([6, down, up], np.float32), "float32").tolist() == [6, 0.5, 0.5]


def test_the_vector_published_with_ms_amp():
    x = [0.001, 0.048, 0.0997, 0.1503, 0.2002, 0.2497, 0.2974, 0.30699, 0.4001]
    wanted = [0, 0.0625, 0.125, 0.125, 0.1875, 0.25, 0.25, 0.25, 0.375]
    assert there_and_back(np.array(x, np.float32), "power").tolist() == wanted


# Reference figures for 2^21 normal values; a draw of as many moves them by a percent where a few
# large values decide on the scale.
FIGURES = {
    (16, "float32"): 0.00887,
    (16, "nvfp4"): 0.00906,
    (16, "mx"): 0.01386,
    (16, "power"): 0.01271,
    (32, "float32"): 0.01022,
    (32, "mx"): 0.01322,
    (32, "power"): 0.01330,
    (64, "float32"): 0.01118,
    (64, "mx"): 0.01277,
    (64, "power"): 0.01413,
    (128, "float32"): 0.01187,
    (128, "mx"): 0.01269,
    (128, "power"): 0.01557,
    (4096, "float32"): 0.01415,
    (4096, "mx"): 0.01510,
    (4096, "power"): 0.02322,
}


@pytest.fixture(scope="module")
def normal() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(1 << 21).astype(np.float32)


@pytest.mark.parametrize(("block", "scale"), FIGURES)
def test_errors_on_normal_values(normal: NDArray[np.float32], block: int, scale: str):
    wanted = FIGURES[block, scale]
    q = quantize(normal, scale, block_size=block)
    error = qk.dequantize(q).astype(np.float64) - normal
    vnmse = float(error @ error / (normal.astype(np.float64) @ normal))
    assert vnmse == pytest.approx(q.vnmse, rel=1e-4)
    assert vnmse == pytest.approx(wanted, rel=0.011 if block == 4096 else 0.005)


@pytest.mark.parametrize(
    ("scale", "block", "bits"), [("nvfp4", 16, 4.5), ("mx", 32, 4.25), ("float32", 64, 4.5)]
)
def test_blocks_and_bits_unless_told(scale: str, block: int, bits: float):
    x = np.random.default_rng(1).standard_normal(4096).astype(np.float32)
    q = quantize(x, scale)
    assert q.block_size is None
    assert q.side["scales"].size == 4096 // block
    assert q.bits_per_value == pytest.approx(bits, abs=0.01)
    same = quantize(x, scale, block_size=block)
    assert qk.dequantize(q).tobytes() == qk.dequantize(same).tobytes()


@settings(deadline=None, max_examples=60)
@given(
    scale=st.sampled_from(list(KINDS)),
    block=st.sampled_from([None, 1, 5, 16]),
    x=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40),
)
def test_the_kernel_is_the_slow_rounding(scale: str, block: int | None, x: list[float]):
    values = np.array(x, np.float32)
    q = quantize(values, scale, block_size=block)
    kind = KINDS[scale]
    scales = np.repeat(kind.values(q.side), block or kind.block)[: values.size]
    decoded = qk.dequantize(q)
    for value, factor, got in zip(values.tolist(), scales.tolist(), decoded, strict=True):
        # A scale may be 0 where others are far larger.
        entry = nearest(Fraction(value) / Fraction(factor)) if factor else Fraction(0)
        wanted = np.float32(float(entry * Fraction(factor)))
        # Rounded decoded values, too, may have a value in their middle.
        exact, near = Fraction(value), Fraction(float(got))
        assert got == wanted or abs(near - exact) <= abs(Fraction(float(wanted)) - exact)


@settings(deadline=None, max_examples=60)
@given(
    tops=st.lists(st.floats(0, 2.0**127, width=32), min_size=1, max_size=9),
    scale=st.sampled_from([name for name, kind in KINDS.items() if kind.covers]),
    dtype=st.sampled_from(["float32", "float64", "bfloat16"]),
)
def test_scales_that_cover_do(tops: list[float], scale: str, dtype: str):
    kind = KINDS[scale]
    greatest = np.array(tops).astype(ml_dtypes.bfloat16).astype(np.float64)
    scales = kind.values(kind.choose(greatest, dtype, covering=True))
    decoded = np.minimum(6 * scales, float(ml_dtypes.finfo(dtype).max)).astype(dtype)
    assert (decoded.astype(np.float64) >= greatest).all()


def test_mx_does_not_cover():
    """The negative control: its top value may be beyond 6 times the scale, and saturates."""
    decoded = there_and_back(np.array([7.9, 1], np.float32), "mx")
    assert decoded.tolist() == [6, 1]
    choice = qk.QuantizeOptions.create(
        method="fp4", parameters={"scale": "mx", "rounding": "stochastic"}
    ).choice
    assert not scheme().promises(choice).unbiased


@pytest.mark.parametrize("scale", KINDS)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(
    "x",
    [
        np.zeros(40, np.float32),
        np.array([-0.0], np.float16),
        np.full(33, 3.4e38, np.float32),
        np.array([1e300, -1e-300]),
        np.array([1.79e308, -1.79e308]),
        np.array([5e-324]),
        np.array([1e-45, 0], np.float32),
        np.array([65504, 1], np.float16),
        np.array([1e-3, 3e38], ml_dtypes.bfloat16),
    ],
    ids=lambda x: f"{x.dtype}-{float(x[0]):g}",
)
def test_edge_vectors(scale: str, rounding: str, x: NDArray[Any]):
    decoded = there_and_back(x, scale, rounding=rounding).astype(np.float64)
    exact = x.astype(np.float64)
    top = np.abs(exact).max()
    if top == 0:
        assert decoded.tolist() == exact.tolist()
        return
    assert np.isfinite(decoded).all()
    # No error is larger than a quarter of the greatest magnitude; 0 is exact.
    assert (np.abs(decoded / 2 - exact / 2) <= top / 8).all()
    assert (decoded[exact == 0] == 0).all()


def test_blocks_of_zeros_have_the_scale_one():
    for scale, one in {"float32": 1.0, "mx": 127, "power": 127, "nvfp4": 0x38}.items():
        q = quantize(np.zeros(40, np.float32), scale)
        assert set(q.side["scales"].tolist()) == {one}
        assert not q.codes.any()
        assert q.vnmse == 0


def damaged(scale: str, **parts: NDArray[Any]) -> QuantizedVector:
    q = quantize(np.linspace(-1, 1, 20, dtype=np.float32), scale)
    side = {**q.side, **{name: part for name, part in parts.items() if name != "codes"}}
    return replace(q, side=side, codes=parts.get("codes", q.codes))


@pytest.mark.parametrize(
    ("scale", "part", "value", "field"),
    [
        ("nvfp4", "scales", np.array([0x7F, 1], np.uint8), "side.scales"),
        ("nvfp4", "scales", np.array([1], np.uint8), "side.scales"),
        ("nvfp4", "scales", np.array([1, 1], np.int8), "side.scales"),
        ("nvfp4", "global", np.array([0], np.float32), "side.global"),
        ("nvfp4", "global", np.array([np.inf], np.float32), "side.global"),
        ("nvfp4", "global", np.array([np.nan], np.float32), "side.global"),
        ("nvfp4", "global", np.array([-1], np.float32), "side.global"),
        ("nvfp4", "global", np.array([1, 1], np.float32), "side.global"),
        ("nvfp4", "global", np.array([1.0]), "side.global"),
        ("nvfp4", "shift", np.array([1], np.int16), "side"),
        ("mx", "scales", np.array([255], np.uint8), "side.scales"),
        ("mx", "shift", np.array([0], np.int16), "side.shift"),
        ("mx", "shift", np.array([32767], np.int16), "side.shift"),
        ("power", "shift", np.array([-32768], np.int16), "side.shift"),
        ("power", "shift", np.array([5], np.int32), "side.shift"),
        ("power", "shift", np.array([], np.int16), "side.shift"),
        ("float32", "scales", np.array([-1], np.float32), "side.scales"),
        ("float32", "scales", np.array([1.0]), "side.scales"),
        ("mx", "codes", np.zeros(9, np.uint8), "codes"),
    ],
)
def test_messages_that_do_not_fit_are_refused(
    scale: str, part: str, value: NDArray[Any], field: str
):
    data = damaged(scale, **{part: value}).to_bytes()
    with pytest.raises(InvalidInput) as caught:
        QuantizedVector.from_bytes(data)
    assert caught.value.field == field


def test_undamaged_messages_are_taken():
    """The negative control of the list above."""
    for scale in KINDS:
        QuantizedVector.from_bytes(damaged(scale).to_bytes())


def test_the_table_is_that_of_the_format():
    codes = np.arange(16, dtype=np.uint8)
    numbers = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    assert grid.by_code().tolist() == numbers.tolist()


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from(list(KINDS)),
    block=st.sampled_from([1, 2, 3, 16, 50]),
    dtype=st.sampled_from(["float32", "float64"]),
    exponent=st.sampled_from([0, -148, -130, 120, -1073, 1000]),
    seed=st.integers(0, 99),
    size=st.integers(1, 60),
)
def test_the_fast_kernels_give_the_bits_of_the_general_ones(
    name: str, block: int, dtype: str, exponent: int, seed: int, size: int
):
    # Multiples of an eighth, so that many are ties; also among the least and largest numbers.
    if dtype == "float32":
        exponent = max(-148, min(exponent, 120))
    x = np.random.default_rng(seed).integers(-48, 49, size) / 8.0
    x = np.ldexp(x, exponent).astype(dtype)
    kind, tops = KINDS[name], magnitudes.tops(x, block)
    assert compiled.tops(x, block).tobytes() == tops.tobytes()
    scales = kind.values(kind.choose(tops, dtype, covering=False))
    unit = scaled.unit_of(x)
    fast = compiled.encode(x, scales, block, dtype, unit)
    general = scaled.encode(
        x,
        grid.ascending(),
        scales,
        block,
        0,
        nearest=True,
        ties_up=grid.ties_up(),
        packing=grid.E2M1(),
    )
    if exponent in (0, 120, 1000):
        assert fast.codes.tobytes() == general.codes.tobytes()
    # Among the least numbers several codes stand for one.
    found = [np.empty_like(x) for _ in range(2)]
    for decoded, made in zip(found, (fast, general), strict=True):
        compiled.decode(made.codes, scales, block, decoded)
    assert found[0].tobytes() == found[1].tobytes()
    assert fast.error == pytest.approx(general.error, rel=1e-12)
    assert fast.norm == pytest.approx(general.norm, rel=1e-12)
    # Any code, -0 too.
    codes = np.random.default_rng(seed).integers(0, 256, fast.codes.size, np.uint8)
    out = np.empty_like(x)
    compiled.decode(codes, scales, block, out)
    parts = (np.empty(0, x.dtype), codes, {"scales": scales})
    coded = Coded(size, dtype, Choice(16, block), 0, *parts)
    assert out.tobytes() == scaled.decode(coded, grid.by_code(), grid.E2M1()).tobytes()
