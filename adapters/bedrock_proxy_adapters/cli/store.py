"""``bedrock-proxy store``: the places where customers and the ledger live."""

import click

from bedrock_proxy_adapters.cli.copy import copy
from bedrock_proxy_adapters.cli.create import create


@click.group()
def store() -> None:
    """Make a store ready, or move from one to another."""


store.add_command(create)
store.add_command(copy)
