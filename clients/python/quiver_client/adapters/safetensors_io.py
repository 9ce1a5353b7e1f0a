"""Compressed models in safetensors files: any tool that reads these lists, copies and checks them.

    compress_file("model.safetensors", "small.safetensors", Policy(bits=4))
    with open_file("small.safetensors") as file:
        embedding = file.array("embedding.weight")

Each tensor of such a file is a vector of bytes: the tree message of one group of leaves, called as
the group's first leaf is. The file's metadata say how the groups make a tree.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from quiver_client._local import LocalClient
from quiver_client.errors import Invalid
from quiver_client.ps.compress import DEFAULT_POLICY, NO_TAG, Quantizes, compress
from quiver_client.ps.flatten import unflatten
from quiver_client.ps.policy import Policy
from quiver_kernels.options import draw_seed
from quiver_kernels.tree import Group, QuantizedTree, Tag

FORMAT = "quiver.tree"
VERSION = "1"
BATCH_BYTES = 64 << 20
"""Tensors are read and quantized together until they hold so many bytes."""

StrPath = str | os.PathLike[str]
_OWN_KEYS = ("quiver.format", "quiver.version", "quiver.tree")


@dataclass(frozen=True, slots=True)
class FileSizes:
    """What `compress_file` has made: tensors, values, and bytes of both files."""

    tensors: int
    values: int
    source: int
    target: int


def save_file(tree: QuantizedTree, path: StrPath, metadata: Mapping[str, str] | None = None) -> int:
    """Write a tree of `quiver_client.ps.compress` as a safetensors file.

    Parameters
    ----------
    tree
        Not empty.
    path
        Of the file. It is written beside that and renamed: nobody ever reads half of it.
    metadata
        Text to keep with it; its keys do not begin with ``quiver.``.

    Returns
    -------
    int
        Bytes of the file.

    Raises
    ------
    Invalid
        `metadata` is not such text.
    """
    return _write(path, tree.groups, tree.order, tree.structure, tree.tag, metadata or {})


def load_file(path: StrPath) -> QuantizedTree:
    """Read what `save_file` or `compress_file` wrote, all of it; `restore` decodes it.

    Raises
    ------
    Invalid
        A safetensors file, but none of these.
    InvalidInput, MalformedMessage
        A tensor is no tree message, or groups and leaves do not make a tree.
    safetensors.SafetensorError
        No safetensors file.
    """
    with open_file(path) as file:
        return file.tree()


def open_file(path: StrPath) -> CompressedFile:
    """A file to decode leaf by leaf, for ``with``; errors as for `load_file`."""
    return CompressedFile(path)


class CompressedFile:
    """A compressed file whose leaves are read when they are asked for; made by `open_file`."""

    def __init__(self, path: StrPath) -> None:
        self._file = safetensors.safe_open(path, framework="np")
        try:
            self._about = _about(self._file.metadata() or {}, set(self._file.keys()), str(path))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self._places = {
            leaf: (group[0], place)
            for group in self._about.groups
            for place, leaf in enumerate(group)
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the leaves, in the tree's order."""
        stored = [name for group in self._about.groups for name in group]
        return tuple(name for _, name in sorted(zip(self._about.order, stored, strict=True)))

    @property
    def structure(self) -> Any:
        """How the leaves are nested, as for `QuantizedTree`."""
        return self._about.structure

    @property
    def metadata(self) -> dict[str, str]:
        """The text that was given to `save_file`, or that of `compress_file`'s source."""
        own = self._file.metadata() or {}
        return {name: text for name, text in own.items() if name not in _OWN_KEYS}

    def array(self, name: str) -> NDArray[Any]:
        """One leaf, decoded; reads its group alone. `Invalid` if there is none of this name."""
        if name not in self._places:
            raise Invalid(f"the file has no leaf {name[:100]!r}", code="missing_key", field="name")
        key, _ = self._places[name]
        return self._message(key).arrays()[name]

    def arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """All leaves, decoded group by group, as (name, array); in the file's order."""
        for group in self._about.groups:
            yield from self._message(group[0]).arrays().items()

    def tree(self) -> QuantizedTree:
        """The whole tree."""
        groups = tuple(
            group for names in self._about.groups for group in self._message(names[0]).groups
        )
        about = self._about
        return QuantizedTree(groups, about.order, about.structure, about.tag)

    def __enter__(self) -> Self:
        """The file itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self._file.__exit__(kind, error, trace)

    def _message(self, key: str) -> QuantizedTree:
        data = self._file.get_tensor(key)
        if data.dtype != np.uint8 or data.ndim != 1:
            raise _no_tree(f"tensor {key[:100]!r} must be a vector of bytes; got {data.dtype}")
        tree = QuantizedTree.from_bytes(data.data)
        wanted = next(group for group in self._about.groups if group[0] == key)
        got = tuple(leaf.name for leaf in tree.leaves())
        if got != wanted or len(tree.groups) != 1:
            raise _no_tree(f"tensor {key[:100]!r} must hold the leaves that the metadata name")
        return tree


def compress_file(
    source: StrPath,
    target: StrPath,
    policy: Policy = DEFAULT_POLICY,
    *,
    client: Quantizes | None = None,
    seed: int | None = None,
) -> FileSizes:
    """Compress the tensors of a safetensors file, some at a time, into another.

    Parameters
    ----------
    source
        A file of tensors in float16, bfloat16, float32, float64, integers or bool.
    target
        Of the other file; written beside it and renamed.
    policy
        Which tensors are quantized, and how.
    client
        Who quantizes: None: this process (``pip install 'quiver-client[local]'``).
    seed
        Unsigned 64-bit: the same file, policy and seed give the same tensors. None: drawn.

    Raises
    ------
    Invalid
        A tensor is of another type, or cannot be quantized; the text names it.
    QuiverClientError
        From the service.

    Notes
    -----
    The source's metadata are kept. Memory: tensors up to `BATCH_BYTES`, or the largest one, and
    the compressed ones.
    """
    groups: list[Group] = []
    quantizes = client or LocalClient()
    seed = draw_seed() if seed is None else seed
    with safetensors.safe_open(source, framework="np") as file:
        metadata = file.metadata() or {}
        names = list(file.keys())
        for batch in _batches(file, names):
            groups.extend(compress(batch, policy, client=quantizes, seed=seed).groups)
    places = {name: place for place, name in enumerate(names)}
    order = tuple(places[leaf.name] for group in groups for leaf in group.leaves)
    size = _write(target, groups, order, None, NO_TAG, metadata)
    values = sum(group.size for group in groups)
    return FileSizes(len(names), values, Path(source).stat().st_size, size)


def restore_file(source: StrPath, target: StrPath) -> None:
    """Decode a file of `compress_file` into one of tensors with the original names and types.

    Leaves of a nested tree are called by their paths. Memory: that of the decoded tensors;
    errors as for `load_file`.
    """
    with open_file(source) as file:
        arrays = dict(file.arrays())
        metadata = file.metadata
    _replace(target, arrays, metadata)


def restore_arrays(path: StrPath) -> Any:
    """Decode a whole file: arrays, nested as the tree was."""
    with open_file(path) as file:
        found = dict(file.arrays())
        return unflatten({name: found[name] for name in file.names}, file.structure)


# -- inside --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _About:
    """What the metadata say: names of each group's leaves, and how they make a tree."""

    groups: tuple[tuple[str, ...], ...]
    order: tuple[int, ...]
    structure: Any
    tag: Tag


