"""Every fault a script can ask for, as real boto3 meets it."""

import json
import socket

import pytest
from botocore import eventstream
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EventStreamError,
    ResponseStreamingError,
)
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from bedrock_proxy_adapters.simulator import ERROR_STATUS, STREAM_EXCEPTIONS, Fault

STREAMS = ["stream", "converse_stream"]


@pytest.fixture(params=STREAMS)
def events(request, call):
    """Starts a stream; the list fills as boto3 delivers, until it raises."""
    ask = getattr(call, request.param)

    def read(delivered):
        for event in ask():
            delivered.append(event)  # what came before the fault has to be seen

    return read


@pytest.mark.parametrize("code", sorted(ERROR_STATUS))
@pytest.mark.parametrize("ask", ["invoke", "stream", "converse", "converse_stream"])
def test_S04_an_error_before_the_stream_has_its_status_and_type(code, ask, simulator, call):
    simulator.script(error=code, error_message="because")
    with pytest.raises(ClientError) as failure:
        getattr(call, ask)()
    assert failure.value.response["Error"]["Code"] == code
    assert failure.value.response["Error"]["Message"] == "because"
    metadata = failure.value.response["ResponseMetadata"]
    assert metadata["HTTPStatusCode"] == ERROR_STATUS[code]
    assert metadata["RequestId"] == simulator.calls[0].request_id


def test_S04_an_error_is_the_modelled_exception_class(simulator, call, client):
    simulator.script(error="ThrottlingException")
    with pytest.raises(client.exceptions.ThrottlingException, match="Too many requests"):
        call.invoke()


def test_an_errors_status_can_be_any(simulator, call):
    simulator.script(error="OddException", error_status=418, headers=(("x-odd", "1"),))
    with pytest.raises(ClientError) as failure:
        call.invoke()
    metadata = failure.value.response["ResponseMetadata"]
    assert metadata["HTTPStatusCode"] == 418
    assert metadata["HTTPHeaders"]["x-odd"] == "1"


def test_every_nth_call_is_throttled(simulator, call):
    simulator.script(error="ThrottlingException", times=None, every=3)
    outcomes = []
    for _ in range(6):
        try:
            call.invoke()
        except ClientError:
            outcomes.append("throttled")
        else:
            outcomes.append("ok")
    assert outcomes == ["ok", "ok", "throttled"] * 2


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("name", STREAM_EXCEPTIONS)
def test_S05_S06_an_exception_frame_ends_the_stream(name, after, events, simulator):
    because = "because"
    simulator.script(faults=(Fault("exception", after, name=name, message=because),))
    delivered = []
    with pytest.raises(EventStreamError) as failure:
        events(delivered)
    if (name, simulator.calls[0].operation) == ("modelTimeoutException", "converse-stream"):
        name = because = ""  # ConverseStream does not model this one: boto3 tells nothing
    assert failure.value.response["Error"] == {"Code": name, "Message": because}
    assert len(delivered) == after


def test_S06_an_unmodelled_error_frame_ends_the_stream(events, simulator):
    simulator.script(faults=(Fault("error", 2, name="Boom", message="because"),))
    delivered = []
    with pytest.raises(EventStreamError) as failure:
        events(delivered)
    assert failure.value.response["Error"] == {"Code": "Boom", "Message": "because"}
    assert len(delivered) == 2


@pytest.mark.parametrize("at", [0, 1, 11, 12, 40, None])
@pytest.mark.parametrize("how", ["fin", "rst"])
def test_S07_a_cut_inside_a_frame_breaks_the_connection(how, at, events, simulator):
    simulator.script(faults=(Fault("cut", 3, at=at, how=how),))
    delivered = []
    with pytest.raises(ProtocolError) as failure:
        events(delivered)
    assert ("reset" in str(failure.value)) == (how == "rst")
    assert len(delivered) == 3
    simulator.calls[0].wait_finished()
    assert simulator.calls[0].events_written == 3
    assert not simulator.calls[0].aborted


@pytest.mark.parametrize("after", [0, 3, -1])
def test_S08_a_stream_can_end_without_its_stop_marker(after, events, simulator):
    simulator.script(text="one two three", faults=(Fault("end", after),))
    delivered = []
    events(delivered)
    whole = []
    simulator.script(text="one two three")
    events(whole)
    assert len(delivered) == (after if after >= 0 else len(whole) + after)


@pytest.mark.parametrize("kind", ["message_crc", "prelude_crc", "bit_flip"])
def test_S09_a_damaged_frame_is_a_checksum_mismatch(kind, events, simulator):
    simulator.script(faults=(Fault(kind, 3),))
    delivered = []
    with pytest.raises(eventstream.ChecksumMismatch):
        events(delivered)
    assert len(delivered) == 3


