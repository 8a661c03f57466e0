"""
The streaming Lambda host: a Runtime API loop of our own, in place of the managed one,
which can hand an answer over only whole.

For Function URLs in ``RESPONSE_STREAM`` mode and REST APIs with response streaming, which
share one wire. Fronts that cannot stream (HTTP APIs, load balancers) are answered whole;
where a Function URL or a REST API is set to buffer, set ``BEDROCK_PROXY_LAMBDA_MODE`` to
``buffered``, for their events do not tell.

Run it with ``python -m bedrock_proxy_adapters.hosts.lambda_runtime``: as a container's
entrypoint, or on a managed runtime from the script that ``AWS_LAMBDA_EXEC_WRAPPER`` names.
The function's handler setting, or the program's argument, names a :class:`~bedrock_proxy_adapters.proxy.Proxy`, or a
function without arguments that makes one.
"""

import importlib
import json
import logging
import os
import sys
import threading
import time
import traceback
from contextlib import nullcontext
from typing import Any, Final

from bedrock_proxy import front, routes
from bedrock_proxy.drive import drive
from bedrock_proxy.errors import BedrockProxyError, ConfigurationError, ProxyError
from bedrock_proxy.http import Head, Request
from bedrock_proxy_adapters.hosts.api_gateway import api_gateway_handler
from bedrock_proxy_adapters.hosts.deadlines import cut_after, seconds_for
from bedrock_proxy_adapters.hosts.events import Event, read_event
from bedrock_proxy_adapters.hosts.lambda_log import log_faults_to_stderr, log_usage_to_stdout
from bedrock_proxy_adapters.hosts.lambda_sigterm import on_sigterm
from bedrock_proxy_adapters.hosts.runtime_api import (
    Answer,
    EventLate,
    Fault,
    Invocation,
    RuntimeApi,
    RuntimeApiError,
    Stopped,
)
from bedrock_proxy_adapters.hosts.settlement import settling_within
from bedrock_proxy_adapters.loading import for_good
from bedrock_proxy_adapters.proxy import Passage, Proxy, new_request_id

DEFAULT_HANDLER: Final = "bedrock_proxy_adapters.config.proxy_from_env"
_MODULE: Final = "bedrock_proxy_adapters.hosts.lambda_runtime"
MODE_VARIABLE: Final = "BEDROCK_PROXY_LAMBDA_MODE"

STOP_GRACE: Final = 0.3
"""
Seconds from SIGTERM until Lambda may kill the process. Of the two seconds for a shutdown it keeps
300 ms for the runtime where there are external extensions, 500 ms where there are only internal
ones; without any it sends no SIGTERM at all (aws-samples/graceful-shutdown-with-aws-lambda; AWS,
Lambda developer guide, "Understanding the Lambda execution environment lifecycle").

The row, or the line that stands for it, comes within that: a write takes :data:`STOP_WRITE` of it at
most, the store :data:`~bedrock_proxy_adapters.hosts.settlement.STOP_WAIT`. What only tells
Lambda comes after.
"""

STOP_WRITE: Final = 0.05
"""Seconds that a write of the answer may take once the function was told to stop."""

_TRIES: Final = 5
_PAUSE: Final = 0.1
_LEAST_WRITE: Final = 0.05
_LAST_WORD: Final = 1.0

_log = logging.getLogger("bedrock_proxy.lambda")


def serve(proxy: Proxy, *, address: str | None = None, buffered: bool = False) -> None:
    """
    Serve *proxy* until SIGTERM. Its usage lines go to standard output, what else it has to say to
    standard error, unless you have configured the loggers ``bedrock_proxy.usage`` and
    ``bedrock_proxy`` yourself.

    Args:
        address: The Runtime API's ``host:port``; ``AWS_LAMBDA_RUNTIME_API`` where None.
        buffered: Whether the front waits for whole answers.

    Raises:
        ConfigurationError: A port of the proxy needs an event loop, or this is no Lambda
            function.
        RuntimeApiError: The Runtime API cannot be reached any more, or failed.
    """
    runtime = Runtime(proxy, _address(address), buffered=buffered, concurrency=_concurrency())
    log_usage_to_stdout()
    log_faults_to_stderr()
    with on_sigterm(runtime.stop):
        runtime.run()


