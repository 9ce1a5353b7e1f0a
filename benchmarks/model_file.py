"""A whole model by ``quiver quantize``: speed beside the kernel's own, memory, interruption.

A safetensors file of float32 matrices is made, and the command runs in a process of its own, as
from a shell: start, reading, quantizing, checksums, writing, fsync, renaming. Beside it the kernel
alone: the same chunks, in memory already, by as many threads, warm, its codes thrown away. Both
take turns; speeds are medians, of wall time and of processor time, which others on the machine
disturb less. Then the command is stopped by SIGINT after a while and run again: the file must be
the same, byte for byte. Last, ``quiver dequantize``, and one tensor read out of the file.

Run ``python benchmarks/model_file.py``; it prints Markdown, and ``--json PATH`` writes the results.
``--quick`` takes seconds and a few megabytes instead of two gigabytes of disk.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common.tables import table

from quiver_client import LocalClient
from quiver_kernels import qvr
from quiver_kernels.sharing import processors, threads

CHUNK = qvr.DEFAULT_CHUNK
TENSORS, QUICK_TENSORS = 32, 24
# Values of a tensor: 64 MiB, four chunks.
VALUES, QUICK_VALUES = 1 << 24, 1 << 18
REPEATS, QUICK_REPEATS = 3, 1
BITS = 4
JOBS = 2
COMMAND = (sys.executable, "-m", "quiver_client.cli")


@dataclass(frozen=True)
class Run:
    """A process: wall and processor seconds, largest memory in bytes, exit code, its JSON."""

    wall: float
    cpu: float
    memory: int
    code: int
    told: dict[str, Any]


@dataclass(frozen=True)
class Record:
    """What was measured; speeds in bytes of values per second, memory in bytes."""

    value_bytes: int
    file_bytes: int
    kernel_speed: float
    command_speed: float
    share: float
    kernel_cpu: float
    command_cpu: float
    cpu_share: float
    memory: int
    resumed_after: int
    chunks: int
    same: bool
    dequantize_speed: float
    dequantize_memory: int
    tensor_seconds: float


def make_model(path: Path, tensors: int, values: int) -> int:
    """Write the safetensors file; bytes of its values."""
    entries = {
        f"layers.{number}.weight": {
            "dtype": "F32",
            "shape": [values // 1024, 1024],
            "data_offsets": [number * values * 4, (number + 1) * values * 4],
        }
        for number in range(tensors)
    }
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number in range(tensors):
            random = np.random.default_rng(number)
            file.write((0.02 * random.standard_normal(values, np.float32)).tobytes())
    return tensors * values * 4


def measure(*arguments: str, folder: Path | None = None, stop_after: int = 0) -> Run:
    """Run the command; with a `folder`, press Ctrl-C when a part there is longer than so."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([*COMMAND, *arguments, "--json"], stdout=said, stderr=said)
        pid = 0
        while folder is not None and not pid:
            if sum(one.stat().st_size for one in folder.glob("*.part")) > stop_after:
                process.send_signal(signal.SIGINT)
                break
            time.sleep(0.02)
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if not pid:
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - began
        said.seek(0)
        told = json.loads(said.read().splitlines()[-1])
    cpu = used.ru_utime + used.ru_stime
    return Run(wall, cpu, used.ru_maxrss * 1024, process.returncode, told)


