"""``quiver compare``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import click

from quiver_client.cli.choices import NAMES
from quiver_client.cli.comparing import Measured, compared, ways
from quiver_client.cli.describing import describe
from quiver_client.cli.errors import CommandError
from quiver_client.cli.output import Output, output_options, pass_output
from quiver_client.cli.paths import given
from quiver_client.cli.progress import progress
from quiver_client.cli.subject import SUBJECT, chosen
from quiver_client.cli.tables import number, shape_of, table
from quiver_client.cli.where import Where, where_options
from quiver_client.files import open_source


@click.command("compare")
@click.argument("subject", metavar="FILE[:TENSOR]", type=SUBJECT)
@click.option("--bits", type=click.IntRange(1, 8), default=4, show_default=True)
@click.option(
    "--methods", type=NAMES, default="exact,approx,uniform,qsgd,eden", show_default=True,
    help="Methods, separated by commas; all: all of them (quiver info).",
)  # fmt: skip
@click.option(
    "--sample", type=click.IntRange(0), default=1 << 18, show_default=True, metavar="N",
    help="Values of a larger array that are tried; 0: all.",
)  # fmt: skip
@click.option(
    "--repeat", type=click.IntRange(2, 1000), default=8, show_default=True,
    help="Seeds for error and bias.",
)  # fmt: skip
@click.option(
    "--seconds", type=click.FloatRange(0), default=3.0, show_default=True,
    help="How long to measure times, all methods together.",
)  # fmt: skip
@click.option("--dtype", help="Type of the values of a file that says nothing of itself.")
@where_options
@output_options
@pass_output
def command(
    output: Output,
    where: Where,
    subject: tuple[str, str | None],
    bits: int,
    methods: tuple[str, ...],
    sample: int,
    repeat: int,
    seconds: float,
    dtype: str | None,
) -> None:
    """Try methods on your own array, side by side.

    Bits are those of the whole message, with level tables and side information. The error is the
    mean squared error over the squared norm, measured with several seeds; bias is the part of it
    that averaging many messages does not take away. With --server times include the way there.

    Example: quiver compare weights.npy --bits 4 --methods exact,uniform,eden
    """
    path, name = subject
    with given(path, output) as file, open_source(file.path, dtype=dtype) as source:
        values = chosen(source, name, "compare")
        about = describe(values)
        if not (about.is_quantizable and about.is_finite and about.size):
            raise CommandError(
                f"{values.name} cannot be quantized: {'; '.join(about.notes)}", code="invalid_input"
            )
        x = values.sample(sample)
    with where.connect() as client:
        tried = ways(client.info()["schemes"], methods, bits)
        with progress(output, "comparing", None, unit="calls") as advance:
            found = compared(client, x, tried, repeat, seconds, advance)
    data = {
        "file": path,
        "name": values.name,
        "shape": list(values.shape),
        "dtype": values.dtype.name,
        "where": where.name,
        "sampled": None if x.size == values.size else x.size,
        "bits": bits,
        "repetitions": repeat,
        "methods": [dataclasses.asdict(one) for one in found],
    }
    output.result(data, lambda: _text(data, found, x.nbytes))


def _text(data: dict[str, Any], found: Sequence[Measured], nbytes: int) -> str:
    sampled = "" if data["sampled"] is None else f", a sample of {data['sampled']:,} values"
    head = (
        f"{data['name']}: {data['dtype']}, {shape_of(data['shape'])}{sampled}; {data['bits']} bits "
        f"asked for; by {data['where']}"
    )
    rows = [["method", "bits/value", "error", "bias", "encode MB/s", "decode MB/s"]]
    # The best error first; what takes other bits than asked for stands apart.
    rows += [
        [
            one.method if one.as_asked else f"{one.method} ({one.num_levels} levels)",
            number(one.bits_per_value),
            number(one.nmse),
            _bias(one),
            f"{nbytes / one.encode_seconds / 1e6:.0f}",
            f"{nbytes / one.decode_seconds / 1e6:.0f}",
        ]
        for one in sorted(found, key=lambda one: (not one.as_asked, one.nmse))
    ]
    return (
        f"{head}\n\n{table(rows)}\n\nerror: mean squared error over squared norm, "
        f"{data['repetitions']} seeds; bias: the part of it that averaging keeps"
    )


def _bias(one: Measured) -> str:
    """The bias, or none where it is lost in the noise of the repetitions."""
    return "none" if one.bias < 0.01 * one.nmse else number(one.bias, 2)
