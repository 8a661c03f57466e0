"""The way to Bedrock without threads: what is its own."""

import asyncio
import datetime as dt
import socket
import threading
import time

import botocore.session
import pytest
from botocore.credentials import ReadOnlyCredentials, RefreshableCredentials
from tests.adapters.upstream.conftest import loops_upstream
from tests.adapters.upstream.scripted import SOON, answered, eventually

from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy.ports import END, SILENCE, Operation, Trouble, UpstreamCall, UpstreamUnreachable
from bedrock_proxy_adapters.upstream import aio, http1
from bedrock_proxy_adapters.upstream.aio import AsyncUpstream
from bedrock_proxy_adapters.upstream.boto3 import NativeBoto3Upstream
from bedrock_proxy_adapters.upstream.configured import ConfiguredUpstream
from bedrock_proxy_adapters.upstream.credentials import MUST_REFRESH, Credentials
from bedrock_proxy_adapters.upstream.replies import Reply

STREAM = UpstreamCall(Operation.CONVERSE_STREAM, "model", b"{}")
WHOLE = UpstreamCall(Operation.CONVERSE, "model", b"{}")


def told(upstream, story):
    """Run *story* with *upstream* on a loop of its own."""

    async def whole():
        try:
            return await story(upstream)
        finally:
            upstream.close()
            await asyncio.sleep(0.02)

    return asyncio.run(whole())


async def asked(upstream, call=STREAM):
    reply = upstream.open(call)
    head = await answered(lambda: reply.begin(SOON))
    return head, await rest(reply)


async def rest(reply):
    got = b""
    while (data := await answered(lambda: reply.read(SOON))) is not END:
        assert isinstance(data, bytes), "nothing came for long"
        got += data
    return got


async def failure(reply):
    with pytest.raises(UpstreamUnreachable) as caught:
        await answered(lambda: reply.begin(SOON))
        await rest(reply)
    return caught.value


# --- framing ------------------------------------------------------------------------------------


def test_an_interim_reply_is_not_the_reply(server):
    def script(wire, _):
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
        wire.answer(b"whole", 200, ("x-amzn-requestid", "r"))

    server.script = script

    async def story(upstream):
        for _ in range(2):
            head, body = await asked(upstream)
            assert (head.status, body) == (200, b"whole")
            assert head.first("link") is None

    told(loops_upstream(server.url), story)
    assert server.connections == 1


def test_a_body_without_a_length_ends_with_its_connection(server):
    def script(wire, _):
        wire.head(200)
        wire.send(b"all of it")
        wire.hang_up()

    server.script = script
    assert told(loops_upstream(server.url), asked)[1] == b"all of it"


@pytest.mark.parametrize("last", ["Connection: close", "HTTP/1.0"])
def test_a_connection_that_its_server_ends_is_not_used_again(last, server):
    def script(wire, _):
        version = "HTTP/1.0" if last == "HTTP/1.0" else "HTTP/1.1"
        extra = "" if last == "HTTP/1.0" else f"{last}\r\n"
        wire.send(f"{version} 200 OK\r\n{extra}Content-Length: 2\r\n\r\n{{}}".encode())

    server.script = script

    async def story(upstream):
        for _ in range(3):
            assert (await asked(upstream))[1] == b"{}"

    told(loops_upstream(server.url), story)
    assert server.connections == 3


@pytest.mark.parametrize(
    "excess",
    [b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"\x00" * 70_000],
    ids=["a byte", "a reply nobody asked for", "much"],
)
@pytest.mark.parametrize("together", [True, False], ids=["with the reply", "later"])
def test_what_follows_a_reply_is_never_taken_for_the_next_one(excess, together, server):
    def script(wire, received):
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nreal"
        if received.connection == 1:
            wire.send(answer + excess if together else answer)
            if not together:
                time.sleep(0.05)
                wire.send(excess)
        else:
            wire.send(answer)

    server.script = script

    async def story(upstream):
        for _ in range(3):
            assert (await asked(upstream))[1] == b"real"
            await asyncio.sleep(0.1)

    told(loops_upstream(server.url), story)
    assert server.connections == 2


