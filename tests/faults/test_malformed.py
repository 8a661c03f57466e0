"""RELIABILITY.md section 4, in process: what is malformed is refused, and costs nothing."""

import json

import pytest
from attrs import define, evolve, field
from tests.faults.malformed import (
    ACCOUNT,
    ALLOWED,
    BODIES,
    BROUGHT,
    CREDENTIALS,
    EXPIRED,
    FRAMING,
    LIMITED,
    MEDIA,
    MODELS,
    OWNERS,
    REGION,
    REVOKED,
    ROWS,
    RULES,
    UNKNOWN,
    VALID,
    Row,
)
from tests.flows import (
    MODEL,
    TOKEN,
    Conversation,
    World,
    ask_claude,
    claude,
    converse,
    exception,
)
from tests.measured import cpu_of

from bedrock_proxy import tokens
from bedrock_proxy.admission import Barred, Refusal
from bedrock_proxy.customers import TokenOwner
from bedrock_proxy.front import MAX_HEADERS, MAX_URI
from bedrock_proxy.ports import Operation, UpstreamHead
from bedrock_proxy.strict_json import MAX_DEPTH, MAX_VALUES


@define(eq=False)
class Customers(World):
    """The scripted ports, with several customers."""

    owners: dict[bytes, TokenOwner] = field(
        factory=lambda: {owner.key.digest: owner for owner in OWNERS}
    )
    lookups: int = 0

    def find_token(self, digest: bytes, at: int) -> TokenOwner | None:
        self.store_calls += 1
        self.lookups += 1
        return self.owners.get(digest)


def send(row: Row, world: World | None = None) -> Conversation:
    """Drive one row; Bedrock would answer, if it were asked."""
    world = Customers() if world is None else world
    return Conversation(world.answers(claude()), row.request, row.body, RULES).run()


def refused(row: Row, talk: Conversation) -> dict[str, object]:
    """The error object, once all that every refusal promises has been checked."""
    assert talk.head is not None
    error = said(talk)
    assert row.status == talk.status
    assert talk.header("x-request-id") == "r-1"
    if row.is_native:
        assert error.keys() == {"message"}
        error["error"] = error["message"]
        kinds = {401: "AccessDenied", 403: "AccessDenied", 404: "UnknownOperation"}
        kind = kinds.get(row.status, "Validation")
        assert talk.header("x-amzn-errortype") == f"{kind}Exception"
    else:
        assert {"error", "code", "request_id", "retryable"} <= error.keys()
        assert (error["code"], error["request_id"]) == (row.code, "r-1")
    assert str(len(talk.said)) == talk.header("content-length")
    world = talk.world
    assert (world.calls, world.admitted, world.rows, world.faults) == ([], [], [], [])
    assert not [name for name, _ in talk.head.headers if name.startswith("access-control")]
    return error


def said(talk: Conversation) -> dict[str, object]:
    value: dict[str, object] = json.loads(talk.said)
    return value


def ids(row: Row) -> str:
    return row.id


@pytest.mark.parametrize("row", ROWS, ids=ids)
def test_a_malformed_request_is_refused_without_a_call_of_bedrock(row: Row) -> None:
    talk = send(row)
    error = refused(row, talk)
    assert row.says in str(error["error"])
    assert int(row.looks_up) == talk.world.store_calls
    for name, value in row.answers:
        assert value == talk.header(name)


@pytest.mark.parametrize("row", ROWS, ids=ids)
def test_no_store_is_asked_before_the_token_has_its_shape(row: Row) -> None:
    junk = evolve(row, token=TOKEN[:-1] + "!")
    talk = send(junk)
    assert 400 <= talk.status < 500
    assert (talk.world.store_calls, talk.world.calls) == (0, [])


ON_THE_NATIVE_WIRE = [
    evolve(row, id=f"native {row.id}", path=f"/model/{MODEL}/{operation}")
    for row in (*FRAMING, *MEDIA, *CREDENTIALS, *BODIES)
    for operation in ("invoke-with-response-stream", "converse")
    if row.promise != "M64" and "path" not in row.id
]


@pytest.mark.parametrize("row", ON_THE_NATIVE_WIRE, ids=lambda row: f"{row.id} {row.path[-6:]}")
def test_bedrocks_own_wire_refuses_what_the_simple_dialect_refuses(row: Row) -> None:
    talk = send(row)
    refused(row, talk)
    assert talk.world.store_calls == int(row.looks_up)