@pytest.mark.parametrize(
    ("total", "headers", "error"),
    [
        (2**31, None, eventstream.InvalidPayloadLength),
        (25 * 1024 * 1024, None, eventstream.InvalidPayloadLength),
        (None, 2**31, eventstream.InvalidHeadersLength),
        (15, None, eventstream.ChecksumMismatch),
        (0, None, Exception),
        (None, 5000, Exception),
    ],
)
def test_S10_hostile_lengths_reach_the_parser(total, headers, error, events, simulator):
    simulator.script(faults=(Fault("lengths", 3, total_length=total, headers_length=headers),))
    delivered = []
    with pytest.raises(error):
        events(delivered)
    assert len(delivered) == 3


@pytest.mark.parametrize("kind", ["unknown_event", "every_header_type"])
def test_S11_an_unknown_event_is_skipped_and_the_stream_goes_on(kind, events, simulator):
    simulator.script(text="one two three")
    simulator.script(text="one two three", faults=(Fault(kind, 3, name="noveltyEvent"),))
    plain, delivered = [], []
    events(plain)
    events(delivered)
    assert delivered == plain
    simulator.calls[1].wait_finished()
    assert simulator.calls[1].events_written == len(plain) + 1


def test_S11_boto3_does_not_know_the_unknown_header_type(events, simulator):
    simulator.script(faults=(Fault("unknown_header_type", 3),))
    with pytest.raises(KeyError, match="42"):
        events([])


def test_S12_bad_json_in_a_frame_leaves_boto3_an_empty_event(events, simulator):
    simulator.script(faults=(Fault("bad_json", 3),))
    delivered = []
    events(delivered)
    assert list(delivered[3].values()) == [{}]


def test_S12_bad_base64_in_a_frame_is_an_error(events, simulator):
    simulator.script(faults=(Fault("bad_base64", 3),))
    delivered = []
    with pytest.raises(Exception, match="padding"):
        events(delivered)
    assert len(delivered) == 3


def test_S12_bad_json_inside_good_base64(simulator, call):
    simulator.script(faults=(Fault("bad_inner_json", 3),))
    assert list(call.stream())[3]["chunk"]["bytes"] == b'{"type": '


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("ask", ["invoke", "stream", "converse", "converse_stream"])
def test_a_call_can_be_hung_up_on(ask, how, simulator, call):
    simulator.script(hang_up=how)
    with pytest.raises(ConnectionClosedError):
        getattr(call, ask)()
    simulator.calls[0].wait_finished()


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_whole_answer_can_be_cut(how, simulator, call):
    simulator.script(faults=(Fault("cut", at=10, how=how),))
    with pytest.raises(ResponseStreamingError):
        call.invoke()["body"].read()


def test_a_whole_answer_can_be_broken_json(simulator, call):
    simulator.script(faults=(Fault("bad_json"),))
    body = call.invoke()["body"].read()
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)
    assert json.loads(body + b"}")["type"] == "message"


def test_faults_add_up(events, simulator):
    simulator.script(faults=(Fault("exception", 4), Fault("unknown_event", 2)))
    delivered = []
    with pytest.raises(EventStreamError):
        events(delivered)
    assert len(delivered) == 4
    simulator.calls[0].wait_finished()
    assert simulator.calls[0].events_written == 6


def test_S13_a_stall_goes_on_for_ever_and_the_callers_leaving_is_noticed(simulator, running, call):
    from botocore.config import Config

    simulator.script(stall_after=3)
    impatient = type(call)(running.client(Config(read_timeout=1)))
    stream = impatient.stream()
    delivered = []
    with pytest.raises(ReadTimeoutError):
        for event in stream:
            delivered.append(event)
    assert len(delivered) == 3
    stream.close()
    simulator.calls[0].wait_aborted()
    assert simulator.calls[0].events_written == 3
    assert not simulator.calls[0].finished


def test_S13_a_stall_of_some_seconds_passes(simulator, call):
    simulator.script(text="one two three", stall_after=3, stall=0.1)
    list(call.stream())
    times = simulator.calls[0].written_at
    assert times[3] - times[2] >= 0.1


