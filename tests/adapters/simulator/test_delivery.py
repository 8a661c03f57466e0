"""When and in what portions the bytes come: pace, gate, batches, chunks, replays, aborts."""

import base64
import itertools
import json
import socket

import pytest
import urllib3
from botocore.eventstream import EventStreamBuffer
from botocore.exceptions import ClientError, EventStreamError
from hypothesis import given
from hypothesis import strategies as st

from bedrock_proxy_adapters.simulator import CallTimeout, Fault, Replay, Script
from bedrock_proxy_adapters.simulator.pytest_plugin import bedrock_simulator  # noqa: F401

BODY = json.dumps(
    {
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 400,
        "messages": [{"role": "user", "content": "hello there"}],
    }
)


def chunks_on_the_wire(simulator, path=None):
    """The HTTP chunks of one streamed answer, as they were framed."""
    path = path or "/model/anthropic.claude-v3/invoke-with-response-stream"
    with urllib3.PoolManager() as pool:
        reply = pool.request("POST", simulator.url + path, body=BODY, preload_content=False)
        return list(reply.read_chunked())


def frames_in(data):
    buffer = EventStreamBuffer()
    buffer.add_data(data)
    return list(buffer)


def test_one_event_is_one_http_chunk(simulator):
    chunks = chunks_on_the_wire(simulator)
    assert [len(frames_in(chunk)) for chunk in chunks] == [1] * len(chunks)
    assert simulator.calls[0].events_written == len(chunks)


def test_a_batch_is_one_http_chunk(simulator):
    simulator.script(text="one two three four", batch=3)
    chunks = chunks_on_the_wire(simulator)
    assert [len(frames_in(chunk)) for chunk in chunks] == [3, 3, 3]


def test_a_stall_never_falls_inside_a_batch(simulator):
    simulator.script(text="one two three four", batch=3, stall_after=4, stall=0.05)
    chunks = chunks_on_the_wire(simulator)
    assert [len(frames_in(chunk)) for chunk in chunks] == [3, 1, 3, 2]
    times = simulator.calls[0].written_at
    assert times[4] - times[3] >= 0.05


def test_the_bytes_are_cut_at_the_sizes_asked_for_and_stay_the_same(simulator):
    whole = b"".join(chunks_on_the_wire(simulator))
    simulator.script(chunk_sizes=(1, 37))
    chunks = chunks_on_the_wire(simulator)
    assert {len(chunk) for chunk in chunks[:-1]} == {1, 37}
    assert b"".join(chunks) == whole
    simulator.calls[1].wait_finished()
    assert simulator.calls[1].events_written == len(frames_in(whole))


def test_random_sizes_come_from_the_seed(simulator):
    simulator.script(chunk_seed=7, times=2)
    simulator.script(chunk_seed=8)
    sizes = [[len(chunk) for chunk in chunks_on_the_wire(simulator)] for _ in range(3)]
    assert sizes[0] == sizes[1] != sizes[2]
    assert sum(sizes[0]) == sum(sizes[2])


def test_events_are_paced_and_their_times_known(simulator, call):
    simulator.script(text="one two three", pace=0.02)
    list(call.stream())
    times = simulator.calls[0].written_at
    assert len(times) == 8
    assert all(b - a >= 0.015 for a, b in itertools.pairwise(times))


def test_the_head_can_be_late_and_the_first_event_too(simulator, call):
    import time

    simulator.script(delay=0.1, first_event_delay=0.1)
    before = time.monotonic()
    stream = call.stream()
    head = time.monotonic()
    list(stream)
    assert head - before >= 0.1
    assert simulator.calls[0].written_at[0] - before >= 0.2


def test_a_gate_lets_event_after_event_through(simulator, call):
    simulator.script(text="one two", gate=True)
    stream = call.converse_stream()
    received = simulator.calls[0]
    with pytest.raises(CallTimeout):
        received.wait_events(1, timeout=0.05)
    events = iter(stream)
    received.release()
    assert "messageStart" in next(events)
    with pytest.raises(CallTimeout):
        received.wait_events(2, timeout=0.05)
    received.release(2)
    assert [next(events)["contentBlockDelta"]["delta"]["text"] for _ in range(2)] == ["one", " two"]
    assert received.events_written == 3
    received.release(100)
    assert len(list(events)) == 3
    received.wait_finished()


def test_a_caller_that_closes_the_stream_is_seen_to_leave(simulator, call):
    simulator.script(events=50, pace=0.01)
    stream = call.stream()
    next(iter(stream))
    stream.close()
    received = simulator.calls[0]
    received.wait_aborted()
    assert received.aborted
    assert not received.finished
    assert received.events_written < 50


def test_a_caller_that_reads_to_the_end_did_not_leave(simulator, call):
    list(call.stream())
    simulator.calls[0].wait_finished()
    assert not simulator.calls[0].aborted


