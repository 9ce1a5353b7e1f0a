"""Histograms against NumPy, and pictures read back by others."""

from __future__ import annotations

import io
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import quiver_kernels as qk
from quiver_kernels.errors import InvalidInput
from quiver_kernels.plots import font
from quiver_kernels.plots.histogram import histogram, weighted_histogram
from quiver_kernels.plots.levels_plot import levels_plot
from quiver_kernels.plots.png import SCALE, to_png, to_rgb
from quiver_kernels.plots.scene import COLOURS, Box, Label, Line, Scene
from quiver_kernels.plots.svg import to_svg


@settings(max_examples=80)
@given(
    hnp.arrays(np.float64, st.integers(1, 200), elements=st.integers(-50, 50)), st.integers(1, 9)
)
def test_counts_are_those_of_numpy(x: Any, bars: int):
    low, high = float(x.min()), float(x.max())
    found = histogram(x, low, high, bars)

    assert found.counts.sum() == x.size
    if low < high:
        # Values on an edge may round to either side; whole numbers on whole edges do not.
        step = bars if (high - low) % bars else int((high - low) / bars)
        if (high - low) == step * bars:
            assert found.counts.tolist() == np.histogram(x, bars, (low, high))[0].tolist()
    else:
        assert found.counts[0] == x.size


def test_values_beyond_the_range_are_not_counted():
    x = np.array([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0, np.nan, np.inf])
    assert histogram(x, -1, 1, 2).counts.tolist() == [1, 3]
    assert histogram(x.astype(np.float16), -1, 1, 2).counts.tolist() == [1, 3]


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-200, 1e300, 1.7e308])
def test_extreme_ranges(scale: float):
    x = np.array([-1.0, 0.0, 1.0, 1.0]) * scale
    assert histogram(x, -scale, scale, 4).counts.tolist() == [1, 0, 1, 2]


def test_weighted_counts_are_those_of_repeated_values():
    values, counts = np.array([0.0, 0.3, 1.0]), np.array([5, 0, 7])
    found = weighted_histogram(values, counts, 0.0, 1.0, 10)
    assert found.counts.tolist() == histogram(np.repeat(values, counts), 0, 1, 10).counts.tolist()


@pytest.mark.parametrize(
    ("low", "high", "bars"), [(0, 1, 0), (0, 1, 5000), (1, 0, 3), (0, np.inf, 3)]
)
def test_what_is_no_range_is_refused(low: float, high: float, bars: int):
    with pytest.raises(InvalidInput, match="must be"):
        histogram(np.ones(3), low, high, bars)


def picture(title: str = "levels") -> Scene:
    x = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
    counted = histogram(x, float(x.min()), float(x.max()), 50)
    return levels_plot(counted, qk.optimal_levels(x, 8), title, width=300, height=120)


def test_a_picture_has_a_line_for_every_level():
    scene = picture()
    lines = [line for line in scene.lines if line.role == "level"]
    assert len(lines) == 8
    assert (lines[0].x1, lines[-1].x1) == (12, 288)
    assert all(0 <= box.y <= box.y + box.height <= scene.height for box in scene.boxes)


def test_svg_is_xml_with_escaped_text():
    root = ET.fromstring(to_svg(picture('a <b> & "c" \x00\x1b end')))
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text == 'a <b> & "c"  end'  # type: ignore[union-attr]
    assert len(root.findall(f"{space}line")) == 9
    assert {one.get("fill") for one in root.findall(f"{space}rect")} == {"#ffffff", COLOURS["bar"]}


def test_png_is_read_by_another_library():
    scene = Scene(
        60, 40, "t", (Box(10, 10, 20, 5),), (Line(5, 0, 5, 39, "level"),), (Label(40, 30, "1"),)
    )
    read = matplotlib.image.imread(io.BytesIO(to_png(scene)))
    dots = np.round(read[..., :3] * 255).astype(np.uint8)

    assert dots.shape == (80, 120, 3)
    assert np.array_equal(dots, to_rgb(scene))

    def colour(x: float, y: float) -> str:
        return "#" + bytes(dots[int(y * SCALE), int(x * SCALE)]).hex()

    assert colour(15, 12) == COLOURS["bar"]
    assert colour(5, 20) == COLOURS["level"]
    assert colour(35, 20) == "#ffffff"
    # The figure 1 stands on its base line, and nothing else is drawn.
    assert COLOURS["text"] in {colour(x, y) for x in range(40, 46) for y in range(22, 31)}
    assert {colour(x, y) for x in range(47, 60) for y in range(40)} == {"#ffffff"}


def test_every_printable_character_has_its_own_dots():
    shapes = {chr(c): frozenset(font.dots(chr(c))) for c in range(32, 127)}
    assert len(set(shapes.values())) == 95
    assert shapes[" "] == frozenset()
    assert frozenset(font.dots("é")) == shapes["?"]
    assert all(
        0 <= x < font.WIDTH and 0 <= y < font.HEIGHT for dots in shapes.values() for x, y in dots
    )
