"""State files of PyTorch: weights only, so that no code of the file runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quiver_client.errors import Invalid
from quiver_client.files.source import Entry, Source, no_file
from quiver_kernels.qvr.header import STORED_DTYPES

# Types of PyTorch without a twin in NumPy go through integers of the same bits.
_BITS = {
    torch.bfloat16: ("bfloat16", torch.int16),
    torch.float8_e4m3fn: ("float8_e4m3fn", torch.uint8),
    torch.float8_e5m2: ("float8_e5m2", torch.uint8),
}


class TorchSource(Source):
    """The tensors of a state: a mapping, however nested; what is no tensor is skipped.

    Tensors are named by their path, ``"model.layers.0.weight"``, and stay in the file until they
    are read.
    """

    format = "torch"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.metadata = {}
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except OSError:
            raise
        # PyTorch raises many kinds, and some of a module that must not be imported here.
        except Exception as error:  # noqa: BLE001
            text = " ".join(str(error).split())[:200]
            raise no_file(
                self.path, f"is no state file of PyTorch that can be read by weights alone: {text}"
            ) from None
        entries, self._tensors, skipped = [], [], []
        for name, value in _leaves(state, ""):
            if isinstance(value, torch.Tensor):
                entries.append(Entry(name, _dtype(value, name, self.path), tuple(value.shape)))
                self._tensors.append(value.detach())
            else:
                skipped.append(name)
        self.entries, self.skipped = tuple(entries), tuple(skipped)

    def read(self, number: int, start: int, stop: int) -> NDArray[Any]:
        """As `Source.read`."""
        flat = self._tensors[number].reshape(-1)[start:stop]
        found = _BITS.get(flat.dtype)
        if found is None:
            values: NDArray[Any] = flat.numpy()
            return np.array(values)
        name, bits = found
        return np.array(flat.view(bits).numpy()).view(STORED_DTYPES[name])

    def close(self) -> None:
        """As `Source.close`."""
        self._tensors = []


def _leaves(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, list | tuple):
        for place, value in enumerate(tree):
            yield from _leaves(value, f"{name}.{place}" if name else str(place))
    else:
        yield name or "value", tree


def _dtype(tensor: torch.Tensor, name: str, path: str) -> str:
    found = _BITS.get(tensor.dtype)
    kind = str(tensor.dtype).removeprefix("torch.") if found is None else found[0]
    if tensor.layout is not torch.strided or kind not in STORED_DTYPES:
        raise Invalid(
            f"{path}: tensor {name!r:.100} must be dense and of {', '.join(STORED_DTYPES)}; got "
            f"{kind}, {tensor.layout}",
            code="unsupported_dtype",
            field="dtype",
        )
    return kind
