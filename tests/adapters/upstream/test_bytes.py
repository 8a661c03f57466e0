"""What goes to Bedrock and what comes back are the bytes as they were."""

import hashlib
import json
import random
import sys
import threading
from urllib.parse import quote

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from tests.adapters.upstream.scripted import SOON, eventually

from bedrock_proxy.ports import (
    END,
    SILENCE,
    Operation,
    Trouble,
    UpstreamCall,
    UpstreamUnreachable,
)
from bedrock_proxy_adapters.upstream.boto3 import Boto3Upstream

MODEL = "anthropic.claude-3-haiku-20240307-v1:0"
ODD = '{ "messages" :[ {"role":"user",\n"content":[{"text":"h\\u00e9 é\u2028"}]} ],"new":1.50,"x":{}}\t'.encode()
NAMES = {
    Operation.INVOKE: "invoke",
    Operation.INVOKE_STREAM: "invoke-with-response-stream",
    Operation.CONVERSE: "converse",
    Operation.CONVERSE_STREAM: "converse-stream",
    Operation.COUNT_TOKENS: "count-tokens",
}
GUARDRAIL_VERSION = "3"
EVERY_OPERATION = pytest.mark.parametrize("operation", list(Operation))
STREAMING = pytest.mark.parametrize(
    "operation", [Operation.INVOKE_STREAM, Operation.CONVERSE_STREAM]
)


def call(operation=Operation.CONVERSE_STREAM, body=ODD, model=MODEL, headers=()):
    version = GUARDRAIL_VERSION if operation is Operation.APPLY_GUARDRAIL else ""
    return UpstreamCall(operation, model, body, headers, version)


def target(operation):
    """AWS, Bedrock API reference: the request line of each operation."""
    model = quote(MODEL, safe="")
    if operation is Operation.APPLY_GUARDRAIL:
        return f"/guardrail/{model}/version/{GUARDRAIL_VERSION}/apply"
    return f"/model/{model}/{NAMES[operation]}"


def test_L3_a_call_that_is_being_answered_holds_nothing_of_its_body(face, upstream, server):
    done = threading.Event()

    def script(wire, _):
        wire.begin_stream()
        wire.chunk(b"one")
        done.wait(SOON)
        wire.end_stream()

    server.script = script
    body = bytes(2_000_000)
    held = sys.getrefcount(body)
    reply = face.open(upstream, call(Operation.INVOKE_STREAM, body))
    assert reply.begin(SOON).status == 200
    assert reply.read(SOON) == b"one"
    try:
        assert eventually(lambda: sys.getrefcount(body) <= held)
    finally:
        done.set()


@EVERY_OPERATION
def test_the_request_body_is_sent_as_it_is(operation, face, upstream, server):
    face.open(upstream, call(operation)).whole()

    (received,) = server.received
    assert received.method == "POST"
    assert received.target == target(operation)
    assert received.body == ODD
    assert received.headers["content-length"] == str(len(ODD))
    assert received.headers["content-type"] == "application/json"
    assert received.headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")


@EVERY_OPERATION
def test_the_signature_fits_what_was_sent(operation, face, upstream, server):
    """Signed again from what the server received, by botocore's signer alone."""
    face.open(upstream, call(operation, headers=(("x-amzn-bedrock-trace", "ENABLED"),))).whole()

    received = server.received[0]
    authorization = received.headers["authorization"]
    signed = authorization.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert "x-amzn-bedrock-trace" in signed
    request = AWSRequest(
        received.method,
        server.url + received.target,
        {name: received.headers[name] for name in signed},
        received.body,
    )
    request.context["timestamp"] = received.headers["x-amz-date"]
    signer = SigV4Auth(Credentials("AKIDEXAMPLE", "example"), "bedrock", "us-east-1")
    canonical = signer.canonical_request(request)
    assert hashlib.sha256(ODD).hexdigest() in canonical
    expected = signer.signature(signer.string_to_sign(request, canonical), request)
    assert authorization.endswith(f"Signature={expected}")


