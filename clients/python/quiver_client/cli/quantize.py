"""``quiver quantize``: a file of arrays to a ``.qvr`` file."""

from __future__ import annotations

import glob
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from quiver_client.cli.chosen_policy import chosen_policy
from quiver_client.cli.errors import INTERRUPTED, CommandError
from quiver_client.cli.interrupts import stop_asked
from quiver_client.cli.output import Output, output_options, pass_output
from quiver_client.cli.paths import (
    STANDARD,
    Given,
    given,
    require_free,
    standard_output,
    state_of,
)
from quiver_client.cli.progress import progress
from quiver_client.cli.sizes import in_bytes
from quiver_client.cli.where import Where, where_options
from quiver_client.files.model import Work, nbytes_of, write_chunks
from quiver_client.files.opening import open_source
from quiver_client.files.source import Source
from quiver_kernels.options import MAX_SEED, draw_seed
from quiver_kernels.qvr import Header, Places, StreamWriter, Writer, part_header


def _pattern_bits(
    context: click.Context, parameter: click.Parameter, given: Sequence[str]
) -> list[tuple[str, int]]:
    """``PATTERN=BITS``, some times."""
    found = []
    for value in given:
        pattern, _, bits = value.rpartition("=")
        if not pattern or bits not in set("12345678"):
            raise click.BadParameter(
                f"{value!r} must be PATTERN=BITS with 1 to 8 bits", context, parameter
            )
        found.append((pattern, int(bits)))
    return found


def _shape(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """Numbers with commas between them."""
    if value is None:
        return None
    parts = value.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 16 for part in parts):
        raise click.BadParameter(
            f"{value!r} must be numbers with commas between them", context, parameter
        )
    return tuple(int(part) for part in parts)


@dataclass(frozen=True, slots=True)
class Done:
    """What a run has made."""

    header: Header
    nbytes: int
    values: int
    value_bytes: int
    chunks: int
    resumed: int
    skipped: tuple[str, ...]
    seconds: float
    new_bytes: int


