"""
Bedrock from an event loop, without a thread: signed here, sent over connections of our own.

``boto3`` gives every call a thread, and every event of a stream a few hand-overs; this is
what a server with an event loop uses in its place. It asks botocore for all that AWS's own
configuration decides (region, endpoint, credentials, certificates), so that both ways to
Bedrock are configured alike. It does not speak to forward proxies: where the environment
names one, boto3 is used.
"""

import asyncio
import os
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Final, Literal
from urllib.parse import quote, urlsplit

from bedrock_proxy import __version__
from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy.http import Headers
from bedrock_proxy.memo import Memo
from bedrock_proxy.ports import Operation, Trouble, UpstreamCall, UpstreamUnreachable
from bedrock_proxy_adapters.upstream.credentials import Credentials
from bedrock_proxy_adapters.upstream.failures import trouble
from bedrock_proxy_adapters.upstream.http1 import Connection, Pool
from bedrock_proxy_adapters.upstream.replies import Reply
from bedrock_proxy_adapters.upstream.signing import Keys, Signer

CONNECT_TIMEOUT: Final = 10.0
"""Seconds to a connection, TLS included."""

MAX_STREAMS: Final = 10_000
"""Calls, and so connections, that may be open at once."""

OUR_RETRIES: Final = 2
"""How often the flow calls again before the first byte (RELIABILITY.md, S04)."""

_LONG_BODY: Final = 1024 * 1024
"""Bytes of a body from which its digest is made on a thread: it takes about a millisecond."""

_USER_AGENT: Final = f"bedrock-proxy/{__version__}"

_PATHS: Final[Mapping[Operation, str]] = {
    Operation.INVOKE: "invoke",
    Operation.INVOKE_STREAM: "invoke-with-response-stream",
    Operation.CONVERSE: "converse",
    Operation.CONVERSE_STREAM: "converse-stream",
    Operation.COUNT_TOKENS: "count-tokens",
}