def test_every_row_of_the_table_is_here() -> None:
    """The table's in-process rows; those about time, sockets and data have tests by their names."""
    promised = (1, 2, 4, 14, 18, 19, 26, *range(28, 34), *range(36, 45), *range(46, 57), 64)
    promised += (35, *range(72, 77), 83)
    assert {f"M{n:02}" for n in promised} == {row.promise for row in ROWS}


def test_the_table_is_not_vacuous_the_same_request_unspoilt_is_answered() -> None:
    talk = send(Row("valid", 200))
    assert (talk.status, len(talk.world.rows)) == (200, 1)


# --- just inside the line ---------------------------------------------------------------------

INSIDE = (
    Row("M18 64 headers", 200, headers=tuple((f"x-{i}", "a") for i in range(MAX_HEADERS - 3))),
    Row("M19 8 KiB", 200, query="q" * (MAX_URI - len("/bedrock") - 1)),
    Row("M28 identity", 200, headers=(("content-encoding", "identity"),)),
    Row("M29 JSON", 200, headers=(("content-type", "Application/JSON"),)),
    Row("M29 a suffix", 200, headers=(("content-type", "application/vnd.api+json"),)),
    Row("M29 empty", 200, headers=(("content-type", ""),)),
    Row("M30 utf-8", 200, headers=(("content-type", 'application/json; charset="UTF-8"'),)),
    Row("M35 a colon in the path", 200, path="/model/" + MODEL.replace(":", "%3A") + "/converse"),
    Row("M37 lower case", 200, token=None, headers=(("authorization", f"bearer  {TOKEN} "),)),
    Row("M38 x-api-key", 200, token=None, headers=(("x-api-key", TOKEN),)),
    Row("M41 the same twice", 200, headers=(("x-api-key", TOKEN),)),
    Row("M50 blanks around", 200, body=b"\r\n " + VALID + b"\n"),
    Row(
        "M54 64 levels",
        200,
        body=VALID[:-1] + b', "x":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}",
    ),
    Row("M55 100 digits", 200, body=VALID[:-1] + b', "x": ' + b"9" * 100 + b"}"),
    Row("M56 a whole pair", 200, body=VALID[:-1] + b', "x": "\\ud83d\\ude00"}'),
    Row("M72 2048 characters", 200, body=ask_claude(modelId="a" * 2_048)),
    Row("M75 on the list", 200, body=ask_claude(modelId=ALLOWED), token=LIMITED),
    Row("M76 its profile", 200, body=ask_claude(modelId=f"us.{ALLOWED}"), token=LIMITED),
    Row(
        "M74 our own account",
        200,
        body=ask_claude(
            modelId=f"arn:aws:bedrock:{REGION}:{ACCOUNT}:application-inference-profile/abc123"
        ),
    ),
)


@pytest.mark.parametrize("row", INSIDE, ids=ids)
def test_what_is_just_inside_the_line_reaches_bedrock(row: Row) -> None:
    talk = send(row)
    assert len(talk.world.calls) == 1, said(talk)


# --- rows that need words of their own --------------------------------------------------------


def test_M43_unknown_revoked_expired_and_junk_tokens_cannot_be_told_apart() -> None:
    tokens_ = (UNKNOWN, REVOKED, EXPIRED, BROUGHT, TOKEN[:-1] + "!", "bpk_" + "a" * 49)
    replies = {
        (talk.head, talk.said) for talk in (send(Row("M43", 401, token=token)) for token in tokens_)
    }
    assert len(replies) == 1


def test_M43_a_token_revoked_behind_a_cache_is_refused_in_the_same_words() -> None:
    stale = Customers(refusal=Refusal(reason=Barred.KEY_GONE))
    one, other = send(Row("M43", 401), stale), send(Row("M43", 401, token=UNKNOWN))
    assert one.world.calls == []
    assert (one.head, one.said) == (other.head, other.said)


def test_M44_a_customer_disabled_behind_a_cache_gets_the_same_403() -> None:
    stale = Customers(refusal=Refusal(reason=Barred.CUSTOMER_DISABLED))
    one = send(Row("M44", 403), stale)
    other = send(next(row for row in CREDENTIALS if row.promise == "M44"))
    assert (one.head, one.said) == (other.head, other.said)
    assert one.world.calls == []


