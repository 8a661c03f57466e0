"""
The streaming Lambda host against a Runtime API on a loopback socket: its bytes, its order,
and what it does when something goes wrong.
"""

import base64
import contextlib
import gc
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.core.test_native_faults import frames_of
from tests.flows import MODEL, World, claude, exception
from tests.hosts.runtime_api_emulator import Emulator, Told
from tests.hosts.test_api_gateway import (
    SHAPES,
    event,
    headers_to,
    stalled,
    whole,
    with_path,
)

from bedrock_proxy.errors import Code, ConfigurationError, ProxyError
from bedrock_proxy.rules import Rules
from bedrock_proxy.usage import Basis, Outcome
from bedrock_proxy_adapters.hosts import lambda_runtime
from bedrock_proxy_adapters.hosts.lambda_runtime import Runtime
from bedrock_proxy_adapters.hosts.runtime_api import RuntimeApiError
from bedrock_proxy_adapters.proxy import Proxy

STREAMING = ["function_url", "rest"]
WHOLE = sorted(set(SHAPES) - set(STREAMING))


@contextlib.contextmanager
def running(
    world: World,
    *,
    buffered: bool = False,
    concurrency: int = 1,
    rules: Rules | None = None,
    write_timeout: float = 120.0,
) -> Iterator[tuple[Emulator, Runtime]]:
    """The loop over scripted ports, in a thread; stopped, and with nothing left, at the end."""
    ports: Any = world
    proxy = Proxy(
        store=ports, upstream=ports, telemetry=ports, rules=rules, write_timeout=write_timeout
    )
    with Emulator() as emulator:
        runtime = Runtime(proxy, emulator.address, buffered=buffered, concurrency=concurrency)
        thread = threading.Thread(target=runtime.run, daemon=True)
        thread.start()
        try:
            yield emulator, runtime
        finally:
            runtime.stop()
            thread.join(30)
        assert not thread.is_alive()
        assert proxy.under_way == 0


def ask(world: World, found: Any, **more: Any) -> Told:
    """One event's answer, once the runtime asks for the next event."""
    options = {k: more.pop(k) for k in ("rules", "buffered", "write_timeout") if k in more}
    with running(world, **options) as (emulator, _):
        emulator.until_idle()
        told = emulator.invoke(found, **more).told().wait()
        emulator.until_idle()
        return told


# --- the wire ---------------------------------------------------------------------------------

SSE_HEAD = (
    b'{"statusCode":200,"headers":{"content-type":"text/event-stream",'
    b'"cache-control":"no-cache","x-accel-buffering":"no",'
    b'"x-request-id":"00000000-0000-4000-8000-000000000001"}}' + bytes(8)
)


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


def test_a_streamed_answer_is_these_bytes() -> None:
    told = ask(World().answers(claude()), event("function_url"))
    assert told.head == (
        b"POST /2018-06-01/runtime/invocation/00000000-0000-4000-8000-000000000001/response "
        b"HTTP/1.1\r\n"
        b"Host: " + told.headers["host"].encode() + b"\r\n"
        b"Lambda-Runtime-Function-Response-Mode: streaming\r\n"
        b"Content-Type: application/vnd.awslambda.http-integration-response\r\n"
        b"Transfer-Encoding: chunked\r\n"
        b"Trailer: Lambda-Runtime-Function-Error-Type\r\n"
        b"Trailer: Lambda-Runtime-Function-Error-Body\r\n"
        b"\r\n"
    )
    hel, lo = b'data: {"content": "Hel"}\n\n', b'data: {"content": "lo"}\n\n'
    assert bytes(told.raw) == (
        chunked(SSE_HEAD, hel, lo, b"data: [DONE]\n\n") + b"0\r\n\r\n"
    )  # fmt: skip


def test_an_answer_that_ends_in_an_error_is_these_bytes() -> None:
    told = ask(World().answers([*claude()[:3], exception("throttlingException")]), event("rest"))
    hel = b'data: {"content": "Hel"}\n\n'
    terminal = told.chunks[-1]
    assert terminal.startswith(b"event: error\ndata: ")
    error = json.loads(terminal.partition(b"data: ")[2])
    assert error["code"] == "upstream_throttled"
    body = {"errorMessage": error["error"], "errorType": "Function.UpstreamThrottled"}
    said = json.dumps({**body, "stackTrace": []}, separators=(",", ":")).encode()
    assert bytes(told.raw) == (
        chunked(SSE_HEAD, hel, terminal)
        + b"0\r\nLambda-Runtime-Function-Error-Type: Function.UpstreamThrottled\r\n"
        + b"Lambda-Runtime-Function-Error-Body: "
        + base64.b64encode(said)
        + b"\r\n\r\n"
    )


