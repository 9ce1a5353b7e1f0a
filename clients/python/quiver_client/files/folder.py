"""A model in several safetensors files of one folder, as large ones come."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quiver_client.files.safetensors import SafetensorsSource
from quiver_client.files.source import Source, no_file


class FolderSource(Source):
    """The tensors of all safetensors files of a folder, in the order of the files' names."""

    format = "safetensors"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        files = files_of(self.path)
        with ExitStack() as opened:
            sources = [opened.enter_context(SafetensorsSource(file)) for file in files]
            seen: dict[str, str] = {}
            for source in sources:
                for entry in source.entries:
                    if entry.name in seen:
                        raise no_file(
                            source.path,
                            f"has tensor {entry.name!r:.100}, as {seen[entry.name]} has",
                        )
                    seen[entry.name] = source.path
            self._opened = opened.pop_all()
        self._places = [
            (source, number) for source in sources for number in range(len(source.entries))
        ]
        self.entries = tuple(entry for source in sources for entry in source.entries)
        # Files of one model say the same; where they do not, the first one counts.
        merged: dict[str, str] = {}
        for source in reversed(sources):
            merged.update(source.metadata)
        self.metadata = merged

    def read(self, number: int, start: int, stop: int) -> NDArray[Any]:
        """As `Source.read`."""
        source, place = self._places[number]
        return source.read(place, start, stop)

    def close(self) -> None:
        """As `Source.close`."""
        self._opened.close()


def files_of(folder: str | os.PathLike[str]) -> list[Path]:
    """The safetensors files of a folder; `Invalid` if there is none."""
    found = sorted(Path(folder).glob("*.safetensors"))
    if not found:
        raise no_file(os.fspath(folder), "is a folder without .safetensors files")
    return found
