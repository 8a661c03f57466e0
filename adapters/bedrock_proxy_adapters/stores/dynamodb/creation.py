"""
Making the table.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from bedrock_proxy.errors import ConfigurationError

_ACTIVE_WITHIN: Final = 300.0
"""Seconds that AWS may take; it is a few in practice."""


@frozen(kw_only=True)
class Creation:
    """
    What :func:`create_table` did.

    Attributes:
        is_new: Whether there was no such table before.
        recovery: Whether point-in-time recovery is on.
        expiry: Whether rows are removed by their ``ttl`` attribute, where they have one.
        refused: What could not be turned on, in words.
    """

    table: str
    region: str
    is_new: bool
    recovery: bool
    expiry: bool
    refused: tuple[str, ...] = ()


def create_table(client: Any, table: str) -> Creation:
    """
    Make the table if there is none: paid by request, with point-in-time recovery, and with
    an expiry for items that carry a ``ttl`` (AWS, Amazon DynamoDB Developer Guide,
    "Point-in-time backups" and "Time to Live"). Doing it again completes what is missing.

    Args:
        client: A boto3 ``dynamodb`` client that may create tables.

    Raises:
        ConfigurationError: AWS refuses, or there is another kind of table of this name.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        is_new = _make(client, table)
        refused: list[str] = []
        recovery = _turn_on(refused, "point-in-time recovery", lambda: _recover(client, table))
        expiry = _turn_on(refused, "expiry", lambda: _expire(client, table))
    except (BotoCoreError, ClientError) as error:
        raise ConfigurationError(
            f"The DynamoDB table {table!r} could not be made: {str(error).rstrip('.')}."
        ) from error
    return Creation(
        table=table,
        region=client.meta.region_name,
        is_new=is_new,
        recovery=recovery,
        expiry=expiry,
        refused=tuple(refused),
    )


def _make(client: Any, table: str) -> bool:
    from botocore.exceptions import ClientError

    is_new = True
    try:
        client.create_table(
            TableName=table,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[
                {"AttributeName": "pk", "AttributeType": "S"},
                {"AttributeName": "sk", "AttributeType": "S"},
            ],
            KeySchema=[
                {"AttributeName": "pk", "KeyType": "HASH"},
                {"AttributeName": "sk", "KeyType": "RANGE"},
            ],
        )
    except ClientError as error:
        if _code(error.response) != "ResourceInUseException":
            raise
        is_new = False
    end = time.monotonic() + _ACTIVE_WITHIN
    while True:
        found = client.describe_table(TableName=table)["Table"]
        if found["TableStatus"] == "ACTIVE":
            break
        if time.monotonic() >= end:
            raise ConfigurationError(f"The DynamoDB table {table!r} is not ready yet; try again.")
        time.sleep(0.2)
    keys = {(key["AttributeName"], key["KeyType"]) for key in found["KeySchema"]}
    if keys != {("pk", "HASH"), ("sk", "RANGE")}:
        raise ConfigurationError(
            f"There is a DynamoDB table {table!r} of another kind; name another one."
        )
    return is_new


def _turn_on(refused: list[str], what: str, turn_on: Any) -> bool:
    """Whether it is on now. A table without it serves all the same."""
    from botocore.exceptions import ClientError

    try:
        turn_on()
    except ClientError as error:
        refused.append(f"{what} ({_code(error.response)})")
        return False
    return True


def _code(response: Mapping[str, Any]) -> str:
    code: str = response.get("Error", {}).get("Code", "refused")
    return code


def _recover(client: Any, table: str) -> None:
    client.update_continuous_backups(
        TableName=table,
        PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True},
    )


def _expire(client: Any, table: str) -> None:
    said = client.describe_time_to_live(TableName=table)["TimeToLiveDescription"]
    if said.get("TimeToLiveStatus") not in {"ENABLED", "ENABLING"}:
        client.update_time_to_live(
            TableName=table,
            TimeToLiveSpecification={"Enabled": True, "AttributeName": "ttl"},
        )
