"""``bedrock-proxy store copy``: from one store to another."""

import time

import click
from attrs import asdict

from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy_adapters.cli.opened import existing_store, target_store
from bedrock_proxy_adapters.cli.output import as_json, note, table
from bedrock_proxy_adapters.config import store_path
from bedrock_proxy_adapters.stores.transfer import copy_store


@click.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--dry-run", is_flag=True, help="Compare and count; write nothing.")
@click.option("--json", "as_json_", is_flag=True, help="For programs.")
def copy(source: str, target: str, dry_run: bool, as_json_: bool) -> None:
    """
    Copy customers, tokens and the ledger from store FROM to store TO.

    Both are store URLs, as in BEDROCK_PROXY_STORE. Nothing is written if TO has anything of
    the same name with other contents. Doing it again copies what came since.
    """
    if (store_path(source) or source) == (store_path(target) or target):
        raise ConfigurationError("FROM and TO are the same store.")
    if "memory:" in {source, target}:
        raise ConfigurationError("memory: is gone when this command ends; name a lasting store.")
    old = existing_store(source)
    new = target_store(target, dry_run=dry_run)
    copied = copy_store(old, new, time.time_ns() // 1_000_000, dry_run=dry_run)
    if as_json_:
        as_json({"dry_run": dry_run, **asdict(copied)})
        return
    table(
        ("", "ROWS", "TOKENS", "NANO-USD"),
        (
            (where, sums.requests, sums.tokens, sums.cost_nanousd)
            for where, sums in (("FROM", copied.source), ("TO", copied.target))
        ),
    )
    verb = "would be copied" if dry_run else "copied"
    click.echo(
        f"{verb}: {copied.customers} customers, {copied.keys} tokens, {copied.rows} ledger rows"
    )
    if copied.open_leases:
        note(
            f"{copied.open_leases} requests in FROM are still open and were not copied: stop its "
            "servers, run `bedrock-proxy reap` on it, and copy again."
        )
    if copied.corrected:
        note(
            f"{copied.corrected} rows are estimates in FROM, and in TO as they turned out; TO keeps them."
        )
    if copied.only_in_target or copied.others:
        note(
            f"TO has {copied.only_in_target} later rows of these customers and {copied.others} "
            "customers of its own; they stayed as they are."
        )