def test_M75_every_model_outside_the_list_gets_the_same_body() -> None:
    rows = [row for row in MODELS if row.promise in {"M75", "M76"}]
    assert len(rows) >= 3
    assert len({(send(row).head, send(row).said) for row in rows}) == 1


def test_M74_an_arn_is_not_judged_where_region_and_account_are_unknown() -> None:
    arn = "arn:aws:bedrock:eu-west-1:999999999999:application-inference-profile/abc123"
    world = World().answers(claude())
    assert converse(world, ask_claude(modelId=arn)).status == 200
    assert arn == world.calls[0].model_id


def test_M39_the_store_sees_a_digest_and_never_the_token() -> None:
    seen: list[bytes] = []

    class Spy(Customers):
        def find_token(self, digest: bytes, at: int) -> TokenOwner | None:
            seen.append(digest)
            return super().find_token(digest, at)

    send(Row("M39", 401, token=BROUGHT), Spy())
    assert seen == [tokens.digest(BROUGHT, None)]
    assert BROUGHT.encode() not in seen[0]


PLAIN = {
    "M59 special names": {"__proto__": {"admin": True}, "__class__": "x", "constructor": {}},
    "M60 endpoint": {
        "endpoint_url": "http://169.254.169.254/",
        "api_base": "http://evil.test",
        "aws_access_key_id": "AKIAX",
        "aws_bedrock_runtime_endpoint": "http://evil.test",
        "region": "eu-west-1",
        "region_name": "eu-west-1",
    },
    "M62 max_tokens true": {"max_tokens": True},
    "M62 max_tokens string": {"max_tokens": "5"},
    "M62 max_tokens float": {"max_tokens": 1.5},
    "M62 max_tokens -1": {"max_tokens": -1},
    "M62 max_tokens 0": {"max_tokens": 0},
    "M62 max_tokens 10**12": {"max_tokens": 10**12},
    "M62 max_tokens 100 digits": {"max_tokens": 10**99},
    "M66 messages empty": {"messages": []},
    "M66 messages text": {"messages": "hello"},
    "M66 messages null": {"messages": None},
    "M68 bad base64": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "%%%"},
                    }
                ],
            }
        ]
    },
    **{
        f"M69 {scheme}": {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "url", "url": f"{scheme}://x.test/a"}}
                    ],
                }
            ]
        }
        for scheme in ("http", "https", "file", "s3")
    },
    "M71 n": {"n": 2, "logit_bias": {}, "unheard_of": [1]},
}


@pytest.mark.parametrize("members", PLAIN.values(), ids=PLAIN.keys())
def test_the_models_own_body_is_passed_on_unjudged(members: dict[str, object]) -> None:
    world = World().answers(claude())
    talk = converse(world, ask_claude(**members))
    (call,) = world.calls
    expected = json.loads(ask_claude(**members))
    del expected["modelId"], expected["stream"]
    assert (200, expected) == (talk.status, json.loads(call.body))
    assert (call.model_id, call.operation) == (MODEL, Operation.INVOKE_STREAM)
    assert call.headers == (("content-type", "application/json"),)
    assert 0 <= world.admitted[0].output_tokens <= 2**53


def test_M63_without_max_tokens_the_models_default_is_reserved() -> None:
    world = World().answers([b"{}"], UpstreamHead(200, ()))
    converse(world, b'{"modelId": "amazon.titan-text-lite-v1", "inputText": "abc"}')
    assert world.admitted[0].output_tokens == 512
    world = World().answers(claude())
    converse(world, json.dumps({"modelId": MODEL, "stream": True, "messages": []}).encode())
    assert world.admitted[0].output_tokens == 4_096


def _keys(number: int, *more: str) -> bytes:
    members = json.dumps({f"key-{i}": i for i in range(number)})[1:-1]
    last = "".join([f", {member}" for member in more])
    return f'{{"modelId": "{MODEL}", "stream": true, {members}{last}}}'.encode()