class Runtime:
    """
    As many loops as the environment may have invocations at once, each with a connection
    and a thread of its own.

    Args:
        concurrency: How many; ``AWS_LAMBDA_MAX_CONCURRENCY``.

    Raises:
        ConfigurationError: A port of the proxy needs an event loop.
    """

    def __init__(
        self, proxy: Proxy, address: str, *, buffered: bool = False, concurrency: int = 1
    ) -> None:
        self._proxy = proxy
        # X-Ray's variable belongs to the process: with several invocations it means nothing.
        traced = concurrency == 1
        self._loops = [
            _Loop(proxy, RuntimeApi(address), buffered=buffered, traced=traced)
            for _ in range(concurrency)
        ]
        self._failure: BaseException | None = None

    def run(self) -> None:
        """
        Answer events until :meth:`stop`. Blocks.

        Raises:
            RuntimeApiError: The Runtime API cannot be reached any more, or failed.
        """
        first, *others = self._loops
        threads = [threading.Thread(target=self._run, args=(loop,)) for loop in others]
        for thread in threads:
            thread.start()
        self._run(first)
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def stop(self, grace: float = STOP_GRACE) -> None:
        """End what is under way with one terminal error each, settle it, and end the loops."""
        for loop in self._loops:
            loop.api.stop()
        if self._proxy.shutdown(deadline=0.0, grace=min(STOP_WRITE, grace)):
            # A write that began before, and that nobody takes, must not hold up the row.
            for loop in self._loops:
                loop.api.cut()
            self._proxy.shutdown(deadline=0.0, grace=max(0.0, grace - STOP_WRITE))

    def _run(self, loop: "_Loop") -> None:
        try:
            loop.run()
        except BaseException as error:  # noqa: BLE001 -- raised again by `run`
            self._failure = self._failure or error
            for other in self._loops:
                other.api.stop()
        finally:
            loop.api.close()


class _Loop:
    def __init__(self, proxy: Proxy, api: RuntimeApi, *, buffered: bool, traced: bool) -> None:
        self.api = api
        self._proxy = proxy
        self._faces = proxy.sync_faces()
        self._whole = api_gateway_handler(proxy)
        self._buffered = buffered
        self._traced = traced
        self._failures = 0

    def run(self) -> None:
        while True:
            try:
                invocation = self.api.next(self._proxy.rules.body_timeout)
            except Stopped:
                return
            except EventLate as late:
                self._failures = 0
                self._serve_late(late.invocation)
                continue
            except RuntimeApiError as error:
                self._failures += 1
                if self._failures >= _TRIES or (error.status or 0) >= 500:
                    raise
                _log.warning("Runtime API: %s; trying again.", error)
                time.sleep(_PAUSE * 2**self._failures)
                continue
            self._failures = 0
            self._serve(invocation)

    def _serve(self, invocation: Invocation) -> None:
        if self._traced and invocation.trace_id is not None:
            os.environ["_X_AMZN_TRACE_ID"] = invocation.trace_id
        try:
            event = json.loads(invocation.event)
        except (ValueError, RecursionError):
            self._fail(invocation, Fault("Runtime.UnmarshalError", "The event is not JSON."))
            return
        request_id = invocation.request_id or new_request_id()
        arrived = read_event(event, self._proxy.base_path, request_id, can_stream=True)
        if self._buffered or (arrived is not None and not arrived.streams):
            self._serve_whole(invocation, event)
        elif arrived is None:
            # A warmer, a console test: there is nobody to be told more.
            self._say(invocation, Head(400, ()), b"")
        else:
            self._stream(invocation, arrived)

    # --- streamed -----------------------------------------------------------------------

    def _stream(self, invocation: Invocation, arrived: Event) -> None:
        left = _left(invocation)
        patience = None if left is None else seconds_for(left)
        settling = settling_within(self._proxy, self._faces, left)
        passage = self._proxy.passage(arrived.request, arrived.body, settling)
        timer = cut_after(passage, patience)
        writing = _Writing(self.api, invocation, self._proxy.write_timeout, patience, left)
        fault: Fault | None = None
        try:
            ending = _relay(passage, writing)
            if ending is not None:
                fault = _fault(ending)
        except Exception as error:  # noqa: BLE001 -- a defect of ours; the next event must come
            self._proxy.telemetry.fault(arrived.request.request_id, error)
            fault = Fault("Runtime.UnhandledException", type(error).__name__)
        finally:
            passage.ended()
            if timer is not None:
                timer.cancel()
        if fault is not None and not writing.begun and not writing.lost:
            self._fail(invocation, fault)
            return
        status = writing.end(fault)
        if status is not None and status != 202:
            _told(invocation, status)

    def _serve_late(self, invocation: Invocation) -> None:
        error = front.body_late(self._proxy.rules.body_timeout)
        request = Request(invocation.request_id, "POST", "/", ())
        reply = routes.dialect_of(request).refusal(error, invocation.request_id)
        self._say(invocation, Head(reply.status, reply.headers), reply.body)

    def _say(self, invocation: Invocation, head: Head, body: bytes) -> None:
        writing = _Writing(self.api, invocation, self._proxy.write_timeout, None, None)
        writing.say(head)
        if body:
            writing.say(body)
        status = writing.end(None)
        if status is not None and status != 202:
            _told(invocation, status)

    # --- whole --------------------------------------------------------------------------

    def _serve_whole(self, invocation: Invocation, event: Any) -> None:
        try:
            answer = self._whole(event, _Context(invocation))
        except Exception as error:  # noqa: BLE001 -- the next event must come
            self._proxy.telemetry.fault(invocation.request_id, error)
            self._fail(invocation, Fault("Runtime.UnhandledException", type(error).__name__))
            return
        try:
            status = self.api.respond(invocation, json.dumps(answer).encode())
        except RuntimeApiError as error:
            _log.warning("Invocation %s: %s.", invocation.request_id, error)
            return
        if status != 202:
            _told(invocation, status)

    def _fail(self, invocation: Invocation, fault: Fault) -> None:
        try:
            status = self.api.fail(invocation, fault)
        except RuntimeApiError as error:
            _log.warning("Invocation %s: %s.", invocation.request_id, error)
            return
        if status != 202:
            _told(invocation, status)


