"""Parts of a GPU's benchmark: launches that are timed alone, and vectors that lie on a device."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from quiver_kernels.gpu.arrays import DeviceArray
from quiver_kernels.gpu.device import Device, Launch


class Recorder:
    """A device that keeps its launches, with their arguments, so that they can be done again."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.launches: list[Launch] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def launch(self, launch: Launch) -> None:
        self.launches.append(launch)
        self._device.launch(launch)

    def record(self, call: Callable[[], object]) -> list[Launch]:
        """The launches of a call."""
        self.launches = []
        call()
        found, self.launches = self.launches, []
        return found


def kernel_seconds(device: Device, launches: list[Launch], rounds: int) -> float:
    """Time of launches, one after the other, done again without what was between them."""

    def again() -> None:
        for launch in launches:
            device.launch(launch)

    again()
    return statistics.median(device.seconds_of(again) for _ in range(rounds))


class Resident:
    """A float32 vector in a device's memory, as other libraries would lend it."""

    def __init__(self, device: Device, x: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        self._buffer = device.upload(x)
        self.size = x.size
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": x.shape,
            "typestr": x.dtype.str,
            "data": (device.address(self._buffer), False),
            "strides": None,
            "stream": None,
        }
        device.finish()

    def lent(self) -> DeviceArray:
        """What the GPU's backend takes."""
        return DeviceArray(self, "vector", None)