def _batches(file: Any, names: Iterable[str]) -> Iterator[dict[str, NDArray[Any]]]:
    batch: dict[str, NDArray[Any]] = {}
    for name in names:
        try:
            batch[name] = file.get_tensor(name)
        # Of a type that neither NumPy nor ml_dtypes is asked for by safetensors.
        except (AttributeError, TypeError) as error:
            kind = file.get_slice(name).get_dtype()
            raise Invalid(
                f"tensor {name!r} of type {kind} cannot be read as an array: {error}",
                code="unsupported_dtype",
                field=name,
            ) from error
        if sum(array.nbytes for array in batch.values()) >= BATCH_BYTES:
            yield batch
            batch = {}
    if batch:
        yield batch


def _write(
    path: StrPath,
    groups: Iterable[Group],
    order: tuple[int, ...],
    structure: Any,
    tag: Tag,
    metadata: Mapping[str, str],
) -> int:
    kept = list(groups)
    tensors = {}
    for group in kept:
        alone = QuantizedTree((group,), tuple(range(len(group.leaves))))
        tensors[group.leaves[0].name] = np.frombuffer(alone.to_bytes(), np.uint8)
    about = {
        "groups": [[leaf.name for leaf in group.leaves] for group in kept],
        "order": list(order),
        "structure": structure,
        "tag": [tag.round, tag.model_version, tag.client, tag.weight],
    }
    said: Mapping[Any, Any] = metadata
    for name, text in said.items():
        if not (isinstance(name, str) and isinstance(text, str)) or name.startswith("quiver."):
            raise Invalid(
                "metadata must be text by names that do not begin with 'quiver.'; "
                f"got {str(name)[:40]!r}",
                code="invalid_option",
                field="metadata",
            )
    own = {
        "quiver.format": FORMAT,
        "quiver.version": VERSION,
        "quiver.tree": json.dumps(about, separators=(",", ":")),
    }
    return _replace(path, tensors, {**metadata, **own})


def _replace(path: StrPath, tensors: dict[str, NDArray[Any]], metadata: dict[str, str]) -> int:
    """Write a file and put it into the place of `path`; its bytes."""
    place = Path(path)
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    os.close(handle)
    try:
        whole = {key: np.ascontiguousarray(x).reshape(x.shape) for key, x in tensors.items()}
        safetensors.numpy.save_file(whole, name, metadata=metadata or None)
        # As other files are made: the temporary one is for its owner alone.
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        size = Path(name).stat().st_size
        Path(name).replace(place)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return size


def _about(metadata: Mapping[str, str], keys: set[str], where: str) -> _About:
    if metadata.get("quiver.format") != FORMAT or metadata.get("quiver.version") != VERSION:
        raise _no_tree(f"{where[-100:]!r} is no file of {FORMAT} {VERSION}")
    try:
        about = json.loads(metadata["quiver.tree"])
        groups = tuple(tuple(group) for group in about.pop("groups"))
        order, structure = tuple(about.pop("order")), about.pop("structure")
        tag = Tag(*about.pop("tag"))
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise _no_tree(f"its metadata cannot be read: {str(error)[:100]}") from error
    leaves = [leaf for group in groups for leaf in group]
    if (
        about
        or not all(groups)
        or not all(isinstance(leaf, str) for leaf in leaves)
        or not all(type(place) is int for place in order)
        or len(set(leaves)) != len(leaves)
        or sorted(order) != list(range(len(leaves)))
        or {group[0] for group in groups} != keys
    ):
        raise _no_tree("its metadata do not fit its tensors")
    return _About(groups, order, structure, tag)


def _no_tree(reason: str) -> Invalid:
    return Invalid(f"file holds no compressed tree: {reason}", code="invalid_file", field="path")