@click.command("quantize")
@click.argument("source", type=click.Path(allow_dash=True))
@click.argument("target", type=click.Path(allow_dash=True), required=False)
@click.option("-b", "--bits", type=click.IntRange(1, 8), help="Bits per value.  [default: 4]")
@click.option("-m", "--method", help="Any method of `quiver info`.  [default: exact]")
@click.option("--block-size", type=click.IntRange(min=1), help="Values that share a level table.")
@click.option("--entropy", is_flag=True, help="Entropy code the codes where that is shorter.")
@click.option("--keep", multiple=True, metavar="PATTERN", help="Arrays to store as they are.")
@click.option(
    "--bits-of",
    multiple=True,
    callback=_pattern_bits,
    metavar="PATTERN=BITS",
    help="Bits of some arrays, such as 'head.*=8'.",
)
@click.option(
    "--min-size",
    type=click.IntRange(min=0),
    help="Arrays of fewer values are stored as they are.  [default: 1024]",
)
@click.option(
    "--policy", type=click.Path(), help="JSON file of these options, as `quiver plan` writes it."
)
@click.option(
    "--non-finite",
    type=click.Choice(["refuse", "raw"]),
    help="What chunks with NaN or infinity do.  [default: refuse]",
)
@click.option(
    "--chunk-values",
    type=click.IntRange(min=1),
    help="Values of a chunk, with levels of its own.  [default: 4194304]",
)
@click.option("--seed", type=click.IntRange(0, MAX_SEED), help="Of the rounding; drawn if absent.")
@click.option("--dtype", help="Type of a file of bare values.")
@click.option(
    "--shape", callback=_shape, metavar="N,N,...", help="Its shape.  [default: one dimension]"
)
@click.option("-j", "--jobs", type=click.IntRange(1, 256), help="Chunks worked on at a time.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True
)
@click.option("--restart", is_flag=True, help="Begin anew, whatever an earlier run left.")
@click.option("-f", "--force", is_flag=True, help="Replace TARGET if it is there.")
@where_options
@output_options
@pass_output
def command(output: Output, /, where: Where, **options: Any) -> None:
    """Compress the arrays of SOURCE to TARGET, a .qvr file.

    SOURCE is a .npy, .npz, safetensors or PyTorch file, a folder of safetensors files, or bare
    values with --dtype; - is standard input. TARGET is SOURCE with the ending .qvr if it is not
    given; - is standard output.

    Floating-point arrays are quantized, others stored as they are. After Ctrl-C, or whatever else
    stopped it, the same command goes on where it was.
    """
    source, target = options["source"], options["target"]
    if target is None:
        target = STANDARD if source == STANDARD else str(Path(source).with_suffix(".qvr"))
    if target != STANDARD:
        require_free(Path(target), force=options["force"])
    attributes = ("bits", "method", "block_size", "min_size", "non_finite", "chunk_values")
    policy = chosen_policy(
        options["policy"],
        {name: options[name] for name in attributes},
        options["keep"],
        options["bits_of"],
    )

    def work(seed: int) -> Work:
        return Work(policy, seed, options["entropy"], options["device"])

    with (
        given(source, output) as file,
        open_source(file.path, dtype=options["dtype"], shape=options["shape"]) as arrays,
    ):
        if arrays.skipped:
            names = ", ".join(arrays.skipped[:5]) + (", ..." if arrays.skipped[5:] else "")
            output.note(f"left out, for they are no arrays of numbers: {names}")
        run = Run(output, where, file, arrays, work, options["seed"], options["jobs"])
        if target == STANDARD:
            done = run.to_stream()
        else:
            done = run.to_file(Path(target), restart=options["restart"])
    _report(output, file.name, target, done)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the command."""

    output: Output
    where: Where
    file: Given
    arrays: Source
    work: Callable[[int], Work]
    seed: int | None
    jobs: int | None

    def header(self, seed: int) -> Header:
        """The header of the file, for a seed."""
        work = self.work(seed)
        tensors = tuple(work.tensor(entry) for entry in self.arrays.entries)
        return Header(tensors, seed, self.arrays.metadata)

    def to_stream(self) -> Done:
        """Write to standard output."""
        header = self.header(draw_seed() if self.seed is None else self.seed)
        stream = standard_output(self.output)
        writer = StreamWriter(stream, header)
        began = time.monotonic()
        if not self._chunks(writer, header):
            raise CommandError("stopped", exit_code=INTERRUPTED, code="interrupted")
        size = writer.finish()
        stream.flush()
        return self._done(header, size, len(writer.places), 0, began)

    def to_file(self, target: Path, *, restart: bool) -> Done:
        """Write to a file, or go on with what an earlier run left of it."""
        part = self._part(target)
        # A seed that was drawn is drawn once.
        before = None if restart else part_header(part)
        drawn = draw_seed() if before is None else before.seed
        header = self.header(drawn if self.seed is None else self.seed)
        began = time.monotonic()
        with Writer(target, header, part=part, resume=not restart) as writer:
            resumed = writer.resumed
            if resumed:
                self.output.note(f"going on after {resumed} of {len(writer.places)} chunks")
            if not self._chunks(writer, header):
                raise CommandError(
                    f"stopped; {part} has the chunks that are done",
                    "the same command goes on there",
                    exit_code=INTERRUPTED,
                    code="interrupted",
                )
            if self.arrays.path == self.file.name and state_of(self.file.path) != self.file.state:
                part.unlink()
                raise CommandError(
                    f"{self.file.name} was changed while it was read", "run the command again"
                )
            size = writer.finish()
        return self._done(header, size, len(writer.places), resumed, began)

    def _part(self, target: Path) -> Path:
        """The part of runs with this source and these options; other runs have others."""
        header = self.header(self.seed or 0).to_bytes()
        seed = "drawn" if self.seed is None else "given"
        text = f"{self.file.state}\0{seed}\0".encode() + header
        digest = hashlib.blake2b(text, digest_size=4).hexdigest()
        part = target.with_name(f"{target.name}.{digest}.part")
        others = target.absolute().parent.glob(f"{glob.escape(target.name)}.????????.part")
        for other in others:
            if other.name != part.name:
                self.output.note(
                    f"{other} is left of a run with another source or other options: repeat that "
                    "run to finish it, or delete it"
                )
        return part

    def _chunks(self, writer: Writer | StreamWriter, header: Header) -> bool:
        total = sum(entry.nbytes for entry in self.arrays.entries)
        places = writer.places
        done = nbytes_of(header.tensors, places, len(places) - len(list(writer.remaining())))
        with (
            self.where.connect() as client,
            stop_asked(self.output) as stopped,
            progress(self.output, self.file.name, total, done) as moved,
        ):
            return write_chunks(
                self.arrays,
                writer,
                self.work(header.seed),
                client,
                jobs=self.jobs,
                stopped=stopped,
                moved=moved,
            )

    def _done(self, header: Header, size: int, chunks: int, resumed: int, began: float) -> Done:
        entries = self.arrays.entries
        total = sum(entry.nbytes for entry in entries)
        values = sum(entry.size for entry in entries)
        return Done(
            header,
            size,
            values,
            total,
            chunks,
            resumed,
            self.arrays.skipped,
            time.monotonic() - began,
            total - nbytes_of(header.tensors, Places(header.tensors), resumed),
        )


def _report(output: Output, source: str, target: str, done: Done) -> None:
    quantized = sum(tensor.quantized for tensor in done.header.tensors)
    count = len(done.header.tensors)
    ratio = done.value_bytes / done.nbytes
    bits = 8 * done.nbytes / done.values if done.values else 0.0
    speed = done.new_bytes / done.seconds if done.seconds else 0.0
    output.result(
        {
            "source": source,
            "target": target,
            "tensors": count,
            "quantized": quantized,
            "values": done.values,
            "value_bytes": done.value_bytes,
            "bytes": done.nbytes,
            "ratio": ratio,
            "bits_per_value": bits,
            "chunks": done.chunks,
            "resumed_chunks": done.resumed,
            "seed": done.header.seed,
            "skipped": list(done.skipped),
            "seconds": done.seconds,
            "bytes_per_second": speed,
        },
        f"{target}: {quantized} of {count} arrays quantized; {in_bytes(done.value_bytes)} in "
        f"{in_bytes(done.nbytes)}, {ratio:.2f} times smaller, {bits:.3f} bits a value; "
        f"{done.seconds:.1f} s, {in_bytes(speed)}/s; seed {done.header.seed}",
    )
