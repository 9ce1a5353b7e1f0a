"""Other quantizers at equal bits: time, error, bytes, and whether they are unbiased.

Each quantizer takes the float32 vector and gives back a float32 vector; one thread. Ours stand
among them. A quantizer that is not there is listed as not installed: `make bench-peers` makes
an environment with all of them and runs this there.

- compress: the whole way from vector to codes, choice of levels or scales included.
- vNMSE: measured squared error of a round trip over the squared norm; the mean of eight round
  trips where they differ.
- left after 16: the vNMSE of the mean of 16 round trips (of the first 2^16 values), as a share
  of that of one. What is unbiased and independent leaves 1/16 = 6.2 %; a deterministic rounding
  leaves all of it.

Rounding to the nearest level has the smaller error in one round trip, by half or more; that
error stays, however many vectors are averaged. Scales or tables for short blocks lower the
error of any method where magnitudes differ between blocks, and cost bytes.

Run ``python benchmarks/peers.py``; it prints Markdown.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Before anything loads OpenMP.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from common import sources
from common.tables import figure, size, table
from common.timing import seconds_of, take_turns

import quiver_kernels as qk

# bitsandbytes asks for an optional package named as one of the scripts of this folder.
sys.path.remove(str(Path(__file__).parent))

DATA = ("Normal(0, 1)", "LogNormal(0, 1)")
BITS = (4, 8)
REPEATS = 16
TRIPS = 8
BIAS_SIZE = 1 << 16
# Twice what chance leaves.
UNBIASED = 2.0 / REPEATS
ROW = 1024
BLOCK = 4096
REFERENCE = "QUIVER exact"

Vector = sources.Vector


@dataclass(frozen=True)
class Codec:
    """A quantizer, ready to use.

    Attributes
    ----------
    size
        Bytes of what `compress` returns, tables and scales included.
    note
        What a reader should know about the figures.
    """

    compress: Callable[[Vector], Any]
    decompress: Callable[[Any], Vector]
    size: Callable[[Any], int]
    note: str = ""
    limit: int | None = None


@dataclass(frozen=True)
class Result:
    """A quantizer's figures on one vector; None where it is not installed."""

    data: str
    bits: int
    name: str
    size: int = 0
    note: str = ""
    compress_ms: float | None = None
    decompress_ms: float | None = None
    to_ours: float | None = None
    vnmse: float | None = None
    bytes: int | None = None
    left: float | None = None


def our_codec(method: str, bits: int, block_size: int | None = None) -> Codec:
    return Codec(
        lambda x: qk.quantize(x, bits, method, block_size=block_size),
        qk.dequantize,
        lambda q: q.nbytes,
        f"a table for each {block_size:,} values" if block_size else "one table",
    )


def faiss_codec(kind: str, bits: int) -> Codec:
    """FAISS's scalar quantizer on rows of 1,024: ranges per column, or one for all."""
    import faiss

    faiss.omp_set_num_threads(1)
    code = getattr(faiss.ScalarQuantizer, f"QT_{bits}bit{kind}")

    def compress(x: Vector) -> Any:
        quantizer = faiss.ScalarQuantizer(ROW, code)
        rows = x.reshape(-1, ROW)
        quantizer.train(rows)
        return quantizer, quantizer.compute_codes(rows)

    def total(found: Any) -> int:
        return int(found[1].nbytes + faiss.vector_to_array(found[0].trained).nbytes)

    ranges = "one range" if kind else "a range for each of 1,024 columns"
    return Codec(compress, lambda f: f[0].decode(f[1]).ravel(), total, ranges)


def bitsandbytes_codec(kind: str) -> Codec:
    """Blockwise codes of a fixed table, scaled by the block's largest magnitude."""
    import torch
    from bitsandbytes import functional

    torch.set_num_threads(1)
    if kind == "8 bit":
        quantize = functools.partial(functional.quantize_blockwise, blocksize=4096)
        dequantize, block = functional.dequantize_blockwise, 4096
    else:
        quantize = functools.partial(functional.quantize_4bit, quant_type=kind, blocksize=64)
        dequantize, block = functional.dequantize_4bit, 64
    return Codec(
        lambda x: quantize(torch.from_numpy(x)),
        lambda f: dequantize(*f).numpy().ravel(),
        lambda f: f[0].nbytes + f[1].absmax.nbytes,
        f"a scale for each {block:,} values",
    )


