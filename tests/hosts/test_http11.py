"""
Whatever httptools stops at, one request ends where its head says, and the next one begins there:
however the head is spelt, and however its bytes come.
"""

import asyncio
import sys
from typing import Any

import pytest
import uvicorn
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st
from tests.hosts.malformed_app import make_proxy
from uvicorn.server import ServerState

from bedrock_proxy_adapters.cli.server import server_for
from bedrock_proxy_adapters.hosts.asgi import asgi_app
from bedrock_proxy_adapters.hosts.http11 import Http11Protocol


@frozen
class Sent:
    """A request, as it is written and as the application is to see it."""

    wire: bytes
    seen: tuple[str, str, bytes]


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        if not self.closed:
            self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def spelt(name: bytes) -> st.SearchStrategy[bytes]:
    """*name* in small and capital letters, mixed."""
    upper = st.lists(st.booleans(), min_size=len(name), max_size=len(name))
    return upper.map(
        lambda large: bytes(
            letter - 32 if up and 97 <= letter <= 122 else letter
            for letter, up in zip(name, large, strict=True)
        )
    )


INNER = b"GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n"


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    method = draw(st.sampled_from(["GET", "POST", "HEAD"]))
    path = f"/{draw(st.integers(0, 9))}"
    body = draw(st.sampled_from([b"", b"abc", INNER, INNER * 3]))
    lines = [b"Host: h"]
    if draw(st.booleans()):
        wish = [draw(spelt(b"upgrade")), draw(spelt(b"http2-settings"))]
        lines.append(draw(spelt(b"connection")) + b": " + b", ".join(wish))
        for protocol in draw(st.sampled_from([[b"h2c"], [b"websocket"], [b"a/1", b"h2c"]])):
            lines.append(draw(spelt(b"upgrade")) + b": " + protocol)
    if draw(st.booleans()):
        lines.append(draw(spelt(b"transfer-encoding")) + b": chunked")
        framed = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        framed += b"0\r\n\r\n"
    else:
        if body or draw(st.booleans()):
            lines.append(draw(spelt(b"content-length")) + b": %d" % len(body))
        framed = body
    lines = draw(st.permutations(lines))
    head = f"{method} {path} HTTP/1.1\r\n".encode() + b"\r\n".join(lines) + b"\r\n\r\n"
    return Sent(head + framed, (method, path, body))


async def exchanged(pieces: list[bytes], *, wait: bool = True) -> tuple[list[Any], Transport]:
    """What the application sees of a connection that brings *pieces*, and what is answered."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        seen.append((scope["method"], scope["path"], body))
        assert not [name for name, _ in scope["headers"] if name == b"upgrade"]
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok", "more_body": False})

    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    protocol = Http11Protocol(config, ServerState(), {})
    transport = Transport()
    protocol.connection_made(transport)
    for piece in pieces:
        if transport.closed:
            break
        protocol.data_received(piece)
        if wait:
            await asyncio.sleep(0)
    while protocol.tasks:
        await asyncio.gather(*protocol.tasks)
        await asyncio.sleep(0)
    protocol.connection_lost(ConnectionResetError())
    return seen, transport


@given(st.lists(requests(), min_size=1, max_size=4), st.data(), st.booleans())
def test_M84_no_wish_to_upgrade_moves_where_a_request_ends(
    sent: list[Sent], data: st.DataObject, wait: bool
) -> None:
    wire = b"".join(each.wire for each in sent)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(wire) - 1), max_size=6)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    seen, transport = asyncio.run(exchanged(pieces, wait=wait))
    assert seen == [each.seen for each in sent]
    assert transport.written.count(b"HTTP/1.1 200 OK") == len(sent)
    assert not transport.closed


GET = b"GET /first HTTP/1.1\r\nHost: h\r\n\r\n"
FIRST = ("GET", "/first", b"")


@pytest.mark.parametrize("before", [b"", GET], ids=["alone", "behind another"])
@pytest.mark.parametrize("ask", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])
@pytest.mark.parametrize("wait", [True, False], ids=["later", "at once"])
def test_M84_nothing_that_follows_a_CONNECT_is_a_request(
    before: bytes, ask: bytes, wait: bool
) -> None:
    head = b"CONNECT http://h/x HTTP/1.1\r\nHost: h\r\n" + ask + b"\r\n"
    pieces = [before + head + GET, GET] if wait else [before + head, GET]
    seen, transport = asyncio.run(exchanged(pieces, wait=wait))
    # The application's answer to it, whatever that is, is the last one.
    assert [path for _, path, _ in seen] == ["/first", "/x"][not before :]
    assert transport.written.count(b"HTTP/1.1 ") == len(seen)
    assert b"connection: close" in transport.written
    assert transport.closed


@pytest.mark.parametrize("pieces", [[GET, b"x\r\n\r\n"], [GET + b"x\r\n\r\n" + GET, GET]])
def test_M84_what_cannot_be_understood_is_no_part_of_the_answer_before_it(
    pieces: list[bytes],
) -> None:
    seen, transport = asyncio.run(exchanged(pieces, wait=False))
    assert seen == [FIRST]
    assert transport.written.startswith(b"HTTP/1.1 200 OK\r\n")
    assert transport.written.count(b"HTTP/1.1 ") == 1
    assert transport.closed


def test_without_the_faster_parser_uvicorn_serves_with_its_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = asgi_app(make_proxy()[0])
    assert server_for(app).config.http is Http11Protocol
    monkeypatch.setitem(sys.modules, "bedrock_proxy_adapters.hosts.http11", None)
    assert server_for(app).config.http == "auto"
