"""``bedrock-proxy store``: the places where customers and the ledger live."""

import click

from bedrock_proxy_adapters.cli.copy import copy


@click.group()
def store() -> None:
    """Move from one store to another."""


store.add_command(copy)
