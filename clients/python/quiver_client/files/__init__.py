"""Files of arrays, read a stretch at a time: .npy, .npz, safetensors, PyTorch, .qvr, bare values.

with open_source("model.safetensors") as source:
    for number, entry in enumerate(source.entries):
        first = source.read(number, 0, min(entry.size, 1000))
"""

from quiver_client.files.opening import FORMATS, detect, open_source
from quiver_client.files.source import Entry, Source

__all__ = ["FORMATS", "Entry", "Source", "detect", "open_source"]
