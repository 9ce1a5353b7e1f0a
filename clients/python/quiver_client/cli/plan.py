"""``quiver plan``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from quiver_client.cli.choices import INTEGERS, NAMES
from quiver_client.cli.errors import USAGE, CommandError
from quiver_client.cli.output import Output, output_options, pass_output
from quiver_client.cli.planning import FilePlan, PlannedTensor, plan_file
from quiver_client.cli.policies import policy_data, read_policy
from quiver_client.cli.progress import progress
from quiver_client.cli.sizes import in_bytes
from quiver_client.cli.tables import number, shape_of, shortened, table
from quiver_client.cli.where import Where, where_options
from quiver_client.files import open_source
from quiver_client.ps.policy import Policy
from quiver_kernels.planning import Budget

_NAME = 48


@click.command("plan")
@click.argument("model", metavar="FILE", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--bits-per-value", type=click.FloatRange(0), help="Budget: bits of the file per value."
)
@click.option("--max-bytes", type=click.IntRange(0), help="Budget: bytes of the file.")
@click.option(
    "--max-error", type=click.FloatRange(0), help="Budget: expected squared error of all values."
)
@click.option("--bits", type=INTEGERS, default="1-8", show_default=True, help="What may be chosen.")
@click.option("--methods", type=NAMES, help="What may be chosen; without it the policy's method.")
@click.option("--no-raw", is_flag=True, help="Never store an array as it is to save error.")
@click.option(
    "--policy", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Which arrays are quantized at all, as for quiver quantize.",
)  # fmt: skip
@click.option(
    "-o", "--output", "target", type=click.Path(dir_okay=False, path_type=Path),
    help="Write the policy there, for quiver quantize --policy.",
)  # fmt: skip
@where_options
@output_options
@pass_output
def command(
    output: Output,
    where: Where,
    model: str,
    bits_per_value: float | None,
    max_bytes: int | None,
    max_error: float | None,
    bits: tuple[int, ...],
    methods: tuple[str, ...] | None,
    no_raw: bool,
    policy: Path | None,
    target: Path | None,
) -> None:
    """Choose the bits of each array of FILE within a budget for the whole .qvr file.

    The least expected squared error within the bytes, or the fewest bytes within the error; the
    best choice, proved. One of the three budgets must be given.

    Example: quiver plan model.safetensors --bits-per-value 4 -o policy.json
    """
    given = [bits_per_value, max_bytes, max_error]
    if sum(one is not None for one in given) != 1:
        raise CommandError(
            "give one of --bits-per-value, --max-bytes and --max-error",
            exit_code=USAGE,
            code="usage",
        )
    budget = Budget(max_bytes, bits_per_value, max_error)
    base = Policy() if policy is None else read_policy(policy)
    with open_source(model) as source, where.connect() as client:
        total = sum(entry.nbytes for entry in source.entries)
        with progress(output, "looking", total) as advance:
            found = plan_file(
                source,
                base,
                client,
                budget,
                bits=bits,
                methods=methods,
                raw=not no_raw,
                advance=advance,
            )
    chosen = policy_data(found.policy)
    if target is not None:
        target.write_text(json.dumps(chosen, indent=2) + "\n", encoding="utf-8")
    data = _data(model, found, chosen)
    output.result(data, lambda: _text(data, found.tensors, target))


def _data(model: str, found: FilePlan, chosen: dict[str, Any]) -> dict[str, Any]:
    values = sum(one.entry.size for one in found.tensors)
    return {
        "file": model,
        "values": values,
        "source_bytes": sum(one.entry.nbytes for one in found.tensors),
        "nbytes": found.nbytes,
        "bits_per_value": 8 * found.nbytes / values if values else None,
        "error": found.error,
        "optimal": found.optimal,
        "tensors": [_row(one) for one in found.tensors],
        "policy": chosen,
    }


def _row(one: PlannedTensor) -> dict[str, Any]:
    return {
        "name": one.entry.name,
        "dtype": one.entry.dtype,
        "shape": list(one.entry.shape),
        "values": one.entry.size,
        "bits": one.bits,
        "method": one.method,
        "nbytes": one.nbytes,
        "error": one.error,
        "vnmse": one.error / one.norm if one.norm else None,
    }


def _text(data: dict[str, Any], tensors: Sequence[PlannedTensor], target: Path | None) -> str:
    rows = [["array", "type", "shape", "bits", "bytes", "vNMSE", "share of error"]]
    for one, row in zip(tensors, data["tensors"], strict=True):
        kept = "raw" if one.bits is None else f"{one.bits} {one.method}"
        share = f"{one.error / data['error']:.1%}" if data["error"] and one.error else "-"
        rows.append(
            [
                shortened(one.entry.name, _NAME),
                one.entry.dtype,
                shape_of(one.entry.shape),
                kept,
                f"{one.nbytes:,}",
                number(row["vnmse"]) if one.bits else "-",
                share,
            ]
        )
    per_value = data["bits_per_value"] or 0.0
    end = (
        f"{in_bytes(data['source_bytes'])} become at most {in_bytes(data['nbytes'])}, "
        f"{per_value:.4g} bits per value; "
        f"{'no other choice is better' if data['optimal'] else 'close to the best choice'}"
    )
    use = "" if target is None else f"\n\nuse it: quiver quantize {data['file']} --policy {target}"
    return f"{table(rows, left=4)}\n\n{end}{use}"
