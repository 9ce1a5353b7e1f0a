"""Decoded tensors as files of other formats, written a stretch at a time and renamed when whole."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.lib import format as npy_format

from quiver_client.errors import Invalid
from quiver_client.files.safetensors import DTYPES
from quiver_kernels.qvr import STORED_DTYPES, Reader, Tensor
from quiver_kernels.qvr.frames import padding

TARGETS: Final = ("npy", "npz", "safetensors", "raw")
PIECE: Final = 1 << 22
"""Values decoded at a time, where chunks are not larger."""

_SAFETENSORS: Final = {ours: theirs for theirs, ours in DTYPES.items()}
_NOT_IN_NPY: Final = ("bfloat16", "float8_e4m3fn", "float8_e5m2")


def write_tensors(
    reader: Reader,
    names: Sequence[str],
    kind: str,
    stream: BinaryIO,
    *,
    threads: int | None = None,
    moved: Callable[[int], None] = lambda _: None,
) -> None:
    """Decode tensors into a stream, which need not seek.

    Parameters
    ----------
    reader, names
        The file, and which of its tensors; one for ``npy`` and ``raw``.
    kind
        One of `TARGETS`.
    stream
        Open for bytes.
    threads
        As for `Reader.read`.
    moved
        Told the bytes of values that were written.

    Raises
    ------
    Invalid
        The format does not hold these tensors.
    DamagedFile
        As from `Reader.read`.
    """
    check_target(reader, names, kind)
    tensors = [reader.tensor(name) for name in names]

    def values(tensor: Tensor, to: Any) -> None:
        step = max(tensor.chunk, PIECE // tensor.chunk * tensor.chunk)
        for start in range(0, tensor.size, step):
            stop = min(start + step, tensor.size)
            part = reader.read(tensor.name, start, stop, threads=threads)
            to.write(part.view(np.uint8).data)
            moved(part.nbytes)

    if kind == "safetensors":
        stream.write(_safetensors_header(tensors, reader.header.metadata))
    if kind == "npz":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for tensor in tensors:
                # Of one date, so that equal arrays make equal files.
                info = zipfile.ZipInfo(f"{tensor.name}.npy")
                with archive.open(info, "w", force_zip64=True) as member:
                    _npy_header(tensor, member)
                    values(tensor, member)
        return
    for tensor in tensors:
        if kind == "npy":
            _npy_header(tensor, stream)
        values(tensor, stream)


def check_target(reader: Reader, names: Sequence[str], kind: str) -> None:
    """`Invalid` if a format does not hold these tensors."""
    if kind not in TARGETS:
        raise Invalid(
            f"format must be one of {', '.join(TARGETS)}; got {kind!r:.40}",
            code="invalid_option",
            field="format",
        )
    if kind in ("npy", "raw") and len(names) != 1:
        raise Invalid(
            f"a file of {kind} holds one tensor; there are {len(names)}: choose one by --tensor, "
            "or a file of another format, such as .safetensors",
            code="invalid_option",
            field="format",
        )
    unknown = {
        "npy": _NOT_IN_NPY,
        "npz": _NOT_IN_NPY,
        "safetensors": tuple(set(STORED_DTYPES) - set(_SAFETENSORS)),
        "raw": (),
    }[kind]
    for name in names:
        dtype = reader.tensor(name).dtype
        if dtype in unknown:
            other = "npz" if kind == "safetensors" else "safetensors"
            raise Invalid(
                f"a file of {kind} cannot hold {dtype}, as tensor {name!r:.100} is; one of "
                f"{other} or raw can",
                code="unsupported_dtype",
                field="format",
            )


@contextlib.contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` if the context ends well; else it goes."""
    place = Path(path)
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.", suffix=".part")
    made = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # As other files are made: the temporary one is for its owner alone.
        mask = os.umask(0)
        os.umask(mask)
        made.chmod(0o666 & ~mask)
        made.replace(place)
    except BaseException:
        made.unlink(missing_ok=True)
        raise


def _npy_header(tensor: Tensor, stream: Any) -> None:
    descr = npy_format.dtype_to_descr(tensor.numpy_dtype)
    told = {"descr": descr, "fortran_order": False, "shape": tensor.shape}
    npy_format.write_array_header_1_0(stream, told)


def _safetensors_header(tensors: Sequence[Tensor], metadata: Any) -> bytes:
    told: dict[str, Any] = {}
    if metadata:
        told["__metadata__"] = dict(metadata)
    at = 0
    for tensor in tensors:
        if tensor.name in told or tensor.name == "__metadata__":
            raise Invalid(
                f"a file of safetensors cannot hold a tensor called {tensor.name!r}",
                code="invalid_option",
                field="format",
            )
        told[tensor.name] = {
            "dtype": _SAFETENSORS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(told, separators=(",", ":")).encode()
    text += b" " * padding(len(text))
    return len(text).to_bytes(8, "little") + text
