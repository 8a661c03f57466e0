"""
Pieces of a stream passed on in the very callback in which they arrive.

While a stream is under way its flow only reads, and says what it read. If each read waited on
a future, every event would cost a future, a turn of the loop, and a step of the task down to
where the flow waits. So the task waits on one future for as long as that goes on, and the
connection's own callback does the flow's turns (:class:`~bedrock_proxy.effects.Follow`): bytes
in, bytes out. Whatever is not that wakes the task.
"""

import asyncio
from collections.abc import Callable, Generator
from contextvars import copy_context
from typing import Any, Final, Generic, Protocol, TypeVar

from bedrock_proxy.effects import Fed, Follow
from bedrock_proxy.ports import Answer, Signal
from bedrock_proxy_adapters.proxy import Passage

T = TypeVar("T")

_current_task: Final = asyncio.current_task
_enter_task: Final = asyncio._enter_task
_leave_task: Final = asyncio._leave_task


class Audible(Protocol):
    """A reply that calls back when there is something to read."""

    def poll(self) -> bytes | Signal | None:
        """
        What ``read`` would give now: None if it would wait.

        Raises:
            UpstreamUnreachable: The connection broke.
        """
        ...

    def listen(self, hear: Callable[[], None], within: float) -> None:
        """Call *hear* when ``poll`` has something to give: SILENCE after *within* seconds."""
        ...

    def listen_on(self, within: float) -> None:
        """The same caller, for the same time, from now on."""
        ...

    def deafen(self) -> None:
        """Call nobody any more."""
        ...


class Direct:
    """
    Passes on what one flow would read and say.

    *send* runs in the task's own context, and ``asyncio.current_task()`` is that task: it may be
    anybody's middleware.

    Args:
        send: Sends what the flow would say; whether that is done. Where it is not, the task
            will be told to say it, and finishes what was begun.
        task: The task that drives the flow; the current one.
    """

    __slots__ = (
        "_context", "_follow", "_loop", "_parked", "_reasons", "_reply", "_send", "_task", "_time",
    )  # fmt: skip

    def __init__(
        self,
        passage: Passage,
        send: Callable[[bytes], bool],
        loop: asyncio.AbstractEventLoop,
        task: "asyncio.Task[None]",
    ) -> None:
        self._reasons = passage.interrupts.reasons
        self._time = passage.ports.clock.seconds
        self._send = send
        self._loop = loop
        self._task = task
        self._context = copy_context()
        self._follow: Follow | None = None
        self._reply: Audible | None = None
        self._parked: asyncio.Future[Any] | None = None

    def read(self, effect: Follow, reply: Audible) -> "Answer[bytes | Fed | Signal]":
        """The answer to *effect*."""
        got = reply.poll()
        if got is not None:
            return got
        self._follow = effect
        self._reply = reply
        parked = self._parked = self._loop.create_future()
        reply.listen(self._hear, effect.within)
        return self._park(reply, parked)

    async def _park(self, reply: Audible, parked: "asyncio.Future[Any]") -> "bytes | Fed | Signal":
        try:
            answer: bytes | Fed | Signal = await parked
            return answer
        finally:
            self._parked = None
            del parked  # an error in it would know itself, by this frame
            reply.deafen()

    def _hear(self) -> None:
        parked, reply, follow = self._parked, self._reply, self._follow
        if parked is None or reply is None or follow is None or parked.done():
            return
        answer: bytes | Fed | Signal | None
        try:
            answer = reply.poll()
            # The last piece is the flow's: more than a turn depends on it.
            if type(answer) is bytes:
                said = follow.turn(answer, self._time())
                if not isinstance(said, bytes):
                    answer = said
                elif self._reasons or not self._sent(said):
                    answer = Fed(said)
                else:
                    reply.listen_on(follow.within)
                    return
        except BaseException as error:  # noqa: BLE001 -- it is the flow's to hear
            parked.set_exception(error.with_traceback(None))  # this frame knows *parked*
            return
        if answer is not None:
            parked.set_result(answer)

    def _sent(self, said: bytes) -> bool:
        loop, task = self._loop, self._task
        if _current_task(loop) is not None:
            return False  # somebody else's step; this one's own will come
        _enter_task(loop, task)
        try:
            return self._context.run(self._send, said)
        finally:
            _leave_task(loop, task)


class Resumed(Generic[T]):
    """
    What is left of an awaitable that has been begun already, and waits.

    Args:
        first: What it waits for.
        begun: Its iterator (``__await__()``), asked once.
    """

    __slots__ = ("_begun", "_first")

    def __init__(self, first: Any, begun: Generator[Any, Any, T]) -> None:
        self._first = first
        self._begun = begun

    def __await__(self) -> Generator[Any, Any, T]:
        waits_for = self._first
        while True:
            try:
                answer = yield waits_for
            except BaseException as error:  # noqa: BLE001 -- its own to hear
                step: Callable[[Any], Any] = self._begun.throw
                heard: Any = error
            else:
                step, heard = self._begun.send, answer
            try:
                waits_for = step(heard)
            except StopIteration as end:
                value: T = end.value
                return value
