"""
The simulated Bedrock itself: what it was told to answer, what it received. No sockets here:
the server and the ASGI app both hand it requests and play its replies.
"""

import asyncio
import re
import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final, Protocol, cast
from urllib.parse import unquote

from attrs import define

from bedrock_proxy_adapters.simulator.calls import Call, CallTimeout
from bedrock_proxy_adapters.simulator.families import FAMILIES, family_named
from bedrock_proxy_adapters.simulator.replies import (
    JSON,
    Headers,
    Operation,
    Reply,
    error_reply,
    reply,
)
from bedrock_proxy_adapters.simulator.scripts import Hangup, Script
from bedrock_proxy_adapters.simulator.timeline import Cut, Gate, Pause, Write, steps
from bedrock_proxy_adapters.simulator.values import (
    Body,
    InvalidBody,
    Json,
    as_count,
    as_text,
    dump,
    parse_body,
)

_ROUTE: Final = re.compile(
    "/model/(.+)/(invoke-with-response-stream|invoke|converse-stream|converse|count-tokens)"
)
_GUARDRAIL: Final = re.compile("/guardrail/(.+)/version/([^/]+)/apply")
_UNKNOWN: Final = "The simulator has no such operation."
_CONTROL: Final = "/_simulator/"
_NAMESPACE: Final = uuid.UUID("5f3a1c52-70a5-4a3b-9d0c-6f1f0f9b6a11")
DEFAULT_KEPT_CALLS: Final = 10_000


class Sink(Protocol):
    """Where a reply is played to: a connection, or an ASGI server."""

    async def head(self, status: int, headers: Headers, length: int | None) -> None:
        """Send the head; *length* is None for a body in chunks."""
        ...

    async def send(self, data: bytes) -> None:
        """Send a part of the body; waits while the reader is behind."""
        ...

    async def end(self) -> None:
        """End the body as it should be ended."""
        ...

    async def cut(self, how: Hangup) -> None:
        """Drop the connection, body unfinished."""
        ...


@define
class _Rule:
    script: Script
    model: str
    left: int | None
    every: int
    seen: int = 0

    def applies(self, model_id: str) -> bool:
        """Whether this rule answers a call; every call that matches is counted."""
        if self.left == 0 or not fnmatchcase(model_id, self.model):
            return False
        self.seen += 1
        if self.seen % self.every:
            return False
        if self.left is not None:
            self.left -= 1
        return True


