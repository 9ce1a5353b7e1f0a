"""Arrays of other libraries on a device: as much of them as lending memory takes.

Over the shim, memory of the device is host memory that only kernels should touch; NumPy's own
DLPack lends it, told to be a GPU's. On a real device CuPy's arrays stand behind the same classes.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.gpu.shim_device import ShimDevice

from quiver_kernels import dlpack
from quiver_kernels.gpu.device import Device

CUDA = 2
_CODE_OF_BFLOAT = 4


def place(device: Device, x: NDArray[Any]) -> NDArray[Any]:
    """A copy of `x` in memory of the device; over the shim, NumPy's view of that."""
    assert isinstance(device, ShimDevice)
    flat = np.ascontiguousarray(x)
    buffer = device.upload(flat)
    memory = (ctypes.c_uint8 * max(1, flat.nbytes)).from_address(device.address(buffer))
    memory.owner = buffer
    return np.frombuffer(memory, flat.dtype, flat.size).reshape(x.shape)


class Dlpack:
    """An array that is lent by DLPack alone.

    Parameters
    ----------
    array
        What NumPy lends; bfloat16 too.
    kind, number
        Of its memory and device.
    versioned
        Whether it knows version 1.
    """

    def __init__(
        self, array: NDArray[Any], kind: int = CUDA, number: int = 0, versioned: bool = True
    ) -> None:
        self.array = array
        self.kind = kind
        self.number = number
        self.versioned = versioned
        self.streams: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, self.number

    def __dlpack__(self, *, stream: int | None = None, **more: Any) -> object:
        if more and not self.versioned:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        self.streams.append(stream)
        if self.array.dtype.name != "bfloat16":
            return self.array.__dlpack__(**more)
        return as_bfloat(self.array.view(np.uint16).__dlpack__(**more))


def as_bfloat(capsule: object) -> object:
    """A capsule of 16-bit integers, said to be bfloat16."""
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    if "versioned" in repr(capsule):
        address = pointer(capsule, b"dltensor_versioned")
        tensor = dlpack._DLManagedTensorVersioned.from_address(address).tensor
    else:
        tensor = dlpack._DLTensor.from_address(pointer(capsule, b"dltensor"))
    tensor.dtype.code = _CODE_OF_BFLOAT
    return capsule


class Interface:
    """An array that is lent by the CUDA Array Interface alone."""

    def __init__(self, array: NDArray[Any], **changes: Any) -> None:
        self.array = array
        self.changes = changes

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        said = dict(self.array.__array_interface__)
        del said["descr"]
        return {"stream": None, **said, "version": 3, **self.changes}