@pytest.mark.parametrize("last", [(), ('"key-0": 1',)], ids=["flat", "wrong at the end"])
def test_M61_100000_keys_are_refused_in_less_time_than_they_are_read(last: tuple[str, ...]) -> None:
    body = _keys(100_000, *last)
    talk = converse(World().answers(claude()), body)
    assert (413, "too_large") == (talk.status, json.loads(talk.said)["code"])
    assert talk.world.calls == []
    plain = cpu_of(lambda: json.loads(body))
    assert cpu_of(lambda: converse(World().answers(claude()), body)) < 2 * plain


COSTLY = {
    "flat": _keys(MAX_VALUES - 10),
    "wrong at the end": _keys(MAX_VALUES - 10, '"key-0": 1'),
    "the model hidden": _keys(MAX_VALUES - 20, '"x": {"stream": 1, "modelId": 2}'),
    **{
        piece: f'{{"modelId": "{MODEL}", "messages": [{piece * number}0]}}'.encode()
        for piece, number in (
            ("{},", MAX_VALUES // 2 - 10),
            ('{"a":0},', MAX_VALUES // 2 - 10),
            ('{"type":"image","image":{"source":0}},', MAX_VALUES // 4 - 10),
            ("[[[[[[[[]]]]]]]],", MAX_VALUES // 9 - 10),
            ('"\u00e4",', MAX_VALUES - 10),
            ("1e5,", MAX_VALUES - 10),
        )
    },
}


@pytest.mark.parametrize("body", COSTLY.values(), ids=COSTLY)
def test_M61_T08_a_body_of_as_many_values_as_may_be_costs_little_more_than_reading_it(
    body: bytes,
) -> None:
    plain = cpu_of(lambda: json.loads(_keys(MAX_VALUES)))
    assert converse(World().answers(claude()), body).status in {200, 400}
    assert cpu_of(lambda: converse(World().answers(claude()), body)) < 12 * plain


GOOD_IDS = ("abc", "a" * 128, "0190b8c1-7f3e-7000-8000-000000000000", "Root=1-5e1b4151/a:b+c._")
BAD_IDS = (
    "",
    "a" * 129,
    "a b",
    "a\tb",
    "a\r\nset-cookie: x=1",
    "<script>",
    "a;b",
    "\xe9t\xe9",
    "${jndi:ldap}",
    '"a"',
    "a\x00",
)


@pytest.mark.parametrize("name", ["x-request-id", "x-client-request-id", "amz-sdk-invocation-id"])
def test_M77_a_clients_own_id_is_recorded_if_fit_and_never_used_as_ours(name: str) -> None:
    for value in (*GOOD_IDS, *BAD_IDS):
        world = World().answers(claude())
        talk = converse(world, None, (name, value))
        assert talk.header("x-request-id") == "r-1"
        assert (world.rows[0].request_id, world.rows[0].client_request_id) == (
            "r-1",
            value if value in GOOD_IDS else None,
        )
        assert talk.head is not None
        assert not any(value in v for _, v in talk.head.headers if value)


def test_M77_trace_headers_are_neither_echoed_nor_sent_upstream() -> None:
    world = World().answers(claude())
    marks = (("traceparent", "00-trace-mark-01"), ("x-amzn-trace-id", "Root=trace-mark"))
    talk = converse(world, None, *marks, ("forwarded", "for=trace-mark"))
    assert "trace-mark" not in repr(talk.head)
    assert "trace-mark" not in repr(world.calls)


def test_M83_without_configured_origins_no_reply_carries_a_cors_header() -> None:
    world = World().answers(claude())
    talk = converse(world, None, ("origin", "https://a.test"))
    assert talk.status == 200
    assert "access-control" not in repr(talk.head)


@pytest.mark.parametrize("row", [*MEDIA, *CREDENTIALS, *BODIES, *MODELS], ids=ids)
def test_M84_a_refusal_of_what_the_client_sent_ends_its_connection(row: Row) -> None:
    assert send(row).header("connection") == "close"


def test_M84_bedrocks_own_refusal_leaves_the_connection_open() -> None:
    head = UpstreamHead(400, (("x-amzn-errortype", "ValidationException"),))
    talk = converse(World().answers([b'{"message": "max_tokens: too large"}'], head))
    assert (talk.status, talk.header("connection")) == (400, None)


def test_M84_a_refusal_that_is_bedrocks_first_frame_leaves_it_open_too() -> None:
    talk = converse(World().answers([exception("validationException")]))
    assert (talk.status, talk.header("connection")) == (400, None)