@pytest.mark.parametrize("name", STREAMING)
def test_a_stream_is_server_sent_events_where_the_front_can_stream(name: str) -> None:
    world = World().answers(claude())
    told = ask(world, event(name))
    assert told.said == b'data: {"content": "Hel"}\n\ndata: {"content": "lo"}\n\ndata: [DONE]\n\n'
    assert (told.whole, told.trailers) == (True, {})
    assert (world.row.outcome, world.row.token_count) == (Outcome.OK, 18)
    assert world.row.request_id == told.prelude["headers"]["x-request-id"]


@pytest.mark.parametrize("name", WHOLE)
def test_a_front_that_cannot_stream_gets_the_whole_answer(name: str) -> None:
    told = ask(World().answers(claude()), event(name))
    assert told.headers["content-type"] == "application/json"
    answer = json.loads(told.body)
    assert json.loads(answer["body"])[-1] == {"done": True}


@pytest.mark.parametrize("name", SHAPES)
def test_in_buffered_mode_every_front_gets_the_whole_answer(name: str) -> None:
    told = ask(World().answers(claude()), event(name), buffered=True)
    assert json.loads(json.loads(told.body)["body"])[-1] == {"done": True}


@pytest.mark.parametrize("name", STREAMING)
def test_bedrocks_own_frames_pass_byte_for_byte(name: str) -> None:
    found = with_path(name, f"/model/{MODEL}/invoke-with-response-stream")
    told = ask(World().answers(claude()), found)
    assert told.said == b"".join(claude())
    assert told.prelude["headers"]["content-type"] == "application/vnd.amazon.eventstream"


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ({"source": "aws.events"}, 400),
        (with_path("function_url", "/nowhere"), 404),
        (headers_to(event("function_url"), authorization="Basic x"), 401),
    ],
)
def test_there_is_always_a_prelude(found: Any, status: int) -> None:
    told = ask(World(), found)
    assert told.prelude["statusCode"] == status
    assert (told.whole, told.trailers) == (True, {})
    assert "content-length" not in told.prelude.get("headers", {})


def test_a_head_alone_is_a_prelude_and_no_body() -> None:
    found = with_path("function_url", "/healthz")
    found["requestContext"]["http"]["method"] = "HEAD"
    told = ask(World(), found)
    assert (told.prelude["statusCode"], told.said, told.whole) == (200, b"", True)


def test_every_invocation_id_is_echoed() -> None:
    told = ask(World().answers(claude()), event("rest"), echo="inv-7")
    assert told.headers["lambda-runtime-invocation-id"] == "inv-7"
    assert ask(World(), b"no json", echo="inv-8").headers["lambda-runtime-invocation-id"] == "inv-8"
    told = ask(World().answers(claude()), event("alb"), echo="inv-9")
    assert told.headers["lambda-runtime-invocation-id"] == "inv-9"


def test_the_trace_reaches_the_aws_clients() -> None:
    try:
        ask(World().answers(claude()), event("rest"), trace_id="Root=1-5bef4de7-ad49b0e87f6ef6c8")
        assert os.environ["_X_AMZN_TRACE_ID"] == "Root=1-5bef4de7-ad49b0e87f6ef6c8"
    finally:
        os.environ.pop("_X_AMZN_TRACE_ID", None)


# --- order and time ---------------------------------------------------------------------------


def test_each_piece_is_on_the_wire_before_the_model_says_the_next() -> None:
    world, spoken = World(), threading.Event()
    frames = claude()
    world.answers([*frames[:3], lambda: spoken.wait(30), *frames[3:]])
    with running(world) as (emulator, _):
        told = emulator.invoke(event("function_url")).told()
        told.wait_for(b"Hel")
        assert b"lo" not in told.body
        spoken.set()
        assert told.wait().said.endswith(b"[DONE]\n\n")


def test_the_bill_is_settled_after_the_last_byte_and_before_the_next_event() -> None:
    order: list[str] = []

    class Watched(World):
        def finish(self, record: Any, lease: Any) -> Any:
            told.append(invoked.told())
            told[0].wait_for(b"[DONE]")
            assert emulator.polls == 1
            order.append("settled")
            return super().finish(record, lease)

    world, told = Watched().answers(claude()), []
    with running(world) as (emulator, _):
        emulator.until_idle()
        invoked = emulator.invoke(event("function_url"))
        emulator.until_idle()
        assert order == ["settled"]
        assert told[0].whole


