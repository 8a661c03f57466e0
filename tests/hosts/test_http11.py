"""The wish to upgrade is taken out of a head, and nothing else out of anything."""

import sys

import pytest
from tests.hosts.malformed_app import make_proxy

from bedrock_proxy_adapters.cli.server import server_for
from bedrock_proxy_adapters.hosts.asgi import asgi_app
from bedrock_proxy_adapters.hosts.http11 import Http11Protocol, without_upgrade

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("name", [b"Upgrade:", b"upgrade:", b"UPGRADE:"])
def test_the_field_is_named_otherwise_where_it_stands(name: bytes) -> None:
    asked = HEAD + b"Connection: Upgrade\r\n" + name + b" h2c\r\nA: b\r\n\r\nbody"
    assert without_upgrade(asked) == (
        HEAD + b"Connection: Upgrade\r\nx-ignored-upgrade: h2c\r\nA: b\r\n\r\nbody"
    )


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"Connection: Upgrade\r\n\r\n",
        HEAD + b"Upgrade : h2c\r\n\r\n",  # for the parser to refuse (RFC 9112, section 5.1)
        HEAD + b"X-Upgrade: 1\r\nUpgrade-Insecure-Requests: 1\r\n\r\n",
        HEAD + b"\r\nabc\r\nUpgrade: h2c\r\n\r\n",
        b"Upgrade: the rest of a head\r\n\r\nand more",
    ],
)
def test_what_is_no_such_field_stays(data: bytes) -> None:
    assert without_upgrade(data) == data


def test_a_head_that_has_not_ended_loses_it_too() -> None:
    assert b"\r\nUpgrade" not in without_upgrade(HEAD + b"Upgrade: h2c\r\nAcc")


def test_without_the_faster_parser_uvicorn_serves_with_its_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = asgi_app(make_proxy()[0])
    assert server_for(app).config.http is Http11Protocol
    monkeypatch.setitem(sys.modules, "bedrock_proxy_adapters.hosts.http11", None)
    assert server_for(app).config.http == "auto"
