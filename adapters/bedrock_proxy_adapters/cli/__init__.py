"""
The ``bedrock-proxy`` command.

Exit codes: 0 done, 1 the operator must change something (said in one sentence on stderr),
2 the command line is wrong.
"""

import io
import os
import sys
from importlib import import_module
from typing import Any, Final

import click
from typing_extensions import override

from bedrock_proxy import __version__
from bedrock_proxy.errors import BedrockProxyError, StoreUnavailable

_COMMANDS: Final = {
    "serve": ("server", "serve"),
    "demo": ("demo", "demo"),
    "simulate": ("simulate", "simulate"),
    "customers": ("customers", "customers"),
    "ledger": ("ledger", "ledger"),
    "usage": ("ledger", "usage"),
    "reap": ("ledger", "reap"),
    "rebuild": ("ledger", "rebuild"),
    "enter": ("enter", "enter"),
    "store": ("store", "store"),
    "import-legacy": ("legacy", "legacy"),
}
"""Name: module and function. Each is imported when it is asked for, so that it starts fast."""


class _Commands(click.Group):
    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        command: Any = getattr(import_module(f"{__name__}.{module}"), name)
        assert isinstance(command, click.Command)
        return command

    @override
    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # `bedrock-proxy ledger | head`: the reader has seen enough, and that is no error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        return result


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bedrock-proxy")
def bedrock_proxy() -> None:
    """Amazon Bedrock behind your own bearer tokens."""


def main() -> None:
    """Run the command; an operator's mistake ends in a sentence, not in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # A customer's name must not end the command where the terminal cannot show it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        bedrock_proxy.main(prog_name="bedrock-proxy", standalone_mode=True)
    except BedrockProxyError as error:
        click.echo(f"Error: {_sentence(error)}", err=True)
        sys.exit(1)
    except OSError as error:
        # A folder that may not be looked into, a disk that is full.
        where = "" if error.filename is None else f"{error.filename}: "
        click.echo(f"Error: {where}{error.strerror or error}.", err=True)
        sys.exit(1)


def _sentence(error: BedrockProxyError) -> str:
    """What went wrong; to an operator, what the store itself said may be told too."""
    if isinstance(error, StoreUnavailable) and error.__cause__ is not None:
        return f"{str(error).rstrip('.')} ({error.__cause__})."
    return str(error)
