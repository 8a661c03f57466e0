"""
The host without HTTP: a program asks, and iterates over the parts of the answer.

It is a host like the others: the token is checked, the customer's limits are applied, and
every request leaves its one ledger row, also when the iteration is abandoned.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Generator, Mapping
from functools import partial
from typing import Protocol

from bedrock_proxy import front
from bedrock_proxy.dialects.parts import Inbox, InParts
from bedrock_proxy.drive import Interrupts, Shutdown, adrive
from bedrock_proxy.http import Head, Request
from bedrock_proxy.parts import Part
from bedrock_proxy.ports import PortKind
from bedrock_proxy_adapters.hosts.asgi import Application
from bedrock_proxy_adapters.hosts.driven import Driven
from bedrock_proxy_adapters.proxy import Faces, Passage, Proxy, new_request_id


class Answer(Protocol):
    """What :func:`answers` returns."""

    def __call__(
        self, token: str, request: Mapping[str, object], *, client_request_id: str | None = None
    ) -> Generator[Part, None, None]:
        """
        The parts of one answer, as they come; its token counts are the last of them.

        Nothing is asked of Bedrock before the first part is. Iterate to the end, or
        ``close()`` the iterator (``contextlib.closing`` does): what is then left goes on in
        the background until the bill is settled, see :meth:`Proxy.shutdown`; so it does,
        within a bound, when the process ends.

        Args:
            token: The customer's bearer token.
            request: As in the simple dialect: ``modelId`` and the model's own body.
                ``stream`` is true where it is not said.
            client_request_id: The caller's own name for the request, for the ledger.

        Raises:
            ProxyError: The request was refused, or the answer broke off after the parts
                that were given.
        """
        ...


class AsyncAnswer(Protocol):
    """What :func:`async_answers` returns."""

    def __call__(
        self, token: str, request: Mapping[str, object], *, client_request_id: str | None = None
    ) -> AsyncGenerator[Part, None]:
        """
        As :class:`Answer`, on an event loop; to leave early, ``aclose()`` the iterator
        (``contextlib.aclosing`` does) or cancel the task that iterates.
        """
        ...


def answers(proxy: Proxy) -> Answer:
    """
    *proxy* as a function for programs without an event loop; any thread may call it.

    Raises:
        ConfigurationError: A port of the proxy needs an event loop.
    """
    faces = proxy.sync_faces()

    def answer(
        token: str, request: Mapping[str, object], *, client_request_id: str | None = None
    ) -> Generator[Part, None, None]:
        inbox = Inbox()
        passage = _passage(proxy, faces, inbox, token, request, client_request_id)
        driven = Driven(passage)
        try:
            while _goes_on(driven):
                yield from inbox.take()
        except BaseException:  # GeneratorExit above all
            driven.let_go()
            raise
        if inbox.error is not None:
            raise inbox.error

    return answer


def async_answers(proxy: Proxy) -> AsyncAnswer:
    """
    *proxy* as a function for programs on asyncio.

    Before the loop ends, wait for what was left early:
    ``await asyncio.to_thread(proxy.shutdown)``.
    """
    host = Application(proxy)
    faces = host.faces()
    held: set[asyncio.Task[None]] = set()

    async def answer(
        token: str, request: Mapping[str, object], *, client_request_id: str | None = None
    ) -> AsyncGenerator[Part, None]:
        inbox = Inbox()
        passage = _passage(proxy, faces, inbox, token, request, client_request_id)
        counter = _Counter(inbox, passage.interrupts)

        async def carry() -> None:
            try:
                await adrive(
                    passage.flow,
                    partial(host.perform, passage=passage),
                    counter.put,
                    passage.interrupts,
                    passage.ports.clock.seconds,
                )
            finally:
                passage.ended()
                counter.close()

        # A task of its own: neither an abandoned iteration nor a cancelled one can take
        # the flow down with it.
        flow = asyncio.create_task(carry())
        held.add(flow)
        flow.add_done_callback(held.discard)
        try:
            while (parts := await counter.get()) is not None:
                for part in parts:
                    yield part
        except BaseException:
            passage.leave()
            raise
        finally:
            counter.leave()
        await flow
        if inbox.error is not None:
            raise inbox.error

    return answer


class _Counter:
    """
    Where the flow hands over and the iteration takes. The flow goes on once the
    iteration has come back for more, so that nothing piles up.
    """

    def __init__(self, inbox: Inbox, interrupts: Interrupts) -> None:
        self._inbox = inbox
        self._interrupts = interrupts
        self._parts: list[Part] | None = []
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._left = False

    async def put(self, said: Head | bytes) -> None:
        """Hand over what the inbox holds; *said* only tells that there is something."""
        del said
        parts = self._inbox.take()
        if not parts or self._left:
            return
        self._parts = parts
        self._emptied.clear()
        self._filled.set()
        try:
            await self._emptied.wait()
        except asyncio.CancelledError:
            # Only a loop that is ending cancels the flow's own task: it waits for that
            # task once more, which is the time to settle.
            self.leave()
            self._interrupts.post(Shutdown())

    async def get(self) -> list[Part] | None:
        """The next parts; None after the last."""
        self._emptied.set()
        await self._filled.wait()
        self._filled.clear()
        return self._parts

    def leave(self) -> None:
        """Nobody takes any more."""
        self._left = True
        self._emptied.set()

    def close(self) -> None:
        """Nothing more will come."""
        self._parts = None
        self._filled.set()


class _Body:
    """The request, written down."""

    kind: PortKind = "instant"

    def __init__(self, body: bytes) -> None:
        self._body = body

    def receive(self, limit: int, within: float) -> bytes:  # noqa: ARG002 -- it is here already
        body, self._body = self._body, b""  # kept no longer than the flow keeps it
        if len(body) > limit:
            raise front.too_large(limit)
        return body


def _passage(
    proxy: Proxy,
    faces: Faces,
    inbox: Inbox,
    token: str,
    request: Mapping[str, object],
    client_request_id: str | None,
) -> Passage:
    body = json.dumps({"stream": True, **request}).encode()
    headers = [("host", ""), ("authorization", f"Bearer {token}")]
    if client_request_id is not None:
        headers.append(("x-client-request-id", client_request_id))
    asked = Request(
        request_id=new_request_id(), method="POST", path="/bedrock", headers=tuple(headers)
    )
    return proxy.passage(asked, _Body(body), faces, InParts(inbox))


def _goes_on(driven: Driven) -> bool:
    """Drive the flow to the next thing it says; False once it has ended."""
    try:
        driven.next()
    except StopIteration:
        return False
    return True