def hivemind_codec(kind: str) -> Codec:
    """hivemind's codebooks of 256 values.

    Without its messages: their decoder asks NumPy for a conversion that NumPy 2.4 refuses.
    """
    import torch
    from hivemind import compression

    torch.set_num_threads(1)
    quantizer = getattr(compression, kind)()

    def compress(x: Vector) -> Any:
        return quantizer.quantize(torch.from_numpy(x))

    def decompress(found: Any) -> Vector:
        codes, book = (np.asarray(part) for part in found)
        return book[codes].astype(np.float32)

    def total(found: Any) -> int:
        return sum(np.asarray(part).nbytes for part in found)

    return Codec(compress, decompress, total, "decoded by look-up")


def bucketize_codec(num_levels: int) -> Codec:
    """Stochastic rounding to given levels with torch.bucketize, as in the authors' script."""
    import torch

    torch.set_num_threads(1)

    def compress(x: Vector) -> Any:
        levels = torch.from_numpy(qk.optimal_levels(x, num_levels))
        return levels, torch_codes(torch, torch.from_numpy(x), levels)

    return Codec(
        compress,
        lambda f: f[0][f[1].long()].numpy(),
        lambda f: f[0].nbytes + f[1].nbytes,
        "our exact levels; codes are not packed",
    )


def torch_codes(torch: Any, values: Any, levels: Any) -> Any:
    """One byte per value: the upper level with the probability that makes the mean right."""
    upper = torch.bucketize(values, levels).clamp_(1, len(levels) - 1)
    low, high = levels[upper - 1], levels[upper]
    up = torch.rand_like(values) * (high - low) < values - low
    return (upper - 1 + up).to(torch.uint8)


def kmeans_codec(num_levels: int) -> Codec:
    """Optimal k-means levels and nearest rounding: the least error of one decode, biased."""
    import kmeans1d

    def compress(x: Vector) -> Any:
        found = kmeans1d.cluster(x, num_levels)
        return np.array(found.centroids, np.float32), np.array(found.clusters, np.uint8)

    return Codec(
        compress,
        lambda f: f[0][f[1]],
        lambda f: f[0].nbytes + f[1].nbytes * (num_levels.bit_length() - 1) // 8,
        "bytes as if packed",
        limit=1 << 14 if num_levels <= 16 else 1 << 11,
    )


def codecs(bits: int) -> dict[str, Callable[[], Codec]]:
    """Everything that can be measured at so many bits, by name; ours first."""
    found: dict[str, Callable[[], Codec]] = {
        f"QUIVER {method}": functools.partial(our_codec, method, bits)
        for method in ("exact", "approx", "uniform")
    }
    if bits == 4:
        found["QUIVER exact, blocks"] = functools.partial(our_codec, "exact", bits, BLOCK)
    found["torch.bucketize"] = functools.partial(bucketize_codec, 1 << bits)
    found[f"faiss QT_{bits}bit"] = functools.partial(faiss_codec, "", bits)
    found[f"faiss QT_{bits}bit_uniform"] = functools.partial(faiss_codec, "_uniform", bits)
    if bits == 4:
        found["bitsandbytes NF4"] = functools.partial(bitsandbytes_codec, "nf4")
        found["bitsandbytes FP4"] = functools.partial(bitsandbytes_codec, "fp4")
    else:
        found["bitsandbytes blockwise"] = functools.partial(bitsandbytes_codec, "8 bit")
        for name in ("Uniform8BitQuantization", "Quantile8BitQuantization"):
            found[f"hivemind {name}"] = functools.partial(hivemind_codec, name)
    found["kmeans1d"] = functools.partial(kmeans_codec, 1 << bits)
    return found


def measure(data: str, bits: int, count: int, seconds: float) -> Iterator[Result]:
    """Every quantizer on one vector."""
    x = sources.draw(data, count)
    ready: dict[str, Codec] = {}
    missing = []
    for name, make in codecs(bits).items():
        try:
            ready[name] = make()
        except (ImportError, OSError):
            missing.append(name)
    parts = {name: x[: codec.limit or count] for name, codec in ready.items()}
    coded = {name: codec.compress(parts[name]) for name, codec in ready.items()}
    there = take_turns(
        {name: functools.partial(c.compress, parts[name]) for name, c in ready.items()}, seconds
    )
    back = take_turns(
        {name: functools.partial(c.decompress, coded[name]) for name, c in ready.items()}, seconds
    )
    for name, codec in ready.items():
        part = parts[name]
        left = left_after_averaging(codec, part[:BIAS_SIZE])
        trips = TRIPS if left < UNBIASED else 1
        found = [error(part, codec.decompress(codec.compress(part))) for _ in range(trips)]
        yield Result(
            data,
            bits,
            name,
            size=part.size,
            note=codec.note,
            compress_ms=1000 * there[name],
            decompress_ms=1000 * back[name],
            to_ours=there[name] / there[REFERENCE] if part.size == count else None,
            vnmse=sum(found) / trips,
            bytes=codec.size(coded[name]),
            left=left,
        )
    for name in missing:
        yield Result(data, bits, name)