@EVERY_OPERATION
def test_our_headers_go_along_once(operation, face, upstream, server):
    """The scripted server refuses a header that comes twice."""
    headers = (
        ("content-type", "application/json; charset=utf-8"),
        ("accept", "application/json"),
        ("x-amzn-bedrock-accept", "*/*"),
        ("x-amzn-bedrock-trace", "ENABLED"),
        ("x-amzn-bedrock-guardrailidentifier", "abc"),
    )
    face.open(upstream, call(operation, headers=headers)).whole()

    received = server.received[0].headers
    assert {name: received[name] for name, _ in headers} == dict(headers)


@EVERY_OPERATION
@pytest.mark.parametrize(
    "model",
    [
        "us.anthropic.claude-sonnet-4-20250514-v1:0",
        "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/ab12cd34ef56",
        "arn:aws:sagemaker:us-east-1:123456789012:endpoint/my-endpoint",
        "odd%3Amodel%2Fid~a_b+c",
    ],
)
def test_the_model_id_is_encoded_as_boto3_encodes_it(operation, model, face, upstream, server):
    """Compared with a client of boto3's own that nobody has hooked."""
    plain = boto3.client(
        "bedrock-runtime",
        "us-east-1",
        endpoint_url=server.url,
        aws_access_key_id="a",
        aws_secret_access_key="b",
    )
    ask = {
        Operation.INVOKE: lambda: plain.invoke_model(modelId=model, body=b"{}"),
        Operation.INVOKE_STREAM: lambda: plain.invoke_model_with_response_stream(
            modelId=model, body=b"{}"
        ),
        Operation.CONVERSE: lambda: plain.converse(modelId=model),
        Operation.CONVERSE_STREAM: lambda: plain.converse_stream(modelId=model),
        Operation.COUNT_TOKENS: lambda: plain.count_tokens(
            modelId=model, input={"invokeModel": {"body": b"{}"}}
        ),
        Operation.APPLY_GUARDRAIL: lambda: plain.apply_guardrail(
            guardrailIdentifier=model,
            guardrailVersion=GUARDRAIL_VERSION,
            source="INPUT",
            content=[],
        ),
    }
    answer = ask[operation]()
    for name in ("body", "stream"):
        if name in answer:
            answer[name].close()
    plain.close()
    face.open(upstream, call(operation, model=model)).whole()

    theirs, ours = server.received
    assert ours.target == theirs.target
    assert "%" not in model or "%25" in ours.target


@STREAMING
@pytest.mark.parametrize("seed", range(6))
def test_S23_a_streamed_body_arrives_unchanged_in_any_chunking(
    operation, seed, face, upstream, server
):
    rng = random.Random(seed)
    body = rng.randbytes(rng.choice([1, 500, 9_000, 300_000]))
    cuts = sorted(rng.sample(range(len(body) + 1), min(len(body), rng.randint(1, 60))))
    chunks = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True) if a < b]
    server.script = lambda wire, _: wire.stream(chunks)

    head, received = face.open(upstream, call(operation)).whole()

    assert head.status == 200
    assert received == body


@pytest.mark.parametrize(
    "operation",
    [Operation.INVOKE, Operation.CONVERSE, Operation.COUNT_TOKENS, Operation.APPLY_GUARDRAIL],
)
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        b'{ "output" : 1.0, "unknown":[ ] }\n',
        b"",
        b"not json \xff",
        b'{"big":"' + b"x" * 400_000 + b'"}',
    ],
    ids=["odd", "empty", "no json", "big"],
)
def test_a_whole_body_arrives_unchanged(operation, chunked, body, face, upstream, server):
    def script(wire, _):
        if chunked:
            wire.stream([body] if body else [])
        else:
            wire.answer(body, 200, ("X-Amzn-Bedrock-Output-Token-Count", "7"))

    server.script = script
    head, received = face.open(upstream, call(operation)).whole()

    assert head.status == 200
    assert received == body
    assert chunked or head.first("x-amzn-bedrock-output-token-count") == "7"