def test_a_whole_answer_ends_before_it_is_settled() -> None:
    class Watched(World):
        def finish(self, record: Any, lease: Any) -> Any:
            ended.append(invoked.told().wait().whole)
            return super().finish(record, lease)

    world, ended = Watched(), []
    world.replies = whole(100).replies
    with running(world) as (emulator, _):
        emulator.until_idle()
        invoked = emulator.invoke(with_path("function_url", f"/model/{MODEL}/invoke"))
        emulator.until_idle()
    assert ended == [True]
    assert world.row.outcome == Outcome.OK


@pytest.mark.parametrize("name", STREAMING)
def test_S18_a_stream_ends_in_a_timeout_error_and_is_settled_before_the_function_is_killed(
    name: str,
) -> None:
    cut_short(name)


@pytest.mark.slow
@pytest.mark.parametrize("run", range(100))
def test_S18_a_hundred_times(run: int) -> None:
    cut_short(STREAMING[run % 2])


def cut_short(name: str) -> None:
    world = stalled(*claude()[:3])
    with running(world) as (emulator, _):
        emulator.until_idle()
        invoked = emulator.invoke(event(name), seconds=1.0)
        told = invoked.told().wait()
        emulator.until_idle()
        assert time.time() < invoked.deadline
    first, terminal = told.chunks[1:]
    assert first == b'data: {"content": "Hel"}\n\n'
    assert json.loads(terminal.partition(b"data: ")[2])["code"] == "timeout"
    assert told.trailers["Lambda-Runtime-Function-Error-Type"] == "Function.Timeout"
    assert (world.row.outcome, world.row.basis) == (Outcome.TIMEOUT, Basis.PARTIAL)
    assert world.faults == []


def test_S18_before_the_first_byte_it_is_a_504() -> None:
    world = stalled()
    told = ask(world, event("rest"), seconds=0.6)
    assert (told.prelude["statusCode"], json.loads(told.said)["code"]) == (504, "timeout")
    assert world.row.outcome == Outcome.TIMEOUT


def test_S18_a_native_stream_ends_in_an_exception_frame() -> None:
    found = with_path("function_url", f"/model/{MODEL}/invoke-with-response-stream")
    frames = frames_of(ask(stalled(*claude()[:3]), found, seconds=0.6).said)
    assert [f.raw for f in frames[:-1]] == claude()[:3]
    assert frames[-1].text(":exception-type") == "modelTimeoutException"


def test_a_timer_does_not_outlive_its_invocation() -> None:
    with running(World()) as (emulator, _):
        emulator.until_idle()
        before = threading.active_count()
        for _ in range(5):
            emulator.invoke(with_path("rest", "/healthz", httpMethod="GET")).told().wait()
            emulator.until_idle()
        until = time.monotonic() + 20
        while threading.active_count() > before:
            assert time.monotonic() < until, "a timer was left"
            time.sleep(0.01)


# --- faults -----------------------------------------------------------------------------------


def large(count: int = 400) -> list[bytes]:
    return claude(pieces=["x" * 30_000] * count)


def test_S14_a_reader_that_stops_is_given_up_and_billed() -> None:
    world = World().answers(large())
    with running(world, write_timeout=0.3) as (emulator, _):
        emulator.until_idle()
        invoked = emulator.invoke(event("function_url"), read=100_000)
        emulator.until_idle()
        assert (world.row.outcome, world.row.token_count) == (Outcome.CLIENT_GONE, 18)
        invoked.resumed.set()
        assert not invoked.told().wait().whole
        world.answers(claude())
        assert emulator.invoke(event("function_url")).told().wait().whole
        emulator.until_idle()


def test_S14_a_reader_that_stops_leaves_time_to_settle() -> None:
    world = World().answers(large())
    with running(world) as (emulator, _):
        emulator.until_idle()
        invoked = emulator.invoke(event("function_url"), read=100_000, seconds=1.2)
        emulator.until_idle()
        assert time.time() < invoked.deadline
        assert world.row.outcome in {Outcome.TIMEOUT, Outcome.CLIENT_GONE}
        invoked.resumed.set()


