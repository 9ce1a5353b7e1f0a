"""A codec of Zarr 3: chunks of floating-point numbers, quantized.

    zarr.create_array(store, ..., serializer=QuiverCodec(bits=4), compressors=None)

It turns arrays into bytes, in the place of ``bytes``; in metadata its name is ``quiver``.
Source: "Zarr core specification, version 3", section on codecs (zarr-specs.readthedocs.io).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec

from quiver_kernels.codecs import chunks
from quiver_kernels.codecs.chunks import ChunkOptions
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.errors import InvalidInput


@dataclass(frozen=True, init=False)
class QuiverCodec(ArrayBytesCodec):
    """Chunks as quantized vectors; lossy and unbiased.

    Parameters
    ----------
    bits, method, block_size, seed, parameters, non_finite
        As for `quiver_kernels.codecs.chunks.ChunkOptions`.

    Raises
    ------
    InvalidInput
        An option is out of range.

    Notes
    -----
    Chunks are computed in threads, as many as Zarr's ``threading.max_workers``. A chunk at the
    array's edge is filled up with the fill value: one of NaN needs ``non_finite="raw"``.
    """

    is_fixed_size = False
    options: ChunkOptions

    def __init__(
        self,
        *,
        bits: int = 4,
        method: str = "exact",
        block_size: int | None = None,
        seed: int = 0,
        parameters: Mapping[str, Any] | None = None,
        non_finite: str = "refuse",
    ) -> None:
        options = ChunkOptions(bits, method, block_size, seed, parameters, non_finite)
        object.__setattr__(self, "options", options)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read the codec's part of an array's metadata.

        Raises
        ------
        InvalidInput
            Another codec's, or options that this one has not.
        """
        given = data.get("configuration") or {}
        unknown = sorted(set(given) - set(ChunkOptions().as_json()))
        if data.get("name") != chunks.NAME or unknown or not set(data) <= {"name", "configuration"}:
            raise InvalidInput(
                f"codec must be {chunks.NAME!r} with options of "
                f"{', '.join(ChunkOptions().as_json())}; got {str(data)[:100]}",
                code="unknown_key",
                field="codec",
            )
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """The codec's part of an array's metadata."""
        return {"name": chunks.NAME, "configuration": self.options.as_json()}

    def validate(self, *, shape: Any, dtype: Any, chunk_grid: Any) -> None:
        """Refuse arrays that cannot be quantized, when they are made.

        Raises
        ------
        InvalidInput
            The array's type is not one of floating-point numbers.
        """
        del shape, chunk_grid
        held = dtype.to_native_dtype()
        if held.name not in WIRE_DTYPES:
            raise InvalidInput(
                f"dtype must be one of {', '.join(WIRE_DTYPES)} for the codec {chunks.NAME}; "
                f"got {held.name}",
                code="unsupported_dtype",
                field="dtype",
            )

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: Any) -> int:
        """Not known before the values are: what Zarr asks of codecs of fixed size."""
        raise NotImplementedError

    async def _encode_single(self, chunk_array: Any, chunk_spec: Any) -> Any:
        values = np.asarray(chunk_array.as_numpy_array())
        data = await asyncio.to_thread(chunks.encode, values, self.options)
        return chunk_spec.prototype.buffer.from_bytes(data)

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        values = await asyncio.to_thread(chunks.decode, chunk_bytes.to_bytes())
        wanted = chunk_spec.dtype.to_native_dtype()
        if values.shape != chunk_spec.shape or values.dtype.name != wanted.name:
            raise InvalidInput(
                f"chunk must hold {wanted.name} of shape {list(chunk_spec.shape)}; "
                f"got {values.dtype.name} of {list(values.shape)}",
                code="size_mismatch",
                field="chunk",
            )
        return chunk_spec.prototype.nd_buffer.from_numpy_array(values)