@pytest.mark.parametrize(
    "garbage",
    [
        b"not http at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 40_000 + b"\r\n",
    ],
    ids=["words", "two lengths", "no chunk", "a long header", "many headers"],
)
def test_a_reply_that_is_no_http_is_broken(garbage, server):
    def script(wire, _):
        wire.send(garbage)
        wire.wait_for_hang_up()
        wire.hang_up()

    server.script = script

    async def story(upstream):
        return await failure(upstream.open(STREAM))

    assert told(loops_upstream(server.url), story).trouble is Trouble.BROKEN


def test_a_long_body_is_sent_as_it_is(server):
    body = bytes(range(256)) * 4 * 4096 * 2
    assert len(body) > aio._LONG_BODY

    async def story(upstream):
        for _ in range(2):
            await asked(upstream, UpstreamCall(Operation.INVOKE, "model", body))

    told(loops_upstream(server.url), story)
    assert [received.body == body for received in server.received] == [True, True]


# --- connections ----------------------------------------------------------------------------------


def test_a_connection_that_idles_is_closed_and_the_next_call_makes_another(server, monkeypatch):
    monkeypatch.setattr(http1, "IDLE_SECONDS", 0.1)

    async def story(upstream):
        await asked(upstream)
        await asked(upstream)
        assert server.connections == 1
        await asyncio.sleep(0.3)
        await asked(upstream)

    told(loops_upstream(server.url), story)
    assert server.connections == 2


def test_an_idle_connection_that_the_server_closed_is_not_used(server):
    def script(wire, _):
        wire.answer(b"{}")
        wire.hang_up()

    server.script = script

    async def story(upstream):
        for _ in range(3):
            await asked(upstream)
            await asyncio.sleep(0.05)

    told(loops_upstream(server.url), story)
    assert server.connections == 3


@pytest.mark.parametrize("end", ["hang_up", "reset"])
def test_a_request_on_a_kept_connection_that_was_closed_under_it_is_sent_on_a_new_one(
    end, server, monkeypatch
):
    monkeypatch.setattr(http1, "LET_GO_WITHIN", SOON)  # however slow the machine is

    def script(wire, _):
        if len(server.received) == 2:
            getattr(wire, end)()
        else:
            wire.answer(b"whole")

    server.script = script

    async def story(upstream):
        return [(await asked(upstream))[1] for _ in range(3)]

    assert told(loops_upstream(server.url), story) == [b"whole"] * 3
    assert [received.connection for received in server.received] == [1, 1, 2, 2]


@pytest.mark.parametrize("end", ["hang_up", "reset"])
def test_S04_a_kept_connection_that_breaks_while_the_server_is_at_work_is_no_second_call(
    end, server, monkeypatch
):
    """It had the request: whether to ask again is for those to say who count the calls."""
    monkeypatch.setattr(http1, "LET_GO_WITHIN", 0.05)

    def script(wire, _):
        if len(server.received) == 2:
            time.sleep(0.3)
            getattr(wire, end)()
        else:
            wire.answer(b"{}")

    server.script = script

    async def story(upstream):
        await asked(upstream)
        kept = await failure(upstream.open(STREAM))
        return kept.trouble, kept.detail

    trouble, detail = told(loops_upstream(server.url), story)
    assert trouble is Trouble.BROKEN
    assert "before its head" in detail
    assert [received.connection for received in server.received] == [1, 1]


