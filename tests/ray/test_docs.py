"""The example of docs/ray.md, as it stands there, on a cluster."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import ray

import quiver_kernels as qk
from ray_cluster import LocalCluster

PAGE = Path(__file__).parents[2] / "docs/ray.md"


def test_the_example_gives_what_one_machine_gives(
    cluster: LocalCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    cluster.add()
    (code,) = re.findall(r"<!-- ray: cluster -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    # This process is connected already.
    monkeypatch.setattr(ray, "init", lambda address: None)

    exec(compile(code, "example", "exec"), {"__name__": "example"})

    parts = [
        np.random.default_rng(number).standard_normal(1_000_000, dtype=np.float32)
        for number in range(4)
    ]
    expected = qk.quantize(np.concatenate(parts), bits=4, seed=7)
    written = qk.QuantizedVector.from_bytes((tmp_path / "gradient.quiver").read_bytes())
    np.testing.assert_array_equal(written.codes, expected.codes)
    assert written.vnmse == expected.vnmse
    size = (tmp_path / "gradient.quiver").stat().st_size
    assert f"{size} bytes" in capsys.readouterr().out
