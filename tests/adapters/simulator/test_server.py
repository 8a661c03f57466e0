"""The HTTP server under the simulator, the ASGI app, and the process."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
import uvicorn
from urllib3.exceptions import ProtocolError

from bedrock_proxy_adapters.simulator import (
    ConnectionCut,
    Fault,
    Script,
    app,
    start_in_thread,
)

BODY = b'{"messages":[{"role":"user","content":[{"text":"hello there"}]}]}'
PATH = "/model/amazon.nova-lite-v1%3A0/converse"


@pytest.fixture
def wire(simulator):
    host, port = simulator.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        yield connection


def request(path=PATH, body=BODY, method="POST", headers=""):
    return (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def read_reply(connection):
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return int(lines[0].split()[1]), headers, body


def test_requests_follow_each_other_on_one_connection(wire, simulator):
    wire.sendall(request() + request(body=BODY[:10]) + request())
    statuses = [read_reply_of(wire) for _ in range(3)]
    assert statuses == [200, 400, 200]
    assert [call.body for call in simulator.calls] == [BODY, BODY[:10], BODY]


def read_reply_of(connection):
    """One reply, byte by byte, so that nothing of the next one is taken."""
    received = b""
    while not received.endswith(b"\r\n\r\n"):
        received += connection.recv(1)
    head = received.decode().lower()
    left = int(head.split("content-length: ")[1].split("\r\n")[0])
    while left:
        left -= len(connection.recv(left))
    return int(head.split()[1])


def test_a_request_may_come_in_any_pieces(wire, simulator):
    for byte in request():
        wire.sendall(bytes([byte]))
    status, headers, body = read_reply(wire)
    assert status == 200
    assert headers["x-amzn-requestid"] == simulator.calls[0].request_id
    assert json.loads(body)["stopReason"] == "end_turn"


def test_a_chunked_request_body_is_joined(wire, simulator):
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    halves = b"".join(b"%x;x=1\r\n%b\r\n" % (len(h), h) for h in (BODY[:9], BODY[9:]))
    wire.sendall(head + halves)
    wire.sendall(b"0\r\n\r\n")
    assert read_reply(wire)[0] == 200
    assert simulator.calls[0].body == BODY


def test_expect_continue_is_answered(wire):
    whole = request(headers="Expect: 100-continue\r\n")
    wire.sendall(whole[: -len(BODY)])
    assert wire.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.sendall(BODY)
    assert read_reply(wire)[0] == 200


def test_connection_close_is_honoured(wire):
    wire.sendall(request(headers="Connection: close\r\n"))
    status, headers, _ = read_reply(wire)
    assert (status, headers["connection"]) == (200, "close")
    assert wire.recv(1) == b""


@pytest.mark.parametrize(
    "junk",
    [
        b"nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
        b"x" * 70_000,
    ],
)
def test_junk_is_answered_400_and_closed(junk, wire):
    wire.sendall(junk)
    assert read_reply(wire)[0] == 400
    assert wire.recv(1) == b""


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", PATH), ("POST", "/"), ("POST", "/model/x/describe"), ("POST", "/model//converse")],
)
def test_an_unknown_path_is_an_unknown_operation(method, path, wire, simulator):
    wire.sendall(request(path, method=method))
    status, headers, body = read_reply(wire)
    assert status == 404
    assert headers["x-amzn-errortype"].startswith("UnknownOperationException")
    assert headers["x-amzn-requestid"]
    assert json.loads(body)["message"] == "The simulator has no such operation."
    assert simulator.calls == []


def test_a_taken_port_is_an_error(simulator):
    port = int(simulator.url.rpartition(":")[2])
    with pytest.raises(OSError, match="in use"):
        start_in_thread(port=port)


def simulator_threads():
    return [thread for thread in threading.enumerate() if thread.name == "bedrock-simulator"]


def test_closing_drops_open_streams_and_ends_the_thread():
    before = simulator_threads()
    with start_in_thread(Script(stall_after=1)) as simulator:
        stream = simulator.client().converse_stream(
            modelId="amazon.nova-lite-v1:0", messages=json.loads(BODY)["messages"]
        )["stream"]
        simulator.calls[0].wait_events(1)
    assert simulator_threads() == before
    with pytest.raises(ProtocolError):
        list(stream)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_process_says_its_address_and_ends_on_a_signal(number):
    code = (
        "from bedrock_proxy_adapters.simulator import Script, run\n"
        "run(port=0, script=Script(text='as told'), on_ready=lambda url: print(url, flush=True))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            url = process.stdout.readline().strip()
            host, port = url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(request())
                assert b"as told" in read_reply(connection)[2]
            process.send_signal(number)
            assert process.wait(timeout=10) == 0
        finally:
            process.kill()


class Served:
    """The ASGI app under uvicorn, in a thread."""

    def __enter__(self):
        self.app = app()
        config = uvicorn.Config(self.app, host="127.0.0.1", port=0, log_level="critical")
        self.server = uvicorn.Server(config)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],))
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(10)
        self.listening.close()


@pytest.fixture(scope="module")
def served():
    with Served() as under_uvicorn:
        yield under_uvicorn


@pytest.fixture
def asgi_client(served):
    import boto3
    from botocore.config import Config

    served.app.bedrock.reset()
    return boto3.client(
        "bedrock-runtime",
        endpoint_url=served.url,
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(retries={"total_max_attempts": 1}, proxies={}),
    )


def converse_stream(client, model="amazon.nova-lite-v1:0"):
    messages = json.loads(BODY)["messages"]
    return client.converse_stream(modelId=model, messages=messages)["stream"]


def test_the_asgi_app_answers_boto3_under_uvicorn(served, asgi_client):
    model = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova-lite-v1:0"
    events = list(converse_stream(asgi_client, model))
    assert "metadata" in events[-1]
    assert served.app.bedrock.calls[0].model_id == model
    served.app.bedrock.calls[0].wait_finished()


def test_the_asgi_app_cuts_the_connection_as_well_as_asgi_can(served, asgi_client):
    served.app.bedrock.script(faults=(Fault("cut", 3),))
    with pytest.raises(ProtocolError):
        list(converse_stream(asgi_client))


def test_the_asgi_app_notices_that_the_caller_left(served, asgi_client):
    served.app.bedrock.script(stall_after=2)
    stream = converse_stream(asgi_client)
    next(iter(stream))
    stream.close()
    served.app.bedrock.calls[0].wait_aborted()


def test_the_asgi_app_decodes_a_path_without_raw_path_and_raises_on_a_cut():
    simulator = app(Script(faults=(Fault("cut", at=1),)))
    sent = []

    async def receive():
        if not sent:
            return {"type": "http.request", "body": BODY}
        return await asyncio.get_running_loop().create_future()  # nobody leaves

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/model/amazon.nova-lite-v1:0/converse",
        "headers": [(b"Content-Type", b"application/json")],
    }
    with pytest.raises(ConnectionCut):
        asyncio.run(simulator(scope, receive, send))
    assert sent[0]["status"] == 200
    assert sent[1]["body"] == b"{"
    assert simulator.bedrock.calls[0].model_id == "amazon.nova-lite-v1:0"


def test_the_asgi_app_takes_part_in_the_lifespan_and_refuses_websockets():
    simulator = app()
    messages = iter(["lifespan.startup", "lifespan.shutdown"])
    sent = []

    async def receive():
        return {"type": next(messages)}

    async def send(message):
        sent.append(message["type"])

    asyncio.run(simulator({"type": "lifespan"}, receive, send))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    with pytest.raises(ValueError, match="websocket"):
        asyncio.run(simulator({"type": "websocket"}, receive, send))
