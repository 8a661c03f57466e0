"""When the way to Bedrock fails, when Bedrock does, and when we hang up."""

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import boto3
import pytest
from botocore import exceptions as botocore_exceptions
from botocore.config import Config
from tests.adapters.upstream.conftest import loops_upstream
from tests.adapters.upstream.scripted import SOON, answered, eventually, pumps

from bedrock_proxy.errors import Code, ConfigurationError, Unavailable
from bedrock_proxy.ports import (
    END,
    SILENCE,
    Operation,
    Trouble,
    UpstreamCall,
    UpstreamUnreachable,
)
from bedrock_proxy_adapters.upstream import connections, http1, pump
from bedrock_proxy_adapters.upstream.aio import AsyncUpstream
from bedrock_proxy_adapters.upstream.boto3 import Boto3Upstream, bedrock_client
from bedrock_proxy_adapters.upstream.failures import trouble

STREAM = UpstreamCall(Operation.CONVERSE_STREAM, "model", b"{}")
EVERY_CALL = pytest.mark.parametrize(
    "call", [UpstreamCall(operation, "model", b"{}") for operation in Operation],
    ids=[operation.value for operation in Operation],
)  # fmt: skip
WHOLE = pytest.mark.parametrize(
    "operation", [Operation.INVOKE, Operation.CONVERSE, Operation.COUNT_TOKENS]
)


def failure_of(reply) -> UpstreamUnreachable:
    with pytest.raises(UpstreamUnreachable) as caught:
        reply.begin()
    return caught.value


# --- the connection breaks ------------------------------------------------------------------


@pytest.mark.parametrize("end", ["hang_up", "reset"])
@pytest.mark.parametrize("offset", [0, 1, 7, 39, 40])
def test_S07_what_arrived_before_a_break_is_delivered_before_it(
    end, offset, face, upstream, server
):
    """Mid-frame, in the middle of an HTTP chunk, after 20 bytes that came before."""
    frame = bytes(range(40))
    taken = threading.Event()

    def script(wire, _):
        wire.begin_stream()
        wire.chunk(b"b" * 20)
        wire.send(b"%x\r\n" % len(frame) + frame[:offset])
        # A reset throws away what the client's kernel has not handed over yet.
        assert end == "hang_up" or taken.wait(SOON)
        getattr(wire, end)()

    server.script = script
    reply = face.open(upstream, STREAM)
    assert reply.head().status == 200
    got = b""
    while len(got) < 20 + offset:
        got += reply.read()
    taken.set()
    rest, failure = reply.read_until_failure()

    assert got + rest == b"b" * 20 + frame[:offset]
    assert failure.trouble is Trouble.BROKEN
    assert reply.read_until_failure()[1].trouble is Trouble.BROKEN


def test_S08_a_stream_that_stops_between_chunks_is_broken(face, upstream, server):
    def script(wire, _):
        wire.begin_stream()
        wire.chunk(b"one")
        wire.hang_up()

    server.script = script
    reply = face.open(upstream, STREAM)
    got, failure = reply.read_until_failure()
    assert (got, failure.trouble) == (b"one", Trouble.BROKEN)


def test_a_stream_shorter_than_its_length_is_broken(face, upstream, server):
    def script(wire, _):
        wire.head(200, ("Content-Length", "10"))
        wire.send(b"four")
        wire.hang_up()

    server.script = script
    got, failure = face.open(upstream, STREAM).read_until_failure()
    assert (got, failure.trouble) == (b"four", Trouble.BROKEN)


@WHOLE
@pytest.mark.parametrize("chunked", [False, True])
def test_a_whole_body_cut_short_is_never_taken_for_whole(
    operation, chunked, face, upstream, server
):
    def script(wire, _):
        if chunked:
            wire.begin_stream()
            wire.chunk(b"{}")
        else:
            wire.head(200, ("Content-Length", "20"))
            wire.send(b"{}")
        wire.hang_up()

    server.script = script
    reply = face.open(upstream, UpstreamCall(operation, "model", b"{}"))
    # boto3 itself reads the whole body of the others before it tells of their head.
    streamed = operation is Operation.INVOKE or face.kind == "loops"
    got, failure = reply.read_until_failure() if streamed else (b"", None)
    assert (failure or failure_of(reply)).trouble is Trouble.BROKEN
    assert got in {b"", b"{}"}


