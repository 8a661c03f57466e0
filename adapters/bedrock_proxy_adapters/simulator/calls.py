"""
What the simulator received: one :class:`Call` for each request, and what became of it.
"""

import base64
import threading
import time
from collections.abc import Callable
from typing import Final

from bedrock_proxy_adapters.simulator.replies import Headers, Operation
from bedrock_proxy_adapters.simulator.values import Json

_SECRET_HEADERS: Final = frozenset({"authorization", "x-amz-security-token"})


class CallTimeout(AssertionError):
    """What was waited for did not happen in time."""


class Call:
    """
    One request, as it arrived, and how its answer went. Safe to read from any thread.

    Attributes:
        index: The how-manieth call it is, from 0.
        operation: ``invoke``, ``converse-stream`` and so on: the last part of the path; or
            ``apply-guardrail``.
        model_id: The model id, percent-decoded once; a guardrail's id, a colon, and its version.
        path: The path as it came, still encoded.
        headers: The request's headers, names in lower case.
        body: The request's body, byte for byte.
        received_at: Seconds since the epoch.
        request_id: The ``x-amzn-requestid`` of the answer.
        status: The HTTP status of the answer.
        written_at: For each event written, when: seconds of the monotonic clock.
        aborted: Whether the caller left before the answer was over.
        finished: Whether the answer was sent to its end, or to the cut its script asked for.
    """

    def __init__(
        self,
        index: int,
        operation: Operation,
        model_id: str,
        path: str,
        headers: Headers,
        body: bytes,
        request_id: str,
    ) -> None:
        self.index = index
        self.operation = operation
        self.model_id = model_id
        self.path = path
        self.headers = headers
        self.body = body
        self.request_id = request_id
        self.received_at = time.time()
        self.status = 0
        self.written_at: list[float] = []
        self.aborted = False
        self.finished = False
        self._changed = threading.Condition()
        self._released = 0
        self._passed = 0
        self._wake: Callable[[], object] | None = None

    def __repr__(self) -> str:
        state = "aborted" if self.aborted else "finished" if self.finished else "open"
        return f"<Call {self.index} {self.operation} {self.model_id} {state}>"

    def header(self, name: str) -> str | None:
        """The first value of a request header, or None."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key == wanted), None)

    @property
    def events_written(self) -> int:
        """How many events were handed to the connection so far."""
        return len(self.written_at)

    def release(self, events: int = 1) -> None:
        """Under a script with ``gate``: let this many more events through."""
        with self._changed:
            self._released += events
            wake = self._wake
        if wake is not None:
            wake()

    def wait_events(self, count: int, timeout: float = 10.0) -> None:
        """
        Return once *count* events were written.

        Raises:
            CallTimeout: They were not, within *timeout* seconds.
        """
        self._wait(lambda: self.events_written >= count, f"{count} events", timeout)

    def wait_aborted(self, timeout: float = 10.0) -> None:
        """
        Return once the caller was seen to leave.

        Raises:
            CallTimeout: It was not, within *timeout* seconds.
        """
        self._wait(lambda: self.aborted, "the caller to leave", timeout)

    def wait_finished(self, timeout: float = 10.0) -> None:
        """
        Return once the answer was sent.

        Raises:
            CallTimeout: It was not, within *timeout* seconds.
        """
        self._wait(lambda: self.finished, "the end of the answer", timeout)

    def to_json(self) -> dict[str, Json]:
        """The call as the control endpoint tells it, without the caller's credentials."""
        return {
            "index": self.index,
            "operation": self.operation,
            "model_id": self.model_id,
            "path": self.path,
            "headers": {k: v for k, v in self.headers if k not in _SECRET_HEADERS},
            "body_base64": base64.b64encode(self.body).decode(),
            "received_at": self.received_at,
            "request_id": self.request_id,
            "status": self.status,
            "events_written": self.events_written,
            "aborted": self.aborted,
            "finished": self.finished,
        }

    def _wait(self, holds: Callable[[], bool], what: str, timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(holds, timeout):
                raise CallTimeout(f"waited {timeout:g} s for {what}: {self!r}")

    def begun(self, status: int, wake: Callable[[], object]) -> None:
        """The server's note that the answer is under way; *wake* is called by a release."""
        with self._changed:
            self.status = status
            self._wake = wake

    def wrote(self, events: int) -> None:
        """The server's note that events were written."""
        now = time.monotonic()
        with self._changed:
            self.written_at.extend([now] * events)
            self._changed.notify_all()

    def over(self, aborted: bool) -> None:
        """The server's note that the answer is over. The first one holds."""
        with self._changed:
            if not (self.aborted or self.finished):
                self.aborted, self.finished = aborted, not aborted
            self._changed.notify_all()

    def passes(self, events: int) -> bool:
        """Whether the gate lets this many more events through; if so, they are counted."""
        with self._changed:
            if self._passed + events > self._released:
                return False
            self._passed += events
            return True
