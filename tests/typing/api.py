"""
The public types as users write them. Nothing runs this: mypy and pyright read it.
"""

from collections.abc import Iterable
from typing import assert_type

from bedrock_proxy.customers import TokenOwner
from bedrock_proxy.effects import Effect, FindToken, Flow, Now, Read, ask
from bedrock_proxy.ports import Instant, Signal, Upstream, UpstreamReply
from bedrock_proxy.rules import Rules
from bedrock_proxy_adapters.config import Settings, open_store, proxy_from_env
from bedrock_proxy_adapters.hosts.asgi import ASGIApp, asgi_app
from bedrock_proxy_adapters.hosts.wsgi import WSGIApp, wsgi_app
from bedrock_proxy_adapters.proxy import Proxy, Store
from bedrock_proxy_adapters.stores.dynamodb import DynamoDBStore
from bedrock_proxy_adapters.stores.memory import MemoryStore
from bedrock_proxy_adapters.stores.redis import RedisStore
from bedrock_proxy_adapters.stores.sqlite import SqliteStore
from bedrock_proxy_adapters.upstream.boto3 import Boto3Upstream


def an_ask_has_the_type_of_its_reply(reply: UpstreamReply) -> Flow[None]:
    assert_type((yield from ask(FindToken(b"", 0))), TokenOwner | None)
    assert_type((yield from ask(Now())), Instant)
    assert_type((yield from ask(Read(reply, 1.0))), bytes | Signal)


def every_store_and_upstream_is_its_port() -> Iterable[Store | Upstream]:
    yield MemoryStore()
    yield SqliteStore("a.db")
    yield RedisStore.from_url("redis://localhost")
    yield DynamoDBStore("table")
    yield Boto3Upstream()


def a_proxy_is_made_by_hand_or_from_the_environment() -> tuple[ASGIApp, WSGIApp]:
    proxy = Proxy(store=MemoryStore(), upstream=Boto3Upstream(), rules=Rules(drain=5.0))
    assert_type(proxy_from_env(), Proxy)
    assert_type(Settings.from_env().store, str)
    assert_type(open_store("memory:"), SqliteStore | RedisStore | DynamoDBStore | MemoryStore)
    return asgi_app(proxy), wsgi_app(proxy)


class MyEffect(Effect[int]):
    """An effect of one's own."""


def it_is_typed_too() -> Flow[int]:
    return (yield from ask(MyEffect()))