@EVERY_CALL
@pytest.mark.parametrize("end", ["hang_up", "reset"])
def test_S04_a_connection_closed_before_the_head_is_broken_and_not_tried_again(
    call, end, face, upstream, server
):
    server.script = lambda wire, _: getattr(wire, end)()
    assert failure_of(face.open(upstream, call)).trouble is Trouble.BROKEN
    assert len(server.received) == 1


def test_a_socket_timeout_is_told_and_nothing_is_read_after_it(pumped, server, client_of):
    """A read after a timeout would look like a clean end."""
    timed_out = threading.Event()

    def script(wire, _):
        wire.begin_stream()
        wire.chunk(b"one")
        timed_out.wait(SOON)
        wire.chunk(b"two")
        wire.end_stream()

    server.script = script
    reply = pumped.open(Boto3Upstream(client_of(server.url, read_timeout=0.3)), STREAM)
    got, failure = reply.read_until_failure()
    timed_out.set()
    assert (got, failure.trouble) == (b"one", Trouble.TIMEOUT)
    assert reply.read_until_failure()[1].trouble is Trouble.TIMEOUT


@EVERY_CALL
def test_a_head_that_does_not_come_times_out(call, pumped, server, client_of):
    server.script = lambda wire, _: wire.wait_for_hang_up()
    reply = pumped.open(Boto3Upstream(client_of(server.url, read_timeout=0.1)), call)
    assert failure_of(reply).trouble is Trouble.TIMEOUT
    assert len(server.received) == 1


def test_a_refused_connection_is_unreachable(face, upstream_of):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    reply = face.open(upstream_of(f"http://127.0.0.1:{port}"), STREAM)
    assert failure_of(reply).trouble is Trouble.UNREACHABLE


def test_a_name_that_is_unknown_is_unreachable(face, upstream_of, monkeypatch):
    def unknown(*_args, **_kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    reply = face.open(upstream_of("http://bedrock.invalid"), STREAM)
    assert failure_of(reply).trouble is Trouble.UNREACHABLE


def test_a_certificate_nobody_signed_is_unreachable(face, tls_server, upstream_of, monkeypatch):
    monkeypatch.delenv("AWS_CA_BUNDLE")
    reply = face.open(upstream_of(tls_server.url), STREAM)
    assert failure_of(reply).trouble is Trouble.UNREACHABLE
    assert tls_server.received == []


def test_a_proxy_that_is_down_is_unreachable(pumped, session):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    client = session.client(
        "bedrock-runtime",
        "us-east-1",
        endpoint_url="http://bedrock.invalid",
        config=Config(
            proxies={"http": f"http://127.0.0.1:{port}"}, retries={"total_max_attempts": 1}
        ),
    )
    assert failure_of(pumped.open(Boto3Upstream(client), STREAM)).trouble is Trouble.UNREACHABLE


def test_no_credentials_is_told(pumped, server):
    client = bedrock_client("us-east-1", server.url, session=boto3.Session())
    failure = failure_of(pumped.open(Boto3Upstream(client), STREAM))
    assert failure.trouble is Trouble.CREDENTIALS
    assert server.received == []


def test_a_call_of_no_model_is_rejected(face, upstream, server):
    failure = failure_of(face.open(upstream, UpstreamCall(Operation.INVOKE, "", b"{}")))
    assert failure.trouble is Trouble.REJECTED
    assert server.received == []


def test_a_boto3_without_the_operation_is_a_sentence(pumped):
    failure = failure_of(pumped.open(Boto3Upstream(object()), STREAM))
    assert failure.trouble is Trouble.REJECTED
    assert "too old" in failure.detail


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            botocore_exceptions.ClientError(
                {"Error": {"Code": "ExpiredTokenException"}}, "AssumeRoleWithWebIdentity"
            ),
            Trouble.CREDENTIALS,
        ),
        (
            botocore_exceptions.CredentialRetrievalError(provider="p", error_msg="m"),
            Trouble.CREDENTIALS,
        ),
        (botocore_exceptions.PartialCredentialsError(provider="p", cred_var="v"), Trouble.CREDENTIALS),
        (botocore_exceptions.UnauthorizedSSOTokenError(), Trouble.CREDENTIALS),
        (botocore_exceptions.ConnectTimeoutError(endpoint_url="u"), Trouble.UNREACHABLE),
        (botocore_exceptions.ReadTimeoutError(endpoint_url="u"), Trouble.TIMEOUT),
        (botocore_exceptions.HTTPClientError(error="e"), Trouble.BROKEN),
        (ConnectionResetError(), Trouble.BROKEN),
        (botocore_exceptions.NoRegionError(), Trouble.REJECTED),
        (TypeError("x"), Trouble.REJECTED),
        (UpstreamUnreachable(Trouble.CLOSED), Trouble.CLOSED),
    ],
    ids=lambda value: value.name if isinstance(value, Trouble) else type(value).__name__,
)  # fmt: skip
def test_every_exception_has_its_trouble(error, expected):
    assert trouble(error).trouble is expected