def error(x: Vector, decoded: Vector) -> float:
    """Squared error over squared norm."""
    exact = x.astype(np.float64)
    return float(np.square(decoded - exact).sum() / np.square(exact).sum())


def left_after_averaging(codec: Codec, x: Vector) -> float:
    """Error of the mean of many round trips over that of one."""
    total, single = np.zeros(x.size), 0.0
    for _ in range(REPEATS):
        decoded = codec.decompress(codec.compress(x))
        total += decoded
        single += error(x, decoded) / REPEATS
    return error(x, (total / REPEATS).astype(np.float64)) / single


def compare_encoding(count: int) -> dict[str, Any]:
    """Rounding to given levels alone, 4 bits: ours, and the fastest unbiased other one."""
    import torch

    torch.set_num_threads(1)
    x = sources.draw("LogNormal(0, 1)", count)
    values = torch.from_numpy(x)
    levels = torch.from_numpy(qk.optimal_levels(x, 16, "approx"))
    took = take_turns(
        {
            "ours": lambda: qk.quantize(x, 4, "approx", seed=1).timings_ms["encode"] / 1000,
            "peer": lambda: seconds_of(lambda: torch_codes(torch, values, levels)),
        },
        4.0,
        timed=True,
    )
    return {"size": count, "name": "torch.bucketize and rounding, not packed"} | took


def versions() -> str:
    """The packages measured, with their versions."""
    from importlib import metadata

    found = []
    for name in ("torch", "faiss-cpu", "bitsandbytes", "hivemind", "kmeans1d"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def as_markdown(results: list[Result]) -> str:
    """A table for each vector and number of bits."""
    parts = [f"One thread; {versions()}."]
    for data, bits in dict.fromkeys((r.data, r.bits) for r in results):
        chosen = [r for r in results if (r.data, r.bits) == (data, bits)]
        parts.append(f"{data}, {size(max(r.size for r in chosen))} values, {bits} bits:")
        parts.append(table(HEAD, [_line(r, chosen[0].size) for r in chosen], left=1))
    return "\n\n".join(parts)


HEAD = (
    "quantizer",
    "compress, ms",
    "times exact",
    "decompress, ms",
    "vNMSE",
    "bytes",
    "left after 16",
    "unbiased",
    "",
)


def _line(r: Result, count: int) -> list[str]:
    if r.vnmse is None or r.compress_ms is None or r.decompress_ms is None:
        return [r.name, *["-"] * 7, "not installed"]
    note = r.note
    if r.size != count:
        note = f"{size(r.size)} values only, for its time; {note}"
    return [
        r.name,
        figure(r.compress_ms),
        "-" if r.to_ours is None else figure(r.to_ours, 2),
        figure(r.decompress_ms),
        figure(r.vnmse, 4),
        f"{r.bytes:,}",
        f"{r.left:.1%}",
        "yes" if r.left is not None and r.left < UNBIASED else "no",
        note,
    ]


def main() -> None:
    """Measure, print Markdown, and write JSON when asked to."""
    parser = argparse.ArgumentParser(description="Compare with other quantizers.")
    parser.add_argument("--quick", action="store_true", help="short vectors, for a test")
    parser.add_argument("--encoding", action="store_true", help="rounding alone; prints JSON")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if options.encoding:
        print(json.dumps(compare_encoding(1 << 22)))
        return
    count, seconds = (1 << 12, 0.0) if options.quick else (1 << 20, 4.0)
    results: list[Result] = []
    for data in DATA:
        for bits in BITS:
            print(f"{data}, {bits} bits ...", file=sys.stderr, flush=True)
            results += measure(data, bits, count, seconds)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    print(as_markdown(results))


if __name__ == "__main__":
    main()
