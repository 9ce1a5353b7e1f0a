"""Which kind of file it is: told by how it begins, not by its name."""

from __future__ import annotations

import importlib.util
import os
import zipfile
from pathlib import Path
from typing import Final

from quiver_client.errors import ExtraMissing
from quiver_client.files.folder import FolderSource
from quiver_client.files.npy import NpySource, NpzSource
from quiver_client.files.qvr_source import QvrSource
from quiver_client.files.raw import RawSource
from quiver_client.files.safetensors import SafetensorsSource
from quiver_client.files.source import Source, no_file
from quiver_kernels.qvr.frames import MAGIC

FORMATS: Final = ("npy", "npz", "safetensors", "torch", "raw", "qvr")
_NPY: Final = b"\x93NUMPY"
_ZIP: Final = (b"PK\x03\x04", b"PK\x05\x06")
_OLD_TORCH: Final = b"\x80\x02"


def open_source(
    path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    shape: tuple[int, ...] | None = None,
) -> Source:
    """Open a file of arrays, for ``with``.

    Parameters
    ----------
    path
        Of a ``.npy``, ``.npz``, safetensors, PyTorch state or ``.qvr`` file, or of a folder of
        safetensors files.
    dtype, shape
        Of the values of any other file, which are read as they are (little-endian).

    Returns
    -------
    Source
        Nothing but its header has been read.

    Raises
    ------
    Invalid
        It is of no known format, or is not what it begins as.
    DamagedFile
        A ``.qvr`` file that is cut short or changed.
    ExtraMissing
        A file of PyTorch, which is not installed.
    OSError
        It cannot be read.
    """
    where = os.fspath(path)
    if dtype is not None:
        return RawSource(where, dtype, shape)
    if Path(where).is_dir():
        return FolderSource(where)
    kind = detect(where)
    if kind == "npy":
        return NpySource(where)
    if kind == "npz":
        return NpzSource(where)
    if kind == "qvr":
        return QvrSource(where)
    if kind == "torch":
        return _torch(where)
    return SafetensorsSource(where)


def detect(path: str) -> str:
    """The format of a file by its first bytes; `Invalid` for one that is not known."""
    with Path(path).open("rb") as file:
        head = file.read(16)
        if head.startswith(_NPY):
            return "npy"
        if head.startswith(MAGIC[:4]):
            return "qvr"
        if head.startswith(_ZIP):
            return _of_zip(path)
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(_OLD_TORCH):
        raise no_file(
            path,
            "was saved by an old version of PyTorch, in a form that only runs as a programme: load "
            "it where you trust it, and save it again",
        )
    raise no_file(
        path,
        "is of no known format: .npy, .npz, safetensors, a state of PyTorch or .qvr; for bare "
        "values say their type: --dtype float32",
    )


def _of_zip(path: str) -> str:
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except zipfile.BadZipFile as error:
        raise no_file(path, f"is no whole .npz file nor one of PyTorch: {error}") from None
    return "torch" if any(name.endswith("data.pkl") for name in names) else "npz"


def _torch(path: str) -> Source:
    if importlib.util.find_spec("torch") is None:
        raise ExtraMissing(
            f"{path} is a file of PyTorch, which is not installed: "
            "pip install 'quiver-client[torch]'"
        )
    from quiver_client.files.torch_state import TorchSource

    return TorchSource(path)
