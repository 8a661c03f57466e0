"""What is checked before a body is read; and that no input at all makes the flow stumble."""

import json
import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.flows import TOKEN, Conversation, World, ask_claude, claude

from bedrock_proxy import front, tokens
from bedrock_proxy.errors import ClientFault, Code
from bedrock_proxy.http import Headers, Request

GRAMMAR = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")
LATIN = st.characters(max_codepoint=255)


def asking(*headers: tuple[str, str], **more: object) -> Request:
    given_: dict[str, object] = {"request_id": "r-1", "method": "POST", "path": "/"}
    return Request(**{**given_, "headers": (("host", "h"), *headers), **more})  # type: ignore[arg-type]


def refusal(check: Callable[[], object]) -> ClientFault:
    with pytest.raises(ClientFault) as caught:
        check()
    return caught.value


# --- the credential -----------------------------------------------------------------------------


@given(
    st.one_of(
        st.text(LATIN, max_size=40),
        st.from_regex(GRAMMAR, fullmatch=True),
        st.from_regex(GRAMMAR, fullmatch=True).flatmap(
            lambda token: st.builds(
                lambda at, c: token[:at] + c + token[at:],
                st.integers(0, len(token)),
                LATIN,
            )
        ),
    )
)
@example("a" * 16)
@example("a" * 15)
@example("a" * 512)
@example("a" * 513)
@example("\xa0" + "a" * 16)
@example("a" * 16 + "\x85")
@example("a" * 16 + "\n")
def test_M38_a_credential_is_exactly_what_the_grammar_says(text: str) -> None:
    # Optional whitespace around a field's value is not a part of it (RFC 9110, 5.5).
    meant = text.strip(" \t")
    for headers in ((("authorization", f"Bearer {text}"),), (("x-api-key", text),)):
        request = asking(*headers)
        if GRAMMAR.fullmatch(meant):
            assert front.credential(request) == meant
        else:
            fault = refusal(lambda r=request: front.credential(r))
            assert fault.code is Code.UNAUTHORIZED


@given(st.binary(min_size=32, max_size=32))
def test_every_token_of_ours_has_the_shape(noise: bytes) -> None:
    token = tokens.mint(noise)
    assert front.credential(asking(("authorization", f"Bearer {token}"))) == token


SIGNED = "AWS4-HMAC-SHA256 Credential=AKIA/20240101/us-east-1/lambda/aws4_request, Signature=0"


def test_a_signature_with_aws_keys_beside_a_key_is_somebody_elses() -> None:
    request = asking(("authorization", SIGNED), ("x-api-key", TOKEN))
    assert front.credential(request) == TOKEN


def test_a_signature_with_aws_keys_alone_is_refused_with_what_to_do() -> None:
    fault = refusal(lambda: front.credential(asking(("authorization", SIGNED))))
    assert fault.status == 401
    assert "x-api-key" in str(fault)
    assert "AKIA" not in str(fault)


def test_a_gateways_own_api_key_is_not_a_credential_of_ours() -> None:
    both = asking(
        ("authorization", f"Bearer {TOKEN}"), ("x-api-key", "gateways-own-key-1234"),
        peer_key="gateways-own-key-1234",
    )  # fmt: skip
    assert front.credential(both) == TOKEN
    alone = asking(("x-api-key", "gateways-own-key-1234"), peer_key="gateways-own-key-1234")
    assert refusal(lambda: front.credential(alone)).status == 401


def test_the_refusal_of_a_token_never_holds_it() -> None:
    for headers in (
        (("authorization", "Basic c2VjcmV0LWNhbmFyeQ=="),),
        (("authorization", "Bearer secret-canary!"),),
        (("authorization", "secret-canary"),),
        (("authorization", "Bearer secret-canary"), ("x-api-key", "c2VjcmV0LWNhbmFyeQ==")),
        (("x-api-key", "secret-canary"), ("x-api-key", "c2VjcmV0LWNhbmFyeQ==")),
        (("authorization", "Bearer secret-canary"),) * 2,
    ):
        fault = refusal(lambda h=headers: front.credential(asking(*h)))
        assert "canary" not in repr((fault.message, fault.headers))
        assert "c2VjcmV0" not in repr((fault.message, fault.headers))


# --- head and media -----------------------------------------------------------------------------


@given(st.text(LATIN, max_size=24))
@example("1" * 18)
@example("1" * 19)
@example("²")
@example("1\n")
def test_M04_a_length_is_digits_and_nothing_else(length: str) -> None:
    request = asking(("content-length", length))
    if re.fullmatch("[0-9]{1,18}", length):
        front.check_head(request)
        assert front.declared_length(request) == int(length)
    else:
        assert refusal(lambda: front.check_head(request)).status == 400


