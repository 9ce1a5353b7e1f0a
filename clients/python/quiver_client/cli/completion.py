"""``quiver completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from quiver_client.cli.errors import CommandError
from quiver_client.cli.output import Output, pass_output

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_QUIVER_COMPLETE"


# The first character keeps click from filling the lines up.
_HELP = """Print what makes SHELL complete commands, options and files.

\b
bash:  quiver completion bash > ~/.local/share/bash-completion/completions/quiver
zsh:   quiver completion zsh > "${fpath[1]}/_quiver"
fish:  quiver completion fish > ~/.config/fish/completions/quiver.fish
"""


@click.command("completion", help=_HELP)
@click.argument("shell", type=click.Choice(SHELLS))
@pass_output
def command(output: Output, shell: str) -> None:
    """Print the script."""
    from quiver_client.cli.app import quiver

    kind = get_completion_class(shell)
    if kind is None:
        raise CommandError(f"click knows no completion for {shell}")
    script = kind(quiver, {}, "quiver", VARIABLE).source()
    output.result({"shell": shell, "script": script}, script)