def test_the_detail_of_a_trouble_names_no_model_role_or_account():
    arn = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/secretprofile"
    url = "https://bedrock/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Ax%2Fsecret/invoke"
    errors = [
        botocore_exceptions.EndpointConnectionError(endpoint_url=url),
        botocore_exceptions.ReadTimeoutError(endpoint_url=url),
        botocore_exceptions.ClientError(
            {"Error": {"Code": "AccessDenied", "Message": f"User: {arn} may not"}}, "AssumeRole"
        ),
        RuntimeError("account 123456789012, arn%3Aaws%3Asecret"),
    ]
    for error in errors:
        detail = trouble(error).detail
        assert type(error).__name__ in detail
        assert "secret" not in detail
        assert "123456789012" not in detail


# --- we hang up -----------------------------------------------------------------------------


def unheld(client):
    """The client, with a transport that this package does not know."""
    session = client._endpoint.http_session
    session._pool_classes_by_scheme = None
    return client


def close_soon(reply) -> None:
    threading.Timer(0.05, reply.close).start()


@EVERY_CALL
def test_close_ends_a_pending_begin_and_its_thread_and_connection(call, face, upstream, server):
    """Although the response has no head yet."""
    gone = threading.Event()

    def script(wire, _):
        if wire.wait_for_hang_up():
            gone.set()
        wire.hang_up()

    server.script = script
    reply = face.open(upstream, call)
    assert reply.begin(0.02) is SILENCE
    close_soon(reply)
    assert failure_of(reply).trouble is Trouble.CLOSED
    assert gone.wait(SOON)
    assert eventually(lambda: not pumps())
    assert reply.read() is END
    reply.close()


@EVERY_CALL
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_close_ends_a_pending_read_and_its_thread_and_connection(
    call, tls, face, upstream_of, request
):
    server = request.getfixturevalue("tls_server" if tls else "server")
    upstream = upstream_of(server.url)
    gone = threading.Event()

    def script(wire, _):
        wire.begin_stream()
        wire.chunk(b"one")
        if wire.wait_for_hang_up():
            gone.set()
        wire.hang_up()

    server.script = script
    reply = face.open(upstream, call)
    if call.operation.streams or face.kind == "loops":
        assert reply.head().status == 200
        assert reply.read() == b"one"
        close_soon(reply)
    else:
        assert eventually(lambda: bool(server.received))
        close_soon(reply)
        if call.operation is not Operation.INVOKE:
            assert failure_of(reply).trouble is Trouble.CLOSED
    assert reply.read() is END
    assert gone.wait(SOON)
    assert eventually(lambda: not pumps())
    reply.close()
    assert reply.read(0) is END


def test_close_ends_a_pending_begin_on_a_connection_that_was_used_before(face, upstream, server):
    gone = threading.Event()

    def script(wire, _):
        if len(server.received) == 1:
            wire.answer(b"{}")
            return
        if wire.wait_for_hang_up():
            gone.set()
        wire.hang_up()

    server.script = script
    face.open(upstream, STREAM).whole()
    reply = face.open(upstream, STREAM)
    assert eventually(lambda: len(server.received) == 2)
    assert server.connections == 1
    reply.close()
    assert gone.wait(SOON)


class Response:
    """As much of a urllib3 response as a hold needs."""

    def __init__(self):
        self.story = []

    def shutdown(self):
        self.story.append("shutdown")

    def close(self):
        self.story.append("close")

    def release_conn(self):
        self.story.append("release")


