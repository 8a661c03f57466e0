"""Clients in which no hook fires: botocore's Stubber, and clients made by hand."""

import base64
import io
import json

import pytest
from botocore.eventstream import EventStreamBuffer
from botocore.exceptions import EventStreamError
from botocore.response import StreamingBody
from botocore.stub import Stubber

from bedrock_proxy.ports import Operation, UpstreamCall
from bedrock_proxy_adapters.upstream.boto3 import Boto3Upstream

BODY = b'{"a": [1 ,2]}'


def call(operation):
    return UpstreamCall(operation, "model", BODY)


def messages(data):
    """The event-stream messages in *data*, decoded (and checked) by botocore."""
    buffer = EventStreamBuffer()
    buffer.add_data(data)
    return [(message.headers, message.payload) for message in buffer]


@pytest.fixture
def stubbed(client_of):
    client = client_of("http://127.0.0.1:9")
    with Stubber(client) as stubber:
        yield stubber, Boto3Upstream(client)


def test_a_stubbed_invoke_model_answers_with_its_body(pumped, stubbed):
    stubber, upstream = stubbed
    answer = b'{ "completion": "x" }'
    stubber.add_response(
        "invoke_model",
        {"body": StreamingBody(io.BytesIO(answer), len(answer)), "contentType": "application/json"},
        {"modelId": "model", "body": BODY},
    )
    head, body = pumped.open(upstream, call(Operation.INVOKE)).whole()
    assert (head.status, body) == (200, answer)
    stubber.assert_no_pending_responses()


def test_a_stubbed_converse_answers_as_json(pumped, stubbed):
    stubber, upstream = stubbed
    answer = {
        "output": {"message": {"role": "assistant", "content": [{"text": "hé"}]}},
        "stopReason": "end_turn",
        "usage": {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3},
        "metrics": {"latencyMs": 4},
    }
    stubber.add_response("converse", answer)
    head, body = pumped.open(upstream, call(Operation.CONVERSE)).whole()
    assert head.first("content-type") == "application/json"
    assert json.loads(body) == answer


def test_a_stubbed_error_has_its_status_and_its_name(pumped, stubbed):
    stubber, upstream = stubbed
    stubber.add_client_error("count_tokens", "ThrottlingException", "slow down", 429)
    head, body = pumped.open(upstream, call(Operation.COUNT_TOKENS)).whole()
    assert head.status == 429
    assert head.first("x-amzn-errortype") == "ThrottlingException"
    assert json.loads(body) == {"message": "slow down"}


class Handmade:
    """A client such as a test of the user's may bring."""

    def __init__(self, events=()):
        self.events = events
        self.asked = {}

    def invoke_model(self, **asked):
        self.asked = asked
        return {"body": "plain"}

    def invoke_model_with_response_stream(self, **asked):
        self.asked = asked
        return {"body": self.events}

    def converse_stream(self, **asked):
        return {"stream": self.events, "ResponseMetadata": {"HTTPHeaders": {"X-Amzn-Y": "1"}}}


def test_a_client_made_by_hand_is_asked_with_the_body_itself(pumped):
    client = Handmade()
    assert pumped.open(Boto3Upstream(client), call(Operation.INVOKE)).whole()[1] == b"plain"
    assert client.asked == {"modelId": "model", "body": BODY}


def test_an_iterable_of_chunks_becomes_an_event_stream(pumped):
    chunks = [b'{"n":1}', b'{"n":"\xc3\xa9"}']
    upstream = Boto3Upstream(Handmade([{"chunk": {"bytes": chunk}} for chunk in chunks]))
    head, body = pumped.open(upstream, call(Operation.INVOKE_STREAM)).whole()
    assert head.first("content-type") == "application/vnd.amazon.eventstream"
    got = messages(body)
    assert [headers[":event-type"] for headers, _ in got] == ["chunk", "chunk"]
    # botocore reads a payload's "bytes" as base64 again.
    assert [base64.b64decode(json.loads(payload)["bytes"]) for _, payload in got] == chunks


def test_an_iterable_of_converse_events_becomes_an_event_stream(pumped):
    events = [{"messageStart": {"role": "assistant"}}, {"messageStop": {"stopReason": "end_turn"}}]
    head, body = pumped.open(
        Boto3Upstream(Handmade(events)), call(Operation.CONVERSE_STREAM)
    ).whole()
    assert head.first("x-amzn-y") == "1"
    assert [
        {headers[":event-type"]: json.loads(payload)} for headers, payload in messages(body)
    ] == events


def test_S06_an_exception_among_the_events_becomes_an_exception_message(pumped):
    def events():
        yield {"chunk": {"bytes": b"1"}}
        raise EventStreamError(
            {"Error": {"Code": "modelStreamErrorException", "Message": "broke"}},
            "InvokeModelWithResponseStream",
        )

    _, body = pumped.open(Boto3Upstream(Handmade(events())), call(Operation.INVOKE_STREAM)).whole()
    (_, _), (headers, payload) = messages(body)
    assert headers[":message-type"] == "exception"
    assert headers[":exception-type"] == "modelStreamErrorException"
    assert json.loads(payload) == {"message": "broke"}