class _Context:
    """Of what Lambda hands over beside the event, the part that we read."""

    def __init__(self, invocation: Invocation) -> None:
        self.aws_request_id = invocation.request_id
        left = _left(invocation)
        if left is not None:
            self.get_remaining_time_in_millis = lambda: left * 1000


class _Writing:
    """
    An answer on its way to the Runtime API.

    Once a write has failed nothing more is sent, and the rest is for the bill alone.

    Attributes:
        begun: Whether the head is out.
        lost: Whether a write has failed.
    """

    def __init__(
        self,
        api: RuntimeApi,
        invocation: Invocation,
        write_timeout: float,
        patience: float | None,
        left: float | None,
    ) -> None:
        self.begun = False
        self.lost = False
        self._api = api
        self._invocation = invocation
        self._write_timeout = write_timeout
        # A write that waits for its reader must leave time to settle before the end.
        until = None if patience is None or left is None else (patience + left) / 2
        self._until = None if until is None else time.monotonic() + until
        self._answer: Answer | None = None
        self._owed: int | None = None
        self._status: int | None = None

    def say(self, said: Head | bytes) -> bool:
        """Send it; whether that went well."""
        if self.lost:
            return False
        try:
            if isinstance(said, Head):
                self._answer = self._api.stream(self._invocation, said, self._within())
                self.begun = True
                length = dict(said.headers).get("content-length", "")
                self._owed = int(length) if length.isdecimal() else None
            elif said:
                assert self._answer is not None, "a flow says its head first"
                self._answer.write(said, self._within())
                if self._owed is not None:
                    self._owed -= len(said)
                    if self._owed <= 0:
                        # Nothing can follow: its reader need not wait for the settlement.
                        self._answer.end(None, self._within())
        except OSError as error:
            self._lose(error)
        return not self.lost

    def end(self, fault: Fault | None) -> int | None:
        """End the answer; the API's status, or None where it said none."""
        if self.lost or self._answer is None:
            return self._status
        try:
            self._answer.end(fault, self._within())
            return self._answer.taken(self._patient())
        except OSError as error:
            self._lose(error)
        except RuntimeApiError as error:
            self.lost = True
            _log.warning("Invocation %s: %s.", self._invocation.request_id, error)
        return self._status

    def _within(self) -> float:
        return STOP_WRITE if self._api.stopped else self._patient()

    def _patient(self) -> float:
        if self._until is None:
            return self._write_timeout
        return max(_LEAST_WRITE, min(self._write_timeout, self._until - time.monotonic()))

    def _lose(self, error: OSError) -> None:
        self.lost = True
        if self._answer is not None and not isinstance(error, TimeoutError):
            # It closed the connection: perhaps it has said why.
            self._status = self._answer.lost(min(_LAST_WORD, self._within()))
        self._api.close()
        if self._status is None:
            _log.warning(
                "Invocation %s: the answer could not be sent on (%s).",
                self._invocation.request_id,
                type(error).__name__,
            )