def test_a_reader_that_stops_reading_stops_the_writer(simulator):
    simulator.script(text="x" * 4000, events=4000)
    host, port = simulator.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(
            b"POST /model/amazon.nova-lite-v1%3A0/converse-stream HTTP/1.1\r\nHost: x\r\n"
            b"Content-Length: 15\r\n\r\n" + b'{"messages":[]}'
        )
        (received,) = simulator.wait_calls(1)
        received.wait_events(1)
        with pytest.raises(CallTimeout):
            received.wait_finished(timeout=0.3)
        assert received.events_written < 4000
    received.wait_aborted()


def test_the_number_of_text_events_can_be_chosen(simulator, call):
    for wanted in (1, 3, 100):
        simulator.script(text="one two three four", events=wanted)
        deltas = [event for event in call.converse_stream() if "contentBlockDelta" in event]
        assert len(deltas) == wanted


def test_pieces_are_sent_as_given(simulator, call):
    pieces = ("a\u2028b", "", " c\x0bd", "\U0001f600")
    simulator.script(pieces=pieces)
    deltas = [e["contentBlockDelta"] for e in call.converse_stream() if "contentBlockDelta" in e]
    assert tuple(delta["delta"]["text"] for delta in deltas) == pieces


def test_scripted_counts_and_stop_reason_are_reported(simulator, call):
    simulator.script(input_tokens=1234, output_tokens=0, stop_reason="content_filtered")
    reply = call.converse()
    assert reply["usage"] == {"inputTokens": 1234, "outputTokens": 0, "totalTokens": 1234}
    assert reply["stopReason"] == "content_filtered"


def test_the_default_answer_echoes_the_prompt_and_is_the_same_every_time(call):
    first, second = call.invoked(), call.invoked()
    assert first == second
    assert first["content"][0]["text"].startswith("You said: hello there ")
    assert first["usage"]["output_tokens"] == len(first["content"][0]["text"].split())


def test_padding_is_there_unless_it_is_switched_off(simulator):
    for padded in (True, False):
        simulator.script(padding=padded)
        payloads = [
            json.loads(frame.payload)
            for frame in frames_in(b"".join(chunks_on_the_wire(simulator)))
        ]
        assert all(("p" in payload) == padded for payload in payloads)
    assert [list(payload) for payload in payloads] == [["bytes"]] * len(payloads)


def test_a_stream_has_bedrocks_headers(call, client):
    reply = client.invoke_model_with_response_stream(modelId="anthropic.claude-v3", body=BODY)
    headers = reply["ResponseMetadata"]["HTTPHeaders"]
    assert headers["content-type"] == "application/vnd.amazon.eventstream"
    assert headers["x-amzn-bedrock-content-type"] == "application/json"
    assert reply["contentType"] == "application/json"
    list(reply["body"])


def test_recorded_frames_are_replayed_byte_for_byte_and_can_be_faulted(simulator, call):
    recorded = b"".join(chunks_on_the_wire(simulator))
    head = (("content-type", "application/vnd.amazon.eventstream"),)
    simulator.script(replay=Replay(recorded, 200, head), chunk_sizes=(37,))
    chunks = chunks_on_the_wire(simulator)
    assert b"".join(chunks) == recorded
    assert len(chunks[0]) == 37
    simulator.script(replay=Replay(recorded, 200, head), faults=(Fault("exception", 2),))
    delivered = []
    with pytest.raises(EventStreamError):
        for event in call.stream():
            delivered.append(event)
    assert len(delivered) == 2


def test_a_recorded_error_is_replayed_with_its_status_and_headers(simulator, call):
    encoded = base64.b64encode(b'{"message":"recorded"}').decode()
    simulator.script(
        {
            "replay": {
                "body_base64": encoded,
                "status": 429,
                "headers": {
                    "Content-Type": "application/json",
                    "x-amzn-errortype": "ThrottlingException:http://x/",
                },
            }
        }
    )
    with pytest.raises(ClientError, match="recorded") as failure:
        call.invoke()
    assert failure.value.response["Error"]["Code"] == "ThrottlingException"


def test_the_fixture_serves_and_remembers_what_it_received(bedrock_simulator):  # noqa: F811
    client = bedrock_simulator.client()
    client.invoke_model(modelId="anthropic.claude-v3", body=BODY)["body"].read()
    (received,) = bedrock_simulator.calls
    assert received.operation == "invoke"
    assert received.body == BODY.encode()
    assert received.header("Authorization").startswith("AWS4-HMAC-SHA256 Credential=simulated/")
    assert received.header("x-nothing") is None
    assert received.received_at > 1_700_000_000
    assert received.status == 200


@given(data=st.binary(max_size=200), sizes=st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_cutting_bytes_anew_never_changes_them(data, sizes):
    from bedrock_proxy_adapters.simulator.timeline import Write, steps

    events = [data[:70], data[70:]]
    made = steps(events, Script(chunk_sizes=tuple(sizes)))
    assert all(isinstance(step, Write) for step in made)
    assert b"".join(step.data for step in made) == data
