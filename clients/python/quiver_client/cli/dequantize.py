"""``quiver dequantize``: a ``.qvr`` file back to arrays."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click

from quiver_client.cli.errors import USAGE, CommandError
from quiver_client.cli.output import Output, output_options, pass_output
from quiver_client.cli.paths import STANDARD, given, require_free, standard_output
from quiver_client.cli.progress import progress
from quiver_client.cli.sizes import in_bytes
from quiver_client.files.targets import TARGETS, check_target, replaced, write_tensors
from quiver_kernels import qvr

_ENDINGS = {".npy": "npy", ".npz": "npz", ".safetensors": "safetensors", ".raw": "raw"}


@click.command("dequantize")
@click.argument("source", type=click.Path(allow_dash=True))
@click.argument("target", type=click.Path(allow_dash=True), required=False)
@click.option("-t", "--tensor", multiple=True, metavar="NAME", help="Only this one (repeatable).")
@click.option(
    "--format",
    "kind",
    type=click.Choice(TARGETS),
    help="Of TARGET; by its ending if not given.",
)
@click.option("-j", "--jobs", type=click.IntRange(1, 256), help="Chunks decoded at a time.")
@click.option("-f", "--force", is_flag=True, help="Replace TARGET if it is there.")
@output_options
@pass_output
def command(
    output: Output,
    source: str,
    target: str | None,
    tensor: tuple[str, ...],
    kind: str | None,
    jobs: int | None,
    force: bool,
) -> None:
    """Decode the tensors of SOURCE, a .qvr file, to TARGET.

    TARGET is a .npy, .npz, .safetensors or .raw file (bare little-endian values); SOURCE with the
    ending .npy, or .safetensors for several tensors, if it is not given. - is standard input and
    output. Decoding needs no service.
    """
    began = time.monotonic()
    with given(source, output) as file, qvr.open(file.path) as reader:
        names = _chosen(reader, tensor)
        kind = _kind(target, kind, names)
        if target is None:
            at = STANDARD if source == STANDARD else str(Path(source).with_suffix(f".{kind}"))
        else:
            at = target
        check_target(reader, names, kind)
        total = sum(reader.tensor(name).nbytes for name in names)
        with progress(output, file.name, total) as moved:
            if at == STANDARD:
                stream = standard_output(output)
                write_tensors(reader, names, kind, stream, threads=jobs, moved=moved)
                stream.flush()
            else:
                require_free(Path(at), force=force)
                with replaced(at) as stream:
                    write_tensors(reader, names, kind, stream, threads=jobs, moved=moved)
    seconds = time.monotonic() - began
    output.result(
        {
            "source": file.name,
            "target": at,
            "format": kind,
            "tensors": len(names),
            "value_bytes": total,
            "seconds": seconds,
        },
        f"{at}: {len(names)} arrays, {in_bytes(total)}; {seconds:.1f} s",
    )


def _chosen(reader: qvr.Reader, wanted: Sequence[str]) -> Sequence[str]:
    """Names of the tensors to decode, in the file's order."""
    for name in wanted:
        # Refuses a name that is not there.
        reader.tensor(name)
    return [name for name in reader.names if not wanted or name in wanted]


def _kind(target: str | None, kind: str | None, names: Sequence[str]) -> str:
    if kind is not None:
        return kind
    if target is None or target == STANDARD:
        return "npy" if len(names) == 1 else "safetensors"
    ending = Path(target).suffix
    if ending not in _ENDINGS:
        raise CommandError(
            f"{target} has the unknown ending {ending!r}",
            f"use one of {', '.join(_ENDINGS)}, or say --format",
            exit_code=USAGE,
        )
    return _ENDINGS[ending]
