"""``bedrock-proxy import-legacy``: customers of the original proxy, and their tokens."""

import os
import time
from collections import Counter
from typing import Any

import click
from attrs import asdict

from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy_adapters.cli.keys import look_at_the_pepper
from bedrock_proxy_adapters.cli.opened import target_store
from bedrock_proxy_adapters.cli.output import as_json, note, table
from bedrock_proxy_adapters.config import Settings
from bedrock_proxy_adapters.stores.legacy import (
    CUSTOMERS_TABLE,
    TOKENS_TABLE,
    import_legacy,
    scan,
)


@click.command("import-legacy")
@click.option(
    "--customers-table",
    default=CUSTOMERS_TABLE,
    show_default=True,
    metavar="NAME",
    help="The original's customers.",
)
@click.option(
    "--tokens-table",
    default=TOKENS_TABLE,
    show_default=True,
    metavar="NAME",
    help="The original's tokens.",
)
@click.option("--region", default=None, help="Of the tables; AWS's own setting otherwise.")
@click.option("--endpoint-url", default=None, help="Of DynamoDB; AWS's own setting otherwise.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@click.option(
    "--add-tokens",
    is_flag=True,
    help="Also give customers who are there already the tokens they lack. A token that was "
    "revoked here since comes back.",
)
@click.option("--json", "as_json_", is_flag=True, help="For programs.")
def legacy(
    customers_table: str,
    tokens_table: str,
    region: str | None,
    endpoint_url: str | None,
    dry_run: bool,
    add_tokens: bool,
    as_json_: bool,
) -> None:
    """
    Import the customers of the original proxy, so that their tokens go on working.

    Reads two DynamoDB tables and never writes to them. Tokens are stored as digests only,
    under the pepper that is set now. Doing it again changes nothing.
    """
    settings = Settings.from_env()
    client = dynamodb_client(region, endpoint_url)
    store = target_store(settings.store, dry_run=dry_run)
    look_at_the_pepper(
        store,
        settings,
        these="the tokens that are imported",
        again="import them again with --add-tokens, if this was no dry run",
    )
    done = import_legacy(
        store,
        scan(client, customers_table),
        scan(client, tokens_table),
        pepper=None if settings.pepper is None else settings.pepper.encode(),
        now=time.time_ns() // 1_000_000,
        dry_run=dry_run,
        add_tokens=add_tokens,
    )
    if as_json_:
        as_json({"dry_run": dry_run, **asdict(done)})
        return
    verb = "would be imported" if dry_run else "imported"
    click.echo(f"{verb}: {done.customers} customers, {done.tokens} tokens")
    click.echo(f"there already: {done.known_customers} customers, {done.known_tokens} tokens")
    if done.skipped:
        click.echo(f"skipped: {len(done.skipped)}\n")
        counts = Counter(done.skipped)
        table(
            ("SKIPPED", "CUSTOMER", "ROWS", "WHY"),
            ((s.what, s.customer_id or "-", n, s.reason) for s, n in counts.items()),
        )
    if done.endless:
        note(
            f"{done.endless} tokens had been rotated, and their rows name no end: they stay valid "
            "until `bedrock-proxy customers revoke-token`."
        )


def dynamodb_client(region: str | None, endpoint_url: str | None) -> Any:
    """
    A client of DynamoDB.

    Raises:
        ConfigurationError: AWS's own configuration is not as it should be.
    """
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        # boto3 reads AWS_DEFAULT_REGION only.
        session: Any = boto3.session.Session(region_name=region or os.environ.get("AWS_REGION"))
        return session.client("dynamodb", endpoint_url=endpoint_url)
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(
            f"AWS is not configured as it should be: {str(error).rstrip('.')}."
        ) from error
