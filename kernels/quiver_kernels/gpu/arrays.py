"""Arrays in the memory of a GPU: of PyTorch, CuPy, JAX, Numba and whoever speaks as they do.

Two ways to lend memory are understood, DLPack and the CUDA Array Interface (version 3, Numba's
documentation). DLPack goes first: it has bfloat16, and orders streams by itself. Nothing here
imports another library or touches a device before `DeviceArray.open`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from quiver_kernels import dlpack
from quiver_kernels.dlpack import Lent
from quiver_kernels.dtypes import LEAF_DTYPES, WIRE_DTYPES
from quiver_kernels.errors import InvalidInput
from quiver_kernels.gpu.device import Device

_LEGACY_STREAM = 1
_ON_HOST = (dlpack.CPU, dlpack.CUDA_HOST)
_ON_DEVICE = (dlpack.CUDA, dlpack.CUDA_MANAGED)


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """Somebody's array in the memory of a GPU; nothing is known of it before it is opened.

    Attributes
    ----------
    source
        The array.
    field
        Its name in texts of errors.
    number
        Of the GPU; None if `source` does not say.
    """

    source: Any
    field: str
    number: int | None

    def open(self, device: Device) -> Lent:
        """The memory; what `device` does next waits for what its owner has still to do.

        Raises
        ------
        InvalidInput
            It is on another device, is not lent, or is no array of a supported type
            (``invalid_type``, ``unsupported_dtype``).
        """
        if self.number not in (None, device.number):
            raise InvalidInput(
                f"{self.field} must lie on GPU {device.number}; it lies on GPU {self.number}",
                code="invalid_type",
                field=self.field,
            )
        if dlpack.speaks(self.source):
            lent = dlpack.borrow(self.source, self.field, device.stream)
        else:
            lent, stream = _from_interface(self.source, self.field)
            if stream is not None:
                device.after(stream)
        if lent.dtype not in WIRE_DTYPES:
            raise InvalidInput(
                f"{self.field} must hold one of {', '.join(WIRE_DTYPES)}; got {lent.dtype}",
                code="unsupported_dtype",
                field=self.field,
            )
        if lent.address % lent.itemsize:
            raise _invalid(self.field, f"values of {lent.dtype} begin at odd addresses")
        return lent


def on_device(x: object, field: str) -> DeviceArray | None:
    """`x` if it is an array on a GPU; None for everything else.

    Raises
    ------
    InvalidInput
        It lies where neither the host nor CUDA gets at it (``invalid_type``).
    """
    if dlpack.speaks(x):
        kind, number = dlpack.memory_of(x, field)
        if kind in _ON_DEVICE:
            return DeviceArray(x, field, number)
        if kind not in _ON_HOST:
            raise _invalid(
                field,
                f"it lies in memory of DLPack's kind {kind}; the host's and CUDA's are supported",
            )
        return None
    if hasattr(x, "__cuda_array_interface__"):
        return DeviceArray(x, field, None)
    return None


_KNOWN = {
    **{
        ordered.str: ordered
        for dtype in LEAF_DTYPES.values()
        for ordered in (dtype, dtype.newbyteorder(">"))
    },
    # What bfloat16 is called there, and types of others that have two bytes.
    "<V2": np.dtype("V2"),
}
"""Types by what the interface calls them."""


def _from_interface(x: Any, field: str) -> tuple[Lent, int | None]:
    """Memory by the CUDA Array Interface, and the stream to wait for, if any."""
    try:
        said = x.__cuda_array_interface__
        address, read_only = said["data"]
        shape = tuple(int(size) for size in said["shape"])
        dtype = _KNOWN[said["typestr"]]
        given, masked = said.get("strides"), said.get("mask") is not None
        # Before version 3 nothing is said of streams; work of a library is then in the first.
        stream = said.get("stream") if said["version"] >= 3 else _LEGACY_STREAM
        usual = dlpack.c_strides(shape, dtype.itemsize)
        strides = usual if given is None else tuple(int(step) for step in given)
        lent = Lent(
            address=int(address or 0),
            shape=shape,
            strides=dlpack.effective_strides(shape, strides, dtype.itemsize),
            dtype=dtype.name if dtype.isnative else f"{dtype.name} of another byte order",
            itemsize=dtype.itemsize,
            read_only=bool(read_only),
            owner=x,
        )
    except Exception as error:
        # Properties of other libraries raise what they like.
        text = f"{type(error).__name__}: {error}"
        raise _invalid(field, f"its CUDA array interface is not usable: {text}") from error
    if masked:
        raise _invalid(field, "masks are not supported")
    return lent, stream


def _invalid(field: str, reason: str) -> InvalidInput:
    return InvalidInput(
        f"{field} is not a usable array: {reason}", code="invalid_type", field=field
    )
