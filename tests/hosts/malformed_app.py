"""
The proxy with the customers of the malformed rows and a Bedrock that counts its calls.
``application`` is for gunicorn; ``/test-calls`` tells how often Bedrock was called.
"""

from collections.abc import Iterable

from attrs import define, evolve, field
from tests.faults.malformed import EXPIRED, OWNERS, REVOKED, RULES
from tests.flows import OK_HEAD, Reply, Time, claude

from bedrock_proxy import tokens
from bedrock_proxy.customers import Customer, Key
from bedrock_proxy.ports import UpstreamCall
from bedrock_proxy_adapters.hosts.wsgi import Environ, StartResponse, wsgi_app
from bedrock_proxy_adapters.proxy import Proxy
from bedrock_proxy_adapters.stores.memory import MemoryStore

BODY_SECONDS = 0.5
"""How long a body may take here."""


@define(eq=False)
class CountingUpstream:
    """Answers every call with the same stream, and remembers it."""

    calls: list[UpstreamCall] = field(factory=list)
    kind = "instant"
    max_streams = 100
    retries = 2

    def open(self, call: UpstreamCall) -> Reply:
        self.calls.append(call)
        return Reply(OK_HEAD, list(claude()), Time())


def make_store() -> MemoryStore:
    store = MemoryStore()
    for owner in OWNERS:
        store.create_customer(
            Customer(
                id=owner.customer_id,
                name=owner.customer_id,
                email="t@example.com",
                status=owner.status,
                models=owner.models,
                created_at=0,
            ),
            owner.key,
        )
    for token, expires_at in ((EXPIRED, 1), (REVOKED, None)):
        digest = tokens.digest(token, None)
        key = Key(key_id=f"key-{token[4:9]}", digest=digest, created_at=0, expires_at=expires_at)
        store.add_key("active", key, at=0)
    store.revoke_key("active", f"key-{REVOKED[4:9]}")
    return store


def make_proxy() -> tuple[Proxy, CountingUpstream]:
    upstream = CountingUpstream()
    rules = evolve(RULES, body_timeout=BODY_SECONDS)
    return Proxy(store=make_store(), upstream=upstream, rules=rules), upstream  # type: ignore[arg-type]


_proxy, _upstream = make_proxy()
_app = wsgi_app(_proxy)


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    if environ["PATH_INFO"] != "/test-calls":
        return _app(environ, start_response)
    count = str(len(_upstream.calls)).encode()
    start_response("200 OK", [("content-length", str(len(count)))])
    return [count]
