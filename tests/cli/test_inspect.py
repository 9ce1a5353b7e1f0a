"""``quiver inspect``: figures against NumPy, errors against the kernels, pictures, refusals."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib.image
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import quiver_kernels as qk
from command_line import Command
from quiver_client.cli.curves import Point, gain
from quiver_client.cli.describing import counted, describe
from quiver_client.cli.subject import SUBJECT, split
from quiver_client.cli.terminal_plot import draw, fits
from quiver_client.cli.values import Values
from quiver_kernels.plots.histogram import Histogram

pytestmark = pytest.mark.faces


def heavy(size: int = 5000) -> Any:
    return np.random.default_rng(1).standard_t(4, size).astype(np.float32)


# -- figures ---------------------------------------------------------------------------------


@settings(max_examples=60)
@given(hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e6, 1e6)))
def test_figures_are_those_of_numpy(x: Any):
    about = describe(Values.of(x))

    assert (about.low, about.high) == (x.min(), x.max())
    assert about.mean == pytest.approx(x.mean(), rel=1e-9, abs=1e-9)
    assert about.deviation == pytest.approx(x.std(), rel=1e-6, abs=1e-9)
    assert about.norm == pytest.approx(np.linalg.norm(x), rel=1e-9)
    assert about.zeros == (x == 0).sum()
    assert about.is_constant == (x.min() == x.max())
    if x.std() > 1e-3 * max(1.0, np.abs(x).max()):
        z = (x - x.mean()) / x.std()
        assert about.skewness == pytest.approx((z**3).mean(), rel=1e-5, abs=1e-6)
        assert about.kurtosis == pytest.approx((z**4).mean() - 3, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e300, 1.7e308])
def test_figures_of_extreme_values(scale: float):
    x = np.array([-1.0, 0.0, 1.0, 1.0]) * scale
    about = describe(Values.of(x))

    assert (about.low, about.high) == (-scale, scale)
    assert math.isfinite(about.mean or 0.0)
    assert about.skewness is None or math.isfinite(about.skewness)
    histogram = counted(Values.of(x), about, 4)
    assert histogram is not None
    assert histogram.counts.tolist() == [1, 0, 1, 2]


def test_values_are_read_in_parts(monkeypatch: pytest.MonkeyPatch):
    x = heavy(1000)
    whole = describe(Values.of(x))
    monkeypatch.setattr("quiver_client.cli.values.PART", 7)
    seen: list[int] = []
    parts = describe(Values.of(x), seen.append)

    assert sum(seen) == 2 * x.nbytes
    assert max(seen) == 28
    assert parts.mean == pytest.approx(whole.mean)
    assert parts.kurtosis == pytest.approx(whole.kurtosis)
    bars = counted(Values.of(x), parts, 10)
    assert bars is not None
    assert bars.counts.tolist() == np.histogram(x.astype(float), 10)[0].tolist()


def test_a_sample_is_spread_over_the_values():
    values = Values.of(np.arange(1_000_000))
    sample = values.sample(40_000)

    assert sample.size <= 40_000
    assert sample[0] == 0
    assert sample[-1] == 999_999
    assert np.unique(sample).size == sample.size
    assert values.sample(0).size == 1_000_000
    assert Values.of(np.arange(10)).sample(3).size == 3


# -- the command -------------------------------------------------------------------------------


def test_an_array_as_json(quiver: Command, tmp_path: Path):
    x = heavy()
    np.save(tmp_path / "x.npy", x)
    data = quiver("inspect", tmp_path / "x.npy", "--bits", 3, "--json").data

    assert (data["dtype"], data["shape"], data["nbytes"]) == ("float32", [5000], 20000)
    levels = qk.optimal_levels(x, 8)
    assert data["levels"]["values"] == levels.tolist()
    vnmse = qk.expected_mse(x, levels) * x.size / float((x.astype(float) ** 2).sum())
    assert data["levels"]["vnmse"] == pytest.approx(vnmse)
    assert {(one["method"], one["bits"]) for one in data["curves"]} == {
        (method, bits) for method in ("exact", "approx", "uniform") for bits in range(1, 9)
    }
    for one in data["curves"]:
        q = qk.quantize(x, one["bits"], one["method"], seed=1)
        assert (one["nbytes"], one["vnmse"]) == (q.nbytes, pytest.approx(q.vnmse))
    assert sum(data["histogram"]["counts"]) == x.size
    assert "times less error than equal steps" in data["summary"]


def test_an_array_for_people(quiver: Command, tmp_path: Path):
    np.save(tmp_path / "x.npy", heavy())
    ran = quiver("inspect", tmp_path / "x.npy")

    assert ran.code == 0
    assert "5,000 values, 20 kB" in ran.out
    assert ran.out.count("▲") + ran.out.count("◆") > 10
    assert "levels of exact, 16 levels (4 bits)" in ran.out
    assert "At 4 bits, levels fitted to these values (exact) have" in ran.out
    assert "\x1b" not in ran.out
    assert max(len(line) for line in ran.out.splitlines() if "█" in line) <= 100


def test_a_sample_is_named_as_one(quiver: Command, tmp_path: Path):
    np.save(tmp_path / "x.npy", heavy(20000))
    data = quiver("inspect", tmp_path / "x.npy", "--sample", 8192, "--json").data
    assert data["sampled"] == 8192
    assert sum(data["histogram"]["counts"]) == 20000
    assert "of a sample of 8,192" in quiver("inspect", tmp_path / "x.npy", "--sample", 8192).out


@pytest.mark.parametrize(
    ("x", "note"),
    [
        (np.array([1.0, np.nan, np.inf]), "1 NaN and 1 infinite values"),
        (np.full(9, 2.5), "all values are the same: 1 bit keeps them exactly"),
        (np.zeros((0, 3), np.float32), "there are no values"),
        (np.arange(9), "values of int64 are not quantized"),
        (np.array([True, False]), "values of bool are not quantized"),
        (np.array([1j, 2.0]), "values of complex128 are not quantized"),
        (np.full(3, np.nan), "3 NaN"),
    ],
)
def test_what_stands_in_the_way_is_said(quiver: Command, tmp_path: Path, x: Any, note: str):
    np.save(tmp_path / "x.npy", x)
    assert f"note: {note}" in quiver("inspect", tmp_path / "x.npy").out
    data = quiver("inspect", tmp_path / "x.npy", "--json").data
    assert any(note in one for one in data["notes"])
    ordinary = quiver("inspect", save(tmp_path / "y.npy", heavy(50)), "--json").data
    assert ordinary["notes"] == []


def save(path: Path, x: Any) -> Path:
    np.save(path, x)
    return path


def test_files_of_several_arrays(quiver: Command, tmp_path: Path):
    path = tmp_path / "m.npz"
    np.savez(path, w=heavy(300), steps=np.arange(3))

    listed = quiver("inspect", path, "--json").data
    assert [one["name"] for one in listed["arrays"]] == ["w", "steps"]
    assert "look at one: quiver inspect" in quiver("inspect", path).out
    assert quiver("inspect", f"{path}:w", "--json").data["size"] == 300
    missing = quiver("inspect", f"{path}:v")
    assert missing.code == 1
    assert "there is no array 'v'; it has 'w', 'steps'" in missing.err


def test_a_colon_in_a_files_own_name(tmp_path: Path):
    path = tmp_path / "a:b.npy"
    path.touch()
    assert split(str(path)) == (str(path), None)
    assert split(f"{path}:layer:0") == (str(path), "layer:0")
    assert split("-") == ("-", None)
    assert split("-:w") == ("-", "w")
    assert split("none.npy:w") == ("none.npy:w", None)


def test_a_message_and_a_qvr_file(quiver: Command, tmp_path: Path):
    q = qk.quantize(heavy(), bits=3, seed=4)
    (tmp_path / "v.msgpack").write_bytes(q.to_bytes())
    data = quiver("inspect", tmp_path / "v.msgpack", "--json").data
    assert (data["kind"], data["bits"], data["seed"], data["vnmse"]) == ("message", 3, 4, q.vnmse)
    assert "exact, 8 levels (3 bits per code)" in quiver("inspect", tmp_path / "v.msgpack").out

    header = qk.qvr.Header(
        (qk.qvr.Tensor("w", "float32", (5000,), quantized=True, settings={"bits": 3}),), 1
    )
    with qk.qvr.Writer(tmp_path / "m.qvr", header) as writer:
        writer.write(q)
    data = quiver("inspect", tmp_path / "m.qvr", "--json").data
    assert data["tensors"][0]["stored_bytes"] > q.nbytes
    assert data["ratio"] == 20000 / (tmp_path / "m.qvr").stat().st_size
    one = quiver("inspect", f"{tmp_path / 'm.qvr'}:w", "--json").data
    assert one["chunks"] == [
        {"first": 0, "values": 5000, "bytes": one["chunks"][0]["bytes"], "method": "exact"}
        | {"bits": 3, "vnmse": q.vnmse}
    ]
    assert "kept as" in quiver("inspect", f"{tmp_path / 'm.qvr'}:w").out
    assert ".qvr file of 1 tensors" in quiver("inspect", tmp_path / "m.qvr").out
    refused = quiver("inspect", tmp_path / "m.qvr", "--svg", tmp_path / "x.svg")
    assert (refused.code, "--svg draws one array" in refused.err) == (1, True)


def test_standard_input(quiver: Command, monkeypatch: pytest.MonkeyPatch):
    stream = io.BytesIO()
    np.save(stream, heavy(100))
    stream.seek(0)
    piped = SimpleNamespace(buffer=stream, isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", piped)
    assert quiver("inspect", "-", "--json").data["size"] == 100


def test_bare_values(quiver: Command, tmp_path: Path):
    (tmp_path / "x.bin").write_bytes(heavy(64).tobytes())
    assert quiver("inspect", tmp_path / "x.bin", "--dtype", "float32", "--json").data["size"] == 64
    refused = quiver("inspect", tmp_path / "x.bin")
    assert refused.code == 1
    assert "--dtype float32" in refused.err


def test_what_is_refused_says_what_to_do(quiver: Command, tmp_path: Path):
    path = save(tmp_path / "x.npy", heavy(50))
    assert "No such file" in quiver("inspect", tmp_path / "none.npy").err
    for arguments, text in (
        (("--bits", "9"), "9 is not in the range 1<=x<=8"),
        (("--table-bits", "4-2"), "must ascend"),
        (("--table-bits", "a"), "'a' is no whole number"),
        (("--methods", "exact,,uniform"), "has an empty name"),
    ):
        ran = quiver("inspect", path, *arguments)
        assert (ran.code, text in ran.err) == (2, True), ran.err
        assert ran.err.count("\n") == 1
    unknown = quiver("inspect", path, "--methods", "best")
    assert (unknown.code, "best" in unknown.err) == (1, True)
    nothing = quiver("inspect", save(tmp_path / "i.npy", np.arange(3)), "--png", tmp_path / "x.png")
    assert "cannot be drawn: values of int64" in nothing.err


# -- pictures -----------------------------------------------------------------------------------


def test_pictures(quiver: Command, tmp_path: Path):
    path = save(tmp_path / "x.npy", heavy())
    svg, png = tmp_path / "x.svg", tmp_path / "x.png"
    assert quiver("inspect", path, "--svg", svg, "--png", png, "--bits", 2).code == 0

    root = ET.fromstring(svg.read_text())
    lines = [one for one in root.iter() if one.tag.endswith("line")]
    assert len(lines) == 1 + 4  # the axis, and four levels
    image = matplotlib.image.imread(png)
    assert image.shape[:2] == (600, 1440)


@settings(max_examples=50)
@given(
    hnp.arrays(np.int64, st.integers(1, 50), elements=st.integers(0, 1000)),
    st.lists(st.floats(-1, 1), min_size=1, max_size=20),
    st.integers(1, 12),
)
def test_a_picture_of_characters(counts: Any, levels: list[float], height: int):
    """As tall as counts are, with a mark below every level and nowhere else."""
    lines = draw(Histogram(-1.0, 1.0, counts), np.array(levels), height=height).splitlines()

    assert len(lines) == height + 2
    columns = [line.ljust(counts.size) for line in lines]
    for place, count in enumerate(counts.tolist()):
        inked = sum(columns[row][place] != " " for row in range(height))
        most = max(int(counts.max()), 1)
        assert inked == math.ceil(math.ceil(8 * height * math.sqrt(count / most)) / 8)
    marks = {min(int((level + 1) / 2 * counts.size), counts.size - 1) for level in levels}
    assert {place for place, sign in enumerate(columns[height]) if sign != " "} == marks


def test_colours_and_plain_characters():
    counted = Histogram(0.0, 1.0, np.array([1, 4, 9]))
    levels = np.array([0.5])
    assert "\x1b[38;5;208m█\x1b[0m" in draw(counted, levels, colour=True)
    plain = draw(counted, levels, unicode=False)
    assert plain.isascii()
    assert "^" in plain
    assert fits("utf-8")
    assert not fits("ascii")
    assert not fits(None)


def test_the_sentence_at_the_end():
    def points(**errors: list[float]) -> list[Point]:
        return [
            Point(method, bits, 1, error)
            for method, row in errors.items()
            for bits, error in enumerate(row, 2)
        ]

    said = gain(points(exact=[0.4, 0.3, 0.1], uniform=[0.8, 0.5, 0.4]))
    assert said is not None
    assert "At 4 bits" in said
    assert "4 times less error" in said
    assert "not as good even with 4" not in said
    said = gain(points(exact=[0.4, 0.3, 0.1, 0.01], uniform=[0.8, 0.5, 0.4, 0.1]))
    assert said is not None
    assert said.endswith("which need 5 bits to be as good.")
    said = gain(points(exact=[0.4, 0.3, 0.1, 0.01], uniform=[0.8, 0.5, 0.4, 0.2]))
    assert said is not None
    assert said.endswith("not as good even with 5 bits.")
    assert gain(points(exact=[0.0], uniform=[0.0])) is None
    assert gain(points(exact=[0.1])) is None


def test_names_are_completed(tmp_path: Path):
    path = tmp_path / "m.npz"
    np.savez(path, head=np.ones(3), hand=np.ones(3), foot=np.ones(3))

    def found(text: str) -> list[tuple[str, str]]:
        items = SUBJECT.shell_complete(None, None, text)  # type: ignore[arg-type]
        return [(item.value, item.type) for item in items]

    assert found("m") == [("m", "file")]
    assert found(f"{path}:h") == [(f"{path}:head", "plain"), (f"{path}:hand", "plain")]
    path.write_bytes(b"no archive")
    assert found(f"{path}:h") == []


def test_bfloat16(quiver: Command, tmp_path: Path):
    path = tmp_path / "x.bin"
    path.write_bytes(heavy(100).astype(ml_dtypes.bfloat16).tobytes())
    data = quiver("inspect", path, "--dtype", "bfloat16", "--json").data
    assert data["dtype"] == "bfloat16"
    assert data["curves"]