@pytest.mark.parametrize("end", ["hang_up", "reset"])
def test_S24_where_anything_was_heard_or_the_connection_was_new_nothing_is_sent_again(end, server):
    def script(wire, _):
        if len(server.received) == 1:
            wire.answer(b"{}")
        elif len(server.received) == 2:
            wire.send(b"HTTP/1.1 2")
            time.sleep(0.05)
            getattr(wire, end)()
        else:
            getattr(wire, end)()

    server.script = script

    async def story(upstream):
        await asked(upstream)
        begun = await failure(upstream.open(STREAM))
        new = await failure(upstream.open(STREAM))
        return begun.trouble, new.trouble

    assert told(loops_upstream(server.url), story) == (Trouble.BROKEN, Trouble.BROKEN)
    assert [received.connection for received in server.received] == [1, 1, 2]


def test_a_call_that_was_closed_is_not_sent_again(server, monkeypatch):
    monkeypatch.setattr(http1, "LET_GO_WITHIN", SOON)
    gone = threading.Event()

    def script(wire, _):
        if len(server.received) == 2:
            gone.wait(SOON)
            wire.hang_up()
        else:
            wire.answer(b"{}")

    server.script = script

    async def story(upstream):
        await asked(upstream)
        reply = upstream.open(STREAM)
        await asyncio.sleep(0.05)
        reply.close()
        gone.set()
        await asyncio.sleep(0.1)
        return (await failure(reply)).trouble

    assert told(loops_upstream(server.url), story) is Trouble.CLOSED
    assert len(server.received) == 2


