"""A file of records, one appended after the other, that survives the end of its writer.

Each record is a MessagePack map behind its length and a checksum. What a writer that was killed
left half written is cut off when the file is read again; nobody was told that it was kept.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from quiver_client.errors import Invalid

_LENGTH_BYTES, _SUM_BYTES = 8, 16
_HEAD_BYTES = _LENGTH_BYTES + _SUM_BYTES

Record = dict[str, Any]


class Journal:
    """Records in a file.

    Parameters
    ----------
    path
        The file; made when the first record is written.
    sync
        Wait until the disk has each record, so that it survives the end of the machine too, not
        of the process alone.
    """

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        self._path = path
        self._sync = sync

    def records(self) -> list[Record]:
        """All records, in order; a torn one at the end is cut off.

        Raises
        ------
        Invalid
            A record before the last is damaged, or is none.
        """
        if not self._path.exists():
            return []
        data = memoryview(self._path.read_bytes())
        found = list(self._read(data))
        end = found[-1][1] if found else 0
        if end < len(data):
            with self._path.open("r+b") as file:
                file.truncate(end)
        return [record for record, _ in found]

    def append(self, record: Record) -> None:
        """Write one more; all of it, or nothing if it raises `OSError`."""
        with self._path.open("ab") as file:
            end = file.tell()
            try:
                file.write(_framed(record))
                self._flush(file)
            except BaseException:
                file.truncate(end)
                raise

    def replace(self, records: Sequence[Record]) -> None:
        """Put `records` in place of all; at any moment there are the old or the new ones."""
        fresh = self._path.with_name(f"{self._path.name}.new")
        with fresh.open("wb") as file:
            for record in records:
                file.write(_framed(record))
            self._flush(file)
        fresh.replace(self._path)
        if self._sync:
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _flush(self, file: Any) -> None:
        file.flush()
        if self._sync:
            os.fsync(file.fileno())

    def _read(self, data: memoryview) -> Iterator[tuple[Record, int]]:
        """Records and where they end."""
        start = 0
        while start + _HEAD_BYTES <= len(data):
            length = int.from_bytes(data[start : start + _LENGTH_BYTES], "little")
            body = start + _HEAD_BYTES
            end = body + length
            if end > len(data):
                return
            if _checksum(data[body:end]) != data[start + _LENGTH_BYTES : body]:
                if end == len(data):
                    return
                raise Invalid(
                    f"journal {self._path} is damaged at byte {start}: "
                    "a record's checksum is wrong",
                    code="damaged_journal",
                    field="journal",
                )
            yield msgspec.msgpack.decode(data[body:end], type=dict[str, Any]), end
            start = end


def _framed(record: Record) -> bytes:
    body = msgspec.msgpack.encode(record)
    return len(body).to_bytes(_LENGTH_BYTES, "little") + _checksum(body) + body


def _checksum(body: bytes | memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=_SUM_BYTES).digest()
