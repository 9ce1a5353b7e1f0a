"""Arrays by name as tree messages, exactly as they are; and files of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quiver_client.ps import Policy, QuantizedTree, Signs, Tag, compress

Arrays = dict[str, NDArray[Any]]

AS_IT_IS = Policy(raw=("*",))
NOBODY = Signs()  # Where nothing is quantized, no service is asked, and any client will do.
NO_TAG = Tag()


def exact(arrays: Mapping[str, NDArray[Any]], tag: Tag = NO_TAG) -> QuantizedTree:
    """A tree message that holds the arrays bit by bit."""
    return compress(arrays, AS_IT_IS, client=NOBODY, tag=tag)


def save(path: Path, arrays: Mapping[str, NDArray[Any]], tag: Tag = NO_TAG) -> None:
    """Write a file so that whoever is killed meanwhile leaves the old one or the new one.

    It is not forced to the disk: it survives the death of the process, not of the machine.
    """
    draft = path.with_suffix(".draft")
    draft.write_bytes(exact(arrays, tag).to_bytes())
    draft.replace(path)


def load(path: Path) -> QuantizedTree:
    """Read a file of `save`."""
    return QuantizedTree.from_bytes(path.read_bytes())


def part(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Arrays:
    """The arrays named ``prefix/...``, without the prefix; copies, to be written to."""
    start = f"{prefix}/"
    return {
        name.removeprefix(start): values.copy()
        for name, values in arrays.items()
        if name.startswith(start)
    }


def named(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """The inverse of `part`."""
    return {f"{prefix}/{name}": values for name, values in arrays.items()}
