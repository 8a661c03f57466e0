"""
Lambda's Runtime API on a loopback socket: events are handed out, answers kept as they came,
byte for byte. What is not in AWS's description of the API is refused.

AWS's own runtime client is run against it in ``test_lambda_runtime_peers.py``.
"""

import contextlib
import json
import queue
import re
import socket
import threading
import time
from typing import Any, Self

from attrs import define, field

_PATHS = re.compile(
    r"/2018-06-01/runtime/(?:invocation/(?:(next)|([^/]+)/(response|error))|(init/error))"
)
_ERROR_TYPE = re.compile(r"(?:Runtime|Function)\.[A-Z][a-zA-Z]+")


@define(eq=False)
class Told:
    """
    What a runtime said about one invocation, or about its start.

    Attributes:
        kind: ``response``, ``error`` or ``init/error``.
        head: The request's head as it came.
        raw: Its body as it came, framing and all.
        chunks: Every chunk's data (one element for a body that came with its length).
        trailers: What followed the last chunk.
        whole: Whether the body ended as it must.
    """

    kind: str
    head: bytes
    raw: bytearray = field(factory=bytearray)
    chunks: list[bytes] = field(factory=list)
    trailers: dict[str, str] = field(factory=dict)
    whole: bool = False
    ended: threading.Event = field(factory=threading.Event)
    _grown: threading.Condition = field(factory=threading.Condition)

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode().split("\r\n")[1:]
        return {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def prelude(self) -> Any:
        return json.loads(self.body.partition(bytes(8))[0])

    @property
    def said(self) -> bytes:
        """What the client gets, after the prelude."""
        prelude, nuls, said = self.body.partition(bytes(8))
        assert nuls, f"no prelude in {prelude!r}"
        return said

    def grew(self) -> None:
        with self._grown:
            self._grown.notify_all()

    def wait(self, timeout: float = 30.0) -> Self:
        assert self.ended.wait(timeout), f"the answer did not end: {bytes(self.raw)!r}"
        return self

    def wait_for(self, marker: bytes, timeout: float = 30.0) -> None:
        """Until *marker* has come."""
        with self._grown:
            assert self._grown.wait_for(lambda: marker in self.body, timeout), bytes(self.raw)


@define(eq=False)
class Invoked:
    """
    One event for the runtime.

    Attributes:
        status: What its answer is told.
        late: Only half of the event is sent.
        read: How much of the answer's body is read before the reader stops; None is all.
        leaves: The connection is closed after so much of the answer's body.
    """

    request_id: str
    event: bytes
    seconds: float = 60.0
    status: int = 202
    late: bool = False
    read: int | None = None
    leaves: int | None = None
    echo: str | None = None
    trace_id: str | None = None
    deadline: float = 0.0
    taken: threading.Event = field(factory=threading.Event)
    resumed: threading.Event = field(factory=threading.Event)
    answers: "queue.Queue[Told]" = field(factory=queue.Queue)

    def told(self, timeout: float = 30.0) -> Told:
        """The answer, as soon as it begins."""
        return self.answers.get(timeout=timeout)


class Emulator:
    """A Runtime API for one function; a context manager."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.waiting: queue.Queue[Invoked] = queue.Queue()
        self.starts: queue.Queue[Told] = queue.Queue()
        self.next_statuses: list[int] = []
        self.polls = 0
        self.idle = threading.Semaphore(0)
        self._invoked: dict[str, Invoked] = {}
        self._answered: set[str] = set()
        self._sockets: list[socket.socket] = []
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def invoke(self, event: object, **more: Any) -> Invoked:
        raw = event if isinstance(event, bytes) else json.dumps(event).encode()
        number = len(self._invoked) + 1
        invoked = Invoked(f"00000000-0000-4000-8000-{number:012}", raw, **more)
        self._invoked[invoked.request_id] = invoked
        self.waiting.put(invoked)
        return invoked

    def until_idle(self, timeout: float = 30.0) -> None:
        """Until the runtime asks for its next event."""
        assert self.idle.acquire(timeout=timeout), "the runtime never asked for an event"

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            self._sockets.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        with connection, connection.makefile("rb") as reader:
            try:
                while self._one(connection, reader):
                    pass
            except OSError:
                return

    def _one(self, connection: socket.socket, reader: Any) -> bool:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = reader.readline()
            if not line:
                return False
            head += line
        method, path, _ = head.split(b" ", 2)
        match = _PATHS.fullmatch(path.decode())
        if match is None or (match[1] is None) != (method == b"POST"):
            return self._reply(connection, 404)
        if match[1]:
            return self._next(connection)
        told = Told(match[3] or match[4], head)
        if match[4]:
            self.starts.put(told)
            self._read(reader, told, None)
            return self._reply(connection, 202 if self._named(told) else 400)
        invoked = self._invoked.get(match[2])
        if invoked is None or match[2] in self._answered or not self._proper(told, invoked):
            return self._reply(connection, 400)
        self._answered.add(match[2])
        invoked.answers.put(told)
        if not self._read(reader, told, invoked):
            return False
        return self._reply(connection, invoked.status)

    @staticmethod
    def _named(told: Told) -> bool:
        kind = told.headers.get("lambda-runtime-function-error-type", "")
        return _ERROR_TYPE.fullmatch(kind) is not None

    def _proper(self, told: Told, invoked: Invoked) -> bool:
        headers = told.headers
        if headers.get("lambda-runtime-invocation-id") != invoked.echo:
            return False
        if told.kind == "error":
            return True  # the type in its header may be left out: AWS's own client does
        streaming = headers.get("lambda-runtime-function-response-mode") == "streaming"
        return streaming == (headers.get("transfer-encoding") == "chunked")

    def _next(self, connection: socket.socket) -> bool:
        self.polls += 1
        if self.next_statuses:
            return self._reply(connection, self.next_statuses.pop(0))
        self.idle.release()
        while True:
            try:
                invoked = self.waiting.get(timeout=0.2)
                break
            except queue.Empty:
                if self._closed:
                    return False
                connection.setblocking(False)
                try:
                    gone = connection.recv(1, socket.MSG_PEEK) == b""
                except BlockingIOError:
                    gone = False
                finally:
                    connection.setblocking(True)
                if gone:
                    return False
        invoked.deadline = time.time() + invoked.seconds
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(invoked.event)),
            "Lambda-Runtime-Aws-Request-Id": invoked.request_id,
            "Lambda-Runtime-Deadline-Ms": str(int(invoked.deadline * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:111122223333:function:f",
        }
        if invoked.echo is not None:
            headers["Lambda-Runtime-Invocation-Id"] = invoked.echo
        if invoked.trace_id is not None:
            headers["Lambda-Runtime-Trace-Id"] = invoked.trace_id
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        event = invoked.event[: len(invoked.event) // 2] if invoked.late else invoked.event
        connection.sendall(f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode() + event)
        invoked.taken.set()
        return True

    def _read(self, reader: Any, told: Told, invoked: Invoked | None) -> bool:
        """The whole body; False where we leave amid it."""
        try:
            if told.headers.get("transfer-encoding") != "chunked":
                told.raw += reader.read(int(told.headers.get("content-length", "0")))
                told.chunks.append(bytes(told.raw))
                told.whole = True
                return True
            while True:
                seen = len(told.body)
                if invoked is not None and invoked.read is not None and seen >= invoked.read:
                    invoked.resumed.wait(60)
                if invoked is not None and invoked.leaves is not None and seen >= invoked.leaves:
                    return False
                line = reader.readline()
                told.raw += line
                if not line:
                    return False
                size = int(line, 16)
                if size == 0:
                    break
                data = reader.read(size + 2)
                told.raw += data
                if data[size:] != b"\r\n":
                    return False
                told.chunks.append(data[:size])
                told.grew()
            while (line := reader.readline()) not in {b"\r\n", b""}:
                told.raw += line
                name, _, value = line.decode().strip().partition(": ")
                told.trailers[name] = value
            told.raw += line
            told.whole = line == b"\r\n"
            return told.whole
        finally:
            told.ended.set()
            told.grew()

    @staticmethod
    def _reply(connection: socket.socket, status: int) -> bool:
        body = b'{"status":"OK"}' if status == 202 else b'{"errorType":"refused"}'
        connection.sendall(
            b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body
        )
        return True