class AsyncUpstream:
    """
    The way to Bedrock for hosts with an event loop.

    Connections and credentials are kept for each event loop that calls it.

    Args:
        endpoint_url: Where Bedrock is, as ``client.meta.endpoint_url`` of a boto3 client.
        region: The region that requests are signed for.
        session: A ``botocore`` session: whose credentials, and whose certificates.
        max_streams: Calls that may be open at once.
        connect_timeout: Seconds.

    Raises:
        ConfigurationError: The endpoint is no URL, or a bearer token would go over plain HTTP.
    """

    kind: Literal["native"] = "native"

    def __init__(
        self,
        endpoint_url: str,
        region: str,
        session: Any,
        *,
        max_streams: int = MAX_STREAMS,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        parts = urlsplit(endpoint_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigurationError(f"The endpoint {endpoint_url!r} is not an http(s) URL.")
        self.max_streams = max_streams
        self.retries = OUR_RETRIES
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._secure else 80)
        self._authority = parts.netloc.rpartition("@")[2]
        self._base = parts.path.rstrip("/")
        self._session = session
        self._signer = Signer(region)
        self._bearer = os.environ.get("AWS_BEARER_TOKEN_BEDROCK") or None
        if self._bearer is not None and not self._secure:
            raise ConfigurationError(
                "AWS_BEARER_TOKEN_BEDROCK is set, and a bearer token goes over https only: use an "
                "https endpoint, or unset it and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )
        self._tls = _context(session) if self._secure else None
        self._connect_timeout = connect_timeout
        self._ways: dict[asyncio.AbstractEventLoop, _Way] = {}
        self._last: tuple[asyncio.AbstractEventLoop | None, _Way | None] = (None, None)
        self._lock = threading.Lock()
        self._paths = Memo(self._path_of, 1024)

    def open(self, call: UpstreamCall) -> Reply:
        """Begin a call, on the running event loop. Returns without waiting for the answer."""
        loop = asyncio.get_running_loop()
        way = self._way(loop)
        reply = Reply(loop)
        try:
            keys = None if self._bearer is not None else way.credentials.at_hand()
            ready = keys is not None or self._bearer is not None
            connection = way.pool.take() if ready and len(call.body) < _LONG_BODY else None
            if connection is not None:
                reply.again = partial(self._again, way, reply, call)
                connection.send(reply, self._request(call, keys), call.body)
                return reply
        except Exception as error:  # noqa: BLE001 -- the flow hears of it where it asks for the head
            failure = trouble(error)
            reply.end((failure.trouble, failure.detail))
            return reply
        reply.opening = loop.create_task(self._open(way, reply, call))
        return reply

    def close(self) -> None:
        """Close every connection; from any thread."""
        with self._lock:
            ways = list(self._ways.items())
            self._ways.clear()
            self._last = (None, None)
        for loop, way in ways:
            # A loop that has ended has closed its sockets itself.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(way.pool.close)

    def _again(self, way: "_Way", reply: Reply, call: UpstreamCall) -> None:
        """
        The kept connection was closed under the request, just as it set out: send it on a new
        one. Whoever lets go so soon is taken not to have begun: this is no second call.
        """
        reply.opening = asyncio.get_running_loop().create_task(
            self._open(way, reply, call, kept=False)
        )

    async def _open(
        self, way: "_Way", reply: Reply, call: UpstreamCall, *, kept: bool = True
    ) -> None:
        connection: Connection | None = None
        try:
            keys = None
            if self._bearer is None:
                keys = way.credentials.at_hand() or await way.credentials.fetch()
            connection = way.pool.take() if kept else None
            if connection is None:
                connection = await way.pool.connect()
            else:
                reply.again = partial(self._again, way, reply, call)
            if len(call.body) < _LONG_BODY:
                request = self._request(call, keys)
            else:
                request = await asyncio.to_thread(self._request, call, keys)
            if not connection.usable:
                raise UpstreamUnreachable(Trouble.BROKEN, "the connection ended before its use")
            if reply.closed:
                way.pool.free(connection)
                return
            connection.send(reply, request, call.body)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the flow must hear of it
            failure = trouble(error)
            reply.end((failure.trouble, failure.detail))
        except BaseException:
            if connection is not None and connection.usable:
                way.pool.free(connection)
            raise
        finally:
            reply.opening = None

    def _way(self, loop: asyncio.AbstractEventLoop) -> "_Way":
        known, way = self._last
        if known is loop and way is not None:
            return way
        with self._lock:
            way = self._ways.get(loop)
            if way is None:
                for ended in [each for each in self._ways if each.is_closed()]:
                    del self._ways[ended]
                pool = Pool(loop, self._host, self._port, self._tls, self._connect_timeout)
                way = self._ways[loop] = _Way(pool, Credentials(self._session))
            self._last = (loop, way)
        return way

    def _request(self, call: UpstreamCall, keys: Keys | None) -> bytes:
        """The head of a request, as it goes on the wire."""
        path = self._paths[call.operation, call.model_id, call.guardrail_version]
        head, signed = _head_of(path, self._authority, call.headers)
        if self._bearer is not None:
            added = [("authorization", f"Bearer {self._bearer}")]
        else:
            assert keys is not None
            added = self._signer.sign(keys, "POST", path, signed, call.body, time.time())
        fields = "\r\n".join([f"{name}: {value}" for name, value in added])
        return f"{head}content-length: {len(call.body)}\r\n{fields}\r\n\r\n".encode("latin-1")

    def _path_of(self, named: tuple[Operation, str, str]) -> str:
        operation, model_id, guardrail_version = named
        if not model_id:
            raise UpstreamUnreachable(Trouble.REJECTED, "the call names no model")
        name = quote(model_id, safe="-._~")
        if operation is Operation.APPLY_GUARDRAIL:
            version = quote(guardrail_version, safe="-._~")
            return f"{self._base}/guardrail/{name}/version/{version}/apply"
        return f"{self._base}/model/{name}/{_PATHS[operation]}"


class _Way:
    """What one event loop keeps."""

    def __init__(self, pool: Pool, credentials: Credentials) -> None:
        self.pool = pool
        self.credentials = credentials


@lru_cache(maxsize=64)  # clients choose some of the headers, and up to 32 KiB of them
def _head_of(path: str, authority: str, headers: Headers) -> tuple[str, Headers]:
    """
    What the heads of all calls alike begin with, and the fields of it that are signed. The
    length is not, as in botocore: the body itself is.
    """
    signed: Headers = (("host", authority), ("accept-encoding", "identity"), *headers)
    if not any(name == "content-type" for name, _ in headers):
        signed = (*signed, ("content-type", "application/json"))
    fields = "".join([f"{name}: {value}\r\n" for name, value in signed])
    return f"POST {path} HTTP/1.1\r\n{fields}user-agent: {_USER_AGENT}\r\n", signed


def _context(session: Any) -> ssl.SSLContext:
    """TLS as a boto3 client of *session* would speak it (``AWS_CA_BUNDLE`` and its like)."""
    from botocore.httpsession import get_cert_path

    bundle = session.get_config_variable("ca_bundle") or get_cert_path(True)
    try:
        return ssl.create_default_context(cafile=bundle)
    except OSError as error:
        raise ConfigurationError(
            f"The certificates in {bundle!r} (AWS_CA_BUNDLE) cannot be read: {error.strerror}."
        ) from None
