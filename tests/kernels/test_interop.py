"""Quantized vectors where arrays are expected, and in notebooks."""

from __future__ import annotations

import dataclasses
import gc
from typing import Any
from xml.etree import ElementTree as ET

import ml_dtypes
import numpy as np
import pytest

import quiver_kernels as qk
from quiver_kernels import dlpack

TYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def vector(dtype: Any = np.float32) -> qk.QuantizedVector:
    x = np.random.default_rng(0).standard_normal((30, 7)).astype(dtype)
    return qk.quantize(x, bits=4, seed=1)


@pytest.mark.parametrize("dtype", TYPES)
def test_numpy_takes_the_decoded_values(dtype: Any):
    q = vector(dtype)
    assert np.array_equal(np.asarray(q), qk.dequantize(q))
    assert np.asarray(q).dtype == dtype
    assert np.asarray(q, dtype=np.float64).dtype == np.float64
    assert np.array_equal(np.stack([q, q])[1], qk.dequantize(q))
    with pytest.raises(ValueError, match="copy must not be False"):
        np.asarray(q, copy=False)


@pytest.mark.parametrize("dtype", TYPES)
def test_others_take_them_by_dlpack(dtype: Any):
    q = vector(dtype)
    assert q.__dlpack_device__() == (1, 0)
    # Our own reader knows bfloat16; NumPy's does not.
    found = dlpack.host_array(q, "q")
    assert found.dtype == dtype
    assert np.array_equal(found, qk.dequantize(q))
    if dtype != ml_dtypes.bfloat16:
        assert np.array_equal(np.from_dlpack(q), qk.dequantize(q))
    kept = found.copy()
    del q
    gc.collect()
    assert np.array_equal(found, kept)


@pytest.mark.parametrize("version", [None, (0, 8), (1, 0)])
def test_every_version_of_dlpack(version: Any):
    x = np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(2, 3)

    class Lender:
        def __dlpack__(self, **_: object) -> object:
            return dlpack.lend(x.copy(), version)

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

    assert np.array_equal(dlpack.host_array(Lender(), "x"), x)
    assert dlpack.borrow(Lender(), "x").dtype == "bfloat16"


def test_what_dlpack_cannot_give():
    q = vector()
    for given, text in (
        ({"stream": 1}, "stream must be None"),
        ({"dl_device": (2, 0)}, "dl_device must be"),
        ({"copy": False}, "copy must not be False"),
    ):
        with pytest.raises(BufferError, match=text):
            q.__dlpack__(**given)
    assert q.__dlpack__(dl_device=(1, 0), copy=True) is not None


def test_a_scalar_and_a_scheme():
    for q in (qk.quantize(np.float32(2.5), bits=1), qk.quantize(np.ones(9), method="eden", seed=1)):
        assert np.array_equal(np.asarray(q), qk.dequantize(q))
        assert np.from_dlpack(q).shape == q.shape


def test_a_quantized_vector_is_quantized_again():
    q = vector()
    again = [qk.quantize(x, bits=8, seed=2).indices() for x in (q, qk.dequantize(q))]
    assert np.array_equal(*again)


def test_a_notebook_shows_levels_and_codes():
    q = vector()
    root = ET.fromstring(q._repr_html_())
    told = {row[0].text: row[1].text for row in root.iter("tr")}

    assert told["method"] == "exact"
    assert told["vector"] == "30 x 7, float32"
    assert told["size"] == f"{q.nbytes} bytes, {q.bits_per_value:.3f} bits per value"
    space = "{http://www.w3.org/2000/svg}"
    assert len(list(root.iter(f"{space}line"))) == 1 + 16
    used = np.unique(q.indices()).size
    assert len(list(root.iter(f"{space}rect"))) == 1 + used


@pytest.mark.parametrize(
    "given",
    [{"block_size": 10}, {"method": "simba"}, {"method": "eden"}, {"entropy": True}, {"bits": 1}],
)
def test_a_notebook_shows_any_vector(given: dict[str, Any]):
    x = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    q = qk.quantize(x, seed=1, **given)
    root = ET.fromstring(q._repr_html_())
    pictures = list(root.iter("{http://www.w3.org/2000/svg}svg"))
    assert len(pictures) == (1 if q.is_plain and q.block_size is None else 0)


def test_text_of_others_is_escaped():
    q = dataclasses.replace(vector(), method="<b>&")
    assert "<b>&" not in q._repr_html_()
    assert "&lt;b&gt;&amp;" in q._repr_html_()
