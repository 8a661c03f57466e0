"""
The ASGI host: two pure translations and a loop, no framework (ASGI 3.0, HTTP 2.3).

Each flow runs in a task of its own, held by this host; the server's task only waits on
it, so that neither a disconnect nor a cancellation can take a flow down with it (under our own
server, which cancels nothing, it runs in the server's). Only
``receive()`` tells that a client has left: a watcher listens to it all along.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeAlias, cast

from bedrock_proxy.drive import Shutdown, adrive
from bedrock_proxy.effects import Admit, Effect, Finish, Follow, Release
from bedrock_proxy.http import Head, Headers
from bedrock_proxy.memo import Memo
from bedrock_proxy.ports import Answer, PortKind
from bedrock_proxy_adapters.hosts.asgi_requests import Body, Message, Receive, Scope, to_request
from bedrock_proxy_adapters.hosts.direct import Audible, Direct, Resumed
from bedrock_proxy_adapters.hosts.sigterm import on_sigterm
from bedrock_proxy_adapters.hosts.watching import Watcher, Watchers
from bedrock_proxy_adapters.proxy import Faces, Passage, Proxy, new_request_id

Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_OCTETS: Final = Memo[str, bytes](lambda name: name.encode("latin-1"))

_CLOSE: Final = ("connection", "close")

_SENT: Final = object()

_STOPS: Final = "graceful shutdown"
"""What uvicorn says when it cancels a request because it stops, not because its client left."""

_LAST_WORD: Final = 5.0
"""Seconds in which a request that is cancelled so may say that the server stops."""


def asgi_app(proxy: Proxy) -> "Application":
    """
    *proxy* as an ASGI application; mount it in any framework, or serve it by itself.

    On ``lifespan.shutdown`` it waits for what is under way (at most 30 s), then ends it, and
    closes *proxy*, for good: an application serves through one lifespan.
    Servers send that only after their connections have ended: under someone else's
    server, call :func:`end_on_sigterm`, and set its graceful timeout (uvicorn:
    ``timeout_graceful_shutdown``).
    """
    return Application(proxy)


def end_on_sigterm(app: "Application", grace: float) -> None:
    """
    From now on SIGTERM also ends the streams of *app*: they have *grace* seconds to finish, then
    each says one terminal ``server_shutdown`` and is settled. Whatever handled the signal
    before still does; where that was nothing, the process then ends as it would have.

    A server tells its applications that it stops only when their requests have ended, and one
    that loses patience cancels these just as if their clients had left. Call this where the
    application starts (its lifespan), with ten seconds less than the server's graceful timeout.
    Off the main thread, where tests and embedded servers have their loops, it only warns:
    signals are handled on the main one.
    """
    loop = asyncio.get_running_loop()
    ending: set[asyncio.Task[None]] = set()

    async def end(done: Callable[[], None]) -> None:
        try:
            await app.shutdown(grace)
        finally:
            done()

    def begin(done: Callable[[], None]) -> None:
        if loop.is_running():
            loop.call_soon_threadsafe(lambda: ending.add(loop.create_task(end(done))))
        else:
            done()  # it has ended, and what it carried with it

    on_sigterm(begin)


class Application:
    """
    See :func:`asgi_app`.

    Args:
        holds: Whether each flow has a task of its own, held here. A server that cancels no task
            of a request before its loop ends (uvicorn) lets us do without.

    Attributes:
        blocks: Whether any port may have to be called on a thread.
        writing: Which requests wait for their client to read, each in its task.
    """

    def __init__(self, proxy: Proxy, *, holds: bool = True) -> None:
        self._proxy = proxy
        self._holds = holds
        self._faces: Faces | None = None
        self.blocks = True
        self._pool: ThreadPoolExecutor | None = None
        self._held: set[asyncio.Task[None]] = set()
        self.writing: dict[_Exchange, asyncio.Task[None]] = {}
        self._watchers: Watchers | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            await self._http(scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan(receive, send)
        elif kind == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    @property
    def under_way(self) -> int:
        """How many requests have not ended yet."""
        return self._proxy.under_way

    @property
    def write_timeout(self) -> float:
        """Seconds a client may leave a write waiting."""
        return self._proxy.write_timeout

    async def shutdown(self, deadline: float = 30.0, grace: float = 10.0) -> int:
        """
        :meth:`Proxy.shutdown` without blocking the event loop.

        Returns:
            How many requests had still not ended.
        """
        self._proxy.stop_accepting()
        if not await self._quiet(deadline):
            await self.interrupt(grace)
        return self._proxy.under_way

    async def interrupt(self, grace: float) -> None:
        """
        End what is under way: each reply is told so, and whoever does not read his has left when
        half of *grace* is over, in seconds.
        """
        self._proxy.interrupt_all()
        if not await self._quiet(grace / 2):
            for exchange, task in list(self.writing.items()):
                exchange.give_up(task)
            await self._quiet(grace / 2)

    async def _quiet(self, seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while self._proxy.under_way:
            if loop.time() >= until:
                return False
            await asyncio.sleep(0.02)
        return True

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._proxy.begin()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.shutdown()
                self._proxy.close()
                if self._pool is not None:
                    self._pool.shutdown(wait=False)
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._faces is None:
            faces = self._faces = self.faces()
            ports = (faces.store, faces.gate, faces.ledger, faces.upstream, faces.pause)
            self.blocks = any(port.kind == "blocking" for port in ports)
        loop = asyncio.get_running_loop()
        watchers = self._watchers
        if watchers is None or watchers.loop is not loop:
            watchers = self._watchers = Watchers(loop)
        request = to_request(scope, self._proxy.base_path, new_request_id())
        body = Body(receive)
        passage = self._proxy.passage(request, body, self._faces)
        watcher = body.watcher = Watcher(receive, passage, watchers)
        http1 = scope.get("http_version", "1.1").startswith("1")
        asks = request.first("upgrade") is not None
        exchange = _Exchange(
            self, passage, body, send, self._proxy.write_timeout, http1, asks, loop
        )
        try:
            if self._holds:
                await self._hold(exchange, passage, loop)
            else:
                await exchange.run()
        finally:
            watcher.end()
            body.watcher = None

    async def _hold(
        self, exchange: "_Exchange", passage: Passage, loop: asyncio.AbstractEventLoop
    ) -> None:
        """Run *exchange* in a task of its own; to be cancelled here means that the client left."""
        flow = loop.create_task(exchange.run())
        self._held.add(flow)
        # Not asyncio.shield, which costs as much as the task: this waits for the task to end,
        # and being cancelled is none of the task's business either.
        waiter: asyncio.Future[None] = loop.create_future()
        flow.add_done_callback(partial(self._let_go, waiter))
        try:
            await waiter
            flow.result()
        except asyncio.CancelledError as cancelled:
            if any(_STOPS in str(said) for said in cancelled.args):
                passage.interrupts.post(Shutdown())
                await asyncio.wait([flow], timeout=_LAST_WORD)
            if not flow.done():
                passage.leave()
            raise

    def _let_go(self, waiter: "asyncio.Future[None]", flow: "asyncio.Task[None]") -> None:
        self._held.discard(flow)
        if not waiter.done():
            waiter.set_result(None)
        elif not flow.cancelled():
            flow.exception()  # nobody is left to hear it

    def faces(self) -> Faces:
        """The ports as an event loop calls them best."""
        proxy = self._proxy
        return proxy.faces(_native(proxy.store), _native(proxy.upstream), _Pause())

    def perform(self, effect: Effect[Any], passage: Passage) -> Answer[Any]:
        """Answer *effect* in the way its port says it is called: at once where it can be."""
        port = effect.on(passage.ports)
        if port is None or port.kind != "blocking":
            return effect.run(passage.ports)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(32, thread_name_prefix="bedrock-proxy-port")
        loop = asyncio.get_running_loop()
        asked = loop.run_in_executor(self._pool, effect.run, passage.ports)
        return _kept(asked) if isinstance(effect, Admit | Release | Finish) else asked


class _Exchange:
    """One request: what the flow says, sent; a reader that stopped reading, noticed."""

    def __init__(
        self,
        app: Application,
        passage: Passage,
        body: Body,
        send: Send,
        write_timeout: float,
        http1: bool,
        asks: bool,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._app = app
        self._passage = passage
        self._ports = passage.ports
        self._seconds = passage.ports.clock.seconds
        self._body = body
        self._send = send
        self._write_timeout = write_timeout
        self._http1 = http1
        self._asks = asks  # to go on in another protocol
        self._writing_since: float | None = None
        self._stuck = False
        self._left: int | None = None  # bytes of a reply of known length still to come
        self._complete = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = loop
        self._direct: Direct | None = None
        self._begun: Awaitable[None] | None = None

    async def run(self) -> None:
        passage = self._passage
        try:
            perform = self._perform if self._app.blocks else self._answer
            await adrive(passage.flow, perform, self._emit, passage.interrupts, self._seconds)
            # A reply that was not finished is left so: the server then breaks the
            # connection, which is what tells the client.
            if not self._complete and not passage.has_left:
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        except Exception:
            if not passage.has_left:
                raise
        finally:
            passage.ended()
            self._disarm()
            self._direct = None  # it knows us: garbage that knows itself waits for the collector

    def _perform(self, effect: Effect[Any]) -> Answer[Any]:
        port = effect.on(self._ports)
        if port is not None and port.kind == "blocking":
            return self._app.perform(effect, self._passage)
        return self._answer(effect)

    def _answer(self, effect: Effect[Any]) -> Answer[Any]:
        """Answer *effect*, whose port does not block."""
        if isinstance(effect, Follow) and hasattr(effect.reply, "listen"):
            direct = self._direct
            if direct is None:
                task = cast("asyncio.Task[None]", asyncio.current_task())
                direct = self._direct = Direct(self._passage, self._send_now, self._loop, task)
            return direct.read(effect, cast("Audible", effect.reply))
        return effect.run(self._ports)

    def _send_now(self, said: Head | bytes) -> bool:
        """
        Send *said* as far as that goes without waiting; whether it is sent. What is left is
        kept for :meth:`_emit`, which is to be called with the same.
        """
        try:
            if isinstance(said, bytes):
                if self._left is not None:
                    self._left -= len(said)
                    self._complete = self._left <= 0
                sending = self._send(
                    {"type": "http.response.body", "body": said, "more_body": not self._complete}
                )
            else:
                sending = self._begin(said)
            begun = sending.__await__()
            waits_for = next(begun, _SENT)  # no exception is made to say so
            if waits_for is _SENT:
                return True
        except Exception as error:  # noqa: BLE001 -- it is raised where it is awaited
            self._begun = _raised(error)
        else:
            self._begun = Resumed(waits_for, begun)
        return False

    def _emit(self, said: Head | bytes) -> Awaitable[None] | None:
        if self._begun is None and self._send_now(said):
            return None
        begun, self._begun = cast("Awaitable[None]", self._begun), None
        return self._sent(begun)

    async def _sent(self, begun: Awaitable[None]) -> None:
        """Wait until what has been begun is sent; not for ever."""
        self._writing_since = self._loop.time()
        task = cast("asyncio.Task[None]", asyncio.current_task())
        if self._timer is None:
            self._arm(task, self._write_timeout)
        self._app.writing[self] = task
        try:
            await begun
        except asyncio.CancelledError:
            if not self._stuck:
                raise
            # Our own doing: the reader stopped reading, which is a way to leave.
            task.uncancel()
            self._passage.leave()
            raise TimeoutError from None
        except Exception:
            self._passage.leave()
            raise
        finally:
            self._writing_since = None
            del self._app.writing[self]

    def give_up(self, task: "asyncio.Task[None]") -> None:
        """The client does not read: it is taken to have left. *task* is where it is waited for."""
        if not self._stuck:
            self._stuck = True
            task.cancel()

    async def _begin(self, said: Head) -> None:
        await self._body.discard()
        self._left = _length(said.headers)
        fields = said.headers
        if not self._http1:
            # RFC 9113, section 8.2.2: HTTP/2 has no such field.
            fields = tuple([field for field in fields if field[0] != "connection"])
        elif self._asks and not self._body.came:
            # A server may stop reading such a request at its head (uvicorn's httptools does):
            # what it takes for the next one may be the body of this one.
            fields = (*(field for field in fields if field[0] != "connection"), _CLOSE)
        headers = [(_OCTETS[name], value.encode("latin-1")) for name, value in fields]
        await self._send({"type": "http.response.start", "status": said.status, "headers": headers})

    def _arm(self, task: "asyncio.Task[None]", within: float) -> None:
        """One timer while writes wait, not one for each."""
        self._timer = self._loop.call_later(within, self._check, task)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self, task: "asyncio.Task[None]") -> None:
        self._timer = None
        since = self._writing_since
        if since is None:
            return
        waited = self._loop.time() - since
        if waited >= self._write_timeout:
            self.give_up(task)
        else:
            self._arm(task, self._write_timeout - waited)


async def _raised(error: Exception) -> None:
    try:
        raise error
    finally:
        del error  # the frame is known where it was raised


class _Pause:
    """Waits without a thread."""

    kind: PortKind = "native"

    async def pause(self, at_most: float) -> None:
        await asyncio.sleep(random.uniform(0, at_most))  # noqa: S311 -- jitter, not a secret


async def _kept(asked: asyncio.Future[Any]) -> Any:
    """
    The store's answer. Cancelled, it waits all the same: a thread cannot be stopped, and
    what comes next must find its work done.
    """
    try:
        return await asyncio.shield(asked)
    except asyncio.CancelledError:
        await asyncio.wait([asked])
        if (error := asked.exception()) is not None:
            raise error from None
        raise


def _length(headers: Headers) -> int | None:
    for name, value in headers:
        if name == "content-length":
            return int(value)
    return None


def _native(port: Any) -> Any:
    """The face of a port that an event loop calls best: its native one, if it has one."""
    face = getattr(port, "native", None)
    return port if face is None else face()
