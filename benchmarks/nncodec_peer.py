"""nncodec (ISO's neural network codec), served to a process that does not have it.

Run by an interpreter with nncodec, of which ``nncodec.extensions`` suffices, and NumPy: for each
line ``[path of a .npy file, quantization parameter, trellis or not]`` it answers seconds of the
processor, bits per value and mean squared error. `Peer` is the other end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

# Quantization parameters: about 3.25, 2.4, 1.6 and .9 bits a value of unit variance.
PARAMETERS = (-8, -4, -1, 3)


class Peer:
    """A process of an interpreter that has nncodec, asked one question at a time."""

    def __init__(self, python: Path) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([python, __file__], stdin=pipe, stdout=pipe, text=True)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def code(self, values: Path, parameter: int, trellis: bool) -> tuple[float, float, float]:
        """Seconds of encoding, bits per value, and mean squared error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        question = json.dumps([str(values), parameter, int(trellis)])
        print(question, file=self._process.stdin, flush=True)
        seconds, bits, error = json.loads(self._process.stdout.readline())
        return seconds, bits, error


def serve() -> None:
    """Answer until there are no more lines."""
    import numpy as np
    from nncodec.extensions import deepCABAC

    off = (deepCABAC.HdspMode.AlwaysOff, np.zeros(0, np.int8))
    for line in sys.stdin:
        path, parameter, trellis = json.loads(line)
        x = np.load(path)
        skipped = np.zeros(len(x), np.int32)
        begun = time.thread_time()
        encoder = deepCABAC.Encoder()
        codes = np.zeros(x.shape, np.int32)
        # As its own front end does it: flags, parameters of the contexts tried, no multiplier.
        encoder.initCtxModels(10, 0)
        used = encoder.quantLayer(x, codes, trellis, 2, parameter, 0.0, 10, 0, 0)
        encoder.initCtxModels(11, 1)
        encoder.encodeLayer(codes, trellis, 0, 0, 0, 0, skipped, *off, 0, 0)
        stream = encoder.finish()
        seconds = time.thread_time() - begun
        decoder = deepCABAC.Decoder()
        decoder.setStream(stream)
        decoder.initCtxModels(11)
        found, decoded = np.zeros(x.shape, np.int32), np.zeros(x.shape, np.float32)
        decoder.decodeLayer(found, trellis, 0, 0, 0, *off, 0, 0)
        decoder.finish()
        decoder.dequantLayer(decoded, found, 2, used, 0)
        error = float(((x.astype(float) - decoded) ** 2).mean())
        print(json.dumps([seconds, 8 * stream.size / x.size, error]), flush=True)


if __name__ == "__main__":
    serve()
