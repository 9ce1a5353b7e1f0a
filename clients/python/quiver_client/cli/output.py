"""What a command says: results on standard output, notes and errors on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from quiver_client.cli.errors import Failure

F = TypeVar("F", bound=Callable[..., Any])


class Output:
    """How one run of a command speaks: for people, or as one JSON document for programs.

    Commands get theirs by ``@pass_output`` after ``@output_options``.

    Attributes
    ----------
    json
        Results and errors are JSON, and nothing else is said.
    quiet
        Results and errors alone are said.
    diverted
        Standard output carries data, so results go to standard error.
    """

    def __init__(self) -> None:
        self.json = False
        self.quiet = False
        self.diverted = False

    def result(self, data: Mapping[str, Any], text: str | Callable[[], str]) -> None:
        """Say a command's result: `data` as JSON, or `text`, made only if it is wanted."""
        if self.json:
            shown = json.dumps(data, allow_nan=False, default=_plain)
        else:
            shown = text if isinstance(text, str) else text()
        click.echo(shown, err=self.diverted)

    def note(self, text: str) -> None:
        """Say something on the way, to people."""
        if not (self.json or self.quiet):
            click.echo(text, err=True)

    def failure(self, failure: Failure) -> None:
        """Say why the command ends."""
        if self.json:
            told = {
                "code": failure.code,
                "detail": failure.detail,
                "hint": failure.hint,
                "exit_code": failure.exit_code,
            }
            click.echo(json.dumps({"error": told}), err=True)
        else:
            click.echo(f"quiver: {failure.line}", err=True)

    @property
    def shows_progress(self) -> bool:
        """Whether somebody looks at standard error, and wants to see more than results."""
        return not (self.json or self.quiet) and sys.stderr.isatty()

    @property
    def is_colourful(self) -> bool:
        """Whether standard output is a terminal that may be coloured (NO_COLOR)."""
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


pass_output = click.make_pass_decorator(Output)
"""Give the command its `Output` as first argument."""


def output_options(command: F) -> F:
    """The options ``--json`` and ``--quiet``, kept in the command's `Output`."""
    for name, short, text in (
        ("quiet", ("-q",), "Say nothing but results and errors."),
        ("json", (), "Give results and errors as JSON."),
    ):
        command = click.option(
            f"--{name}", *short, is_flag=True, expose_value=False, callback=_keep, help=text
        )(command)
    return command


def _keep(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        setattr(context.find_object(Output), str(parameter.name), True)


def _plain(value: Any) -> Any:
    """What JSON does not know: NumPy's numbers and arrays."""
    return value.tolist()
