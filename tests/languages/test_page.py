"""docs/other-languages.md: every command runs, in order, and does what the page says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import quiver_kernels as qk

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "other-languages.md").read_text()
NEEDED = ("sh", "curl", "g++", "awk", "sed", "base64")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, live_server: str) -> Path:
    """Where the commands have run."""
    missing = [tool for tool in NEEDED if shutil.which(tool) is None]
    if missing:
        reason = f"{', '.join(missing)} not installed: the commands of the page cannot be run"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    found = tmp_path_factory.mktemp("page")
    (found / "examples").symlink_to(ROOT / "examples")
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == PAGE.count("```sh") >= 7
    script = "set -eu\n" + "\n".join(blocks)
    assert script.count("http://127.0.0.1:8000") == 1
    script = script.replace("http://127.0.0.1:8000", live_server)
    # Also without what only bash knows.
    done = subprocess.run(["sh"], input=script, cwd=found, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return found


def test_what_was_sent_was_quantized(folder: Path):
    x = np.fromfile(folder / "vector.f32", "<f4")
    q = qk.QuantizedVector.from_bytes((folder / "vector.msgpack").read_bytes())
    ternary = qk.QuantizedVector.from_bytes((folder / "ternary.msgpack").read_bytes())

    assert x.size == 1000
    assert np.allclose(x, np.sin(np.arange(1000)), atol=1e-4)
    assert np.array_equal(q.codes, qk.quantize(x, bits=4, seed=7).codes)
    assert (ternary.method, ternary.num_levels, ternary.block_size) == ("seq", 3, 100)
    assert ternary.parameters == {"scale": "max"}
    assert len(json.loads((folder / "short.json").read_text())["shape"]) == 1


def test_what_was_decoded_is_what_python_decodes(folder: Path):
    q = qk.QuantizedVector.from_bytes((folder / "vector.msgpack").read_bytes())
    ternary = qk.QuantizedVector.from_bytes((folder / "ternary.msgpack").read_bytes())
    values = qk.dequantize(q)

    assert np.array_equal(np.fromfile(folder / "decoded.f32", "<f4"), values)
    assert np.array_equal(np.fromfile(folder / "decoded-here.f32", "<f4"), values)
    mean = (values.astype(float) + qk.dequantize(ternary).astype(float)) / 2
    assert np.array_equal(np.fromfile(folder / "mean.f32", "<f4"), mean.astype(np.float32))
    x = np.fromfile(folder / "vector.f32", "<f4")
    fp4 = np.fromfile(folder / "fp4.f32", "<f4")
    assert np.square(fp4 - x).sum() < 0.05 * np.square(x).sum()


def test_a_refusal_is_a_problem(folder: Path):
    problem = json.loads((folder / "problem.json").read_text())

    assert (problem["status"], problem["code"], problem["field"]) == (422, "invalid_option", "bits")


def test_the_page_names_what_the_header_does_not_read():
    found = re.search(r"It reads all methods but (.*?),\nwhich need", PAGE)

    assert found
    assert set(found[1].split("`")[1::2]) == {"eden", "drive", "tcq", "ectcq"}
