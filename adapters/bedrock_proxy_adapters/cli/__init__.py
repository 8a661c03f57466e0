"""
The ``bedrock-proxy`` command.

Exit codes: 0 done, 1 the operator must change something (said in one sentence on stderr),
2 the command line is wrong.
"""

import sys
from importlib import import_module
from typing import Any, Final

import click
from typing_extensions import override

from bedrock_proxy import __version__
from bedrock_proxy.errors import BedrockProxyError

_COMMANDS: Final = {
    "serve": ("server", "serve"),
    "demo": ("demo", "demo"),
    "simulate": ("simulate", "simulate"),
    "customers": ("customers", "customers"),
    "ledger": ("ledger", "ledger"),
    "usage": ("ledger", "usage"),
    "reap": ("ledger", "reap"),
    "rebuild": ("ledger", "rebuild"),
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


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bedrock-proxy")
def bedrock_proxy() -> None:
    """Amazon Bedrock behind your own bearer tokens."""


def main() -> None:
    """Run the command; an operator's mistake ends in a sentence, not in a traceback."""
    try:
        bedrock_proxy.main(prog_name="bedrock-proxy", standalone_mode=True)
    except BedrockProxyError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        # `bedrock-proxy ledger | head`: the reader has seen enough.
        sys.stderr.close()
        sys.exit(0)
