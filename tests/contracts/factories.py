"""
The stores that the contract suite runs against. Another store joins by adding a line here.
"""

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from pathlib import Path
from typing import Any
from zlib import crc32

from attrs import frozen
from tests.contracts.stories import ask
from tests.servers import dynamodb, redis

from bedrock_proxy.admission import AdmissionRequest, Grant, Lease, Refusal
from bedrock_proxy.customers import TokenOwner
from bedrock_proxy.standing import Standing
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.stores.dynamodb import DynamoDBStore
from bedrock_proxy_adapters.stores.memory import MemoryStore
from bedrock_proxy_adapters.stores.redis import RedisStore
from bedrock_proxy_adapters.stores.sqlite import NativeSqliteStore, SqliteStore


@frozen
class StoreFactory:
    """
    How to get a store.

    Attributes:
        make: A store that keeps what it keeps in the folder; called again on the same
            folder it opens the same store.
        is_durable: Whether what is written survives the store object.
    """

    name: str
    make: Callable[[Path], Any]
    is_durable: bool


RUNNER = asyncio.Runner()
"""The one event loop of the suite; the suite closes it."""


async def told(ask: Callable[..., Any], *given: Any) -> Any:
    """A port's answer: it is asked on the loop on which it is awaited, where it is not at hand."""
    answer = ask(*given)
    return await answer if isawaitable(answer) else answer


def on_a_loop(store: SqliteStore, story: Callable[[NativeSqliteStore], Awaitable[Any]]) -> Any:
    """What *story* gives, which happens to the native face on an event loop of its own."""

    async def tell() -> Any:
        return await story(store.native())

    return asyncio.run(tell())


async def granted(native: NativeSqliteStore, request_id: str, **more: Any) -> Lease:
    """The lease of a request that is admitted."""
    decision = await told(native.admit, ask(request_id, **more))
    assert isinstance(decision, Grant)
    return decision.lease


class OnALoop(SqliteStore):
    """The native face, called from tests that know no event loop."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, reap_at_admission=False)
        self._face = self.native()

    def find_token(self, digest: bytes, at: int) -> TokenOwner | None:
        return RUNNER.run(self._face.find_token(digest, at))

    def standing(self, customer_id: str, at: int) -> Standing:
        return RUNNER.run(told(self._face.standing, customer_id, at))

    def admit(self, request: AdmissionRequest) -> Grant | Refusal:
        return RUNNER.run(told(self._face.admit, request))

    def renew(self, lease: Lease, at: int) -> Lease:
        return RUNNER.run(told(self._face.renew, lease, at))

    def release(self, request: AdmissionRequest) -> None:
        RUNNER.run(told(self._face.release, request))

    def finish(self, record: UsageRecord, lease: Lease) -> None:
        RUNNER.run(told(self._face.finish, record, lease))


def _memory(folder: Path) -> MemoryStore:
    return MemoryStore(reap_at_admission=False)


def _sqlite(folder: Path) -> SqliteStore:
    return SqliteStore(folder / "store.db", reap_at_admission=False)


def _native(folder: Path) -> OnALoop:
    return OnALoop(folder / "store.db")


def _redis(folder: Path) -> RedisStore:
    return RedisStore.from_url(
        f"{redis.shared().url}?prefix={folder.name}-{crc32(bytes(folder)):08x}",
        clock="caller",
        reap_at_admission=False,
    )


def _dynamodb(name: dynamodb.Name) -> Callable[[Path], DynamoDBStore]:
    def make(folder: Path) -> DynamoDBStore:
        emulator = dynamodb.shared(name)
        table = emulator.table(f"t-{crc32(bytes(folder)):08x}")
        return DynamoDBStore(table, emulator.shared_client, reap_at_admission=False)

    return make


MEMORY = StoreFactory("memory", _memory, is_durable=False)
SQLITE = StoreFactory("sqlite", _sqlite, is_durable=True)
SQLITE_NATIVE = StoreFactory("sqlite-native", _native, is_durable=True)
REDIS = StoreFactory("redis", _redis, is_durable=True)
DYNALITE = StoreFactory("dynalite", _dynamodb("dynalite"), is_durable=True)
MINISTACK = StoreFactory("ministack", _dynamodb("ministack"), is_durable=True)

FACTORIES = [MEMORY, SQLITE, SQLITE_NATIVE, REDIS, DYNALITE, MINISTACK]
THREADED = [MEMORY, SQLITE, REDIS, DYNALITE, MINISTACK]
"""Those whose ports may be called from several threads."""
