"""One chunk of an array as bytes: a quantized vector, or, where that cannot be, the values.

Both are messages of the wire format (docs/wire-format.md): what ``POST /quantize`` answers, and a
tensor map. The first byte tells which.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels import api, wire
from quiver_kernels.errors import InvalidInput, MalformedMessage
from quiver_kernels.framing import Buffer
from quiver_kernels.options import DRAWN_SEED_BITS, QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.tensors import tensor_fields

NAME = "quiver"
"""The codec's name in the metadata of arrays."""
NON_FINITE = ("refuse", "raw")

# A tensor is a map of three keys; a quantized vector has many more.
_TENSOR = 0x83
_DEVICE = "any"


@dataclass(frozen=True, slots=True)
class ChunkOptions:
    """How chunks are quantized; everything in it can be written as JSON.

    Attributes
    ----------
    bits
        Bits per value, 1..8.
    method, block_size, parameters
        As for `quiver_kernels.quantize`.
    seed
        Unsigned 64-bit. Each chunk is rounded by random numbers of this and of its values, so
        that the same values give the same bytes, and other values other random numbers.
    non_finite
        What is done with a chunk that holds NaN or infinities: ``refuse``: an error; ``raw``: it
        is stored as it is.
    """

    bits: int = 4
    method: str = "exact"
    block_size: int | None = None
    seed: int = 0
    parameters: Mapping[str, Any] | None = None
    non_finite: str = "refuse"

    def __post_init__(self) -> None:
        """Check; `InvalidInput` names the option, its limits and what was got."""
        self._options(self.seed)
        if self.non_finite not in NON_FINITE:
            raise InvalidInput(
                f"non_finite must be one of {', '.join(NON_FINITE)}; got {self.non_finite!r:.40}",
                code="invalid_option",
                field="non_finite",
            )
        if self.parameters is not None:
            object.__setattr__(self, "parameters", dict(self.parameters))

    def __hash__(self) -> int:
        """Options are values; parameters may be a dictionary."""
        return hash((self.bits, self.method, self.block_size, self.seed, self.non_finite))

    def as_json(self) -> dict[str, Any]:
        """The options by name, as the keyword arguments that make them."""
        parameters = None if self.parameters is None else dict(self.parameters)
        return {
            "bits": self.bits,
            "method": self.method,
            "block_size": self.block_size,
            "seed": self.seed,
            "parameters": parameters,
            "non_finite": self.non_finite,
        }

    def quantize(self, x: NDArray[Any], seed: int) -> QuantizedVector:
        """`x` quantized so, with a seed of its own; it says nothing that changes by the run."""
        q = api.quantize(
            x,
            self.bits,
            self.method,
            seed,
            block_size=self.block_size,
            parameters=self.parameters,
        )
        return replace(q, timings_ms={}, device=_DEVICE)

    def _options(self, seed: int) -> QuantizeOptions:
        return QuantizeOptions.create(
            bits=self.bits,
            method=self.method,
            block_size=self.block_size,
            seed=seed,
            parameters=self.parameters,
        )


def encode(x: NDArray[Any], options: ChunkOptions) -> bytes:
    """A chunk as bytes.

    Parameters
    ----------
    x
        float16, bfloat16, float32 or float64, any shape and byte order.
    options
        How it is quantized. Empty chunks are stored as they are.

    Raises
    ------
    InvalidInput
        Another type; NaN or infinities, unless `options` store these.
    """
    raw = x.size == 0 or (options.non_finite == "raw" and not np.isfinite(x).all())
    if raw:
        return b"".join(wire.encode_tensor(x))
    return options.quantize(x, _seed(x, options.seed)).to_bytes()


def decode(data: Buffer) -> NDArray[Any]:
    """The values of a chunk, in its shape and type (native byte order).

    Raises
    ------
    MalformedMessage, InvalidInput
        The bytes are no chunk.
    """
    if not len(data):
        raise MalformedMessage("chunk must be a message; got no bytes")
    if memoryview(data)[0] == _TENSOR:
        return wire.decode_tensor(data)
    return api.dequantize(QuantizedVector.from_bytes(data))


def _seed(x: NDArray[Any], seed: int) -> int:
    """A seed of the values and the array's seed: other chunks get other random numbers."""
    held = tensor_fields(x)["data"]
    key = seed.to_bytes(8, "little")
    digest = hashlib.blake2b(held, digest_size=8, key=key).digest()
    return int.from_bytes(digest, "little") >> (64 - DRAWN_SEED_BITS)