def test_S01_a_runtime_api_that_hangs_up_is_a_client_that_left() -> None:
    world = World().answers(large())
    with running(world) as (emulator, _):
        emulator.until_idle()
        emulator.invoke(event("function_url"), leaves=50_000)
        emulator.until_idle()
        assert (world.row.outcome, world.row.basis) == (Outcome.CLIENT_GONE, Basis.REPORTED)


@pytest.mark.parametrize("status", [403, 410, 413])
@pytest.mark.parametrize("name", ["function_url", "alb"])
def test_an_answer_that_is_not_taken_is_logged_and_the_next_event_served(
    status: int, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World().answers(claude()).answers(claude())
    with running(world) as (emulator, _):
        emulator.invoke(event(name), status=status).told().wait()
        told = emulator.invoke(event("function_url")).told().wait()
        assert told.said.endswith(b"[DONE]\n\n")
        emulator.until_idle()
    assert [str(status) in record.getMessage() for record in caplog.records] == [True]
    assert len(world.rows) == 2


@pytest.mark.parametrize("name", ["function_url", "alb"])
def test_a_broken_container_is_left_at_once_and_settled(name: str) -> None:
    ports: Any = World().answers(claude())
    with Emulator() as emulator:
        runtime = Runtime(Proxy(store=ports, upstream=ports, telemetry=ports), emulator.address)
        emulator.invoke(event(name), status=500)
        with pytest.raises(RuntimeApiError, match="500"):
            runtime.run()
    assert ports.row.outcome == Outcome.OK


@pytest.mark.parametrize("statuses", [[403], [410, 403]])
def test_a_refused_next_is_asked_for_again(statuses: list[int]) -> None:
    world = World().answers(claude())
    with Emulator() as emulator:
        ports: Any = world
        emulator.next_statuses = statuses
        runtime = Runtime(Proxy(store=ports, upstream=ports, telemetry=ports), emulator.address)
        thread = threading.Thread(target=runtime.run, daemon=True)
        thread.start()
        assert emulator.invoke(event("rest")).told().wait().whole
        runtime.stop()
        thread.join(30)


def test_a_runtime_api_that_is_not_there_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lambda_runtime, "_PAUSE", 0.001)
    ports: Any = World()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(RuntimeApiError):
        Runtime(Proxy(store=ports, upstream=ports, telemetry=ports), address).run()


def test_an_event_that_is_no_json_is_an_invocation_error() -> None:
    for raw in (b"{", b"\xff", b"[" * 200_000):
        told = ask(World(), raw)
        assert told.kind == "error"
        kind = told.headers["lambda-runtime-function-error-type"]
        assert kind == json.loads(told.body)["errorType"] == "Runtime.UnmarshalError"


def test_M20_an_event_that_does_not_arrive_whole_is_a_408() -> None:
    world = World()
    told = ask(world, event("rest"), rules=Rules(body_timeout=0.2), late=True)
    assert (told.prelude["statusCode"], json.loads(told.said)["code"]) == (408, "timeout")
    assert world.store_calls == 0


