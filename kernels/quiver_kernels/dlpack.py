"""Arrays that other libraries lend by DLPack, read without any of these libraries.

NumPy reads such arrays too, but none of bfloat16 and none that lie on a GPU. See "DLPack: Open In
Memory Tensor Structure" (dmlc.github.io/dlpack) and "Python Specification for DLPack".
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import LEAF_DTYPES
from quiver_kernels.errors import InvalidInput

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
"""Kinds of memory: of the host, of a GPU, of the host and pinned, of both."""
HOST = (CPU, 0)
"""The host, as ``__dlpack_device__`` names it."""

_KINDS = {0: "int", 1: "uint", 2: "float", 3: "handle", 4: "bfloat", 5: "complex"}
_BOOLEAN = 6
_BFLOAT = 4
_READ_ONLY = 1
_MOST_DIMENSIONS = 64


@dataclass(frozen=True, slots=True)
class Lent:
    """Memory of somebody else, seen as an array.

    Attributes
    ----------
    address
        Of the first value.
    shape
        Sizes.
    strides
        Bytes from one value to the next, for each dimension; may be negative or 0.
    dtype
        Name of the type, as in `LEAF_DTYPES` if it is one of these.
    itemsize
        Bytes of a value.
    read_only
        Whether it must not be written.
    owner
        Keeps the memory as long as somebody refers to it.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    itemsize: int
    read_only: bool
    owner: object

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of all values, one after the other."""
        return self.size * self.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether values lie one after the other in C order."""
        return self.strides == c_strides(self.shape, self.itemsize) or self.size == 0


class _DLDevice(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("number", ctypes.c_int32))


class _DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensorVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    )


def speaks(x: object) -> bool:
    """Whether `x` offers itself by DLPack."""
    return hasattr(type(x), "__dlpack__") and hasattr(type(x), "__dlpack_device__")


def memory_of(x: Any, field: str) -> tuple[int, int]:
    """The kind of memory that `x` lies in, and the number of its device."""
    try:
        kind, number = x.__dlpack_device__()
        return int(kind), int(number)
    except Exception as error:
        raise _refused(field, error) from error


def borrow(x: Any, field: str, stream: int | None = None) -> Lent:
    """The memory of `x`.

    Parameters
    ----------
    x
        What `speaks`.
    field
        Its name in texts of errors.
    stream
        CUDA's handle of the stream that will read or write it, for memory of a GPU: its owner
        makes this stream wait for what is still to be done.

    Raises
    ------
    InvalidInput
        The owner does not lend it, or in a way that is not supported (``invalid_type``).
    """
    given = {} if stream is None else {"stream": stream}
    try:
        capsule = _capsule_of(x, given)
    except Exception as error:
        # Libraries raise what they like: BufferError, RuntimeError, TypeError, ...
        raise _refused(field, error) from error
    return _read(capsule, field)


def host_array(x: Any, field: str) -> NDArray[Any]:
    """`x`, in memory of the host, as a NumPy array of the same memory.

    Raises
    ------
    InvalidInput
        As for `borrow`; a type that NumPy has not (``unsupported_dtype``).
    """
    lent = borrow(x, field)
    dtype = LEAF_DTYPES.get(lent.dtype)
    if dtype is None:
        raise InvalidInput(
            f"{field} must hold one of {', '.join(LEAF_DTYPES)}; got {lent.dtype}",
            code="unsupported_dtype",
            field=field,
        )
    if lent.size == 0:
        return np.empty(lent.shape, dtype)
    return np.asarray(_AsNumpy(lent)).view(dtype)


def lend(x: NDArray[Any], max_version: tuple[int, int] | None = None) -> object:
    """`x` as a DLPack capsule, for ``__dlpack__``; bfloat16 too, which NumPy does not lend.

    Parameters
    ----------
    x
        Of the host, writable, of one of `LEAF_DTYPES`.
    max_version
        The newest version of DLPack that the taker knows; None: one before 1.0.
    """
    given: dict[str, Any] = {} if max_version is None else {"max_version": max_version}
    if x.dtype != LEAF_DTYPES["bfloat16"]:
        return x.__dlpack__(**given)
    capsule = x.view(np.uint16).__dlpack__(**given)
    # The capsule's memory is ours until somebody takes it: its type is told as it is.
    _tensor_of(capsule).dtype.code = _BFLOAT
    return capsule