def test_M02_the_same_length_twice_is_one_length() -> None:
    front.check_head(asking(("content-length", "5"), ("content-length", "5")))


def test_M26_the_largest_allowed_body_is_allowed() -> None:
    front.check_media(asking(("content-length", "100")), 100)
    fault = refusal(lambda: front.check_media(asking(("content-length", "101")), 100))
    assert (fault.status, fault.code) == (413, Code.TOO_LARGE)


def test_M29_the_refusal_says_what_was_sent_and_what_to_send() -> None:
    fault = refusal(lambda: front.check_media(asking(("content-type", 'te"xt/\x00plain')), 9))
    assert fault.message == 'Content-Type "text/plain" is not supported; send application/json.'


def test_M29_two_content_types_are_ambiguous() -> None:
    kinds = (("content-type", "application/json"), ("content-type", "text/plain"))
    assert refusal(lambda: front.check_media(asking(*kinds), 9)).status == 400


# --- nothing makes the flow stumble ---------------------------------------------------------------

NAMES = st.sampled_from(
    ["authorization", "x-api-key", "content-type", "content-length", "content-encoding", "host",
     "transfer-encoding", "accept", "x-request-id", "origin", "connection", "expect", "cookie"]
) | st.text(LATIN, max_size=20)  # fmt: skip
VALUES = st.sampled_from(
    ["", f"Bearer {TOKEN}", TOKEN, "application/json", "5", "chunked", "gzip", "text/event-stream"]
) | st.text(LATIN, max_size=60)
SOUP: st.SearchStrategy[Headers] = st.lists(st.tuples(NAMES, VALUES), max_size=70).map(tuple)
PATHS = st.sampled_from(["/", "/bedrock", "", "*", "/healthz", "/v1/usage"]) | st.text(
    LATIN, max_size=80
)
METHODS = st.sampled_from(["POST", "GET", "HEAD", "OPTIONS", "PUT"]) | st.text(LATIN, max_size=20)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
)
MEMBERS = st.dictionaries(
    st.sampled_from(
        ["modelId", "model", "stream", "stream_events", "messages", "max_tokens", "prompt",
         "textGenerationConfig", "inferenceConfig", "images", "system", "type", "source"]
    ) | st.text(max_size=5),
    st.recursive(
        LEAVES | st.just("cohere.command-text-v14") | st.just("amazon.nova-lite-v1:0"),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "maxTokens", "data"]), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=6,
)  # fmt: skip
BODIES = (
    st.binary(max_size=200)
    | MEMBERS.map(lambda members: json.dumps(members).encode())
    | MEMBERS.map(lambda members: ask_claude(**members))
)


def _answered(request: Request, body: bytes) -> None:
    world = World().answers(claude()).answers(claude())
    talk = Conversation(world, request, body).run()
    # A model that is not streamed gets the stream's bytes as its body here: still no 5xx.
    assert talk.status < 500, talk.said
    assert world.faults == []
    assert len(world.admitted) == len(world.rows) == len(world.calls)
    assert talk.head is not None
    for name, value in talk.head.headers:
        assert name == name.lower()
        assert "\r" not in value
        assert "\n" not in value


@given(METHODS, PATHS, SOUP, st.text(LATIN, max_size=40), st.booleans(), BODIES)
def test_any_request_at_all_is_answered_below_500(
    method: str, path: str, headers: Headers, query: str, decoded: bool, body: bytes
) -> None:
    _answered(Request("r-1", method, path, headers, query, decoded), body)


@given(SOUP, st.booleans(), BODIES)
def test_any_body_behind_a_valid_token_is_answered_below_500(
    headers: Headers, can_stream: bool, body: bytes
) -> None:
    own = (("host", "h"), ("authorization", f"Bearer {TOKEN}"))
    kept = tuple(h for h in headers if h[0] in {"accept", "x-request-id", "origin", "cookie"})
    _answered(Request("r-1", "POST", "/bedrock", own + kept, can_stream=can_stream), body)


@pytest.mark.parametrize(
    ("headers", "lost"),
    [
        ([("upgrade", "h2c"), ("content-length", "5")], True),
        ([("upgrade", "h2c"), ("content-length", "0")], False),
        ([("upgrade", "h2c")], False),
        ([("content-length", "5")], False),
    ],
)
def test_a_body_that_was_lost_to_an_upgrade_is_not_called_empty(
    headers: list[tuple[str, str]], lost: bool
) -> None:
    request = asking(*headers, ("authorization", f"Bearer {TOKEN}"), path="/bedrock")
    talk = Conversation(World(), request, b"").run()
    said = b"".join(talk.pieces).decode()
    assert talk.status == 400
    assert ("without an Upgrade header" in said, "has no body" in said) == (lost, not lost)