def test_a_response_that_was_cut_is_closed_before_its_connection_is_released():
    cut, whole = Response(), Response()
    hold = connections.Hold()
    connections.hold_response(cut, hold)
    hold.cut()
    cut.release_conn()
    assert cut.story == ["shutdown", "close", "release"]

    hold = connections.Hold()
    connections.hold_response(whole, hold)
    whole.release_conn()
    hold.cut()
    assert whole.story == ["release"]


def test_close_ends_a_stream_of_a_transport_that_cannot_be_held(pumped, server, client_of):
    """Then by the response itself, once its head is there."""
    client = unheld(client_of(server.url))
    assert not connections.hold_connections(client)
    client._endpoint.http_session._pool_classes_by_scheme = {}
    upstream = Boto3Upstream(client)
    gone = threading.Event()

    def script(wire, _):
        wire.begin_stream()
        if wire.wait_for_hang_up():
            gone.set()
        wire.hang_up()

    server.script = script
    reply = pumped.open(upstream, STREAM)
    assert reply.head().status == 200
    close_soon(reply)
    assert reply.read() is END
    assert gone.wait(SOON)
    assert eventually(lambda: not pumps())


def test_without_a_hold_close_before_the_head_returns_and_the_answer_is_discarded(
    pumped, server, client_of
):
    upstream = Boto3Upstream(unheld(client_of(server.url)))
    answer = threading.Event()
    gone = threading.Event()

    def script(wire, _):
        answer.wait(SOON)
        wire.begin_stream()
        wire.chunk(b"unread")
        if wire.wait_for_hang_up():
            gone.set()
        wire.hang_up()

    server.script = script
    reply = pumped.open(upstream, STREAM)
    assert reply.begin(0.02) is SILENCE
    close_soon(reply)
    assert failure_of(reply).trouble is Trouble.CLOSED
    answer.set()
    assert gone.wait(SOON)
    assert eventually(lambda: not pumps())


def test_a_call_closed_at_once_ends(face, upstream, server):
    server.script = lambda wire, _: wire.wait_for_hang_up()
    for _ in range(20):
        reply = face.open(upstream, STREAM)
        reply.close()
        assert failure_of(reply).trouble is Trouble.CLOSED
    assert eventually(lambda: not pumps())


def test_a_whole_reply_leaves_its_connection_to_the_next_call(face, upstream, server):
    server.script = lambda wire, _: wire.stream([b"one", b"two"])
    for call in (STREAM, UpstreamCall(Operation.CONVERSE, "model", b"{}")) * 3:
        assert face.open(upstream, call).whole()[1] == b"onetwo"
    assert server.connections == 1


def test_closing_a_finished_reply_does_not_touch_the_call_that_has_its_connection_now(
    face, upstream, server
):
    go_on = threading.Event()

    def script(wire, _):
        wire.begin_stream()
        if len(server.received) == 2:
            go_on.wait(SOON)
        wire.chunk(b"whole")
        wire.end_stream()

    server.script = script
    first = face.open(upstream, STREAM)
    assert first.whole()[1] == b"whole"
    second = face.open(upstream, STREAM)
    assert second.head().status == 200
    assert [received.connection for received in server.received] == [1, 1]
    first.close()
    time.sleep(0.05)
    go_on.set()
    assert second.rest() == b"whole"


def test_a_connection_closed_early_never_carries_another_call(face, upstream, server):
    def script(wire, received):
        if received.connection == 1:
            wire.begin_stream()
            wire.chunk(b"of the first")
            wire.wait_for_hang_up()
            wire.hang_up()
        else:
            wire.stream([b"of the second"])

    server.script = script
    first = face.open(upstream, STREAM)
    assert first.read() == b"of the first"
    first.close()
    assert face.open(upstream, STREAM).whole()[1] == b"of the second"


# --- many at once, and for long -----------------------------------------------------------------


def bounds(face):
    """The bytes that may wait for their reader, and those that one read may bring."""
    module = http1 if face.kind == "loops" else pump
    return module.BUFFER_LIMIT, module.READ_SIZE


