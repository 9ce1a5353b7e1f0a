"""Packed codes are numpy.packbits of the codes' bits, block by block."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.strategies import properties

import quiver_kernels as qk
from quiver_kernels.packing import num_blocks, pack_codes, packed_size, unpack_codes

bits_and_codes = st.integers(1, 8).flatmap(
    lambda bits: st.tuples(
        st.just(bits),
        st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=80).map(
            lambda codes: np.array(codes, dtype=np.uint8)
        ),
    )
)
block_sizes = st.none() | st.integers(1, 100)


def by_definition(codes: np.ndarray, bits: int) -> np.ndarray:
    """Every code's bits, least significant first, one after the other."""
    stream = [(int(code) >> bit) & 1 for code in codes for bit in range(bits)]
    return np.packbits(np.array(stream, dtype=np.uint8), bitorder="little")


def blocks_of(codes: np.ndarray, block: int | None) -> list[np.ndarray]:
    step = block or codes.size
    return [codes[i : i + step] for i in range(0, codes.size, step)]


@properties
@given(bits_and_codes, block_sizes)
def test_packing_is_packbits_and_goes_back(bits_codes, block: int | None):
    bits, codes = bits_codes
    packed = pack_codes(codes, bits, block)
    parts = [by_definition(part, bits) for part in blocks_of(codes, block)]

    assert np.array_equal(packed, np.concatenate(parts))
    assert packed.size == packed_size(codes.size, bits, block)
    assert len(parts) == num_blocks(codes.size, block)
    assert np.array_equal(unpack_codes(packed, codes.size, bits, block), codes)


@pytest.mark.parametrize("block", [None, 1, 3, 8, 13, 700])
@pytest.mark.parametrize("bits", range(1, 9))
def test_compiled_codes_have_the_same_layout(bits: int, block: int | None):
    x = np.random.default_rng(bits).normal(size=611)
    q = qk.quantize(x, bits=bits, method="uniform", seed=2, block_size=block)

    assert np.array_equal(q.codes, pack_codes(q.indices(), bits, block))
    assert q.codes.size == packed_size(611, bits, block)


def test_an_example_by_hand():
    # Three bits each, least significant first: 101 110 111 and so on, eight codes in three bytes.
    codes = np.array([5, 3, 7, 0, 1, 2, 4, 6], dtype=np.uint8)

    assert pack_codes(codes, 3).tolist() == [0b11011101, 0b00010001, 0b11010001]


@properties
@given(st.integers(1, 10**12), st.integers(1, 8), block_sizes)
def test_sizes_of_any_length(size: int, bits: int, block: int | None):
    step = min(block or size, size)
    full, rest = divmod(size, step)

    assert packed_size(size, bits, block) == full * -(-step * bits // 8) + -(-rest * bits // 8)
