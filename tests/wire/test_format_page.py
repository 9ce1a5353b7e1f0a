"""docs/wire-format.md tells the truth: its decoder reads every golden file, its bytes are ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import quiver_kernels as qk
from quiver_kernels import errors, framing, structure, tree, treerequest, treewire, varints, wire
from quiver_kernels.batch import MAX_BATCH_ITEMS
from quiver_kernels.dtypes import LEAF_DTYPES
from quiver_kernels.packing import pack_codes
from quiver_kernels.rng import batch_seeds
from quiver_service.errors import ERROR_KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "wire-format.md").read_text()
GOLDEN = sorted((Path(__file__).parent / "golden").glob("vector-*.msgpack"))


@pytest.fixture(scope="module")
def decode() -> Callable[[bytes], np.ndarray]:
    code = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0]
    assert "quiver" not in code
    names: dict[str, Callable[[bytes], np.ndarray]] = {}
    exec(compile(code, "wire-format.md", "exec"), names)
    return names["decode"]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_decoder_of_the_page_reads_golden_files(decode, path: Path):
    data = path.read_bytes()
    values = qk.dequantize(qk.QuantizedVector.from_bytes(data))

    assert GOLDEN
    assert decode(data).shape == values.shape
    assert np.array_equal(decode(data), values.astype(np.float64))


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_decoder_of_the_page_reads_every_width(decode, bits: int):
    x = np.random.default_rng(bits).normal(size=(3, 29))
    for block in (None, 10):
        q = qk.quantize(x, bits=bits, seed=bits, block_size=block)
        assert np.array_equal(decode(q.to_bytes()), qk.dequantize(q))


def test_the_tensor_of_the_page_has_its_bytes():
    block = next(
        text for text in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL) if "map of 3" in text
    )
    listed = "".join(re.match(r"((?:[0-9a-f]{2} ?)+)", line)[1] for line in block.splitlines())
    made = b"".join(wire.encode_tensor(np.array([1.0, -2.5], dtype=np.float32)))

    assert bytes.fromhex(listed) == made


def test_the_packed_codes_of_the_page_have_their_bytes():
    codes = [int(code) for code in re.search(r"^codes((?: +\d)+)$", PAGE, re.MULTILINE)[1].split()]
    packed = bytes.fromhex(re.search(r"= ((?:[0-9a-f]{2} ?){3}),", PAGE)[1])

    assert pack_codes(np.array(codes, dtype=np.uint8), 3).tobytes() == packed


def test_the_seeds_of_the_page_are_those_of_a_batch():
    rows = re.findall(r"^seed (\d+) +((?:\d+ *)+)$", PAGE, re.MULTILINE)

    assert len(rows) == 2
    for seed, derived in rows:
        assert batch_seeds(int(seed), 3) == [int(value) for value in derived.split()]


def test_the_limits_of_the_page_are_those_of_the_code():
    rules = PAGE.split("## Rules for every message")[1].split("\n## ")[0]
    batches = PAGE.split("## Quantize request for many vectors")[1].split("\n## ")[0]

    assert (
        f"{framing.MAX_DEPTH} levels of nesting and {framing.MAX_ITEMS:_}".replace("_", " ")
        in rules
    )
    assert f"{MAX_BATCH_ITEMS:_}".replace("_", " ") in rules
    assert f"1..{wire.MAX_BATCH_VECTORS}" in batches
    assert f"1..{wire.MAX_NAME_BYTES} bytes" in batches


def test_the_limits_of_trees_are_those_of_the_code():
    section = PAGE.split("## Tree\n")[1].split("\n## ")[0]
    stated = (
        f"at most {_spaced(tree.MAX_LEAVES)} leaves, {_spaced(tree.MAX_SECTIONS)} sections, "
        f"{treewire.MAX_TREE_DEPTH} levels of nesting and {_spaced(treewire.MAX_TREE_ITEMS)} values"
    )
    assert stated in section
    assert f"at most {structure.MAX_STRUCTURE_DEPTH} containers" in section
    assert f"at most {_spaced(structure.MAX_STRUCTURE_NODES)} nodes" in section
    assert f"1..{tree.MAX_LEAF_NAME_BYTES} bytes each" in section
    assert f"`client` (str, 1..{tree.MAX_CLIENT_BYTES} bytes)" in section
    for name in LEAF_DTYPES:
        assert re.search(rf"^dtype .*\b{name}\b", section, re.MULTILINE), name
    request = PAGE.split("## Aggregate request\n")[1].split("\n## ")[0]
    assert f"1..{treerequest.MAX_AGGREGATE_TREES} trees" in request
    assert f"{_spaced(treerequest.MAX_TREES_ITEMS)} values in all" in request
    assert f"`min_size` (int, {treerequest.DEFAULT_MIN_SIZE})" in request


def _spaced(number: int) -> str:
    return f"{number:_}".replace("_", " ")


def test_the_indices_of_the_page_have_their_bytes():
    assert varints.encode_ascending(np.array([1, 4])).tobytes().hex(" ") == "01 02"
    assert varints.encode_ascending(np.array([300])).tobytes().hex(" ") == "ac 02"
    assert "Indices 1 and 4 are `01 02`, index 300 is `ac 02`" in PAGE


def documented_errors() -> dict[str, int]:
    section = PAGE.split("## Errors of messages")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", section, re.MULTILINE)
    return {code: int(status) for code, status in rows}


def test_every_code_is_documented_with_its_status():
    named = {
        code
        for kind in (errors.MalformedMessage, errors.InvalidInput, errors.BackendUnavailable)
        for code in re.findall(r"``(\w+)``", kind.__doc__.split("Code")[1])
    }

    assert set(documented_errors()) == named
    assert {code: ERROR_KINDS[code].status for code in named} == documented_errors()


@pytest.mark.parametrize(
    ("heading", "names"),
    [
        ("## Tensor", {"dtype", "shape", "data"}),
        (
            "## Quantize request",
            {
                "vector",
                "bits",
                "num_levels",
                "method",
                "bins",
                "grid",
                "weights",
                "block_size",
                "seed",
                "device",
                "world_size",
                "rank",
                "shared_seed",
                "level_sets",
                "levels",
                "parameters",
                "outliers",
                "entropy",
                "feedback_scale",
            },
        ),
        ("## Levels from sketches", {"sketches", "bits", "num_levels", "granularity"}),
        (
            "## Quantize request for many vectors",
            {"vectors"},
        ),
        ("## Answer for many vectors", {"v", "vectors"}),
        (
            "## Quantized vector",
            {
                "v",
                "method",
                "bits",
                "num_levels",
                "shape",
                "dtype",
                "block_size",
                "seed",
                "levels",
                "codes",
                "vnmse",
                "device",
                "timings_ms",
                "level_sets",
                "parameters",
                "side",
                "wrap",
            },
        ),
        ("## Wrapped messages", {"outliers", "entropy", "scale"}),
        ("## Levels answer", {"levels", "num_levels", "method", "expected_mse", "vnmse", "device"}),
        ("## Tree", {"v", "kind", "groups", "order", "structure", "tag"}),
        ("## Aggregate request", {"vectors", "trees", "weights", "quantize"}),
    ],
)
def test_every_key_is_documented(heading: str, names: set[str]):
    section = PAGE.split(f"{heading}\n")[1].split("\n## ")[0]

    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == names
