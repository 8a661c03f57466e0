"""Streams on real sockets: each event as it comes, pings in silence, others not delayed."""

import http.client
import json
import threading
import time

import pytest
from tests.running import RawClient, Running, body, post, sse_text, wait_for

from bedrock_proxy.usage import Basis, Outcome, State
from bedrock_proxy_adapters.simulator import Fault, Script


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
def test_the_client_has_event_n_before_the_model_sends_event_n_plus_1(
    host: Running, accept: str
) -> None:
    pieces = tuple(f"piece-{n}." for n in range(12))
    host.simulator.script(Script(pieces=pieces, gate=True))
    with RawClient(host, Accept=accept) as client:
        call = host.simulator.wait_calls(1)[0]
        call.release(2)  # message_start, content_block_start
        for n, piece in enumerate(pieces):
            call.release()
            client.read_until(piece.encode())
            call.wait_events(n + 3)
            assert n + 3 == call.events_written, "nothing more has been sent"
        call.release(3)
        client.read_until(b'{"done": true}' if accept == "application/json" else b"[DONE]")
        assert Outcome.OK == host.row(client.request_id).outcome


@pytest.mark.parametrize(
    ("silence", "pings"), [(17.0, 1), pytest.param(40.0, 2, marks=pytest.mark.slow)]
)
def test_S13_silence_brings_a_ping_every_fifteen_seconds_and_then_the_rest(
    uvicorn_host: Running, gunicorn_host: Running, silence: float, pings: int
) -> None:
    def silent(host: Running) -> None:
        host.simulator.script(Script(pieces=("before ", "after"), stall_after=3, stall=silence))
        status, headers, said = post(host, timeout=100)
        assert 200 == status
        assert pings == said.count(b": ping\n\n")
        assert said.index(b"before") < said.index(b": ping") < said.index(b"after")
        assert "before after" == sse_text(said)
        results[host.name] = host.row(headers["x-request-id"]).outcome

    results: dict[str, Outcome] = {}
    for each in (uvicorn_host, gunicorn_host):
        each.simulator.reset()
        each.simulator.default(None)
    threads = [
        threading.Thread(target=silent, args=(each,)) for each in (uvicorn_host, gunicorn_host)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {"uvicorn": Outcome.OK, "gunicorn": Outcome.OK} == results


def test_forty_stalled_streams_do_not_delay_another_request(host: Running) -> None:
    host.simulator.default(Script(pieces=("a", "b"), stall_after=3, stall=8.0))
    stalled = [RawClient(host) for _ in range(40)]
    for client in stalled:
        client.read_until(b'"a"')
    host.simulator.default(None)
    took: list[float] = []
    for _ in range(5):
        begun = time.monotonic()
        assert 200 == post(host, body(stream=False))[0]
        took.append(time.monotonic() - begun)
    # Seven seconds were measured where streams and the store shared their threads.
    assert min(took) < 1.0
    for client in stalled:
        client.leave()


FAULTS = {
    "S06 exception": (
        Fault("exception", after=4, name="modelStreamErrorException"),
        "upstream_error",
    ),
    "S07 cut in a frame": (Fault("cut", after=4, at=50), "upstream_torn"),
    "S07 reset in a frame": (Fault("cut", after=4, at=50, how="rst"), "upstream_torn"),
    "S08 no stop marker": (Fault("end", after=4), "upstream_torn"),
    "S09 message checksum": (Fault("message_crc", after=4), "upstream_torn"),
    "S09 prelude checksum": (Fault("prelude_crc", after=4), "upstream_torn"),
    "S12 bad json": (Fault("bad_json", after=4), "upstream_torn"),
    "S12 bad base64": (Fault("bad_base64", after=4), "upstream_torn"),
}


@pytest.mark.parametrize(("fault", "code"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_in_the_stream_is_one_terminal_error_and_one_partial_row(
    host: Running, fault: Fault, code: str
) -> None:
    # Paced, so that what came before the fault has left before it comes.
    host.simulator.script(Script(pieces=("Hel", "lo", "!"), faults=(fault,), pace=0.02))
    status, headers, said = post(host)
    assert 200 == status
    assert b"[DONE]" not in said
    assert 1 == said.count(b"event: error\n")
    error = json.loads(said.split(b"event: error\ndata: ")[1])
    assert (code, headers["x-request-id"]) == (error["code"], error["request_id"])
    assert "Hello".startswith(sse_text(said.partition(b"event: error")[0]))
    row = host.row(headers["x-request-id"])
    assert (Outcome.ERROR, code, Basis.PARTIAL) == (row.outcome, row.error_code, row.basis)
    assert 1 == row.attempts, "S24"


@pytest.mark.parametrize("stream", [True, False])
def test_S04_throttling_is_tried_again_and_then_told(host: Running, stream: bool) -> None:
    host.simulator.default(Script(error="ThrottlingException"))
    status, headers, said = post(host, body(stream))
    assert (429, "1") == (status, headers["retry-after"])
    assert "upstream_throttled" == json.loads(said)["code"]
    assert 3 == len(host.simulator.calls) == host.row(headers["x-request-id"]).attempts


def test_S05_an_exception_as_first_event_is_a_real_status(host: Running) -> None:
    host.simulator.default(
        Script(faults=(Fault("exception", after=0, name="validationException", message="Bad."),))
    )
    status, headers, said = post(host)
    assert (400, "Bad.") == (status, json.loads(said)["error"])
    assert 0 == host.row(headers["x-request-id"]).token_count


def test_S15_S16_S17_usage_missing_zero_or_twice(host: Running) -> None:
    def row_of(script: Script) -> tuple[Basis, State, int]:
        host.simulator.script(script)
        status, headers, said = post(host)
        assert 200 == status
        assert said.endswith(b"data: [DONE]\n\n")
        row = host.row(headers["x-request-id"])
        return row.basis, row.state, row.token_count

    assert (Basis.ESTIMATED, State.ESTIMATED) == row_of(Script(usage="missing"))[:2]
    assert (Basis.REPORTED, State.FINAL, 0) == row_of(Script(usage="zero"))
    once = row_of(Script(text="one two three"))
    assert once == row_of(Script(text="one two three", usage="twice"))
    assert once == row_of(Script(text="one two three", usage="cumulative"))


@pytest.mark.parametrize(
    "text", ["a\u2028b\u2029c\u0085d\ve\ff\x1cg\x1dh\x1ei\r\n\nj", "é😀漢字" * 30]
)
def test_S22_S23_text_arrives_as_it_was_whatever_is_in_it(host: Running, text: str) -> None:
    host.simulator.script(Script(pieces=(text, text), chunk_sizes=(7, 1, 3)))
    _, _, said = post(host)
    assert said.isascii()
    assert text * 2 == sse_text(said)


def test_one_connection_serves_many_requests(host: Running) -> None:
    connection = http.client.HTTPConnection(host.host, host.port, timeout=30)
    headers = {"Authorization": "Bearer " + _token(), "Content-Type": "application/json"}
    for n in range(6):
        connection.request("POST", "/bedrock", body(stream=n % 2 == 0), headers)
        reply = connection.getresponse()
        said = reply.read()
        assert (200, True) == (reply.status, bool(said)), said
    connection.close()


def test_a_plain_answer_has_a_length_and_its_row_follows(host: Running) -> None:
    host.simulator.script(Script(text="one two three", output_tokens=3, input_tokens=9))
    status, headers, said = post(host, body(stream=False))
    assert (200, str(len(said)), "application/json") == (
        status,
        headers["content-length"],
        headers["content-type"],
    )
    row = host.row(headers["x-request-id"])
    assert (9, 3, Outcome.OK) == (row.input_tokens, row.output_tokens, row.outcome)
    assert row.aws_request_id == host.simulator.calls[0].request_id


def test_nothing_is_left_open(host: Running) -> None:
    """After everything above: no lease, no request under way."""
    wait_for(lambda: not host.store.open_leases() or None, "open leases to end", 40)
    host.quiet()


def _token() -> str:
    from tests.running import TOKEN

    return TOKEN
