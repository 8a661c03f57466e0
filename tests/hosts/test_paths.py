"""A prefix is stripped however it is encoded on the wire, and what remains is as it came."""

import asyncio
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from bedrock_proxy.http import Request
from bedrock_proxy_adapters.hosts import asgi_requests, events, wsgi
from bedrock_proxy_adapters.hosts.paths import below, below_encoded

MODEL = "/model/arn%3Aaws%3Abedrock%3A%3A%3Ainference-profile%2Fus.x%3A0/invoke"

segments = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6).filter(
    lambda text: text.strip("/")
)
prefixes = st.lists(segments, min_size=1, max_size=3).map(
    lambda parts: "/" + "/".join(parts).strip("/")
)
rests = st.sampled_from(["", "/", "/bedrock", MODEL, "//bedrock", "/%2F", "/%", "/%zz", "/\xe9"])


@st.composite
def on_the_wire(draw: st.DrawFn, prefix: str) -> str:
    """*prefix* with every byte encoded that must be, and others as it comes."""
    said = "/"
    for byte in prefix.encode()[1:]:
        character = chr(byte)
        plain = character.isascii() and character.isprintable() and character not in "%?# "
        # A bare slash of a prefix stays one: what ends a segment is what the router went by.
        said += character if plain and draw(st.booleans()) else f"%{byte:02X}"
    return said


@given(data=st.data(), prefix=prefixes, rest=rests)
def test_a_prefix_is_stripped_however_it_is_encoded_and_the_rest_stays(
    data: st.DataObject, prefix: str, rest: str
) -> None:
    wire = data.draw(on_the_wire(prefix))
    assert unquote_to_bytes(wire).decode() == prefix
    assert below_encoded(wire + rest, prefix) == (rest or "/")
    assert below_encoded(wire + rest, prefix + "/") == (rest or "/")


@given(st.text(st.characters(max_codepoint=255)), st.text())
def test_no_path_and_no_prefix_is_too_strange(path: str, prefix: str) -> None:
    found = below_encoded("/" + path, prefix)
    assert found == "/" or ("/" + path).endswith(found)


@given(st.text(st.sampled_from("/ab%20")), st.text(st.sampled_from("/ab")))
def test_a_path_without_encoding_is_stripped_as_a_decoded_one_is(path: str, prefix: str) -> None:
    plain = path.replace("%", "")
    assert below_encoded(plain, prefix) == below(plain, prefix)


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("/t/x%3Ayz/bedrock", "/t/x:y"),
        ("/t/x%2Fbedrock", "/t/x"),
        ("/t%2525/bedrock", "/t%"),
        ("/bedrock%3A", ""),
        ("/bedrock%3A", "/"),
    ],
)
def test_what_only_looks_like_the_prefix_is_left(path: str, prefix: str) -> None:
    assert below_encoded(path, prefix) == path


# --- the hosts --------------------------------------------------------------------------------

MOUNTED = [
    ("/t/x/bedrock", "/bedrock"),
    ("/t/x%3Ay/bedrock", "/bedrock"),
    ("/t/x%20y/bedrock", "/bedrock"),
    (f"/t/x%3ay{MODEL}", MODEL),
    (f"/%C3%A9{MODEL}", MODEL),
    ("/%c3%a9/bedrock", "/bedrock"),
]


@pytest.mark.parametrize(("path", "rest"), MOUNTED)
def test_below_starlettes_mount(path: str, rest: str) -> None:
    seen: list[Request] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(asgi_requests.to_request(scope, "", "r"))

    async def nothing(message: Any = None) -> Any:
        return None

    site = Starlette(routes=[Mount("/t/{tenant}", app), Mount("/é", app)])
    scope = {"type": "http", "method": "GET", "headers": [], "query_string": b"", "root_path": ""}
    # As uvicorn tells it.
    told = {"path": unquote(path), "raw_path": path.encode()}
    asyncio.run(site({**scope, **told}, nothing, nothing))
    assert [(request.path, request.path_is_decoded) for request in seen] == [(rest, False)]


@pytest.mark.parametrize(("path", "rest"), MOUNTED)
def test_below_werkzeugs_dispatcher(path: str, rest: str) -> None:
    seen: list[Request] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(wsgi.to_request(environ, "", "r"))
        start_response("200 OK", [])
        return [b""]

    def nothing(environ: Any, start_response: Any) -> list[bytes]:
        start_response("404 Not Found", [])
        return [b""]

    names = ("/t/x", "/t/x:y", "/t/x y", "/é")
    mounts = {name.encode().decode("latin-1"): app for name in names}
    client = Client(DispatcherMiddleware(nothing, mounts))
    assert client.get(path).status_code == 200
    assert [(request.path, request.path_is_decoded) for request in seen] == [(rest, False)]


@pytest.mark.parametrize("wire", ["/my%20ai", "/my%20a%69"])
def test_a_base_path_of_ones_own_is_found_as_well(wire: str) -> None:
    scope = {"method": "GET", "raw_path": (wire + MODEL).encode(), "headers": []}
    assert asgi_requests.to_request(scope, "/my ai", "r").path == MODEL
    environ = {"REQUEST_METHOD": "GET", "RAW_URI": wire + MODEL}
    assert wsgi.to_request(environ, "/my ai", "r").path == MODEL
    event = {"httpMethod": "GET", "path": wire + MODEL}
    found = events.read_event(event, "/my ai", "r")
    assert found is not None
    assert found.request.path == MODEL
    decoded = {"method": "GET", "path": "/my ai/bedrock", "headers": []}
    assert asgi_requests.to_request(decoded, "/my ai", "r").path == "/bedrock"
