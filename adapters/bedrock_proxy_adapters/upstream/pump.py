"""
What lies between the thread that reads from Bedrock and the one that wants the bytes.

A :class:`Pipe` has one filler, one reader, and anyone may close it. What has arrived is
handed over in one piece; beyond :data:`BUFFER_LIMIT` the filler waits, so that a reader
who stops reading stops Bedrock too (TCP does the rest). The reader has two faces:
:class:`BlockingReply` waits on a condition, :class:`NativeReply` on a future of whatever
event loop is running.
"""

from collections.abc import Callable
from contextlib import suppress
from threading import Condition, Lock
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from bedrock_proxy.ports import (
    END,
    SILENCE,
    Signal,
    Trouble,
    UpstreamHead,
    UpstreamUnreachable,
)

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future

BUFFER_LIMIT: Final = 256 * 1024
"""Bytes of one reply that may wait for their reader (RELIABILITY.md, S14)."""

READ_SIZE: Final = 64 * 1024
"""Bytes that one read from the connection may bring."""

T = TypeVar("T")


class Pipe:
    """
    One reply on its way from the filling thread to the reader.

    What arrived before a failure or the end is handed over before it. After ``close``
    the reader gets END at once and the filler is told to stop.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._news = Condition(self._lock)
        self._room = Condition(self._lock)
        self._wake: Callable[[], None] | None = None
        self._head: UpstreamHead | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._ended = False
        # Not the exception itself: it would keep the filler's frames alive.
        self._failure: tuple[Trouble, str] | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the reader wants no more."""
        return self._closed

    @property
    def size(self) -> int:
        """Bytes that wait for the reader."""
        return self._size

    # --- the filler's side ---

    def begin(self, head: UpstreamHead) -> None:
        """Hand over the head."""
        with self._lock:
            self._head = head
            self._tell()

    def has_room(self) -> bool:
        """Wait until another :data:`READ_SIZE` bytes fit; False once nobody wants them."""
        with self._lock:
            while self._size > BUFFER_LIMIT - READ_SIZE and not self._closed:
                self._room.wait()
            return not self._closed

    def push(self, data: bytes) -> None:
        """Hand over a piece of the body."""
        with self._lock:
            if not self._closed:
                self._chunks.append(data)
                self._size += len(data)
                self._tell()

    def end(self, error: UpstreamUnreachable | None = None) -> None:
        """Nothing more will come."""
        with self._lock:
            if not self._ended:
                self._ended = True
                if error is not None:
                    self._failure = (error.trouble, error.detail)
                self._tell()

    # --- the reader's side ---

    def head(self) -> UpstreamHead | None:
        """The head if it is there. For ``wait`` and ``wait_on_loop``, which hold the lock."""
        if self._head is not None:
            return self._head
        if self._closed:
            raise UpstreamUnreachable(Trouble.CLOSED)
        if self._failure is not None:
            raise UpstreamUnreachable(*self._failure)
        if self._ended:
            raise UpstreamUnreachable(Trouble.BROKEN, "the call ended without a head")
        return None

    def body(self) -> bytes | Literal[Signal.END] | None:
        """What has arrived, END, or None. For ``wait`` and ``wait_on_loop``."""
        if self._closed:
            return END
        if self._chunks:
            data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks.clear()
            self._size = 0
            self._room.notify()
            return data
        if self._failure is not None:
            raise UpstreamUnreachable(*self._failure)
        return END if self._ended else None

    def wait(self, take: Callable[[], T | None], within: float) -> T | None:
        """What *take* brings, waiting up to *within* seconds for it; None if nothing came."""
        with self._lock:
            return self._news.wait_for(take, within)

    async def wait_on_loop(self, take: Callable[[], T | None], within: float) -> T | None:
        """The same for a coroutine. Cancelling it loses nothing: what arrives stays."""
        with self._lock:
            if (got := take()) is not None:
                return got
        from asyncio import get_running_loop

        loop = get_running_loop()
        deadline = loop.time() + within
        while True:
            news: Future[None] = loop.create_future()
            with self._lock:
                if (got := take()) is not None or loop.time() >= deadline:
                    return got
                self._wake = lambda news=news: _settle_from_thread(loop, news)
            timer = loop.call_at(deadline, _settle, news)
            try:
                await news
            finally:
                timer.cancel()
                with self._lock:
                    self._wake = None

    # --- anyone ---

    def close(self) -> None:
        """Let go of what is buffered, and of whoever waits on either side."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._chunks.clear()
                self._size = 0
                self._room.notify_all()
                self._tell()

    def _tell(self) -> None:
        self._news.notify_all()
        if self._wake is not None:
            self._wake()
            self._wake = None


def _settle(news: "Future[None]") -> None:
    if not news.done():
        news.set_result(None)


def _settle_from_thread(loop: "AbstractEventLoop", news: "Future[None]") -> None:
    # A closed loop raises: whoever waited on it is gone.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(_settle, news)


class BlockingReply:
    """A reply for a thread that may wait. See :class:`bedrock_proxy.ports.UpstreamReply`."""

    kind: Literal["blocking"] = "blocking"

    def __init__(self, pipe: Pipe, close: Callable[[], None]) -> None:
        self._pipe = pipe
        self._close = close

    def begin(self, within: float) -> UpstreamHead | Literal[Signal.SILENCE]:
        """Bedrock's head, or SILENCE after *within* seconds."""
        return self._pipe.wait(self._pipe.head, within) or SILENCE

    def read(self, within: float) -> bytes | Signal:
        """What has arrived, SILENCE after *within* seconds, or END."""
        return self._pipe.wait(self._pipe.body, within) or SILENCE

    def close(self) -> None:
        """End the call now, from any thread; repeatable."""
        self._close()


class NativeReply:
    """A reply for a coroutine, whichever loop runs it."""

    kind: Literal["native"] = "native"

    def __init__(self, pipe: Pipe, close: Callable[[], None]) -> None:
        self._pipe = pipe
        self._close = close

    async def begin(self, within: float) -> UpstreamHead | Literal[Signal.SILENCE]:
        """Bedrock's head, or SILENCE after *within* seconds."""
        return await self._pipe.wait_on_loop(self._pipe.head, within) or SILENCE

    async def read(self, within: float) -> bytes | Signal:
        """What has arrived, SILENCE after *within* seconds, or END."""
        return await self._pipe.wait_on_loop(self._pipe.body, within) or SILENCE

    def close(self) -> None:
        """End the call now, from any thread; repeatable."""
        self._close()
