"""The table of commands, and one run of one of them."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import click

from quiver_client._version import __version__
from quiver_client.cli.errors import BROKEN_PIPE, OK, explain
from quiver_client.cli.output import Output


@dataclass(frozen=True, slots=True)
class Entry:
    """A command: its name, the module whose ``command`` it is, and what it does in a few words."""

    name: str
    module: str
    summary: str


# In the order of the help text. A module is imported when its command is asked for.
COMMANDS: Final = (
    Entry("quantize", "quiver_client.cli.quantize", "Compress a file of arrays to .qvr."),
    Entry("dequantize", "quiver_client.cli.dequantize", "Turn a .qvr file back into arrays."),
    Entry("inspect", "quiver_client.cli.inspect", "Show an array, or what quantizing it costs."),
    Entry("compare", "quiver_client.cli.compare", "Try methods on an array, side by side."),
    Entry("plan", "quiver_client.cli.plan", "Choose bits for a model's tensors within a budget."),
    Entry("bench", "quiver_client.cli.bench", "Measure throughput and latency, here or there."),
    Entry("serve", "quiver_client.cli.serve", "Start the service on this machine."),
    Entry("info", "quiver_client.cli.info", "Versions, devices and methods."),
    Entry("completion", "quiver_client.cli.completion", "What makes a shell complete commands."),
)


class Table(click.Group):
    """A group of commands that are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the table's order."""
        del ctx
        return [entry.name for entry in COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name."""
        del ctx
        for entry in COMMANDS:
            if entry.name == cmd_name:
                found: click.Command = importlib.import_module(entry.module).command
                return found
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The summaries, without importing a command."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(entry.name, entry.summary) for entry in COMMANDS])


@click.group(cls=Table, name="quiver", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="quiver", message="%(prog)s %(version)s")
def quiver() -> None:
    """Adaptive stochastic quantization of arrays and models, here or by a service."""


def run(arguments: Sequence[str]) -> int:
    """Run a command; its exit code (`quiver_client.cli.errors`)."""
    output = Output()
    try:
        code = quiver.main(list(arguments), prog_name="quiver", standalone_mode=False, obj=output)
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads: the interpreter must not try to flush again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        failure = explain(error)
        if failure is None:
            raise
        output.failure(failure)
        return failure.exit_code
    return code if isinstance(code, int) else OK
