"""
One table as the parts of the store share it: calls, their failures, and what this process
remembers.
"""

import os
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, Final, Generic, TypeVar

from attrs import frozen

from bedrock_proxy.errors import ConfigurationError, StoreUnavailable, store_unavailable
from bedrock_proxy_adapters.stores.cache import OwnerCache
from bedrock_proxy_adapters.stores.dynamodb.image import Image, Item, gate_key, image_of
from bedrock_proxy_adapters.stores.dynamodb.update import Update

T = TypeVar("T")

CONNECT_TIMEOUT: Final = 2.0
"""Seconds to a connection, TLS included."""

READ_TIMEOUT: Final = 3.0
"""Seconds without an answer; DynamoDB's own take milliseconds."""

ATTEMPTS: Final = 3
"""How often the client that we make sends a call whose answer does not come."""

TRIES: Final = 12
"""How often an update is written anew where others were faster."""

PATIENCE: Final = 5.0
"""Seconds in all after which it is not written anew any more."""

_FIRST_WAIT: Final = 0.005
_LONGEST_WAIT: Final = 0.25

_THROTTLED: Final = {
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "ThrottlingException",
}

MAX_REMEMBERED: Final = 10_000
"""How many gate items, shapes and permits a process remembers, each."""


def dynamodb_client(region: str | None = None, endpoint_url: str | None = None) -> Any:
    """
    A boto3 ``dynamodb`` client fit for requests: short timeouts, few attempts, a pool for a
    host's threads.

    Args:
        region: Else ``AWS_REGION``, else ``AWS_DEFAULT_REGION``, else the profile's.
        endpoint_url: Else AWS's own variables and files say, as for any client.

    Raises:
        ConfigurationError: No region is known, or AWS's own configuration is wrong.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    try:
        # One client of hundreds: the stubs of the others would all have to be there.
        session: Any = boto3.Session()
        region = (
            region
            or os.environ.get("AWS_REGION")
            or os.environ.get("AWS_DEFAULT_REGION")
            or session.region_name
        )
        if not region:
            raise ConfigurationError(
                "No AWS region is known for the DynamoDB table: name it in the store's URL "
                "(dynamodb://table?region=us-east-1) or in AWS_REGION."
            )
        return session.client(
            "dynamodb",
            region_name=region,
            endpoint_url=endpoint_url,
            config=Config(
                retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=READ_TIMEOUT,
                max_pool_connections=64,
                tcp_keepalive=True,
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(
            f"AWS is not configured as it should be: {str(error).rstrip('.')}."
        ) from error


class Remembered(Generic[T]):
    """A bounded memory; what was used longest ago is forgotten first."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._values: OrderedDict[Any, T] = OrderedDict()

    def get(self, key: Any) -> T | None:
        """What was put, unless it is forgotten."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: Any, value: T) -> None:
        """Remember."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            if len(self._values) > MAX_REMEMBERED:
                self._values.popitem(last=False)

    def pop(self, key: Any) -> T | None:
        """What was put; it is forgotten now."""
        with self._lock:
            return self._values.pop(key, None)


class Busy(StoreUnavailable):
    """The table answers, but what was asked for one customer could not be done."""


@frozen
class Refused:
    """
    A write whose condition did not hold; perhaps because an earlier sending of it, whose
    answer did not come, was carried out.

    Attributes:
        item: The item as it was found; None where the answer does not say.
    """

    item: Item | None


