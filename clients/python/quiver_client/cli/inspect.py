"""``quiver inspect``."""

from __future__ import annotations

import functools
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from quiver_client._local import LocalClient
from quiver_client._sync import Client
from quiver_client.cli import stored_report
from quiver_client.cli.array_report import Levels, Report
from quiver_client.cli.choices import INTEGERS, NAMES
from quiver_client.cli.curves import error_curves
from quiver_client.cli.describing import PASSES, counted, describe
from quiver_client.cli.errors import CommandError
from quiver_client.cli.output import Output, output_options, pass_output
from quiver_client.cli.paths import given
from quiver_client.cli.progress import progress
from quiver_client.cli.sizes import in_bytes
from quiver_client.cli.subject import SUBJECT, message_in, values_of
from quiver_client.cli.tables import shape_of, shortened, table
from quiver_client.cli.terminal_plot import bars_for, fits, nice_height
from quiver_client.cli.values import Values
from quiver_client.cli.where import Where, where_options
from quiver_client.files import Source, detect, open_source
from quiver_kernels import qvr
from quiver_kernels.plots.levels_plot import levels_plot
from quiver_kernels.plots.png import to_png
from quiver_kernels.plots.svg import to_svg

_PICTURE_BARS = 240
_NAME = 60


@click.command("inspect")
@click.argument("subject", metavar="FILE[:TENSOR]", type=SUBJECT)
@click.option("--method", default="exact", show_default=True, help="Whose levels are drawn.")
@click.option(
    "--bits", type=click.IntRange(1, 8), default=4, show_default=True, help="Of these levels."
)
@click.option(
    "--methods", type=NAMES, default="exact,approx,uniform", show_default=True,
    help="Methods in the table of errors, separated by commas.",
)  # fmt: skip
@click.option(
    "--table-bits", type=INTEGERS, default="1-8", show_default=True,
    help="Bits in that table, such as 2-4,8.",
)  # fmt: skip
@click.option(
    "--sample", type=click.IntRange(0), default=1 << 20, show_default=True, metavar="N",
    help="Levels and errors of so many values of a larger array; 0: of all.",
)  # fmt: skip
@click.option(
    "--svg", type=click.Path(dir_okay=False, path_type=Path), help="Draw the picture there too."
)
@click.option(
    "--png", type=click.Path(dir_okay=False, path_type=Path), help="Draw the picture there too."
)
@click.option("--dtype", help="Type of the values of a file that says nothing of itself.")
@where_options
@output_options
@pass_output
def command(
    output: Output,
    where: Where,
    subject: tuple[str, str | None],
    method: str,
    bits: int,
    methods: tuple[str, ...],
    table_bits: tuple[int, ...],
    sample: int,
    svg: Path | None,
    png: Path | None,
    dtype: str | None,
) -> None:
    """Show what is in FILE, and what quantizing it costs and buys.

    FILE is a .npy, .npz, safetensors, PyTorch or .qvr file, a quantized vector's message, or - for
    standard input. Of a file with several arrays all are listed; one is looked at when it is named:
    model.safetensors:layer.weight. A histogram has the method's levels marked, a table has
    the expected errors by method and bits.

    Example: quiver inspect weights.npy --bits 4 --svg levels.svg
    """
    path, name = subject
    pictures = {kind: out for kind, out in (("svg", svg), ("png", png)) if out is not None}
    with given(path, output) as opened:
        file = opened.path
        q = None if dtype is not None else message_in(file)
        if q is not None:
            _refuse(pictures, "a quantized vector")
            data = stored_report.vector_data(q)
            output.result(
                {"file": path, **data}, functools.partial(stored_report.vector_text, path, q)
            )
            return
        if dtype is None and detect(file) == "qvr":
            _refuse(pictures, "a .qvr file")
            _stored(output, path, file, name)
            return
        with open_source(file, dtype=dtype) as source:
            if name is None and len(source.entries) != 1:
                _refuse(pictures, "several arrays: name one")
                _list(output, path, source)
                return
            values = values_of(source, source.number(name))
            with where.connect() as client:
                wanted = Wanted(method, bits, methods, table_bits, sample)
                report = look(client, values, wanted, output)
            for kind, out in pictures.items():
                _draw(report, values, kind, out)
    unicode = fits(sys.stdout.encoding)
    lines = shutil.get_terminal_size().lines
    output.result(
        {"file": path, "kind": "array", **report.data()},
        lambda: report.text(colour=output.is_colourful, unicode=unicode, height=nice_height(lines)),
    )


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is computed of an array: levels of one method, a table of errors, of a sample."""

    method: str
    bits: int
    methods: tuple[str, ...]
    table_bits: tuple[int, ...]
    sample: int


def look(client: Client | LocalClient, values: Values, wanted: Wanted, output: Output) -> Report:
    """Figures of an array, and what its quantization costs and buys."""
    with progress(output, "reading", PASSES * values.nbytes) as advance:
        about = describe(values, advance)
    histogram = counted(values, about, bars_for(shutil.get_terminal_size().columns))
    if not (about.is_quantizable and about.is_finite and about.size):
        return Report(values.name, about, None, histogram, None, ())
    x = values.sample(wanted.sample)
    sampled = None if x.size == values.size else x.size
    found = client.levels(x, 1 << wanted.bits, wanted.method)
    squares = float((x.astype("float64") ** 2).sum())
    vnmse = found.expected_mse * x.size / squares if squares else 0.0
    levels = Levels(wanted.method, wanted.bits, found.levels, vnmse)
    points = tuple(error_curves(client, x, wanted.methods, wanted.table_bits))
    return Report(values.name, about, sampled, histogram, levels, points)


def _draw(report: Report, values: Values, kind: str, out: Path) -> None:
    histogram = counted(values, report.about, _PICTURE_BARS)
    if histogram is None or report.levels is None:
        raise CommandError(
            f"{report.name} cannot be drawn: {'; '.join(report.about.notes)}", code="no_picture"
        )
    caption = f"{shortened(report.name, _NAME)}: {report.levels.caption}"
    scene = levels_plot(histogram, report.levels.values, caption)
    out.write_bytes(to_png(scene) if kind == "png" else to_svg(scene).encode())


def _list(output: Output, path: str, source: Source) -> None:
    entries = source.entries
    rows = [["array", "type", "shape", "bytes"]]
    rows += [
        [shortened(one.name, _NAME), one.dtype, shape_of(one.shape), f"{one.nbytes:,}"]
        for one in entries
    ]
    total = sum(one.nbytes for one in entries)
    data = [
        {"name": one.name, "dtype": one.dtype, "shape": list(one.shape), "nbytes": one.nbytes}
        for one in entries
    ]
    output.result(
        {"file": path, "kind": source.format, "arrays": data, "nbytes": total},
        lambda: (
            f"{path}: {source.format}, {len(entries)} arrays, {in_bytes(total)}\n\n"
            f"{table(rows, left=3)}\n\nlook at one: quiver inspect {path}:NAME"
        ),
    )


def _stored(output: Output, path: str, file: str, name: str | None) -> None:
    with qvr.open(file) as reader:
        data = stored_report.file_data(reader)
        if name is None:
            output.result(
                {"file": path, **data}, functools.partial(stored_report.file_text, path, data)
            )
            return
        reader.tensor(name)
        tensor = next(one for one in data["tensors"] if one["name"] == name)
        found = {"tensor": tensor, "chunks": stored_report.chunk_data(reader, name)}
        output.result(
            {"file": path, "kind": "qvr", **found},
            functools.partial(stored_report.chunk_text, name, found),
        )


def _refuse(pictures: dict[str, Path], what: str) -> None:
    if pictures:
        raise CommandError(f"--{next(iter(pictures))} draws one array; the file holds {what}")