def _relay(passage: Passage, writing: _Writing) -> ProxyError | None:
    """Send what the flow says, until it has settled; the terminal error it ended in, if any."""
    flow = drive(passage.flow, passage.ports, passage.interrupts)
    while True:
        try:
            said = next(flow)
        except StopIteration as end:
            ending: ProxyError | None = end.value
            return ending
        if not writing.say(said):
            passage.leave()


def _fault(error: ProxyError) -> Fault:
    """*error* in Lambda's grammar: ``upstream_torn`` is ``Function.UpstreamTorn``."""
    name = "".join(word.capitalize() for word in str(error.code).split("_"))
    return Fault(f"Function.{name}", error.message)


def _told(invocation: Invocation, status: int) -> None:
    if status >= 500:
        # AWS: "Container error. Non-recoverable state. Runtime should exit promptly."
        raise RuntimeApiError(f"the answer was refused with {status}", status)
    # 410: the invocation has ended without us. 403, 413: it was not taken as it is.
    _log.warning(
        "Invocation %s: the Runtime API did not take the answer (%d).",
        invocation.request_id,
        status,
    )


def _left(invocation: Invocation) -> float | None:
    """Seconds until the function is killed."""
    if invocation.deadline_ms is None:
        return None
    return max(0.0, invocation.deadline_ms / 1000 - time.time())


# --- the process ------------------------------------------------------------------------------


def main() -> int:
    """The program: the proxy that the handler setting names, served until SIGTERM."""
    log_faults_to_stderr()
    try:
        address = _address(None)
    except ConfigurationError as error:
        _log.critical("%s", error)
        return 1
    try:
        mode = os.environ.get(MODE_VARIABLE, "stream")
        if mode not in {"stream", "buffered"}:
            raise ConfigurationError(f"{MODE_VARIABLE} must be stream or buffered, not {mode!r}.")
        handler = _handler()
        # What a handler of the user's own does with the collector is not ours to undo.
        with for_good() if handler == DEFAULT_HANDLER else nullcontext():
            proxy = _named(handler)
            proxy.sync_faces()
        _concurrency()
    except Exception as error:  # noqa: BLE001 -- whatever it is, Lambda must be told
        _log.critical("The function cannot start.\n%s", traceback.format_exc())
        RuntimeApi(address).fail_init(Fault(_init_kind(error), str(error)))
        return 1
    serve(proxy, address=address, buffered=mode == "buffered")
    return 0


def _handler() -> str:
    """The program's argument (a container's command), or the function's setting."""
    named = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("_HANDLER", "")
    # AWS's emulator takes the last word of any command for the handler.
    return DEFAULT_HANDLER if named in {"", _MODULE} else named


def _named(handler: str) -> Proxy:
    """The proxy that *handler*, ``module.name``, is or makes."""
    module, _, name = handler.replace("/", ".").rpartition(".")
    if not module:
        raise ConfigurationError(
            f"The handler {handler!r} must be module.name, of a Proxy or of a function that "
            "makes one."
        )
    sys.path[:0] = [
        root for root in [os.environ.get("LAMBDA_TASK_ROOT")] if root and root not in sys.path
    ]
    found = getattr(importlib.import_module(module), name)
    if not isinstance(found, Proxy) and callable(found):
        found = found()
    if not isinstance(found, Proxy):
        raise ConfigurationError(
            f"The handler {handler!r} is neither a Proxy nor a function that makes one."
        )
    return found


def _init_kind(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "Runtime.ImportModuleError"
    if isinstance(error, AttributeError):
        return "Runtime.HandlerNotFound"
    if isinstance(error, BedrockProxyError):
        return "Runtime.InvalidConfiguration"
    return "Runtime.InitError"


def _address(address: str | None) -> str:
    found = os.environ.get("AWS_LAMBDA_RUNTIME_API", "") if address is None else address
    if not found:
        raise ConfigurationError(
            "AWS_LAMBDA_RUNTIME_API is not set: this program is for AWS Lambda. Elsewhere use "
            "`bedrock-proxy serve`."
        )
    return found


def _concurrency() -> int:
    raw = os.environ.get("AWS_LAMBDA_MAX_CONCURRENCY") or "1"
    if not raw.isdecimal() or not 1 <= int(raw) <= 1000:
        raise ConfigurationError(
            f"AWS_LAMBDA_MAX_CONCURRENCY must be a whole number from 1 to 1000, not {raw!r}."
        )
    return int(raw)


if __name__ == "__main__":
    sys.exit(main())
