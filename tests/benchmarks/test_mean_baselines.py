"""QSGD and EDEN are what the papers say, and the measure of bias sees a bias."""

from __future__ import annotations

import mean_estimation
import numpy as np
import pytest
from baselines.eden import Eden, distortion, hadamard, lloyd_max
from baselines.qsgd import Qsgd

# Lloyd-Max tables of a standard normal: positive centroids and squared errors.
TABLES = {
    2: ([0.7978846], 0.363380),
    4: ([0.4527800, 1.5104176], 0.117482),
    8: ([0.2450942, 0.7560053, 1.3439093, 2.1519457], 0.034548),
    16: (
        [0.1283950, 0.3880483, 0.6567591, 0.9423405, 1.2562312, 1.6180464, 2.0690172, 2.7325896],
        0.009501,
    ),
}
# vNMSE of one EDEN message of 1 to 4 bits, and of the mean of 20.
EDEN = {1: (0.5718, 0.028), 2: (0.1332, 0.0066), 3: (0.0358, 0.0018), 4: (0.0096, 0.0005)}


def vnmse(found: np.ndarray, x: np.ndarray) -> float:
    return float(np.sum(np.square(found.astype(float) - x)) / np.sum(np.square(x.astype(float))))


@pytest.mark.parametrize("count", TABLES)
def test_the_tables_of_a_normal(count):
    positive, error = TABLES[count]
    levels = lloyd_max(count)
    assert levels[count // 2 :] == pytest.approx(positive, abs=2e-7)
    assert levels == pytest.approx(-levels[::-1], abs=1e-9)
    assert distortion(levels) == pytest.approx(error, abs=1e-6)


def test_the_rotation_is_a_hadamard_matrix():
    matrix = np.eye(8)
    for row in matrix:
        hadamard(row)
    expected = np.array([[1.0]])
    for _ in range(3):
        expected = np.block([[expected, expected], [expected, -expected]])
    assert np.array_equal(matrix, expected)


@pytest.mark.parametrize("bits", EDEN)
def test_eden_has_the_known_error_and_averages_out(bits):
    rng = np.random.default_rng(0)
    x = (rng.lognormal(size=16384) * rng.choice([-1, 1], 16384)).astype(np.float32)
    sent = [Eden(bits).send(x, seed) for seed in range(20)]
    one, mean = EDEN[bits]
    assert np.mean([vnmse(y, x) for y in sent]) == pytest.approx(one, rel=0.02)
    assert vnmse(np.mean(sent, axis=0), x) == pytest.approx(mean, rel=0.05)
    assert Eden(bits).nbytes(x.size) == 16384 * bits // 8 + 12


def test_eden_fills_up_and_takes_zeros():
    x = np.random.default_rng(1).standard_normal(1500).astype(np.float32)
    assert vnmse(Eden(4).send(x, 3), x) < 0.02
    assert not Eden(2).send(np.zeros(10, np.float32), 0).any()
    assert Eden(4).nbytes(1500) == 1024 + 12


@pytest.mark.parametrize(("bits", "error"), [(2, 50.1), (3, 16.0), (4, 6.29), (5, 2.41)])
def test_qsgd_has_the_known_error(bits, error):
    x = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    sent = [Qsgd(bits, "euclidean").send(x, seed) for seed in range(20)]
    assert np.mean([vnmse(y, x) for y in sent]) == pytest.approx(error, rel=0.06)


@pytest.mark.parametrize("bucket", [None, 64, 100])
def test_qsgd_is_on_its_levels_and_unbiased(bucket):
    x = np.random.default_rng(2).standard_normal(1000).astype(np.float32)
    x[100:200] = 0
    scheme = Qsgd(3, "largest", bucket)
    sent = np.array([scheme.send(x, seed) for seed in range(400)])
    for start in range(0, 1000, bucket or 1000):
        part = slice(start, start + (bucket or 1000))
        step = np.abs(x[part]).max() / 3
        codes = sent[:, part] / (step or 1)
        assert np.allclose(codes, np.round(codes), atol=1e-4)
        assert np.abs(codes).max() <= 3 + 1e-4
        # The largest magnitude is a level.
        top = start + int(np.argmax(np.abs(x[part])))
        assert np.allclose(sent[:, top], x[top], rtol=1e-6)
        # The spread of a coin, and two flips more where one is rare.
        share = np.abs(x[part]) / (step or 1) % 1
        spread = step * np.sqrt(share * (1 - share) / len(sent))
        off = np.abs(sent[:, part].mean(axis=0) - x[part])
        assert (off <= 5 * spread + 2 * step / len(sent) + 1e-6).all()
    assert scheme.nbytes(1000) == 375 + 4 * -(-1000 // (bucket or 1000))


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_bias_is_seen_and_none_is_not(share):
    """Control of the measure: a tenth of the noise repeats in every row, or nothing does."""
    rng = np.random.default_rng(3)
    pattern = rng.standard_normal(4096)
    errors = rng.standard_normal((24, 4096)) + share * pattern
    sigmas = mean_estimation.bias(errors)
    assert (sigmas > 5) == (share > 0)
    assert abs(sigmas) < 4 or share


def test_few_workers_are_the_first_of_many():
    vectors = [mean_estimation.draw("normal", "independent", 256, rank) for rank in range(3)]
    for name in (mean_estimation.PLAIN, mean_estimation.STRATIFIED, mean_estimation.BOTH):
        scheme = mean_estimation.SCHEMES[name]
        for mean in mean_estimation.means(scheme, vectors, 3, (1, 2, 3)):
            sent = [
                scheme.send(x, 3, mean_estimation.place_of(mean.workers, rank, 0))
                for rank, x in enumerate(vectors[: mean.workers])
            ]
            errors = [s.values.astype(float) - x for s, x in zip(sent, vectors, strict=False)]
            assert mean.error == pytest.approx(np.mean(errors, axis=0), abs=1e-12)
            assert mean.alone == pytest.approx(np.mean([np.sum(e * e) for e in errors]))
            assert mean.nbytes == pytest.approx(np.mean([s.nbytes for s in sent]))


def test_correlated_inputs_are_so_and_have_the_right_size():
    one, two = (mean_estimation.draw("normal", "correlated", 20_000, rank) for rank in (0, 1))
    assert np.corrcoef(one, two)[0, 1] == pytest.approx(0.9, abs=0.01)
    assert one.std() == pytest.approx(1, abs=0.02)
    same = [mean_estimation.draw("lognormal", "identical", 50, rank) for rank in (0, 1)]
    assert np.array_equal(*same)
