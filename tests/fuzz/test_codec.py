"""The codec's fuzzer in its short form, and the faults that it must find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.fuzz import codec, controls
from tests.fuzz.mutator import Seed, mutated, source
from tests.support import messages

from quiver_kernels import InvalidInput, QuantizedVector, wire

ROOT = Path(__file__).parents[2]
CASES = 12_000
SEED = 20
SECONDS = 120


@pytest.fixture(scope="module")
def corpus() -> codec.Corpus:
    return codec.Corpus(codec.targets())


def test_every_decoder_refuses_or_reads_what_is_mutated():
    # In a process of its own: memory is measured, and the alarm needs the main thread.
    code = (
        "import sys; from tests.fuzz import codec; "
        f"report = codec.fuzz(codec.Corpus(codec.targets()), {CASES}, {SEED}); "
        "problems = report.problems(); print(*problems, sep='\\n'); "
        "assert len(report.accepted) == len(codec.targets()), report.accepted; "
        f"assert {CASES} // 20 < sum(report.accepted.values()) < {CASES} // 2, report.accepted; "
        "assert len(report.refused) >= 10, report.refused; sys.exit(bool(problems))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_planted_faults_are_found():
    findings = controls.of_codec(SEED)

    assert len(findings) == len(controls.SIGNS) == 4
    for finding in findings:
        assert finding.passed, f"{finding.promise}: {finding.found}"


def test_a_case_can_be_made_again(corpus: codec.Corpus):
    cases = [corpus.case(SEED, number) for number in range(200)]

    assert [corpus.case(SEED, number) for number in range(200)] == cases
    assert len({data for _, data in cases}) > 180


def test_mutations_change_the_message():
    seed = Seed.of("map", b"\x82\xa1a\x01\xa1b\x93\x01\x02\x03")
    made = [mutated(source(SEED, number), seed, seed) for number in range(2000)]

    assert sum(data == seed.data for data in made) < 150
    assert len(set(made)) > 500


def test_a_seed_that_is_refused_is_no_seed(corpus: codec.Corpus):
    [target] = [target for target in corpus.targets if target.name == "tensor"]
    broken = codec.Target("tensor", target.decode, target.check, (Seed("broken", b"\x80"),))

    with pytest.raises(ValueError, match="'broken' of tensor is refused: missing_key"):
        codec.fuzz(codec.Corpus([broken]), 1, SEED)


# -- what the fuzzer found ----------------------------------------------------------------

SIGNALLING = b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x01"


@pytest.mark.parametrize("key", ["vector", "weights"])
def test_a_signalling_nan_in_a_list_is_read_without_a_warning(key: str):
    # A cast of it warns, which is an exception where warnings are errors, as they are here.
    numbers = [msgspec.Raw(SIGNALLING), 1.0]
    request = wire.decode_quantize_request(
        msgspec.msgpack.encode({"vector": [1.0, 2.0], key: numbers})
    )

    assert np.isnan(getattr(request, key)[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_signalling_nan_in_levels_is_refused_without_a_warning(dtype: str):
    levels = np.array([[0x7F800001] * 3] * 2, np.uint32).view(np.float32)
    fields = messages.quantized(dtype=dtype, levels=messages.tensor(levels))

    with pytest.raises(InvalidInput, match="must be finite"):
        QuantizedVector.from_bytes(messages.packed(fields))
