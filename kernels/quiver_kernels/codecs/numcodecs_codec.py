"""A codec of numcodecs: arrays of floating-point numbers, quantized.

    zarr.create_array(store, ..., zarr_format=2, compressors=Quiver(bits=4))
    numcodecs.get_codec({"id": "quiver", "bits": 4})

Source: numcodecs.abc.Codec (numcodecs.readthedocs.io).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numcodecs.abc import Codec
from numcodecs.compat import ensure_contiguous_ndarray, ensure_ndarray, ndarray_copy
from numpy.typing import NDArray

from quiver_kernels.codecs import chunks
from quiver_kernels.codecs.chunks import ChunkOptions
from quiver_kernels.dtypes import from_wire
from quiver_kernels.errors import InvalidInput


class Quiver(Codec):
    """Values as quantized vectors; lossy and unbiased.

    Parameters
    ----------
    bits, method, block_size, seed, parameters, non_finite
        As for `quiver_kernels.codecs.chunks.ChunkOptions`.
    dtype
        float16, bfloat16, float32 or float64: what plain bytes hold. None: arrays say it
        themselves, and plain bytes are refused.

    Raises
    ------
    InvalidInput
        An option is out of range.

    Notes
    -----
    Values are taken as they lie in memory. An array in C order keeps its shape; of any other, such
    as the chunks of an array of Zarr 2 in Fortran order, `decode` gives one dimension.
    """

    codec_id = chunks.NAME

    def __init__(
        self,
        bits: int = 4,
        method: str = "exact",
        block_size: int | None = None,
        seed: int = 0,
        parameters: Mapping[str, Any] | None = None,
        non_finite: str = "refuse",
        dtype: str | None = None,
    ) -> None:
        self._options = ChunkOptions(bits, method, block_size, seed, parameters, non_finite)
        self._dtype = None if dtype is None else from_wire(dtype)

    def encode(self, buf: Any) -> bytes:
        """The values of `buf`, an array or any buffer, as a message.

        Raises
        ------
        InvalidInput
            It holds other types than floating-point numbers; NaN or infinities.
        """
        return chunks.encode(self._values(ensure_ndarray(buf)), self._options)

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The values of a message; into `out`, a buffer of their size, if that is given.

        Raises
        ------
        InvalidInput, MalformedMessage
            `buf` is no such message.
        ValueError
            `out` has another size.
        """
        given = ensure_contiguous_ndarray(buf).view(np.uint8)
        values = chunks.decode(given.data)
        return ndarray_copy(values, out)

    def get_config(self) -> dict[str, Any]:
        """The codec as JSON, for `numcodecs.get_codec`."""
        dtype = None if self._dtype is None else self._dtype.name
        return {"id": self.codec_id, **self._options.as_json(), "dtype": dtype}

    def __repr__(self) -> str:
        """As it would be made."""
        given = {name: value for name, value in self.get_config().items() if name != "id"}
        return f"Quiver({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def _values(self, x: NDArray[Any]) -> NDArray[Any]:
        if not x.flags.c_contiguous:
            x = x.reshape(-1, order="A")
        if self._dtype is None or x.dtype == self._dtype:
            return x
        if x.dtype.kind not in "uiSV" or x.dtype.itemsize != 1 or x.nbytes % self._dtype.itemsize:
            raise InvalidInput(
                f"buf must hold whole values of {self._dtype.name}, or bytes of them; "
                f"got {x.nbytes} bytes of {x.dtype.name}",
                code="unsupported_dtype",
                field="buf",
            )
        return x.reshape(-1).view(self._dtype)
