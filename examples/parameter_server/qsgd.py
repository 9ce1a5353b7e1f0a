"""Uniform QSGD (Alistarh et al. 2017), for comparison: the same bits, but levels spread evenly.

Values come in buckets of 512. A bucket is divided by its norm, the magnitudes are rounded at
random to a multiple of 1/s, and the sign goes along: codes -s..s of b bits with s = 2^(b-1) - 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.packing import pack_codes, packed_size, unpack_codes

BUCKET = 512
NORMS = ("max", "l2")


def encode(
    values: NDArray[np.float32], bits: int, norm: str, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Norms, one for each bucket, and packed codes; without bias.

    Parameters
    ----------
    values
        Any shape.
    bits
        2..8 for each value.
    norm
        ``max``, the largest magnitude, as implementations have it; ``l2`` as in the paper.
    rng
        Of the rounding.
    """
    steps = _steps(bits)
    buckets = _in_buckets(values)
    magnitudes = np.abs(buckets)
    norms = magnitudes.max(axis=1) if norm == "max" else np.sqrt(np.square(buckets).sum(axis=1))
    scaled = magnitudes * (steps / np.where(norms > 0, norms, 1))[:, np.newaxis]
    floors = np.floor(scaled)
    rounded = floors + (rng.random(scaled.shape) < scaled - floors)
    # A norm rounded down could lift its largest value beyond the last step.
    signed = np.copysign(np.minimum(rounded, steps), buckets).astype(np.int16) + steps
    codes = signed.reshape(-1)[: values.size].astype(np.uint8)
    return norms.astype(np.float32), pack_codes(codes, bits)


def decode(
    norms: NDArray[np.float32], packed: NDArray[np.uint8], shape: tuple[int, ...], bits: int
) -> NDArray[np.float32]:
    """The values that `encode` rounded to."""
    size = int(np.prod(shape))
    codes = _in_buckets(unpack_codes(packed, size, bits).astype(np.float32) - _steps(bits))
    values = codes * (norms / np.float32(_steps(bits)))[:, np.newaxis]
    return values.reshape(-1)[:size].reshape(shape).astype(np.float32)


def _steps(bits: int) -> int:
    return (1 << (bits - 1)) - 1


def _in_buckets(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of `BUCKET` values, the last one filled up with zeros."""
    rows = -(-values.size // BUCKET)
    padded = np.zeros(rows * BUCKET, np.float32)
    padded[: values.size] = values.reshape(-1)
    return padded.reshape(rows, BUCKET)


def leaves(
    tree: Mapping[str, NDArray[np.float32]],
    min_size: int,
    bits: int,
    norm: str,
    rng: np.random.Generator,
) -> dict[str, NDArray[Any]]:
    """A tree as leaves to send: norms and codes for large arrays, small ones as they are."""
    found: dict[str, NDArray[Any]] = {}
    for name, values in tree.items():
        if values.size < min_size:
            found[name] = values
        else:
            found[f"{name}.norms"], found[f"{name}.codes"] = encode(values, bits, norm, rng)
    return found


def arrays(
    found: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]], bits: int
) -> dict[str, NDArray[np.float32]]:
    """The way back from `leaves`, given the shapes of the tree; ValueError if it is none."""
    return {name: _array(found, name, shape, bits) for name, shape in shapes.items()}


def _array(
    found: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...], bits: int
) -> NDArray[np.float32]:
    if name in found:
        return _checked(found, name, np.float32, shape)
    size = int(np.prod(shape))
    norms = _checked(found, f"{name}.norms", np.float32, (-(-size // BUCKET),))
    codes = _checked(found, f"{name}.codes", np.uint8, (packed_size(size, bits),))
    return decode(norms, codes, shape, bits)


def _checked(
    found: Mapping[str, NDArray[Any]], name: str, dtype: type[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    array = found.get(name)
    if array is None or array.dtype != dtype or array.shape != shape:
        got = "none" if array is None else f"{array.dtype} of shape {array.shape}"
        raise ValueError(f"{name} must be {dtype.__name__} of shape {shape}; got {got}")
    return array
