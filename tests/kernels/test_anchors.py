"""Published reference values: the optimum of fixed samples, to the printed digits."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.typing import NDArray

import quiver_kernels as qk

# One default_rng(42) draws, for each size in turn, lognormal(0, 1), normal(0, 1), exponential(1).
NAMES = ("lognormal", "normal", "exponential")
EXPONENTS = (12, 16, 20)

# (distribution, log2 d): minimum, maximum, then vNMSE at s = 2, 3, 4, 8, 16, 32, 64.
NUM_LEVELS = (2, 3, 4, 8, 16, 32, 64)
OPTIMA: dict[tuple[str, int], str] = {
    ("lognormal", 12): ".0260324143 24.0192032 4.61762997 .768111161 .319523621 "
    ".0548153136 .0113474087 2.41173637e-3 5.16561909e-4",
    ("normal", 12): "-4.38911438 4.02582407 16.3695443 2.30085879 .825552012 "
    ".120122218 .0236455749 5.16683763e-3 1.19459465e-3",
    ("exponential", 12): "4.69962761e-5 9.56134224 3.7118188 .618750638 .245777903 "
    ".0406902004 8.17037795e-3 1.86951665e-3 4.09622771e-4",
    ("lognormal", 16): ".0141646015 149.49086 30.222291 2.15421079 .711844106 "
    ".107864445 .0208057269 4.26004445e-3 9.19400946e-4",
    ("normal", 16): "-4.81564093 4.58506775 20.8300991 2.72393471 .928363928 "
    ".127728815 .0252429417 5.65819463e-3 1.33280901e-3",
    ("exponential", 16): "5.75796912e-6 10.6940622 4.36321774 .686648362 .270185469 "
    ".0441717471 9.36740679e-3 2.17727977e-3 5.16240478e-4",
    ("lognormal", 20): ".00800953712 107.021446 22.8287059 1.93737528 .670199338 "
    ".0997563169 .0206234658 4.74752064e-3 1.12877138e-3",
    ("normal", 20): "-5.08574343 4.70415592 22.9125086 2.90061043 .969658276 "
    ".131207897 .0255673755 5.73504508e-3 1.36705564e-3",
    ("exponential", 20): "8.01006649e-7 14.1926394 6.10945278 .825619557 .310224359 "
    ".0484275504 9.99734035e-3 2.28880001e-3 5.50207855e-4",
}
DIGITS = 9

LEVELS = {
    "lognormal": [0.026032414, 2.238215, 7.624755, 24.019203],
    "normal": [-4.3891144, -0.91003889, 0.82725263, 4.0258241],
    "exponential": [4.6996e-5, 1.240008, 3.3242257, 9.5613422],
}

# Apx. QUIVER with 400 cells, d = 2^20: (distribution, s): vNMSE.
GRID_400 = {
    ("lognormal", 4): 0.6707,
    ("lognormal", 16): 0.02089,
    ("lognormal", 32): 0.004952,
    ("normal", 16): 0.02560,
    ("normal", 32): 0.005753,
    ("exponential", 16): 0.01002,
}

# One default_rng(0), 4096 values each, in this order: s = 3, 4, 8, 16, then uniform with s = 16.
SMALL = {
    "normal": (1.8564, 0.6856, 0.1042, 0.02160, 0.0379),
    "lognormal": (0.7412, 0.2949, 0.0506, 0.01050, 0.0603),
    "laplace": (2.8546, 1.0714, 0.1573, 0.03061, 0.0867),
}


@functools.cache
def samples() -> dict[tuple[str, int], NDArray[np.float32]]:
    rng = np.random.default_rng(42)
    drawn = {}
    for exponent in EXPONENTS:
        size = 2**exponent
        for name, values in zip(
            NAMES,
            (
                rng.lognormal(0, 1, size),
                rng.normal(0, 1, size),
                rng.exponential(1, size),
            ),
            strict=True,
        ):
            drawn[name, exponent] = values.astype(np.float32)
    return drawn


def digits(value: float) -> str:
    return format(float(value), f".{DIGITS}g")


def vnmse(x: NDArray[np.float32], num_levels: int, method: str, bins: int = 1024) -> float:
    q = qk.quantize(x, num_levels=num_levels, method=method, bins=bins, grid="uniform", seed=0)
    return q.vnmse


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("name", NAMES)
def test_the_samples_are_the_published_ones(name: str, exponent: int):
    low, high, *_ = OPTIMA[name, exponent].split()
    x = samples()[name, exponent]

    assert (digits(x.min()), digits(x.max())) == (digits(float(low)), digits(float(high)))


@pytest.mark.parametrize("method", ["exact", "accelerated"])
@pytest.mark.parametrize("exponent", [12, 16])
@pytest.mark.parametrize("name", NAMES)
def test_optimum_of_small_samples(name: str, exponent: int, method: str):
    x = samples()[name, exponent]
    wanted = OPTIMA[name, exponent].split()[2:]
    found = [vnmse(x, s, method) for s in NUM_LEVELS]

    assert [digits(value) for value in found] == [digits(float(text)) for text in wanted]


@pytest.mark.parametrize("name", NAMES)
def test_optimum_of_a_million_values(name: str):
    x = samples()[name, 20]
    wanted = dict(zip(NUM_LEVELS, OPTIMA[name, 20].split()[2:], strict=True))
    for s in (2, 3, 4, 8, 16, 64):
        assert digits(vnmse(x, s, "exact")) == digits(float(wanted[s])), s


@pytest.mark.parametrize("name", NAMES)
def test_four_optimal_levels(name: str):
    levels = qk.optimal_levels(samples()[name, 12], 4)

    # As many digits as are printed: seven or eight, five for the smallest number.
    np.testing.assert_allclose(levels, LEVELS[name], rtol=6e-8, atol=5e-10)


@pytest.mark.parametrize(("name", "num_levels"), list(GRID_400))
def test_grid_of_400_cells(name: str, num_levels: int):
    found = vnmse(samples()[name, 20], num_levels, "approx", bins=400)

    # Loosely: implementations place the cells differently.
    assert found == pytest.approx(GRID_400[name, num_levels], rel=0.03)


@pytest.mark.parametrize("name", list(SMALL))
def test_optimum_of_4096_values(name: str):
    rng = np.random.default_rng(0)
    drawn = {
        "normal": rng.standard_normal(4096),
        "lognormal": rng.lognormal(0, 1, 4096),
        "laplace": rng.laplace(size=4096),
    }
    *optima, uniform = SMALL[name]
    x = drawn[name]

    # Printed with four digits after the point, five where the value is below 0.1 or so.
    for s, wanted in zip((3, 4, 8, 16), optima, strict=True):
        digit = 1e-5 if wanted < 0.04 else 1e-4
        assert vnmse(x, s, "exact") == pytest.approx(wanted, abs=0.51 * digit)
    assert vnmse(x, 16, "uniform") == pytest.approx(uniform, abs=0.51e-4)