def test_a_server_that_does_not_answer_the_connection_is_unreachable():
    """Its queue of connections is full: the kernel leaves the next one waiting."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        session = botocore.session.Session()
        session.set_credentials("a", "b")
        upstream = AsyncUpstream(
            f"http://127.0.0.1:{address[1]}", "us-east-1", session, connect_timeout=0.2
        )

        async def story(upstream):
            return await failure(upstream.open(STREAM))

        heard = told(upstream, story)
        for each in waiting:
            each.close()
    assert heard.trouble is Trouble.UNREACHABLE
    assert "0.2 s" in heard.detail


def test_every_loop_has_connections_of_its_own(server):
    upstream = loops_upstream(server.url)
    for _ in range(2):
        assert told(upstream, asked)[1] == b"{}"
    assert server.connections == 2


def test_close_may_come_from_another_thread(server):
    go_on = threading.Event()

    def script(wire, _):
        wire.begin_stream()
        wire.chunk(b"one")
        go_on.wait(SOON)
        wire.wait_for_hang_up()
        wire.hang_up()

    server.script = script

    async def story(upstream):
        reply = upstream.open(STREAM)
        assert await answered(lambda: reply.begin(SOON))
        assert await answered(lambda: reply.read(SOON)) == b"one"
        threading.Timer(0.02, reply.close).start()
        assert await answered(lambda: reply.read(SOON)) is END
        go_on.set()

    told(loops_upstream(server.url), story)


# --- credentials ------------------------------------------------------------------------------------


class Vault:
    """Keys that run out, and a slow place to get new ones from."""

    def __init__(self, lives, delay=0.05):
        self.lives = iter(lives)
        self.delay = delay
        self.asked = 0
        self.threads = set()
        self.error = None

    def fetch(self):
        self.asked += 1
        self.threads.add(threading.get_ident())
        time.sleep(self.delay)
        if self.error is not None:
            raise self.error
        until = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=next(self.lives))
        return {
            "access_key": f"AKID{self.asked}",
            "secret_key": "s",
            "token": "t",
            "expiry_time": until.isoformat(),
        }

    def session(self):
        found = RefreshableCredentials.create_from_metadata(self.fetch(), self.fetch, method="test")

        class Session:
            def get_credentials(self):
                return found

        return Session()


def test_keys_are_found_on_a_thread_and_once_for_all_who_wait():
    class Session:
        asked = 0
        thread = None

        def get_credentials(self):
            Session.asked += 1
            Session.thread = threading.get_ident()
            time.sleep(0.05)
            session = botocore.session.Session()
            session.set_credentials("AKID", "secret", "token")
            return session.get_credentials()

    async def story():
        credentials = Credentials(Session())
        assert credentials.at_hand() is None
        keys = await asyncio.gather(*(credentials.fetch() for _ in range(8)))
        assert {key.access_key for key in keys} == {"AKID"}
        assert credentials.at_hand() is keys[0]

    asyncio.run(story())
    assert Session.asked == 1
    assert Session.thread != threading.get_ident()


def test_keys_that_are_soon_to_end_are_renewed_beside_the_requests():
    vault = Vault([MUST_REFRESH + 100, 3600])
    session = vault.session()
    vault.threads.clear()

    async def story():
        credentials = Credentials(session)
        first = await credentials.fetch()
        began = vault.asked
        at_hand = credentials.at_hand()
        for _ in range(200):
            if vault.asked > began and credentials.at_hand() != first:
                break
            await asyncio.sleep(0.01)
        return first, at_hand, credentials.at_hand()

    first, at_hand, later = asyncio.run(story())
    assert at_hand is not None
    assert later is not None
    assert later.access_key != first.access_key or vault.asked > 1
    assert threading.get_ident() not in vault.threads, "the loop waited for a renewal"


def test_keys_that_have_ended_are_waited_for():
    vault = Vault([MUST_REFRESH - 100, 3600])
    session = vault.session()
    vault.threads.clear()

    async def story():
        credentials = Credentials(session)
        assert credentials.at_hand() is None
        return await credentials.fetch(), credentials.at_hand()

    fetched, at_hand = asyncio.run(story())
    assert fetched.access_key == "AKID2"
    assert at_hand == fetched
    assert threading.get_ident() not in vault.threads


def test_a_renewal_that_fails_is_told_to_all_who_wait_and_tried_again():
    vault = Vault([-10, 3600])
    session = vault.session()
    vault.error = RuntimeError("no metadata service at arn:aws:iam::123456789012:role/r")

    async def story():
        credentials = Credentials(session)
        heard = await asyncio.gather(
            *(credentials.fetch() for _ in range(3)), return_exceptions=True
        )
        vault.error = None
        return heard, await credentials.fetch()

    heard, keys = asyncio.run(story())
    assert all(isinstance(error, UpstreamUnreachable) for error in heard)
    assert all("123456789012" not in error.detail for error in heard)
    assert keys.access_key.startswith("AKID")


def test_one_who_stops_waiting_for_keys_takes_them_from_nobody():
    vault = Vault([-10, 3600])
    session = vault.session()

    async def story():
        credentials = Credentials(session)
        first = asyncio.create_task(credentials.fetch())
        second = asyncio.create_task(credentials.fetch())
        await asyncio.sleep(0.01)
        first.cancel()
        keys = await second
        assert first.cancelled()
        return keys

    assert asyncio.run(story()).access_key == "AKID2"


def test_a_call_without_credentials_says_so(server):
    class Session:
        def get_credentials(self):
            return None

    async def story(upstream):
        return await failure(upstream.open(STREAM))

    heard = told(AsyncUpstream(server.url, "us-east-1", Session()), story)
    assert heard.trouble is Trouble.CREDENTIALS
    assert server.received == []


def test_credentials_without_a_secret_say_so(server):
    class Found:
        def get_frozen_credentials(self):
            return ReadOnlyCredentials("AKID", "", None)

    class Session:
        def get_credentials(self):
            return Found()

    async def story(upstream):
        return await failure(upstream.open(STREAM))

    heard = told(AsyncUpstream(server.url, "us-east-1", Session()), story)
    assert heard.trouble is Trouble.CREDENTIALS


def test_a_session_token_goes_along(server):
    session = botocore.session.Session()
    session.set_credentials("AKIDEXAMPLE", "example", "the-token")
    told(AsyncUpstream(server.url, "us-east-1", session), asked)
    headers = server.received[0].headers
    assert headers["x-amz-security-token"] == "the-token"
    assert "x-amz-security-token" in headers["authorization"]


def test_a_bearer_token_goes_over_tls_in_place_of_a_signature(tls_server, monkeypatch):
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "bedrock-api-key-x")
    session = botocore.session.Session()
    told(AsyncUpstream(tls_server.url, "us-east-1", session), asked)
    headers = tls_server.received[0].headers
    assert headers["authorization"] == "Bearer bedrock-api-key-x"
    assert "x-amz-date" not in headers


def test_a_bearer_token_never_goes_over_plain_http(server, monkeypatch):
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "bedrock-api-key-x")
    with pytest.raises(ConfigurationError, match="https") as caught:
        AsyncUpstream(server.url, "us-east-1", botocore.session.Session())
    assert "bedrock-api-key-x" not in str(caught.value)


# --- which way is taken ----------------------------------------------------------------------------------


@pytest.fixture
def aws(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")


def native_of(way="auto"):
    upstream = ConfiguredUpstream(way, read_timeout=150.0)
    try:
        return upstream.native()
    finally:
        upstream.close()


def test_an_event_loop_takes_the_way_without_threads(aws):
    native = native_of()
    assert isinstance(native, AsyncUpstream)
    assert (native.max_streams, native.retries) == (10_000, 2)


def test_a_thread_takes_boto3(aws, server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", server.url)
    upstream = ConfiguredUpstream(read_timeout=150.0)
    assert (upstream.kind, upstream.max_streams, upstream.retries) == ("blocking", 200, 2)
    reply = upstream.open(WHOLE)
    assert reply.begin(SOON).status == 200
    reply.close()
    upstream.close()
    assert server.received[0].headers["user-agent"].startswith("Boto3/")


def test_both_ways_sign_with_the_same_credentials_for_the_same_endpoint(aws, server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", server.url)
    upstream = ConfiguredUpstream(read_timeout=150.0)
    reply = upstream.open(WHOLE)
    assert reply.begin(SOON).status == 200
    reply.close()
    head, _ = told(upstream.native(), lambda native: asked(native, WHOLE))
    assert head.status == 200
    upstream.close()
    theirs, ours = server.received
    assert ours.target == theirs.target

    def scope(received):
        return received.headers["authorization"].partition(",")[0]

    assert scope(ours) == scope(theirs)


def test_boto3_may_be_asked_for(aws):
    assert isinstance(native_of("boto3"), NativeBoto3Upstream)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_behind_a_forward_proxy_boto3_is_used(aws, monkeypatch, name):
    monkeypatch.setenv(name, "http://proxy.invalid:3128")
    assert isinstance(native_of(), NativeBoto3Upstream)
    monkeypatch.setenv("NO_PROXY", "amazonaws.com")
    assert isinstance(native_of(), AsyncUpstream)


def test_without_the_extra_boto3_is_used(aws, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bedrock_proxy_adapters.upstream.aio", None)
    assert isinstance(native_of(), NativeBoto3Upstream)


def test_a_bundle_of_certificates_that_cannot_be_read_is_a_sentence(aws, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(ConfigurationError, match="AWS_CA_BUNDLE"):
        native_of()


def test_an_upstream_that_is_closed_lets_go_of_its_connections(server):
    upstream = loops_upstream(server.url)

    async def story():
        await asked(upstream)
        before = len(server._open)
        upstream.close()
        await asyncio.sleep(0.02)
        return before

    assert asyncio.run(story()) == 1
    assert eventually(lambda: not server._open)


def test_S13_what_is_no_piece_yet_lengthens_no_wait():
    """Half the size of a chunk may come in one read: the silence goes on."""

    async def story():
        reply = Reply(asyncio.get_running_loop())
        waiting = asyncio.ensure_future(reply.read(0.3))
        for _ in range(40):
            if waiting.done():
                break
            await asyncio.sleep(0.1)
            reply.wake()
        assert waiting.done(), "every wake began the wait anew"
        return await waiting

    assert asyncio.run(story()) is SILENCE
