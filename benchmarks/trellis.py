"""Trellis coding against the rate-distortion bound and against nncodec, side by side.

``python benchmarks/trellis.py [--peer-python PATH]``: `PATH` is an interpreter that has nncodec
(see `nncodec_peer`); without it, only our part runs.
Normal values, float32; bits are bytes of the message times 8 / values, everything included;
times are of the processor, medians, in turns with the peer, on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from nncodec_peer import PARAMETERS, Peer

SIZE, ROUNDS = 1 << 19, 7


def values(numpy):
    """What both code."""
    return numpy.random.default_rng(0).standard_normal(SIZE).astype(numpy.float32)


def ours(bits: float) -> tuple[float, float, float]:
    """Seconds, bits and squared error of ECTCQ at (about) as many bits a value."""
    import numpy as np

    import quiver_kernels as qk

    x = values(np)
    step = STEPS[bits] if bits in STEPS else step_for(bits)
    STEPS[bits] = step
    begun = time.thread_time()
    q = qk.quantize(x, method="ectcq", parameters={"step": step}, seed=0)
    seconds = time.thread_time() - begun
    error = float(((x.astype(float) - qk.dequantize(q)) ** 2).mean())
    return seconds, 8 * len(q.to_bytes()) / x.size, error


STEPS: dict[float, float] = {}


def step_for(bits: float) -> float:
    """The step whose messages have just so many bits a value."""
    import numpy as np

    import quiver_kernels as qk

    x = values(np)
    low, high = 2.0**-10, 2.0
    for _ in range(12):
        middle = (low * high) ** 0.5
        q = qk.quantize(x, method="ectcq", parameters={"step": middle}, seed=0)
        low, high = (middle, high) if 8 * len(q.to_bytes()) > bits * x.size else (low, middle)
    return high


def gap(bits: float, error: float) -> float:
    """Decibels above the least error of so many bits a value."""
    import math

    return 20 * math.log10(2) * bits + 10 * math.log10(error)


def row(name: str, run: tuple[float, float, float], seconds: float) -> list[str]:
    """Of the table: bits, decibels above the bound, speed."""
    _, bits, error = run
    return [name, f"{bits:.3f}", f"{gap(bits, error):.2f}", f"{4 * SIZE / 1e6 / seconds:.1f}"]


def beside(python: Path, rounds: int) -> list[list[str]]:
    """Both at the peer's rates, in turns."""
    import numpy as np

    rows = []
    with tempfile.TemporaryDirectory() as folder, Peer(python) as peer:
        path = Path(folder) / "values.npy"
        np.save(path, values(np))
        for trellis in (True, False):
            for parameter in PARAMETERS:
                theirs, mine = [], []
                for _ in range(rounds):
                    theirs.append(peer.code(path, parameter, trellis))
                    mine.append(ours(theirs[0][1]))
                their, my = (statistics.median(run[0] for run in runs) for runs in (theirs, mine))
                name = "nncodec, trellis" if trellis else "nncodec, scalar"
                rows.append([*row(name, theirs[0], their), "1"])
                rows.append([*row("ectcq", mine[0], my), f"{their / my:.2f}"])
    return rows


def alone(rounds: int) -> list[list[str]]:
    """Our part."""
    rows = []
    for bits in (1, 2, 3, 4, 6):
        runs = [ours(bits) for _ in range(rounds)]
        rows.append([*row("ectcq", runs[0], statistics.median(run[0] for run in runs)), "-"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rounds = 1 if chosen.quick else ROUNDS
    python = chosen.peer_python
    rows = alone(rounds) if python is None else beside(python, rounds)
    head = ["", "bits a value", "dB above R(D)", "encode MB/s", "speed, nncodec 1"]
    for line in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(line) + " |")
    if chosen.json:
        chosen.json.write_text(json.dumps([dict(zip(head, line, strict=True)) for line in rows]))


if __name__ == "__main__":
    main()