def test_S14_a_reader_that_stops_reading_stops_bedrock(face, upstream, server):
    """At most 256 KiB wait here; the rest waits in the kernel and at the sender."""
    limit, read_size = bounds(face)
    assert limit <= 256 * 1024
    body = os.urandom(1 << 20) * 24
    sent = 0

    def script(wire, _):
        nonlocal sent
        wire.begin_stream()
        for start in range(0, len(body), 50_000):
            piece = body[start : start + 50_000]
            wire.chunk(piece)
            sent += len(piece)
        wire.end_stream()

    server.script = script
    reply = face.open(upstream, STREAM)
    assert reply.head().status == 200

    def settled() -> bool:
        before = sent
        time.sleep(0.1)
        return 0 < before == sent

    assert eventually(settled)
    assert sent < len(body)
    assert limit - read_size < reply.size <= limit
    got = []
    while (data := reply.read()) is not END:
        assert len(data) <= limit
        got.append(data)
    assert b"".join(got) == body


def test_closing_frees_a_pump_that_waits_for_its_reader(face, upstream, server):
    server.script = lambda wire, _: wire.stream([b"x" * 100_000] * 200)
    reply = face.open(upstream, STREAM)
    assert reply.head().status == 200
    limit, read_size = bounds(face)
    assert eventually(lambda: reply.size > limit - read_size)
    reply.close()
    assert eventually(lambda: not pumps())


def test_forty_stalled_streams_do_not_delay_another(face, upstream, server):
    go_on = threading.Event()

    def script(wire, received):
        wire.begin_stream()
        if received.body == b"stalled":
            go_on.wait(SOON)
        wire.chunk(b"done")
        wire.end_stream()

    server.script = script
    stalled = [
        face.open(upstream, UpstreamCall(Operation.CONVERSE_STREAM, "model", b"stalled"))
        for _ in range(40)
    ]
    assert all(reply.head().status == 200 for reply in stalled)
    assert face.open(upstream, STREAM).whole()[1] == b"done"
    assert all(reply.read(0) is SILENCE for reply in stalled)
    go_on.set()
    assert [reply.rest() for reply in stalled] == [b"done"] * 40


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to count descriptors")
def test_S01_threads_and_descriptors_are_back_after_100_calls_and_50_aborts(face, upstream, server):
    def script(wire, received):
        wire.begin_stream()
        wire.chunk(b"one")
        if received.body == b"abort":
            wire.wait_for_hang_up()
            wire.hang_up()
        else:
            wire.end_stream()

    server.script = script
    assert face.open(upstream, STREAM).whole()[1] == b"one"
    gc.collect()
    threads, open_before = threading.active_count(), descriptors()
    for number in range(50):
        assert face.open(upstream, STREAM).whole()[1] == b"one"
        reply = face.open(upstream, UpstreamCall(Operation.INVOKE_STREAM, "model", b"abort"))
        if number % 3:
            reply.begin(SOON if number % 3 == 1 else 0)
        reply.close()
        assert face.open(upstream, STREAM).whole()[1] == b"one"
    # One connection is kept at both ends of the count; now and then a second, where a call set
    # out just before the connection of the last was back. Each is a thread of the server's and
    # two descriptors.
    assert eventually(lambda: threading.active_count() <= threads + 1)
    assert eventually(lambda: descriptors() <= open_before + 2)


def test_calls_beyond_twice_the_bound_are_refused(pumped, server, client_of):
    """Where calls that were closed cannot be cut, they do not pile up either."""
    release = threading.Event()

    def script(wire, _):
        release.wait(SOON)
        wire.stream([b"late"])

    server.script = script
    upstream = Boto3Upstream(unheld(client_of(server.url)), max_streams=2)
    replies = [pumped.open(upstream, STREAM) for _ in range(4)]
    assert eventually(lambda: len(server.received) == 4)
    for reply in replies:
        reply.close()
    with pytest.raises(Unavailable) as caught:
        pumped.open(upstream, STREAM)
    assert caught.value.code is Code.OVERLOADED
    release.set()
    assert eventually(lambda: not pumps())
    assert pumped.open(upstream, STREAM).whole()[1] == b"late"


# --- event loops ---------------------------------------------------------------------------------


def port_of(way, client_of, server):
    if way == "loops":
        return loops_upstream(server.url)
    return Boto3Upstream(client_of(server.url)).native()