class Bedrock:
    """
    A fake Bedrock Runtime, apart from its sockets.

    Args:
        default: What is answered where no other script applies.
        models: Further model ids, each with the name of its family (``claude``, ``nova``,
            ``openai`` …), for application profiles and imported models.
        keep: How many calls are remembered; the oldest are forgotten.
    """

    def __init__(
        self,
        default: Script | None = None,
        *,
        models: Mapping[str, str] | None = None,
        keep: int = DEFAULT_KEPT_CALLS,
    ) -> None:
        self._default = default or Script()
        self._models = dict(models or {})
        for name in self._models.values():
            if name not in FAMILIES:
                raise ValueError(f"no family {name!r}: one of {', '.join(FAMILIES)}")
        self._rules: list[_Rule] = []
        self._calls: deque[Call] = deque(maxlen=keep)
        self._count = 0
        self._changed = threading.Condition()

    @property
    def calls(self) -> list[Call]:
        """The calls so far, in order of arrival."""
        with self._changed:
            return list(self._calls)

    def script(
        self,
        script: Script | Mapping[str, object] | None = None,
        /,
        *,
        times: int | None = 1,
        model: str = "*",
        every: int = 1,
        **members: Any,
    ) -> None:
        """
        Say what the next calls are answered.

        Scripts with a number of *times* wait in a queue, and go first, the oldest before
        the newest; among scripts for ever the newest holds; the default comes last.

        Args:
            script: A script, or its JSON object; or give its *members* by name.
            times: For how many calls; None: for ever.
            model: Only for model ids that match this pattern (``*`` and ``?`` match).
            every: Only every so-manieth of these calls.

        Raises:
            ValueError: It is no script.
        """
        if script is None:
            script = Script(**members)
        elif members:
            raise ValueError("give a script or its members, not both")
        elif not isinstance(script, Script):
            script = Script.from_json(script)
        if every < 1 or (times is not None and times < 1):
            raise ValueError("times and every must be at least 1")
        with self._changed:
            self._rules.append(_Rule(script, model, times, every))

    def default(self, script: Script | Mapping[str, object] | None = None, /) -> None:
        """Say what is answered where no other script applies; None: the echo."""
        given = Script.from_json(script) if isinstance(script, Mapping) else script
        with self._changed:
            self._default = given or Script()

    def reset(self) -> None:
        """Forget scripts and calls; the default stays."""
        with self._changed:
            self._rules.clear()
            self._calls.clear()

    def wait_calls(self, count: int, timeout: float = 10.0) -> list[Call]:
        """
        The calls, once there are *count*.

        Raises:
            CallTimeout: There were not, within *timeout* seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._calls) >= count, timeout):
                raise CallTimeout(f"waited {timeout:g} s for {count} calls: {len(self._calls)}")
            return list(self._calls)

    def receive(
        self, method: str, path: str, headers: Headers, body: bytes
    ) -> tuple[Reply, str, Call | None]:
        """
        Take a request in: the reply, its request id, and the call where it is one.

        Args:
            method: In upper case.
            path: Still percent-encoded, without the query.
            headers: Names in lower case.
            body: The whole body.
        """
        with self._changed:
            number = self._count
            self._count += 1
        request_id = str(uuid.uuid5(_NAMESPACE, str(number)))
        if path.startswith(_CONTROL):
            return self._control(method, path[len(_CONTROL) :], body), request_id, None
        asked = _asked(path) if method == "POST" else None
        if asked is None:
            return error_reply("UnknownOperationException", _UNKNOWN), request_id, None
        operation, model = asked
        with self._changed:
            index = self._calls[-1].index + 1 if self._calls else 0
            call = Call(index, operation, model, path, headers, body, request_id)
            self._calls.append(call)
            script = self._choose(model)
            self._changed.notify_all()
        family = self._models.get(model, family_named(model))
        told = script.replay is not None or script.error is not None or script.hang_up is not None
        if family is None and not told and operation != "apply-guardrail":
            refusal = "The provided model identifier is invalid."
            return error_reply("ValidationException", refusal), request_id, call
        return reply(operation, model, family or "", body, script), request_id, call

    def _choose(self, model: str) -> Script:
        counted = [rule for rule in self._rules if rule.left is not None]
        lasting = [rule for rule in reversed(self._rules) if rule.left is None]
        for rule in (*counted, *lasting):
            if rule.applies(model):
                if rule.left == 0:
                    self._rules.remove(rule)
                return rule.script
        return self._default

    def _control(self, method: str, name: str, body: bytes) -> Reply:
        acts: dict[tuple[str, str], Callable[[Body], Json]] = {
            ("GET", "calls"): lambda _: [call.to_json() for call in self.calls],
            ("POST", "script"): self._control_script,
            ("POST", "release"): self._control_release,
            ("POST", "reset"): self._control_reset,
        }
        act = acts.get((method, name))
        if act is None:
            return error_reply("UnknownOperationException", _UNKNOWN)
        try:
            answer = act(parse_body(body) if body else {})
        except (InvalidBody, ValueError, LookupError) as refusal:
            return error_reply("ValidationException", str(refusal))
        data = dump(answer)
        return Reply(200, (("content-type", JSON),), steps((data,), Script()), len(data))

    def _control_script(self, body: Body) -> Json:
        known = {"script", "times", "model", "every"}
        if not body.keys() <= known:
            raise ValueError(f"expected only {', '.join(sorted(known))}")
        script = Script.from_json(body.get("script", {}))
        times = body.get("times", 1)
        self.script(
            script,
            times=None if times is None else as_count(times) or 0,
            model=as_text(body.get("model", "*")),
            every=as_count(body.get("every", 1)) or 0,
        )
        return {}

    def _control_release(self, body: Body) -> Json:
        wanted = as_count(body.get("call"))
        call = next((call for call in self.calls if call.index == wanted), None)
        if call is None:
            raise LookupError(f"there is no call {wanted}")
        call.release(as_count(body.get("events", 1)) or 0)
        return {}

    def _control_reset(self, _: Body) -> Json:
        self.reset()
        return {}


def _asked(path: str) -> "tuple[Operation, str] | None":
    """The operation and the model's id, or the guardrail's with its version."""
    if (route := _ROUTE.fullmatch(path)) is not None:
        return cast("Operation", route[2]), unquote(route[1])
    if (route := _GUARDRAIL.fullmatch(path)) is not None:
        return "apply-guardrail", f"{unquote(route[1])}:{unquote(route[2])}"
    return None


async def play(answer: Reply, request_id: str, call: Call | None, sink: Sink) -> None:
    """
    Send a reply, step by step.

    A caller that leaves cancels the task that runs this; the server then says so to the call.
    """
    released = asyncio.Event()
    if call is not None:
        loop = asyncio.get_running_loop()
        call.begun(answer.status, lambda: loop.call_soon_threadsafe(released.set))
    if answer.delay:
        await asyncio.sleep(answer.delay)
    if answer.hang_up is not None:
        if call is not None:
            call.over(aborted=False)
        await sink.cut(answer.hang_up)
        return
    headers = (*answer.headers, ("x-amzn-requestid", request_id))
    await sink.head(answer.status, headers, answer.length)
    for step in answer.steps:
        match step:
            case Write(data, events):
                # Noted first: whoever has received an event must find it counted.
                if call is not None and events:
                    call.wrote(events)
                await sink.send(data)
            case Pause(None):
                await asyncio.Event().wait()
            case Pause(seconds):
                await asyncio.sleep(seconds or 0)
            case Gate(events):
                while call is not None and not call.passes(events):
                    await released.wait()
                    released.clear()
            case Cut(how):
                if call is not None:
                    call.over(aborted=False)
                await sink.cut(how)
                return
    await sink.end()
    if call is not None:
        call.over(aborted=False)