def test_S13_a_stall_after_the_last_event(simulator, call):
    simulator.script(text="one", stall_after=99, stall=0.1)
    list(call.stream())
    simulator.calls[0].wait_finished()


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ("normal", [(2, 4)]),
        ("missing", []),
        ("zero", [(0, 0)]),
        ("twice", [(2, 4), (2, 4)]),
        ("cumulative", [(2, 2), (2, 4)]),
    ],
)
class TestUsage:
    def test_S15_S16_S17_in_converse_stream(self, usage, expected, simulator, call):
        simulator.script(text="a b c d", usage=usage)
        found = [e["metadata"] for e in call.converse_stream() if "metadata" in e]
        counts = [metadata.get("usage") for metadata in found]
        pairs = [(u["inputTokens"], u["outputTokens"]) for u in counts if u]
        assert pairs == expected

    def test_S15_S16_S17_in_claudes_stream(self, usage, expected, simulator, call):
        simulator.script(text="a b c d", usage=usage)
        chunks = call.streamed()
        told = [c["usage"] for c in chunks if c["type"] == "message_delta" and "usage" in c]
        assert told == [{"output_tokens": output} for _, output in expected]
        began = chunks[0]["message"].get("usage")
        assert (began and began["input_tokens"]) == (expected[-1][0] if expected else None)
        assert ("amazon-bedrock-invocationMetrics" in chunks[-1]) == bool(expected)

    @pytest.mark.parametrize(
        ("model", "body"),
        [
            ("meta.llama3-8b-instruct-v1:0", {"prompt": "hello there"}),
            ("amazon.titan-text-lite-v1", {"inputText": "hello there"}),
            ("mistral.mistral-7b-instruct-v0:2", {"prompt": "hello there"}),
            ("cohere.command-r-v1:0", {"message": "hello there"}),
            ("cohere.command-text-v14", {"prompt": "hello there", "stream": True}),
            ("us.deepseek.r1-v1:0", {"prompt": "hello there"}),
            ("openai.gpt-oss-20b-1:0", {"messages": [{"role": "user", "content": "a b"}]}),
            ("ai21.jamba-1-5-mini-v1:0", {"messages": [{"role": "user", "content": "a b"}]}),
        ],
    )
    def test_S15_S16_S17_in_invocation_metrics(self, usage, expected, model, body, simulator, call):
        simulator.script(text="a b c d", usage=usage)
        name = "amazon-bedrock-invocationMetrics"
        told = [chunk[name] for chunk in call.streamed(model, body) if name in chunk]
        assert [(m["inputTokenCount"], m["outputTokenCount"]) for m in told] == expected

    @pytest.mark.parametrize(
        ("model", "of", "names"),
        [
            (
                "amazon.nova-lite-v1:0",
                lambda chunk: chunk.get("metadata", {}).get("usage"),
                ("inputTokens", "outputTokens"),
            ),
            (
                "openai.gpt-oss-20b-1:0",
                lambda chunk: chunk.get("usage"),
                ("prompt_tokens", "completion_tokens"),
            ),
        ],
    )
    def test_S15_S16_S17_in_the_models_own_usage(
        self, usage, expected, model, of, names, simulator, call
    ):
        body = {
            "messages": [{"role": "user", "content": [{"text": "hello there"}]}],
            "stream_options": {"include_usage": True},
        }
        simulator.script(text="a b c d", usage=usage)
        told = [of(chunk) for chunk in call.streamed(model, body) if of(chunk)]
        assert [tuple(u[name] for name in names) for u in told] == expected

    def test_S15_S16_in_whole_answers(self, usage, expected, simulator, call):
        simulator.script(text="a b c d", usage=usage, times=2)
        last = expected[-1] if expected else None
        headers = call.invoke()["ResponseMetadata"]["HTTPHeaders"]
        count = headers.get("x-amzn-bedrock-output-token-count")
        assert count == (None if last is None else str(last[1]))
        told = call.converse().get("usage")
        assert (told and told["outputTokens"]) == (None if last is None else last[1])


def test_a_cut_never_ends_the_chunked_body(simulator):
    simulator.script(text="one two", faults=(Fault("cut", 2, at=5),))
    raw = exchange(simulator.url, "converse-stream", '{"messages":[]}')
    assert b"transfer-encoding: chunked" in raw.lower()
    assert not raw.endswith(b"0\r\n\r\n")
    simulator.script(text="one two")
    assert exchange(simulator.url, "converse-stream", '{"messages":[]}').endswith(b"0\r\n\r\n")


def test_a_cut_body_is_shorter_than_its_length(simulator):
    simulator.script(faults=(Fault("cut", at=10),))
    head, _, body = exchange(simulator.url, "converse", '{"messages":[]}').partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length")
    )
    assert len(body) == 10 < length


def exchange(url, operation, body):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            f"POST /model/amazon.nova-lite-v1%3A0/{operation} HTTP/1.1\r\nHost: {host}\r\n"
            f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        received = b""
        while data := connection.recv(65536):
            received += data
        return received