def _tensor_of(capsule: object) -> Any:
    """The tensor of a capsule that NumPy made, where it stands in memory."""
    for name, kind, inside in (
        (b"dltensor_versioned", _DLManagedTensorVersioned, True),
        (b"dltensor", _DLTensor, False),
    ):
        if _is_valid(capsule, name):
            found: Any = kind.from_address(_pointer(capsule, name))
            return found.tensor if inside else found
    raise BufferError("NumPy gave a DLPack capsule without a tensor")


class _AsNumpy:
    """Memory as NumPy takes it; bits without a type, since NumPy does not know bfloat16."""

    def __init__(self, lent: Lent) -> None:
        self._owner = lent.owner
        self.__array_interface__ = {
            "version": 3,
            "shape": lent.shape,
            "strides": lent.strides,
            "typestr": f"<u{lent.itemsize}",
            "data": (lent.address, lent.read_only),
        }


def c_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides in bytes of values that lie one after the other."""
    strides = []
    step = itemsize
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def effective_strides(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int
) -> tuple[int, ...]:
    """`strides` with those that no step takes, of dimensions of size 1, as C order has them."""
    usual = c_strides(shape, itemsize)
    return tuple(
        own if size > 1 else other for size, own, other in zip(shape, strides, usual, strict=True)
    )


def _capsule_of(x: Any, given: dict[str, int]) -> object:
    try:
        # Version 1 tells what must not be written.
        return x.__dlpack__(max_version=(1, 0), **given)
    except TypeError:
        return x.__dlpack__(**given)


def _read(capsule: object, field: str) -> Lent:
    read_only = False
    # The capsule keeps its name, so that it gives the memory back when it goes itself.
    if _is_valid(capsule, b"dltensor_versioned"):
        address = _pointer(capsule, b"dltensor_versioned")
        managed = _DLManagedTensorVersioned.from_address(address)
        if managed.major != 1:
            raise _refused(field, f"DLPack {managed.major}.{managed.minor} is not supported")
        tensor, read_only = managed.tensor, bool(managed.flags & _READ_ONLY)
    elif _is_valid(capsule, b"dltensor"):
        tensor = _DLTensor.from_address(_pointer(capsule, b"dltensor"))
    else:
        raise _refused(field, "its DLPack capsule holds no tensor")
    if not 0 <= tensor.ndim <= _MOST_DIMENSIONS or tensor.dtype.lanes != 1:
        raise _refused(field, f"{tensor.ndim} dimensions, {tensor.dtype.lanes} lanes")
    shape = tuple(tensor.shape[: tensor.ndim])
    itemsize = (tensor.dtype.bits + 7) // 8
    if tensor.strides:
        steps = tuple(itemsize * step for step in tensor.strides[: tensor.ndim])
        strides = effective_strides(shape, steps, itemsize)
    else:
        strides = c_strides(shape, itemsize)
    return Lent(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=shape,
        strides=strides,
        dtype=_type_name(tensor.dtype),
        itemsize=itemsize,
        read_only=read_only,
        owner=capsule,
    )


def _is_valid(capsule: object, name: bytes) -> bool:
    call = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
    return bool(call(("PyCapsule_IsValid", ctypes.pythonapi))(capsule, name))


def _pointer(capsule: object, name: bytes) -> int:
    call = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    return int(call(("PyCapsule_GetPointer", ctypes.pythonapi))(capsule, name))


def _type_name(dtype: _DLDataType) -> str:
    if dtype.code == _BOOLEAN:
        return "bool"
    return f"{_KINDS.get(dtype.code, 'unknown')}{dtype.bits}"


def _refused(field: str, reason: object) -> InvalidInput:
    text = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else reason
    return InvalidInput(
        f"{field} cannot be read by DLPack: {text}", code="invalid_type", field=field
    )