@EVERY_OPERATION
@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (400, "ValidationException", b'{ "message":"The provided model identifier is invalid."}'),
        (403, "AccessDeniedException", b'{"Message":null}'),
        (424, "ModelErrorException", b'{"message":"m","originalStatusCode":500}'),
        (429, "ThrottlingException:http://internal.amazon.com/", b'{"message":"Too many"}'),
        (503, "ServiceUnavailableException", b"<html>not json</html>"),
        (500, "", b""),
        (418, "", b"\xff\xfe"),
    ],
)
def test_S04_an_error_status_comes_as_it_came_and_is_not_repeated(
    operation, status, kind, body, face, upstream, server
):
    server.script = lambda wire, _: wire.answer(
        body, status, ("x-amzn-ErrorType", kind), ("Retry-After", "3"), ("x-amzn-RequestId", "r-1")
    )

    head, received = face.open(upstream, call(operation)).whole()

    assert (head.status, received) == (status, body)
    assert head.first("x-amzn-errortype") == kind
    assert head.first("retry-after") == "3"
    assert head.first("x-amzn-requestid") == "r-1"
    assert len(server.received) == 1


@STREAMING
def test_the_first_event_comes_before_the_second_is_sent(operation, face, upstream, server):
    first_was_read = threading.Event()

    def script(wire, _):
        wire.begin_stream()
        wire.chunk(b"first")
        assert first_was_read.wait(SOON)
        wire.chunk(b"second")
        wire.end_stream()

    server.script = script
    reply = face.open(upstream, call(operation))
    assert reply.head().status == 200
    assert reply.read() == b"first"
    first_was_read.set()
    assert reply.rest() == b"second"


def test_silence_is_told_and_the_stream_goes_on(face, upstream, server):
    go_on = threading.Semaphore(0)

    def script(wire, _):
        go_on.acquire(timeout=SOON)
        wire.begin_stream()
        go_on.acquire(timeout=SOON)
        wire.chunk(b"late")
        wire.end_stream()

    server.script = script
    reply = face.open(upstream, call())
    assert reply.begin(0.02) is SILENCE
    assert reply.begin(0) is SILENCE
    go_on.release()
    assert reply.head().status == 200
    assert reply.read(0.02) is SILENCE
    assert reply.read(0) is SILENCE
    go_on.release()
    assert reply.rest() == b"late"
    assert reply.read() is END


def test_nobody_else_reads_the_stream(pumped, server, client_of):
    """A hook of the user's that reads botocore's own result gets nothing and takes nothing."""
    client = client_of(server.url)
    theirs = []
    client.meta.events.register(
        "after-call.bedrock-runtime", lambda parsed, **_: theirs.extend(parsed["body"])
    )
    server.script = lambda wire, _: wire.stream([b"one", b"two"])

    reply = pumped.open(Boto3Upstream(client), call(Operation.INVOKE_STREAM))

    assert reply.rest() == b"onetwo"
    assert theirs == []


def test_the_users_own_calls_on_the_same_client_are_left_alone(pumped, server, client_of):
    client = client_of(server.url)
    upstream = Boto3Upstream(client)
    Boto3Upstream(client)
    server.script = lambda wire, _: wire.answer(b'{"inputTokens": 5}')
    pumped.open(upstream, call(Operation.COUNT_TOKENS)).whole()

    answer = client.count_tokens(modelId=MODEL, input={"invokeModel": {"body": b"[1]"}})

    assert answer["inputTokens"] == 5
    assert json.loads(server.received[1].body) == {"input": {"invokeModel": {"body": "WzFd"}}}

    server.script = lambda wire, _: wire.answer(b'{"message":"no"}', 403)
    with pytest.raises(ClientError):
        client.converse(modelId=MODEL)


def test_a_client_that_retries_tells_its_last_answer(pumped, server, session):
    """Its own retries are its own: the first answer is not the answer."""
    client = session.client(
        "bedrock-runtime",
        "us-east-1",
        endpoint_url=server.url,
        config=Config(retries={"total_max_attempts": 2, "mode": "legacy"}),
    )
    upstream = Boto3Upstream(client)
    assert upstream.retries == 0

    def script(wire, _):
        if len(server.received) == 1:
            wire.answer(b'{"message":"busy"}', 503)
        else:
            wire.answer(b"whole")

    server.script = script
    head, body = pumped.open(upstream, call(Operation.CONVERSE)).whole()

    assert (head.status, body) == (200, b"whole")
    assert len(server.received) == 2

    server.script = lambda wire, _: (
        wire.answer(b'{"message":"busy"}', 503) if len(server.received) == 3 else wire.hang_up()
    )
    with pytest.raises(UpstreamUnreachable) as caught:
        pumped.open(upstream, call(Operation.CONVERSE)).begin()
    assert caught.value.trouble is Trouble.BROKEN
    client.close()
