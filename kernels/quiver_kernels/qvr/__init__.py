"""``.qvr`` files: a header, independent chunks with checksums, an index (docs/qvr.md).

with qk.qvr.open("model.qvr") as file:
    weights = file.read("layers.0.weight")
    some = file.read("layers.0.weight", 1000, 2000)
"""

from quiver_kernels.qvr.damage import DamagedFile
from quiver_kernels.qvr.frames import MAGIC, VERSION
from quiver_kernels.qvr.header import DEFAULT_CHUNK, STORED_DTYPES, Header, Tensor
from quiver_kernels.qvr.places import Place, Places
from quiver_kernels.qvr.reader import Chunk, Reader
from quiver_kernels.qvr.reader import open_file as open  # noqa: A004 - as of `io.open`
from quiver_kernels.qvr.seeds import chunk_seed
from quiver_kernels.qvr.writer import StreamWriter, Writer, part_header

__all__ = [
    "DEFAULT_CHUNK",
    "MAGIC",
    "STORED_DTYPES",
    "VERSION",
    "Chunk",
    "DamagedFile",
    "Header",
    "Place",
    "Places",
    "Reader",
    "StreamWriter",
    "Tensor",
    "Writer",
    "chunk_seed",
    "open",
    "part_header",
]