async def closing(port, story):
    try:
        return await story()
    finally:
        if isinstance(port, AsyncUpstream):
            port.close()
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("way", ["native", "loops"])
def test_S21_cancelling_a_pending_native_read_loses_nothing(way, client_of, server):
    go_on = threading.Event()

    def script(wire, _):
        wire.begin_stream()
        wire.chunk(b"one")
        go_on.wait(SOON)
        wire.chunk(b"two")
        wire.end_stream()

    server.script = script
    port = port_of(way, client_of, server)

    async def story() -> list[bytes]:
        reply = await answered(lambda: port.open(STREAM))
        await answered(lambda: reply.begin(SOON))
        got = [await answered(lambda: reply.read(SOON))]
        for _ in range(3):
            pending = asyncio.create_task(answered(lambda: reply.read(SOON)))
            await asyncio.sleep(0.01)
            pending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pending
        go_on.set()
        while (data := await answered(lambda: reply.read(SOON))) is not END:
            got.append(data)
        return got

    assert b"".join(asyncio.run(closing(port, story))) == b"onetwo"
    assert eventually(lambda: not pumps())


@pytest.mark.parametrize("way", ["native", "loops"])
def test_waiting_native_calls_use_no_thread_but_their_pumps(way, client_of, server):
    go_on = threading.Event()

    def script(wire, _):
        wire.begin_stream()
        go_on.wait(SOON)
        wire.chunk(b"x")
        wire.end_stream()

    server.script = script
    port = port_of(way, client_of, server)

    async def story() -> set[str]:
        replies = [await answered(lambda: port.open(STREAM)) for _ in range(10)]
        await asyncio.gather(*(answered(partial(reply.begin, SOON)) for reply in replies))
        reads = [asyncio.create_task(answered(partial(reply.read, SOON))) for reply in replies]
        await asyncio.sleep(0.05)
        names = {thread.name for thread in threading.enumerate()}
        go_on.set()
        assert await asyncio.gather(*reads) == [b"x"] * 10
        assert [await answered(partial(reply.read, SOON)) for reply in replies] == [END] * 10
        return names

    names = asyncio.run(closing(port, story))
    pooled = [name for name in names if "Executor" in name or name.startswith("asyncio_")]
    # One looked for the credentials, once.
    assert len(pooled) <= (way == "loops")
    assert eventually(lambda: not pumps())


@pytest.mark.parametrize("way", ["native", "loops"])
def test_a_loop_that_ended_does_not_disturb_its_calls(way, client_of, server):
    go_on = threading.Event()

    def script(wire, _):
        wire.begin_stream()
        go_on.wait(SOON)
        wire.stream([b"x"])

    server.script = script
    port = port_of(way, client_of, server)
    kept = []

    async def story() -> None:
        kept.append(await answered(lambda: port.open(STREAM)))
        await answered(lambda: kept[0].begin(SOON))
        asyncio.get_running_loop().call_later(0.02, asyncio.current_task().cancel)
        await answered(lambda: kept[0].read(SOON))

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(closing(port, story))
    go_on.set()
    assert eventually(lambda: not pumps())


# --- the client -------------------------------------------------------------------------------------


def test_the_region_comes_from_the_argument_then_aws_region_then_aws_default_region(monkeypatch):
    def region(*args):
        return bedrock_client(*args, "http://127.0.0.1:9").meta.region_name

    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert region(None) == "eu-west-1"
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    assert region(None) == "eu-central-1"
    assert region("us-west-2") == "us-west-2"
    monkeypatch.setenv("AWS_REGION", "")
    assert region(None) == "eu-west-1"


def test_no_region_is_a_sentence_that_says_what_to_set():
    with pytest.raises(ConfigurationError, match=r"AWS_REGION=us-east-1"):
        bedrock_client()


def test_our_own_client_makes_one_attempt_and_leaves_retries_to_the_flow(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    upstream = Boto3Upstream(max_streams=7)
    config = upstream._client.meta.config
    assert config.retries["total_max_attempts"] == 1
    assert config.max_pool_connections == 7
    assert (config.connect_timeout, config.read_timeout) == (10.0, 630.0)
    assert (upstream.retries, upstream.max_streams) == (2, 7)
    assert (upstream.native().retries, upstream.native().max_streams) == (2, 7)
    assert Boto3Upstream(upstream._client).retries == 0
    assert Boto3Upstream(upstream._client, retries=1).retries == 1


def test_the_module_loads_neither_boto3_nor_an_event_loop():
    """Until a client is made: a cold start pays only for what it uses."""
    code = (
        "import sys, bedrock_proxy_adapters.upstream.boto3 as m;"
        "print([n for n in ('boto3', 'botocore', 'urllib3', 'asyncio') if n in sys.modules])"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.stdout.strip() == "[]"