def kernel(chunks: int, values: int) -> dict[str, float]:
    """The kernel alone: so many chunks out of memory, by as many threads as the command's."""
    random = np.random.default_rng(0)
    arrays = [0.02 * random.standard_normal(min(values, CHUNK), np.float32) for _ in range(JOBS)]
    count = min(processors(), JOBS)
    helpers = max(processors() // count, 1)
    with LocalClient() as client, ThreadPoolExecutor(count) as executor:

        def one(number: int) -> None:
            with threads(helpers):
                client.quantize(arrays[number % JOBS], bits=BITS, seed=number)

        list(executor.map(one, range(JOBS)))
        began, cpu = time.perf_counter(), time.process_time()
        list(executor.map(one, range(chunks)))
        return {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}


def measured(folder: Path, tensors: int, values: int, repeats: int) -> Record:
    """All of it, in a folder with room for the file and a quarter of it."""
    source, target = folder / "model.safetensors", folder / "model.qvr"
    size = make_model(source, tensors, values)
    chunks = tensors * -(-values // CHUNK)
    quantize = ("quantize", str(source), str(target), "--bits", str(BITS), "--seed", "7")
    alone, runs = [], []
    for _ in range(repeats):
        target.unlink(missing_ok=True)
        command = [sys.executable, __file__, "--kernel", str(chunks), str(values)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        alone.append(json.loads(done.stdout))
        runs.append(expect(measure(*quantize), 0))
    whole = folder / "whole.qvr"
    target.replace(whole)
    expect(measure(*quantize, folder=folder, stop_after=whole.stat().st_size // 3), 130)
    resumed = expect(measure(*quantize), 0)
    same = filecmp.cmp(whole, target, shallow=False)
    whole.unlink()
    back = folder / "back.safetensors"
    dequantize = expect(measure("dequantize", str(target), str(back)), 0)
    with qvr.open(target) as file:
        # Compiled kernels are loaded by whoever reads first.
        file.read(file.names[-1], 0, 1)
        began = time.perf_counter()
        file.read("layers.0.weight", threads=None)
        tensor_seconds = time.perf_counter() - began

    def middle(found: list[float]) -> float:
        return size / statistics.median(found)

    kernel_speed, speed = middle([one["wall"] for one in alone]), middle([one.wall for one in runs])
    kernel_cpu, cpu = middle([one["cpu"] for one in alone]), middle([one.cpu for one in runs])
    return Record(
        value_bytes=size,
        file_bytes=target.stat().st_size,
        kernel_speed=kernel_speed,
        command_speed=speed,
        share=speed / kernel_speed,
        kernel_cpu=kernel_cpu,
        command_cpu=cpu,
        cpu_share=cpu / kernel_cpu,
        memory=max(one.memory for one in (*runs, resumed)),
        chunks=chunks,
        resumed_after=resumed.told["resumed_chunks"],
        same=same,
        dequantize_speed=size / dequantize.wall,
        dequantize_memory=dequantize.memory,
        tensor_seconds=tensor_seconds,
    )


def expect(run: Run, code: int) -> Run:
    """The run, if it ended so."""
    if run.code != code:
        raise RuntimeError(f"the command ended with {run.code}, not {code}: {run.told}")
    return run


def page(record: Record) -> str:
    """The figures as Markdown."""

    def mega(value: float) -> str:
        return f"{value / 1e6:,.0f}"

    rows = [
        ("kernel alone", mega(record.kernel_speed), mega(record.kernel_cpu), ""),
        (
            "`quiver quantize`",
            mega(record.command_speed),
            mega(record.command_cpu),
            mega(record.memory),
        ),
        ("`quiver dequantize`", mega(record.dequantize_speed), "", mega(record.dequantize_memory)),
    ]
    head = ("", "MB/s", "MB per processor second", "largest memory, MB")
    return "\n".join(
        (
            f"A model of {mega(record.value_bytes)} MB of float32 values, exact, {BITS} bits, "
            f"{record.chunks} chunks; {mega(record.file_bytes)} MB of file.",
            "",
            table(head, rows),
            "",
            f"The command has {record.share:.0%} of the kernel's speed ({record.cpu_share:.0%} per "
            f"processor second). Stopped after {record.resumed_after} chunks it went on, and the "
            f"file was {'the same' if record.same else '**another**'}. The first tensor is read "
            f"in {1000 * record.tensor_seconds:.0f} ms.",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few megabytes")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--folder", type=Path, help="where to put the files")
    parser.add_argument("--repeats", type=int, help=f"of both speeds, {REPEATS} if not given")
    parser.add_argument("--kernel", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kernel is not None:
        print(json.dumps(kernel(*arguments.kernel)))
        return
    tensors, values = (QUICK_TENSORS, QUICK_VALUES) if arguments.quick else (TENSORS, VALUES)
    repeats = arguments.repeats or (QUICK_REPEATS if arguments.quick else REPEATS)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        record = measured(Path(folder), tensors, values, repeats)
    print(page(record))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(asdict(record)))


if __name__ == "__main__":
    main()
