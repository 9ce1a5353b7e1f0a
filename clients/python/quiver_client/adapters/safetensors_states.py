"""State dictionaries of models, quantized into a safetensors file and back.

    save_state(model.state_dict(), "small.safetensors", Policy(bits=4))
    model.load_state_dict(load_state("small.safetensors", framework="torch"))

Files are those of `safetensors_io`, which reads and restores them leaf by leaf too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quiver_client._local import LocalClient
from quiver_client.adapters.safetensors_io import (
    FileSizes,
    StrPath,
    restore_arrays,
    save_file,
)
from quiver_client.errors import Invalid
from quiver_client.ps.compress import DEFAULT_POLICY, Quantizes, compress
from quiver_client.ps.policy import Policy
from quiver_kernels.dtypes import LEAF_DTYPES

Framework = Literal["numpy", "torch"]


def save_state(
    state: Mapping[str, Any],
    path: StrPath,
    policy: Policy = DEFAULT_POLICY,
    *,
    client: Quantizes | None = None,
    seed: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> FileSizes:
    """Quantize the tensors of a model's state and write them as one safetensors file.

    Parameters
    ----------
    state
        Arrays or PyTorch tensors by name, of the host; may be nested. Not empty.
    path
        Of the file; it is written beside that and renamed.
    policy
        Which tensors are quantized, and how; the others are kept as they are.
    client
        Who quantizes. None: this process (``pip install 'quiver-client[local]'``).
    seed
        Unsigned 64-bit: the same state, policy and seed give the same tensors. None: drawn.
    metadata
        Text to keep with it; its keys do not begin with ``quiver.``.

    Returns
    -------
    FileSizes
        Tensors, values, and bytes of the state and of the file.

    Raises
    ------
    Invalid
        `state` is no mapping of tensors, or one cannot be quantized; the text names it.
    QuiverClientError
        From the service.
    """
    given: Any = state
    if not isinstance(given, Mapping) or not given:
        got = "none" if isinstance(given, Mapping) else type(given).__name__
        raise Invalid(
            f"state must be a mapping of at least one tensor by name; got {got}",
            code="invalid_type",
            field="state",
        )
    tree = compress(state, policy, client=client or LocalClient(), seed=seed)
    size = save_file(tree, path, metadata)
    leaves = tree.leaves()
    source = sum(leaf.size * LEAF_DTYPES[leaf.dtype].itemsize for leaf in leaves)
    return FileSizes(len(leaves), sum(leaf.size for leaf in leaves), source, size)


def load_state(path: StrPath, *, framework: Framework = "numpy") -> dict[str, Any]:
    """Decode a file of `save_state` into a state dictionary.

    Parameters
    ----------
    path
        Of the file.
    framework
        ``numpy``: arrays; ``torch``: tensors of PyTorch on the host, bfloat16 too.

    Returns
    -------
    dict
        By name, of the original types and shapes, nested as `state` was.

    Raises
    ------
    Invalid
        Another framework; a file that holds no such state, such as that of a list.
    InvalidInput, MalformedMessage, safetensors.SafetensorError
        As for `safetensors_io.load_file`.
    """
    convert = _converter(framework)
    found = restore_arrays(path)
    if not isinstance(found, dict):
        raise Invalid(
            f"file must hold a state dictionary; got {type(found).__name__}",
            code="invalid_file",
            field="path",
        )
    return {name: _converted(value, convert) for name, value in found.items()}


def _converter(framework: str) -> Callable[[NDArray[Any]], Any]:
    if framework == "numpy":
        return np.asarray
    if framework == "torch":
        from quiver_client.adapters.torch_arrays import to_torch

        return to_torch
    raise Invalid(
        f"framework must be numpy or torch; got {str(framework)[:40]!r}",
        code="invalid_option",
        field="framework",
    )


def _converted(value: Any, convert: Callable[[NDArray[Any]], Any]) -> Any:
    if isinstance(value, dict):
        return {name: _converted(inner, convert) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_converted(inner, convert) for inner in value)
    return convert(value)