class Table:
    """
    One table.

    Args:
        client: A boto3 ``dynamodb`` client, or None: one of our own is made, and another in
            each process that is forked.

    Attributes:
        owners: What this process remembers of tokens.
        images: The last image of each customer's gate item.
        shapes: Shapes of leases that are known to be written, by name and by text.
        permits: How each request that was admitted here left the bucket of requests.
    """

    def __init__(
        self, name: str, client: Any, region: str | None, endpoint_url: str | None
    ) -> None:
        self.name = name
        self.owners = OwnerCache()
        self.images: Remembered[Image] = Remembered()
        self.shapes: Remembered[Any] = Remembered()
        self.permits: Remembered[int] = Remembered()
        self._given = client
        self._region = region
        self._endpoint_url = endpoint_url
        self._lock = Lock()
        # What is wrong with AWS's configuration comes out at the start. No connection is opened.
        self._made: Any = None if client is not None else dynamodb_client(region, endpoint_url)
        self._made_in = os.getpid()
        self._closed = False

    def close(self) -> None:
        """Afterwards every call fails."""
        with self._lock:
            self._closed = True
            made, self._made = self._made, None
        if made is not None:
            made.close()

    def check_open(self) -> None:
        """
        Nothing, while the store is in use.

        Raises:
            StoreUnavailable: The store is closed.
        """
        if self._closed:
            raise store_unavailable()

    @property
    def client(self) -> Any:
        """
        The client to call.

        Raises:
            StoreUnavailable: The store is closed.
        """
        self.check_open()
        if self._given is not None:
            return self._given
        # Connections do not cross a fork.
        if self._made_in != os.getpid():
            with self._lock:
                self.check_open()
                if self._made_in != os.getpid():
                    self._made = dynamodb_client(self._region, self._endpoint_url)
                    self._made_in = os.getpid()
        return self._made

    def call(self, operation: str, **parameters: Any) -> Any:
        """
        Call an operation of the client.

        Raises:
            StoreUnavailable: It failed; the reason is its cause.
        """
        found = self.attempt(operation, **parameters)
        if isinstance(found, Refused):
            raise store_unavailable()
        return found

    def attempt(self, operation: str, **parameters: Any) -> Any:
        """
        The same, for conditional writes: :class:`Refused` where the condition does not hold.
        The item in it is what the answer says, which not every emulator does.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        client = self.client
        try:
            return getattr(client, operation)(**parameters)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code")
            if code == "ConditionalCheckFailedException":
                item: Any = error.response.get("Item")
                return Refused(item)
            if code in _THROTTLED:
                raise _busy() from error
            if code == "ResourceNotFoundException":
                raise store_unavailable() from self.missing()
            raise store_unavailable() from error
        except BotoCoreError as error:
            raise store_unavailable() from error

    def missing(self) -> ConfigurationError:
        """What is to be done where there is no table."""
        return ConfigurationError(
            f"There is no DynamoDB table {self.name!r} in {self.client.meta.region_name}; "
            "`bedrock-proxy store create` makes it"
        )

    # --- items

    def get(self, key: Mapping[str, Any]) -> Item | None:
        """An item, as of now."""
        found: Item | None = self.call(
            "get_item", TableName=self.name, Key=key, ConsistentRead=True
        ).get("Item")
        return found

    def get_all(self, keys: list[dict[str, Any]], *, consistent: bool = True) -> list[Item]:
        """Those of the items that there are, in any order."""
        found: list[Item] = []
        # BatchGetItem takes 100 keys (API reference), and may leave some for the next time.
        for start in range(0, len(keys), 100):
            waiting: list[Any] = keys[start : start + 100]
            wait = Backoff()
            while waiting:
                reply = self.call(
                    "batch_get_item",
                    RequestItems={self.name: {"Keys": waiting, "ConsistentRead": consistent}},
                )
                found += reply["Responses"].get(self.name, ())
                waiting = reply.get("UnprocessedKeys", {}).get(self.name, {}).get("Keys", [])
                if waiting:
                    wait.once_more()
        return found

    def put(self, item: Mapping[str, Any], condition: str, **more: Any) -> Item | None:
        """
        Write an item under a condition; None where that is done, else the item that is there.
        """
        found = self.attempt(
            "put_item",
            TableName=self.name,
            Item=item,
            ConditionExpression=condition,
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
            **more,
        )
        if not isinstance(found, Refused):
            return None
        if found.item is not None:
            return found.item
        there = self.get({"pk": item["pk"], "sk": item["sk"]})
        return {} if there is None else there

    # --- gate items

    def read(self, customer_id: str) -> Image | None:
        """A customer's gate item, as of now; None where there is no such customer."""
        item = self.get(gate_key(customer_id))
        if item is None:
            self.images.pop(customer_id)
            return None
        return self.remember(customer_id, item)

    def remember(self, customer_id: str, item: Item) -> Image:
        """The image of a gate item; also the next call's."""
        image = image_of(customer_id, item)
        self.images.put(customer_id, image)
        return image

    def update(self, customer_id: str, update: Update) -> Image | Refused:
        """Update a gate item: the image afterwards, or why not."""
        found = self.attempt(
            "update_item",
            TableName=self.name,
            Key=gate_key(customer_id),
            **update.parameters(),
            ReturnValues="ALL_NEW",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
        if isinstance(found, Refused):
            return found
        return self.remember(customer_id, found["Attributes"])

    def after(self, customer_id: str, refused: Refused) -> Image | None:
        """The gate item as it was when the write was refused, or is now."""
        if refused.item is None:
            return self.read(customer_id)
        return self.remember(customer_id, refused.item)


class Backoff:
    """
    Waits between tries: not at first, then longer and longer, always by chance, so that those
    who collided do not meet again.
    """

    def __init__(self, tries: int = TRIES, patience: float = PATIENCE) -> None:
        self._left = tries
        self._wait = _FIRST_WAIT
        self._end = time.monotonic() + patience
        self._first = True

    def once_more(self) -> None:
        """
        Wait for the next try.

        Raises:
            Busy: There is none.
        """
        self._left -= 1
        if self._left <= 0 or time.monotonic() >= self._end:
            raise _busy("others kept changing the same item, or it was throttled")
        if self._first:
            # The refusal brought the item as it is: most likely the next try succeeds.
            self._first = False
            return
        time.sleep(random.uniform(0, self._wait))  # noqa: S311 -- jitter, not a secret
        self._wait = min(self._wait * 2, _LONGEST_WAIT)


def _busy(cause: str = "") -> Busy:
    error = Busy(store_unavailable().message)
    error.cause = cause
    return error


def until_done(step: Callable[[], T | None]) -> T:
    """What *step* gives once it gives something; others may have been faster before."""
    wait = Backoff()
    while True:
        found = step()
        if found is not None:
            return found
        wait.once_more()
