"""
boto3 itself against the proxy, unmodified but for a header hook that sends our bearer token
over http: what it gets is what it gets from Bedrock, classes of exceptions included.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError
from tests.adapters.upstream.scripted import Face, Received, Server, Wire
from tests.fixtures import Recording, recordings, require_fixtures
from tests.running import CLAUDE, TOKEN, Running, client_of

from bedrock_proxy.ports import Operation, UpstreamCall
from bedrock_proxy_adapters.simulator import Fault, Replay, Script
from bedrock_proxy_adapters.upstream.boto3 import Boto3Upstream, bedrock_client

RECORDED = [r for name in ("InvokeModel", "InvokeModelWithResponseStream", "Converse",
                           "ConverseStream", "CountTokens")
            for r in recordings(operation=name)]  # fmt: skip
MESSAGES = [{"role": "user", "content": [{"text": "Say hello."}]}]
INVOKED = json.dumps(
    {
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 50,
        "messages": [{"role": "user", "content": "Hi."}],
    }
)


def bearing(url: str, token: str = TOKEN) -> Any:
    """A boto3 client whose requests bear *token*; one attempt, nothing else is changed."""
    client = boto3.client(
        "bedrock-runtime",
        region_name="us-east-1",
        endpoint_url=url,
        config=Config(
            signature_version=UNSIGNED,
            retries={"total_max_attempts": 1, "mode": "standard"},
            proxies={},
        ),
    )

    def bear(request: Any, **_: object) -> None:
        request.headers["Authorization"] = f"Bearer {token}"

    client.meta.events.register("before-send.bedrock-runtime", bear)
    return client


def called(client: Any, operation: str, model: str) -> dict[str, Any]:
    """What boto3 makes of one call, event by event; an exception as its class and words."""
    try:
        if operation == "InvokeModel":
            answer = client.invoke_model(modelId=model, body=INVOKED)
            return {"type": answer["contentType"], "body": answer["body"].read()}
        if operation == "InvokeModelWithResponseStream":
            answer = client.invoke_model_with_response_stream(modelId=model, body=INVOKED)
            with closing(answer["body"]) as events:
                return {"events": list(events)}
        if operation == "Converse":
            answer = client.converse(modelId=model, messages=MESSAGES)
        elif operation == "ConverseStream":
            answer = client.converse_stream(modelId=model, messages=MESSAGES)
            with closing(answer["stream"]) as events:
                return {"events": list(events)}
        else:
            answer = client.count_tokens(
                modelId=model, input={"invokeModel": {"body": INVOKED.encode()}}
            )
        del answer["ResponseMetadata"]
        return {"answer": answer}
    except ClientError as error:
        return {"raised": type(error).__name__, "told": error.response["Error"]}


@pytest.fixture
def client(host: Running) -> Iterator[Any]:
    client = bearing(host.url)
    yield client
    client.close()


@pytest.fixture(scope="module")
def pair(uvicorn_host: Running) -> Iterator[tuple[Any, Any]]:
    """A client of the proxy, and one of the fake Bedrock behind it."""
    ours, theirs = bearing(uvicorn_host.url), client_of(uvicorn_host.simulator)
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize("recording", RECORDED, ids=lambda recording: recording.id)
def test_boto3_gets_from_the_proxy_what_it_gets_from_bedrock(
    uvicorn_host: Running, pair: tuple[Any, Any], recording: Recording
) -> None:
    require_fixtures()
    headers = tuple(
        (name, value)
        for name, value in recording.response_headers
        if name not in {"content-length", "transfer-encoding", "connection", "date"}
    )
    uvicorn_host.simulator.reset()
    uvicorn_host.simulator.default(
        Script(
            replay=Replay(body=recording.response, status=recording.status, headers=headers),
            chunk_seed=len(recording.response),
        )
    )
    try:
        ours, theirs = (called(client, recording.operation, recording.model_id) for client in pair)
    finally:
        uvicorn_host.simulator.default(None)
    if recording.status == 403:  # credentials and model access: the operator's
        assert ours["told"]["Code"] == "InternalServerException"
    else:
        assert theirs == ours


OPERATIONS = ["InvokeModel", "InvokeModelWithResponseStream", "Converse", "ConverseStream",
              "CountTokens"]  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_of_boto3_is_served_and_billed(
    host: Running, client: Any, operation: str
) -> None:
    seen = len(host.rows())
    host.simulator.script(Script(text="Hello there, friend.", input_tokens=5, output_tokens=4))
    got = called(client, operation, CLAUDE)
    assert "raised" not in got
    (row,) = host.new_rows(seen, 1)
    assert (row.dialect, row.operation, row.model_id) == ("bedrock", operation, CLAUDE)
    expected = (0, 0) if operation == "CountTokens" else (5, 4)
    assert expected == (row.input_tokens, row.output_tokens)
    assert row.aws_request_id


def test_an_arn_reaches_bedrock_as_boto3_encodes_it(host: Running, client: Any) -> None:
    arn = f"arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.{CLAUDE}"
    seen = len(host.rows())
    assert "answer" in called(client, "Converse", arn)
    (row,) = host.new_rows(seen, 1)
    assert (arn, CLAUDE) == (row.model_id, row.model)
    assert host.simulator.calls[-1].model_id == arn


@pytest.mark.parametrize(
    "name",
    [
        "ThrottlingException",
        "ValidationException",
        "ResourceNotFoundException",
        "ModelTimeoutException",
        "ModelErrorException",
        "InternalServerException",
        "ServiceUnavailableException",
    ],
)
def test_bedrocks_refusals_raise_their_own_classes(host: Running, client: Any, name: str) -> None:
    host.simulator.default(Script(error=name, error_message="In Bedrock's words."))
    with pytest.raises(getattr(client.exceptions, name)) as caught:
        client.converse(modelId=CLAUDE, messages=MESSAGES)
    assert caught.value.response["Error"]["Message"] == "In Bedrock's words."


def test_refusals_of_ours_raise_the_class_their_user_expects(host: Running, client: Any) -> None:
    stranger = bearing(host.url, TOKEN[:-1] + ("a" if TOKEN[-1] != "a" else "b"))
    exceptions = client.exceptions
    wrong: list[tuple[type[Exception], Callable[[], Any]]] = [
        (
            exceptions.ValidationException,
            lambda: client.invoke_model(modelId=CLAUDE, body=b'{"a": NaN}'),
        ),
        (
            exceptions.ValidationException,
            lambda: client.converse(modelId="no such spelling", messages=MESSAGES),
        ),
        (
            stranger.exceptions.AccessDeniedException,
            lambda: stranger.converse(modelId=CLAUDE, messages=MESSAGES),
        ),
    ]
    for kind, call in wrong:
        with pytest.raises(kind):
            call()
    stranger.close()


@pytest.mark.parametrize("operation", ["InvokeModelWithResponseStream", "ConverseStream"])
def test_a_fault_in_the_stream_raises_with_its_name(
    host: Running, client: Any, operation: str
) -> None:
    def stream() -> Any:
        if operation == "ConverseStream":
            return client.converse_stream(modelId=CLAUDE, messages=MESSAGES)["stream"]
        return client.invoke_model_with_response_stream(modelId=CLAUDE, body=INVOKED)["body"]

    for fault, code in (
        (Fault("exception", 2, "throttlingException"), "throttlingException"),
        (Fault("end", 2), "modelStreamErrorException"),
    ):
        host.simulator.script(Script(text="One two three four five.", faults=(fault,)))
        with closing(stream()) as events, pytest.raises(EventStreamError) as caught:
            list(events)
        assert caught.value.response["Error"]["Code"] == code


def test_a_guardrail_is_applied_with_its_body_as_it_came() -> None:
    server = Server()
    answer = b'{"action": "NONE", "outputs": [] }'
    body = b'{ "source":"OUTPUT", "x-new": [1] , "content": []}'

    def script(wire: Wire, received: Received) -> None:
        wire.answer(answer, 200, ("Content-Type", "application/json"))

    server.script = script
    session = boto3.Session(aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="example")
    client = bedrock_client("us-east-1", server.url, session=session)
    try:
        upstream = Boto3Upstream(client)
        arn = "arn:aws:bedrock:us-east-1:123456789012:guardrail/abc1"
        for guardrail in ("abc1", arn):
            call = UpstreamCall(
                Operation.APPLY_GUARDRAIL, guardrail, body, guardrail_version="DRAFT"
            )
            head, got = Face("blocking").open(upstream, call).whole()
            assert (head.status, got) == (200, answer)
        assert [received.body for received in server.received] == [body, body]
        assert [received.target for received in server.received] == [
            "/guardrail/abc1/version/DRAFT/apply",
            f"/guardrail/{arn.replace(':', '%3A').replace('/', '%2F')}/version/DRAFT/apply",
        ]
    finally:
        client.close()
        server.close()
