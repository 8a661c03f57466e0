"""What Bedrock's errors become: the table of RELIABILITY.md section 1, and no more than it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.flows import MODEL, OK_HEAD, World, claude, converse, events, exception

from bedrock_proxy import faults
from bedrock_proxy.errors import ClientFault, Code, ProxyError, UpstreamFault
from bedrock_proxy.ports import Operation, Trouble, UpstreamCall, UpstreamHead, UpstreamUnreachable
from bedrock_proxy.sent import NOTHING_SENT, Sent

THROTTLED = (429, Code.UPSTREAM_THROTTLED)
UNAVAILABLE = (503, Code.UPSTREAM_ERROR)
FAILED = (502, Code.UPSTREAM_ERROR)
TIMED_OUT = (504, Code.UPSTREAM_TIMEOUT)
OPERATOR = (502, Code.UPSTREAM_CONFIG)

MODELLED = {
    # name: Bedrock's own status, then ours (AWS, Bedrock API reference, InvokeModel, Errors)
    "ThrottlingException": (429, *THROTTLED),
    "ModelNotReadyException": (429, *THROTTLED),
    "ServiceQuotaExceededException": (400, *THROTTLED),
    "ServiceUnavailableException": (503, *UNAVAILABLE),
    "ModelTimeoutException": (408, *TIMED_OUT),
    "ModelErrorException": (424, *FAILED),
    "ModelStreamErrorException": (424, *FAILED),
    "InternalServerException": (500, *FAILED),
    "ResourceNotFoundException": (404, 404, Code.MODEL_NOT_FOUND),
    "ValidationException": (400, 400, Code.INVALID_REQUEST),
    "AccessDeniedException": (403, *OPERATOR),
    "UnrecognizedClientException": (403, *OPERATOR),
    "InvalidSignatureException": (403, *OPERATOR),
    "ExpiredTokenException": (403, *OPERATOR),
    "ExpiredToken": (403, *OPERATOR),
    "MissingAuthenticationTokenException": (403, *OPERATOR),
    "IncompleteSignatureException": (403, *OPERATOR),
}
CLIENTS = {"ResourceNotFoundException", "ValidationException"}
SECRETIVE = [name for name, (_, _, code) in MODELLED.items() if code is Code.UPSTREAM_CONFIG]

ROLE = "arn:aws:iam::123456789012:role/prod-proxy-role"
LEAK = (
    f"User: {ROLE} (account 123456789012, arn:aws:sts::123456789012:assumed-role/prod-proxy-role/i-0) "
    "is not authorized to perform: bedrock:InvokeModel on resource: "
    "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-v2."
)


def said(text: str) -> Sent:
    return Sent(UpstreamCall(Operation.INVOKE, MODEL, text.encode()))


def reply(name: str, status: int, message: str = "Bedrock said so.", sent: str = "") -> ProxyError:
    head = UpstreamHead(status, (("x-amzn-errortype", name),))
    return faults.from_reply(head, json.dumps({"message": message}).encode(), said(sent))


def facts(error: ProxyError) -> tuple[int, Code]:
    return error.status, error.code


@pytest.mark.parametrize("name", MODELLED)
def test_an_http_error_has_the_tables_status_and_code(name: str) -> None:
    theirs, *ours = MODELLED[name]
    assert facts(reply(name, theirs)) == tuple(ours)


@pytest.mark.parametrize("name", MODELLED)
def test_an_exception_frame_has_the_same_meaning_as_the_http_error(name: str) -> None:
    theirs, *ours = MODELLED[name]
    spelt = name[0].lower() + name[1:]
    framed = faults.from_exception(spelt, "Bedrock said so.", NOTHING_SENT)
    whole = reply(name, theirs)
    assert facts(framed) == tuple(ours)
    for fact in ("message", "retryable", "retry_after", "headers", "limit"):
        assert getattr(framed, fact) == getattr(whole, fact)
    assert framed.upstream_type == name


@pytest.mark.parametrize("name", MODELLED)
def test_only_an_error_of_the_clients_own_is_told_in_bedrocks_words(name: str) -> None:
    error = reply(name, MODELLED[name][0], "max_tokens: 9 is greater than 5")
    assert (error.message == "max_tokens: 9 is greater than 5") is (name in CLIENTS)
    assert isinstance(error, ClientFault if name in CLIENTS else UpstreamFault)


@pytest.mark.parametrize("name", MODELLED)
def test_what_may_pass_is_retryable_and_throttling_says_when(name: str) -> None:
    error = reply(name, MODELLED[name][0])
    assert error.retryable is (name not in CLIENTS and error.code is not Code.UPSTREAM_CONFIG)
    assert (error.retry_after is not None) is (error.status in {429, 503})


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, (400, Code.INVALID_REQUEST)),
        (401, OPERATOR),
        (402, (402, Code.INVALID_REQUEST)),
        (403, OPERATOR),
        (404, (404, Code.MODEL_NOT_FOUND)),
        (405, (405, Code.INVALID_REQUEST)),
        (408, TIMED_OUT),
        (409, (409, Code.INVALID_REQUEST)),
        (413, (413, Code.INVALID_REQUEST)),
        (418, (418, Code.INVALID_REQUEST)),
        (422, (422, Code.INVALID_REQUEST)),
        (429, THROTTLED),
        (431, (431, Code.INVALID_REQUEST)),
        (500, FAILED),
        (501, FAILED),
        (502, FAILED),
        (503, UNAVAILABLE),
        (504, TIMED_OUT),
        (301, FAILED),
        (307, FAILED),
    ],
)
def test_an_unknown_error_is_told_by_its_status(status: int, expected: tuple[int, Code]) -> None:
    for name in ("", "SomethingNewException"):
        error = reply(name, status)
        assert facts(error) == expected
        final = {Code.INVALID_REQUEST, Code.MODEL_NOT_FOUND, Code.UPSTREAM_CONFIG}
        assert error.retryable is (error.code not in final)


@pytest.mark.parametrize(
    "raw",
    [
        "ThrottlingException",
        "throttlingException",
        "com.amazon.coral.service#ThrottlingException",
        "ThrottlingException:http://internal.amazon.com/coral/com.amazon.bedrock/",
        "com.amazon.bedrock#ThrottlingException:http://internal.amazon.com/coral/#here",
        " ThrottlingException ",
    ],
)
def test_an_errors_name_is_found_however_it_is_spelt(raw: str) -> None:
    assert faults.type_name(raw) == "ThrottlingException"
    assert facts(reply(raw, 400)) == THROTTLED


@pytest.mark.parametrize("member", ["__type", "code"])
def test_without_a_header_the_body_names_the_error(member: str) -> None:
    body = json.dumps({member: "com.amazon.coral#ThrottlingException", "Message": "x"}).encode()
    assert facts(faults.from_reply(UpstreamHead(400, ()), body, NOTHING_SENT)) == THROTTLED


@given(st.integers(300, 599), st.text(max_size=20), st.binary(max_size=60))
def test_whatever_bedrock_answers_is_an_answer_of_ours(status: int, name: str, body: bytes) -> None:
    error = faults.from_reply(
        UpstreamHead(status, (("x-amzn-errortype", name),)), body, NOTHING_SENT
    )
    assert error.message
    assert 400 <= error.status < 600
    assert 400 <= faults.from_exception(name, body.decode("latin-1"), NOTHING_SENT).status < 600


# --- what must not be told ------------------------------------------------------------------------


@pytest.mark.parametrize("name", SECRETIVE)
@pytest.mark.parametrize("framed", [False, True], ids=["reply", "frame"])
def test_an_operators_fault_tells_no_arn_account_or_role(name: str, framed: bool) -> None:
    error = (
        faults.from_exception(name, LEAK, said(ROLE)) if framed else reply(name, 403, LEAK, ROLE)
    )
    for secret in ("arn:", "123456789012", "prod-proxy-role", "claude-v2", "bedrock:Invoke"):
        assert secret not in error.message


@pytest.mark.parametrize("name", [*CLIENTS, "SomethingNewException"])
def test_an_arn_that_the_client_did_not_send_is_not_told(name: str) -> None:
    error = reply(name, 400, LEAK)
    assert error.message == (
        "User: <arn> (account <account>, <arn>) is not authorized to perform: "
        "bedrock:InvokeModel on resource: <arn>."
    )


def test_an_arn_that_the_client_sent_is_told_and_others_beside_it_are_not() -> None:
    mine = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc"
    other = "arn:aws-us-gov:bedrock:us-gov-west-1:999999999999:inference-profile/x"
    message = f'"{mine}" is not found, nor is {mine}, nor is {other}: try {mine}.'
    error = reply("ResourceNotFoundException", 404, message, f'{{"modelId": "{mine}"}}')
    assert error.message == f'"{mine}" is not found, nor is {mine}, nor is <arn>: try {mine}.'


def test_an_errors_body_without_its_arns_is_still_json() -> None:
    message = f'Role "{ROLE}" and "{ROLE}\\", or "{ROLE}" of 123456789012'
    safe = faults.without_names(json.dumps({"message": message}).encode(), NOTHING_SENT)
    assert json.loads(safe)["message"] == 'Role "<arn>" and "<arn>\\", or "<arn>" of <account>'


def test_numbers_that_are_no_account_are_left_alone() -> None:
    message = "max_tokens: 1234567890123 > 4096; 12345678901; req-0123456789012; v123456789012"
    assert reply("ValidationException", 400, message).message == message


def test_a_number_that_the_client_sent_is_left_alone() -> None:
    message = "max_tokens: 100000000000 > 4096"
    assert (
        reply("ValidationException", 400, message, '{"max_tokens":100000000000}').message == message
    )


def test_an_error_without_a_word_still_says_something() -> None:
    assert reply("ValidationException", 400, "").message.endswith(".")


# --- no answer at all -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        (Trouble.UNREACHABLE, (502, Code.UPSTREAM_ERROR)),
        (Trouble.TIMEOUT, TIMED_OUT),
        (Trouble.BROKEN, (502, Code.UPSTREAM_TORN)),
        (Trouble.CREDENTIALS, OPERATOR),
        (Trouble.REJECTED, (400, Code.INVALID_REQUEST)),
        (Trouble.CLOSED, (502, Code.UPSTREAM_TORN)),
    ],
)
def test_no_answer_at_all_has_a_meaning_too(trouble: Trouble, expected: tuple[int, Code]) -> None:
    assert facts(faults.from_trouble(trouble)) == expected


def test_every_trouble_has_a_meaning() -> None:
    assert all(faults.from_trouble(trouble).message for trouble in Trouble)


# --- through the flow -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELLED)
def test_the_client_of_a_whole_call_gets_the_tables_status(name: str) -> None:
    theirs, status, code = MODELLED[name]
    world = World()
    for _ in range(3):
        world.answers(
            [json.dumps({"message": LEAK}).encode()],
            UpstreamHead(theirs, (("x-amzn-errortype", name),)),
        )
    talk = converse(world)
    error = json.loads(talk.said)
    assert (talk.status, error["code"]) == (status, str(code))
    assert ("retry-after" in dict(talk.head.headers if talk.head else ())) is (status in {429, 503})
    for secret in ("123456789012", "prod-proxy-role") if name not in CLIENTS else ("123456789012",):
        assert secret not in talk.said.decode()
    (row,) = world.rows
    assert (row.error_code, row.input_tokens, row.output_tokens) == (str(code), 0, 0)


@pytest.mark.parametrize("name", MODELLED)
def test_the_client_of_a_stream_gets_the_tables_code_as_its_last_event(name: str) -> None:
    spelt = name[0].lower() + name[1:]
    world = World().answers([*claude()[:3], exception(spelt, LEAK)])
    talk = converse(world)
    assert talk.status == 200
    last = json.loads(events(talk.said)[-1])
    assert last["code"] == str(MODELLED[name][2])
    assert "123456789012" not in talk.said.decode()
    assert len(world.calls) == 1


@pytest.mark.parametrize("trouble", list(Trouble))
def test_what_the_operator_may_read_of_a_failed_connection_the_client_may_not(
    trouble: Trouble,
) -> None:
    world = World()
    for _ in range(3):
        world.answers([], UpstreamUnreachable(trouble, f"https://vpce-1.internal/ {ROLE}"))
    talk = converse(world)
    assert talk.status == faults.from_trouble(trouble).status
    assert "internal" not in talk.said.decode().replace('"internal"', "")
    assert "role" not in talk.said.decode()


def test_an_error_body_without_end_is_read_only_so_far() -> None:
    world = World().answers([b"x" * 60_000] * 40, UpstreamHead(400, OK_HEAD.headers))
    assert converse(world).status == 400
    assert world.used[0].reads == 2
