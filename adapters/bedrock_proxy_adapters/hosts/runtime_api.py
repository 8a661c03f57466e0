"""
The wire between a Lambda function and the service: the Runtime API, and the response
stream that Function URLs and REST APIs turn back into HTTP.

Sources: AWS, Lambda developer guide, "Using the Lambda runtime API for custom runtimes"
(paths, headers, error types, trailers) and "Response streaming"; the media type and the
eight NUL bytes after the prelude are what AWS's own Node.js runtime writes.
"""

import base64
import http.client
import json
import socket
import threading
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from attrs import frozen

from bedrock_proxy.http import Head
from bedrock_proxy_adapters.hosts.events import prelude

_PATH: Final = "/2018-06-01/runtime"
_CONTENT_TYPE: Final = "application/vnd.awslambda.http-integration-response"
_NULS: Final = bytes(8)
_ERROR_TYPE: Final = "Lambda-Runtime-Function-Error-Type"
_ERROR_BODY: Final = "Lambda-Runtime-Function-Error-Body"
_INVOCATION_ID: Final = "Lambda-Runtime-Invocation-Id"

_ANSWER_WITHIN: Final = 30.0
"""Seconds for what the service answers at once."""


class RuntimeApiError(Exception):
    """
    The Runtime API did not do as asked.

    Attributes:
        status: Its HTTP status; None where it could not be reached.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Stopped(Exception):
    """:meth:`RuntimeApi.stop` was called: there is no next invocation."""


class EventLate(Exception):
    """The event began to arrive and did not end in time."""

    def __init__(self, invocation: "Invocation") -> None:
        super().__init__()
        self.invocation = invocation


@frozen
class Fault:
    """
    What went wrong, as Lambda counts and logs it.

    Attributes:
        kind: ``Runtime.Name`` or ``Function.Name``.
        message: For the operator.
    """

    kind: str
    message: str

    def body(self) -> bytes:
        """The JSON that Lambda keeps."""
        said: dict[str, object] = {
            "errorMessage": self.message,
            "errorType": self.kind,
            "stackTrace": [],
        }
        return json.dumps(said, separators=(",", ":")).encode()


@frozen
class Invocation:
    """
    One event and what came with it.

    Attributes:
        request_id: Lambda's, unique.
        event: JSON.
        deadline_ms: When the function is killed, in milliseconds of the epoch; None if unsaid.
        trace_id: X-Ray's, or None.
        echo: The invocation's further id, which its answer must repeat; None if unsaid.
    """

    request_id: str
    event: bytes
    deadline_ms: int | None = None
    trace_id: str | None = None
    echo: str | None = None


class RuntimeApi:
    """
    One connection to the Runtime API, kept open between invocations. For one loop; only
    :meth:`stop` and :meth:`cut` may be called from elsewhere.

    Args:
        address: ``host:port``, the variable ``AWS_LAMBDA_RUNTIME_API``.

    Attributes:
        stopped: Whether it was told to stop.
        writing: Whether a piece of an answer is being written.
    """

    def __init__(self, address: str) -> None:
        # TCP_NODELAY is set by http.client itself.
        self._connection = http.client.HTTPConnection(address)
        self._lock = threading.Lock()
        self._waiting = False
        self.stopped = False
        self.writing = False

    def next(self, body_within: float) -> Invocation:
        """
        Wait for an event, for as long as it takes: Lambda freezes the process meanwhile.

        Args:
            body_within: Seconds that an event may take to arrive once it has begun to.

        Raises:
            Stopped: There will be none.
            EventLate: It did not arrive whole.
            RuntimeApiError: The API refused, or could not be reached.
        """
        connection = self._connection
        try:
            _connected(connection, _ANSWER_WITHIN).settimeout(None)
            with self._lock:
                if self.stopped:
                    raise Stopped
                self._waiting = True
            connection.request("GET", f"{_PATH}/invocation/next")
            reply = connection.getresponse()
            with self._lock:
                self._waiting = False
            invocation = _invocation(reply.headers)
            if connection.sock is not None:
                connection.sock.settimeout(body_within)
            try:
                event = reply.read()
            except TimeoutError:
                self.close()
                raise EventLate(invocation) from None
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if self.stopped:
                raise Stopped from None
            raise RuntimeApiError(
                f"the next event did not come ({type(error).__name__})"
            ) from error
        finally:
            self._waiting = False
        if reply.status != 200:
            raise RuntimeApiError(f"the next event was refused with {reply.status}", reply.status)
        return Invocation(
            invocation.request_id,
            event,
            invocation.deadline_ms,
            invocation.trace_id,
            invocation.echo,
        )

    def stream(self, invocation: Invocation, head: Head, within: float) -> "Answer":
        """
        Begin an answer with *head*.

        Raises:
            OSError: It could not be written within *within* seconds.
        """
        answer = Answer(self, self._connection, invocation)
        answer.write(prelude(head) + _NULS, within)
        return answer

    def respond(self, invocation: Invocation, body: bytes) -> int:
        """
        Give a whole answer, JSON.

        Returns:
            The API's status: 202, or why the answer was not taken.

        Raises:
            RuntimeApiError: The API could not be reached.
        """
        headers = {"Content-Type": "application/json", **_echo(invocation)}
        return self._post(f"{_invocation_path(invocation)}/response", body, headers)

    def fail(self, invocation: Invocation, fault: Fault) -> int:
        """Say that the invocation came to nothing. See :meth:`respond`."""
        headers = {**_error_headers(fault), **_echo(invocation)}
        return self._post(f"{_invocation_path(invocation)}/error", fault.body(), headers)

    def fail_init(self, fault: Fault) -> int:
        """Say that the function cannot start. See :meth:`respond`."""
        return self._post(f"{_PATH}/init/error", fault.body(), _error_headers(fault))

    def stop(self) -> None:
        """End the wait for the next event, now or when it begins."""
        with self._lock:
            self.stopped = True
            sock = self._connection.sock if self._waiting else None
            if sock is not None:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    return  # it has ended by itself

    def cut(self) -> None:
        """End the write of an answer that is under way."""
        sock = self._connection.sock
        if self.writing and sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it has ended by itself

    def close(self) -> None:
        """Close the connection; the next call makes another."""
        self._connection.close()

    def _post(self, path: str, body: bytes, headers: Mapping[str, str]) -> int:
        connection = self._connection
        try:
            _connected(connection, _ANSWER_WITHIN)
            connection.request("POST", path, body, dict(headers))
            reply = connection.getresponse()
            reply.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise RuntimeApiError(f"{path} failed ({type(error).__name__})") from error
        return reply.status


class Answer:
    """
    One streamed answer.

    Every write is one chunk and one ``sendall``. After an ``OSError`` it is lost.
    """

    def __init__(
        self, api: RuntimeApi, connection: http.client.HTTPConnection, invocation: Invocation
    ) -> None:
        self._api = api
        self._connection = connection
        self._begun = False
        self._ended = False
        self._invocation = invocation

    def write(self, data: bytes, within: float) -> None:
        """
        Send *data*, which must not be empty.

        Raises:
            OSError: It could not be written within *within* seconds.
        """
        if not self._begun:
            self._begin(within)
        self._send(b"%x\r\n%b\r\n" % (len(data), data), within)

    def end(self, fault: Fault | None, within: float) -> None:
        """
        Send what ends the body, with *fault* in its trailers. Harmless when repeated.

        Raises:
            OSError: See :meth:`write`.
        """
        if self._ended:
            return
        self._ended = True
        trailers = b""
        if fault is not None:
            said = base64.b64encode(fault.body()).decode()
            trailers = f"{_ERROR_TYPE}: {fault.kind}\r\n{_ERROR_BODY}: {said}\r\n".encode()
        self._send(b"0\r\n%b\r\n" % trailers, within)

    def taken(self, within: float) -> int:
        """
        The API's status: 202, or why the answer was not taken.

        Raises:
            RuntimeApiError: It did not say.
        """
        connection = self._connection
        try:
            _connected(connection, within)
            reply = connection.getresponse()
            reply.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise RuntimeApiError(
                f"the answer was not acknowledged ({type(error).__name__})"
            ) from error
        return reply.status

    def lost(self, within: float) -> int | None:
        """
        What the API said before it stopped reading, if anything; closes the connection.
        """
        try:
            return self.taken(within) if self._begun else None
        except RuntimeApiError:
            return None
        finally:
            self._connection.close()

    def _begin(self, within: float) -> None:
        connection = self._connection
        _connected(connection, within)
        path = f"{_invocation_path(self._invocation)}/response"
        connection.putrequest("POST", path, skip_accept_encoding=True)
        connection.putheader("Lambda-Runtime-Function-Response-Mode", "streaming")
        connection.putheader("Content-Type", _CONTENT_TYPE)
        connection.putheader("Transfer-Encoding", "chunked")
        for trailer in (_ERROR_TYPE, _ERROR_BODY):
            connection.putheader("Trailer", trailer)
        for name, value in _echo(self._invocation).items():
            connection.putheader(name, value)
        connection.endheaders()
        self._begun = True

    def _send(self, data: bytes, within: float) -> None:
        sock = self._connection.sock
        if sock is None:
            raise ConnectionError("the connection is closed")
        sock.settimeout(within)
        self._api.writing = True
        try:
            sock.sendall(data)
        finally:
            self._api.writing = False


def _connected(connection: http.client.HTTPConnection, within: float) -> socket.socket:
    """The connection's socket, whose calls end after *within* seconds."""
    if connection.sock is None:
        connection.timeout = within
        connection.connect()
    sock = connection.sock
    if sock is None:
        raise ConnectionError("the connection is closed")
    sock.settimeout(within)
    return sock


def _invocation(headers: http.client.HTTPMessage) -> Invocation:
    deadline = headers.get("Lambda-Runtime-Deadline-Ms", "")
    return Invocation(
        request_id=headers.get("Lambda-Runtime-Aws-Request-Id", ""),
        event=b"",
        deadline_ms=int(deadline) if deadline.isdecimal() else None,
        trace_id=headers.get("Lambda-Runtime-Trace-Id"),
        echo=headers.get(_INVOCATION_ID),
    )


def _invocation_path(invocation: Invocation) -> str:
    return f"{_PATH}/invocation/{quote(invocation.request_id, safe='')}"


def _echo(invocation: Invocation) -> dict[str, str]:
    return {} if invocation.echo is None else {_INVOCATION_ID: invocation.echo}


def _error_headers(fault: Fault) -> dict[str, str]:
    return {"Content-Type": "application/json", _ERROR_TYPE: fault.kind}
