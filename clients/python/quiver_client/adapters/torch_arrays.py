"""PyTorch's tensors as NumPy arrays and back, without copies and with bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quiver_kernels.dtypes import WIRE_DTYPES


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """The values of a CPU tensor; they share its memory.

    bfloat16, of which NumPy has no type of its own, becomes that of ``ml_dtypes``.
    """
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        # Through integers of the same bits: PyTorch offers NumPy no bfloat16.
        bits: NDArray[Any] = tensor.view(torch.int16).numpy()
        return bits.view(WIRE_DTYPES["bfloat16"])
    found: NDArray[Any] = tensor.numpy()
    return found


def to_torch(array: NDArray[Any]) -> torch.Tensor:
    """A tensor of the array's values; shares its memory if that may be written to."""
    array = np.require(array, requirements=["C", "W"])
    if array.dtype == WIRE_DTYPES["bfloat16"]:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
