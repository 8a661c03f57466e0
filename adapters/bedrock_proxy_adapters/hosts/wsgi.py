"""
The WSGI host (PEP 3333): two pure translations and a loop.

The server iterates and so drives the flow on its own thread. When the client leaves, the
server calls ``close()``, which returns at once: what is left of the flow, the part that
settles the bill, goes on in a thread of its own, and a process that ends waits for it
(:mod:`.driven`).

A dead client is only noticed by writing; the flow says a comment at least every 15 s.
Under gunicorn use the ``gthread`` worker, or a ``--timeout`` above the longest stream.
"""

from _thread import start_new_thread
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from bedrock_proxy import front
from bedrock_proxy.http import Head, Request
from bedrock_proxy.ports import PortKind
from bedrock_proxy_adapters.hosts.driven import Driven
from bedrock_proxy_adapters.hosts.paths import below, below_encoded
from bedrock_proxy_adapters.hosts.sigterm import on_sigterm
from bedrock_proxy_adapters.proxy import Passage, Proxy, new_request_id

Environ: TypeAlias = dict[str, Any]
StartResponse: TypeAlias = Callable[..., Any]
WSGIApp: TypeAlias = Callable[[Environ, StartResponse], Iterable[bytes]]

_PIECE: Final = 64 * 1024
_HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "transfer-encoding"})


def wsgi_app(proxy: Proxy) -> WSGIApp:
    """
    *proxy* as a WSGI application.

    Raises:
        ConfigurationError: A port of the proxy needs an event loop.
    """
    faces = proxy.sync_faces()

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        request = to_request(environ, proxy.base_path, new_request_id())
        reply = _Reply(proxy.passage(request, _Body(environ), faces))
        head = reply.head()
        try:
            start_response(
                f"{head.status} {_phrase(head.status)}",
                [(name, value) for name, value in head.headers if name not in _HOP_BY_HOP],
            )
        except BaseException:
            reply.close()
            raise
        return reply

    return application


def end_on_sigterm(proxy: Proxy, grace: float) -> None:
    """
    From now on SIGTERM also ends this process's streams: they have *grace* seconds to
    finish, then each says one terminal ``server_shutdown`` and is settled. Whatever handled
    the signal before still does; where that was nothing, the process then ends as it would have.

    A WSGI server tells its applications nothing when it stops. Under gunicorn call this in
    the ``post_worker_init`` hook, with some seconds less than ``--graceful-timeout``. Off the
    main thread it only warns: signals are handled there.
    """

    def begin(done: Callable[[], None]) -> None:
        # As bare as it can be: a handler may come while the main thread begins another thread.
        start_new_thread(_shut_down, (proxy, grace, done))

    on_sigterm(begin)


def _shut_down(proxy: Proxy, grace: float, done: Callable[[], None]) -> None:
    try:
        proxy.shutdown(grace)
    finally:
        done()


class _Reply:
    """What the server iterates over, and closes."""

    def __init__(self, passage: Passage) -> None:
        self._driven = driven = Driven(passage)
        self._next = driven.next

    def head(self) -> Head:
        """The first thing the flow says."""
        said = self._next()
        assert isinstance(said, Head), "a flow says its head first"
        return said

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        said = self._next()
        assert isinstance(said, bytes), "a flow says one head"
        return said

    def close(self) -> None:
        """
        The server will iterate no more. Returns at once; harmless when repeated, and while
        another thread still iterates.
        """
        self._driven.leave()

    def __del__(self) -> None:
        # A server that lets go of it without closing it leaves a bill to settle too.
        self._driven.let_go()


class _Body:
    """The request's body, read when the flow asks."""

    kind: PortKind = "blocking"

    def __init__(self, environ: Environ) -> None:
        self._environ = environ

    def receive(self, limit: int, within: float) -> bytes:  # noqa: ARG002 -- the server's own timeout rules
        source = self._environ["wsgi.input"]
        declared = self._environ.get("CONTENT_LENGTH") or None
        if declared is None and not self._environ.get("wsgi.input_terminated"):
            return b""
        wanted = limit + 1 if declared is None else int(declared)
        pieces: list[bytes] = []
        size = 0
        try:
            while size < wanted:
                piece: bytes = source.read(min(_PIECE, wanted - size))
                if not piece:
                    break
                size += len(piece)
                if size > limit:
                    raise front.too_large(limit)
                pieces.append(piece)
        except (OSError, ValueError):
            raise front.body_torn() from None
        if declared is not None and size < wanted:
            raise front.body_torn()
        return b"".join(pieces)


def to_request(environ: Environ, base_path: str, request_id: str) -> Request:
    """The environ as the core sees it."""
    mounted: str = environ.get("SCRIPT_NAME", "")
    raw: str | None = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if raw and not raw.startswith("/"):  # RFC 9112, section 3.2.2: the absolute form
        _, _, rest = raw.partition("://")
        raw = "/" + rest.partition("/")[2]
    if raw:
        path, decoded = raw.partition("?")[0], False
        if mounted or base_path:
            path = below_encoded(path, _text(mounted), base_path)
    else:
        path, decoded = below(_text(environ.get("PATH_INFO") or "/"), base_path), True
    headers = [
        (key[5:].replace("_", "-").lower(), str(value))
        for key, value in environ.items()
        if key.startswith("HTTP_")
    ]
    headers += [
        (key.replace("_", "-").lower(), str(environ[key]))
        for key in ("CONTENT_TYPE", "CONTENT_LENGTH")
        if environ.get(key)
    ]
    if (
        not any(name == "host" for name, _ in headers)
        and environ.get("SERVER_PROTOCOL") == "HTTP/1.0"
    ):
        headers.append(("host", str(environ.get("SERVER_NAME", ""))))
    return Request(
        request_id=request_id,
        method=str(environ["REQUEST_METHOD"]).upper(),
        path=path,
        headers=tuple(headers),
        query=environ.get("QUERY_STRING", ""),
        path_is_decoded=decoded,
    )


def _text(shown: str) -> str:
    """What the server decoded, which PEP 3333 has as latin-1."""
    return (
        shown if shown.isascii() else shown.encode("latin-1", "replace").decode("utf-8", "replace")
    )


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Status"
