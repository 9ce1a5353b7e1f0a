"""A vector that a call was given, on the host or on a GPU: brought over once, if it is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.checks import Range, require_fit, require_values
from quiver_kernels.dlpack import Lent
from quiver_kernels.dtypes import wire_name
from quiver_kernels.errors import InvalidInput
from quiver_kernels.gpu import passes
from quiver_kernels.gpu.arrays import DeviceArray
from quiver_kernels.gpu.device import Buffer, Device

Values = NDArray[Any] | DeviceArray
"""What the GPU's backend takes for a vector."""


class Input:
    """A vector of at least one value, wherever it lies.

    Parameters
    ----------
    device
        What computes.
    x
        The vector; one that lies on a GPU is opened here, so its type is checked.

    Raises
    ------
    InvalidInput
        As `checks.require_values` and `DeviceArray.open`.
    """

    def __init__(self, device: Device, x: Values) -> None:
        self._device = device
        self._host: NDArray[Any] | None = None
        self._lent: Lent | None = None
        self._vector: passes.Vector | None = None
        self._bounds: Range | None = None
        if isinstance(x, DeviceArray):
            self._lent = x.open(device)
            self.shape, self.dtype = self._lent.shape, self._lent.dtype
            if self._lent.size == 0:
                raise InvalidInput(
                    "vector must hold at least one value; got none",
                    code="empty_vector",
                    field="vector",
                )
        else:
            require_values(x, "vector")
            self._host = x
            self.shape, self.dtype = x.shape, wire_name(x.dtype)
        self.size = int(np.prod(self.shape, dtype=np.int64))

    @property
    def on_device(self) -> bool:
        """Whether it was given on the device."""
        return self._lent is not None

    @property
    def vector(self) -> passes.Vector:
        """Its values on the device."""
        if self._vector is None:
            if self._lent is not None:
                self._vector = passes.borrowed(self._device, self._lent)
            else:
                assert self._host is not None
                # While parts are on their way the range of those before is found.
                self._vector, self._bounds = passes.upload_with_range(self._device, self._host)
        return self._vector

    @property
    def bounds(self) -> Range:
        """Its range; `InvalidInput` if a value is not finite."""
        vector = self.vector
        if self._bounds is None:
            self._bounds = passes.finite_range(self._device, vector)
        return self._bounds

    def host(self) -> NDArray[Any]:
        """The vector in memory of the host, in its shape: copied when first asked for."""
        if self._host is None:
            self._host = self.vector.to_host(self._device).reshape(self.shape)
        return self._host


def writable(device: Device, out: DeviceArray, shape: tuple[int, ...], dtype: str) -> Buffer:
    """The memory of `out`, to be filled with an array of this shape and type.

    Raises
    ------
    InvalidInput
        It has another shape (``shape_mismatch``) or type (``unsupported_dtype``), its values do
        not lie one after the other, or it must not be written (``invalid_type``).
    """
    lent = out.open(device)
    require_fit(lent.shape, lent.dtype, lent.contiguous, not lent.read_only, shape, dtype)
    return device.borrow(lent.address, lent.nbytes, lent.owner)
