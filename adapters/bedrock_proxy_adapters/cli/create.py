"""``bedrock-proxy store create``: the store that the environment names, made ready."""

import click

from bedrock_proxy_adapters.cli.opened import lasting_store
from bedrock_proxy_adapters.cli.output import as_json, note
from bedrock_proxy_adapters.config import Settings, store_name
from bedrock_proxy_adapters.stores.dynamodb import Creation, DynamoDBStore


@click.command()
@click.option("--json", "as_json_", is_flag=True, help="For programs.")
def create(as_json_: bool) -> None:
    """
    Make the database that BEDROCK_PROXY_STORE names, if it is not there.

    A DynamoDB table is paid by request and gets point-in-time recovery and expiry; doing it
    again completes what is missing. Other databases are also made when they are first used;
    "Ready" says that they answered.
    """
    url = Settings.from_env().store
    opened = lasting_store(url)
    if not isinstance(opened, DynamoDBStore):
        # A server that is away may be opened all the same; "Ready" is what scripts go by.
        opened.list_customers(limit=1)
        as_json({"store": store_name(url)}) if as_json_ else click.echo(f"Ready: {store_name(url)}")
        return
    made = opened.create_table()
    if as_json_:
        as_json(
            {
                "table": made.table,
                "region": made.region,
                "created": made.is_new,
                "billing": "on-demand" if made.is_new else None,
                "point_in_time_recovery": made.recovery,
                "expiry": made.expiry,
            }
        )
    else:
        for line in _lines(made):
            click.echo(line)
    for what in made.refused:
        note(f"Not turned on: {what}. The table serves without it; turn it on in AWS.")


def _lines(made: Creation) -> list[str]:
    did = "Created" if made.is_new else "Found"
    billing = ", paid by request" if made.is_new else ""
    lines = [f"{did} the DynamoDB table {made.table} in {made.region}{billing}."]
    if made.recovery:
        lines.append("Point-in-time recovery is on: the last 35 days can be restored.")
    if made.expiry:
        lines.append("Expiry is on: ledger rows with a ttl are removed after it.")
    return lines