@pytest.mark.parametrize("buffered", [False, True])
def test_a_defect_of_ours_is_an_invocation_error_and_the_next_event_is_served(
    buffered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World().answers(claude())

    def broken(*_: Any) -> Any:
        raise LookupError("a secret")

    with running(world, buffered=buffered) as (emulator, _):
        emulator.until_idle()
        with monkeypatch.context() as patch:
            target = "api_gateway" if buffered else "lambda_runtime"
            patch.setattr(f"bedrock_proxy_adapters.hosts.{target}.drive", broken)
            told = emulator.invoke(event("rest")).told().wait()
            emulator.until_idle()
        assert told.kind == "error"
        assert told.headers["lambda-runtime-function-error-type"] == "Runtime.UnhandledException"
        assert b"secret" not in told.body
        assert [type(fault) for fault in world.faults] == [LookupError]
        assert emulator.invoke(event("rest")).told().wait().kind == "response"


@pytest.mark.parametrize("code", Code)
def test_every_code_has_a_name_in_lambdas_grammar(code: Code) -> None:
    kind = lambda_runtime._fault(ProxyError("x", code)).kind
    assert re.fullmatch(r"Function\.[A-Z][a-zA-Z]+", kind)


# --- malformed events -------------------------------------------------------------------------


@pytest.mark.parametrize("name", STREAMING)
def test_M80_a_body_that_is_no_base64_is_a_400(name: str) -> None:
    world = World()
    told = ask(world, event(name, body="e30=!", isBase64Encoded=True))
    assert told.prelude["statusCode"] == 400
    assert json.loads(told.said)["code"] == "invalid_request"
    assert world.calls == []


@pytest.mark.parametrize("name", STREAMING)
def test_M81_null_bodies_and_null_or_upper_case_headers_are_handled(name: str) -> None:
    assert ask(World(), event(name, body=None)).prelude["statusCode"] == 400
    bare = {k: None if isinstance(v, dict) and k != "requestContext" else v
            for k, v in event(name).items()}  # fmt: skip
    assert ask(World(), bare).prelude["statusCode"] == 401
    found = event(name)
    for key in ("headers", "multiValueHeaders"):
        if found.get(key):
            found[key] = {n.upper(): v for n, v in found[key].items()}
    assert ask(World().answers(claude()), found).prelude["statusCode"] == 200


@pytest.mark.parametrize("name", WHOLE)
def test_M80_and_M81_hold_for_the_fronts_that_get_whole_answers(name: str) -> None:
    for body, encoded in (("e30=!", True), (None, False)):
        world = World()
        told = ask(world, event(name, body=body, isBase64Encoded=encoded))
        assert (json.loads(told.body)["statusCode"], world.calls) == (400, [])
    bare = {k: None if isinstance(v, dict) and k != "requestContext" else v
            for k, v in event(name).items()}  # fmt: skip
    assert json.loads(ask(World(), bare).body)["statusCode"] == 401


# --- several, and the end ---------------------------------------------------------------------


def test_as_many_events_at_once_as_the_environment_allows() -> None:
    world, meeting = World(), threading.Barrier(4)
    frames = claude()
    for _ in range(4):
        world.answers([*frames[:3], lambda: meeting.wait(30), *frames[3:]])
    with running(world, concurrency=4) as (emulator, _):
        invoked = [emulator.invoke(event("function_url")) for _ in range(4)]
        assert all(each.told().wait().said.endswith(b"[DONE]\n\n") for each in invoked)
        for _ in range(8):
            emulator.until_idle()
    assert len({row.request_id for row in world.rows}) == 4


def test_S20_what_is_under_way_when_it_is_stopped_ends_in_one_error_and_is_settled() -> None:
    world = stalled(*claude()[:3])
    with running(world) as (emulator, runtime):
        told = emulator.invoke(event("function_url")).told()
        told.wait_for(b"Hel")
        runtime.stop()
        error = json.loads(told.wait().chunks[-1].partition(b"data: ")[2])
        assert error["code"] == "server_shutdown"
    assert world.row.outcome == Outcome.SHUTDOWN


def test_a_connection_is_kept_and_each_write_leaves_at_once() -> None:
    world = World()
    with running(world) as (emulator, runtime):
        emulator.until_idle()
        for _ in range(5):
            emulator.invoke(with_path("rest", "/healthz", httpMethod="GET")).told().wait()
            emulator.until_idle()
        assert len(emulator._sockets) == 1
        ours = runtime._loops[0].api._connection.sock
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_needs_an_event_loop_is_refused_when_the_host_is_built() -> None:
    class Native(World):
        kind = "native"

    ports: Any = Native()
    with pytest.raises(ConfigurationError, match="event loop"):
        Runtime(Proxy(store=ports, upstream=ports), "127.0.0.1:1")


@pytest.mark.parametrize("handler", [lambda_runtime.DEFAULT_HANDLER, "app.mine"])
def test_the_collector_rests_while_we_load_and_is_a_handlers_own(
    handler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a handler of the user's own does with it while it loads stays done."""
    found: list[bool] = []

    def load(name: str) -> Proxy:
        assert name == handler
        found.append(gc.isenabled())
        gc.disable()
        ports: Any = World()
        return Proxy(store=ports, upstream=ports)

    monkeypatch.setenv("_HANDLER", handler)
    monkeypatch.setenv("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9")
    monkeypatch.setattr("sys.argv", ["lambda_runtime"])
    monkeypatch.setattr(lambda_runtime, "_named", load)
    monkeypatch.setattr(lambda_runtime, "log_faults_to_stderr", lambda: None)
    monkeypatch.setattr(lambda_runtime, "serve", lambda proxy, **_: found.append(gc.isenabled()))
    try:
        assert lambda_runtime.main() == 0
    finally:
        gc.unfreeze()
        gc.enable()
    ours = handler == lambda_runtime.DEFAULT_HANDLER
    assert found == ([False, True] if ours else [True, False])
