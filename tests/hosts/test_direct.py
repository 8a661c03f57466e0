"""
The ASGI host passing pieces on in the callback that brought them: over a reply of the
event-loop upstream whose bytes the test brings, and with a ``send`` that waits, fails, or
belongs to a middleware that looks around.
"""

import asyncio
import contextvars
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.flows import OK_HEAD, TOKEN, ask_claude, claude, text_of

from bedrock_proxy import tokens
from bedrock_proxy.answers import StreamedAnswer
from bedrock_proxy.course import Course
from bedrock_proxy.customers import UNLIMITED, Customer, Key
from bedrock_proxy.ports import Ports, Trouble
from bedrock_proxy.rules import Rules
from bedrock_proxy.store import every_row
from bedrock_proxy.usage import Basis, Outcome, UsageRecord
from bedrock_proxy_adapters.hosts import direct
from bedrock_proxy_adapters.hosts.asgi import Application, _Exchange
from bedrock_proxy_adapters.hosts.watching import Watcher
from bedrock_proxy_adapters.proxy import Passage, Proxy
from bedrock_proxy_adapters.stores.memory import MemoryStore
from bedrock_proxy_adapters.upstream.replies import Reply

WORDS = [f"word {number} " for number in range(20)]
FRAMES = claude(WORDS)


class Upstream:
    """Calls whose replies the test feeds, as a connection would."""

    kind = "native"
    max_streams = 10
    retries = 0

    def __init__(self) -> None:
        self.calls: list[Reply] = []

    def open(self, call: Any) -> Reply:
        self.calls.append(Reply(asyncio.get_running_loop()))
        return self.calls[-1]


Hook = Callable[[dict[str, Any]], Awaitable[None]]


async def nothing(message: dict[str, Any]) -> None:
    """Send at once."""


class Exchange:
    """One request to the host, with a client that the test writes."""

    def __init__(
        self, hook: Hook = nothing, rules: Rules | None = None, holds: bool = True, **more: Any
    ) -> None:
        self.store = MemoryStore()
        self.store.create_customer(
            Customer(id="c1", name="T", email="t@example.com", limits=UNLIMITED, created_at=0),
            Key(key_id="k1", digest=tokens.digest(TOKEN, None), created_at=0),
        )
        self.upstream = Upstream()
        proxy: Any = Proxy
        self.proxy: Proxy = proxy(store=self.store, upstream=self.upstream, rules=rules, **more)
        self.app = Application(self.proxy, holds=holds)
        self.hook = hook
        self.sent: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._given = False

    async def receive(self) -> dict[str, Any]:
        if not self._given:
            self._given = True
            return {"type": "http.request", "body": ask_claude(), "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.hook(message)
        self.sent.append(message)

    async def begin(self) -> Reply:
        """The request, up to the call of Bedrock and its head."""
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": "/bedrock",
            "raw_path": b"/bedrock",
            "query_string": b"",
            "headers": [(b"host", b"x"), (b"authorization", b"Bearer " + TOKEN.encode())],
        }
        self.task = asyncio.ensure_future(self.app(scope, self.receive, self.send))
        await until(lambda: bool(self.upstream.calls))
        reply = self.upstream.calls[0]
        reply.headed(OK_HEAD)
        self.bring(reply, FRAMES[0] + FRAMES[1])
        self.bring(reply, FRAMES[2])
        await until(lambda: WORDS[0] in self.text)
        return reply

    def bring(self, reply: Reply, data: bytes) -> None:
        """A piece arrives, as it does from a socket: in a callback of the loop."""

        def arrive() -> None:
            reply.push(data)
            reply.wake()

        asyncio.get_running_loop().call_soon(arrive)

    @property
    def said(self) -> bytes:
        return b"".join(each.get("body", b"") for each in self.sent)

    @property
    def text(self) -> str:
        return text_of(self.said)

    async def row(self) -> UsageRecord:
        await until(lambda: self.proxy.under_way == 0)
        assert self.task is not None
        await asyncio.wait([self.task], timeout=5)
        rows = list(every_row(self.store))
        assert len(rows) == 1, f"{len(rows)} rows"
        assert not self.store.open_leases()
        return rows[0]


async def until(condition: Callable[[], bool], turns: int = 400) -> None:
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to be")


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was passed on in a callback."""
    seen: list[bytes] = []
    sent = direct.Direct._sent

    def counted(self: direct.Direct, said: bytes) -> bool:
        done = sent(self, said)
        if done:
            seen.append(said)
        return done

    monkeypatch.setattr(direct.Direct, "_sent", counted)
    return seen


def bring_all(exchange: Exchange, reply: Reply, begin: int = 3) -> None:
    for frame in FRAMES[begin:]:
        exchange.bring(reply, frame)
    asyncio.get_running_loop().call_soon(reply.end)


def test_S23_a_stream_passes_in_the_callbacks_that_bring_it(passed: list[bytes]) -> None:
    async def run() -> None:
        exchange = Exchange()
        reply = await exchange.begin()
        bring_all(exchange, reply)
        row = await exchange.row()
        assert exchange.text == "".join(WORDS)
        assert exchange.said.endswith(b"data: [DONE]\n\n")
        assert (row.outcome, row.basis, row.output_tokens) == (Outcome.OK, Basis.REPORTED, 7)
        assert len(passed) >= len(WORDS) - 3

    asyncio.run(run())


@pytest.mark.parametrize("which", range(2, 20, 3))
def test_S14_a_send_that_waits_keeps_the_order_and_holds_up_what_follows(
    which: int, passed: list[bytes]
) -> None:
    async def run() -> None:
        go_on = asyncio.Event()
        waited = 0

        async def hook(message: dict[str, Any]) -> None:
            nonlocal waited
            if f"word {which} ".encode() in message.get("body", b""):
                waited += 1
                # Twice, and once more with nothing to wait for: each is a step of its own.
                await asyncio.sleep(0)
                await go_on.wait()

        exchange = Exchange(hook)
        reply = await exchange.begin()
        bring_all(exchange, reply)
        await asyncio.sleep(0.05)
        assert waited == 1
        assert f"word {which} " not in exchange.text, "what waits is not sent yet"
        assert exchange.text == "".join(WORDS[:which])
        go_on.set()
        row = await exchange.row()
        assert exchange.text == "".join(WORDS)
        assert waited == 1, "what was begun is finished, not begun again"
        assert row.outcome is Outcome.OK
        assert passed

    asyncio.run(run())


@pytest.mark.parametrize("late", [False, True], ids=["at once", "after a wait"])
@pytest.mark.parametrize("disconnect", ["drain", "cancel"])
def test_S01_a_send_that_fails_is_a_client_that_left(
    late: bool, disconnect: str, passed: list[bytes]
) -> None:
    async def run() -> None:
        async def hook(message: dict[str, Any]) -> None:
            if b"word 9 " in message.get("body", b""):
                if late:
                    await asyncio.sleep(0.01)
                raise OSError("gone")

        exchange = Exchange(hook, disconnect=disconnect)
        reply = await exchange.begin()
        bring_all(exchange, reply)
        row = await exchange.row()
        assert exchange.text == "".join(WORDS[:9])
        assert row.outcome is Outcome.CLIENT_GONE
        assert row.basis is (Basis.REPORTED if disconnect == "drain" else Basis.PARTIAL)
        assert passed

    asyncio.run(run())


def test_S02_a_client_that_leaves_while_pieces_pass_is_noticed(passed: list[bytes]) -> None:
    async def run() -> None:
        exchange = Exchange(disconnect="cancel")
        reply = await exchange.begin()
        for frame in FRAMES[3:8]:
            exchange.bring(reply, frame)
        await asyncio.sleep(0.15)  # the watcher listens by then
        assert passed
        exchange.left.set()
        row = await exchange.row()
        assert reply.closed
        assert (row.outcome, row.basis) == (Outcome.CLIENT_GONE, Basis.PARTIAL)
        assert exchange.text == "".join(WORDS[:6])

    asyncio.run(run())


def test_S13_a_ping_follows_the_last_piece_that_passed(passed: list[bytes]) -> None:
    async def run() -> None:
        exchange = Exchange(rules=Rules(ping_every=0.2, idle_timeout=0.7))
        reply = await exchange.begin()
        loop = asyncio.get_running_loop()
        for frame in FRAMES[3:9]:
            exchange.bring(reply, frame)
            await asyncio.sleep(0.05)
        last = loop.time()
        assert len(passed) >= 4
        assert b": ping" not in exchange.said, "pieces came faster than pings are due"
        await until(lambda: b": ping" in exchange.said)
        assert loop.time() - last >= 0.1
        row = await exchange.row()
        assert exchange.said.count(b": ping\n\n") in {2, 3}
        assert exchange.said.count(b"event: error") == 1
        assert row.outcome is Outcome.TIMEOUT

    asyncio.run(run())


def test_S20_a_server_that_stops_ends_a_stream_that_passes(passed: list[bytes]) -> None:
    async def run() -> None:
        exchange = Exchange()
        reply = await exchange.begin()
        for frame in FRAMES[3:8]:
            exchange.bring(reply, frame)
        await asyncio.sleep(0.02)
        assert passed
        exchange.proxy.interrupt_all()
        row = await exchange.row()
        assert exchange.said.count(b"event: error") == 1
        assert row.outcome is Outcome.SHUTDOWN

    asyncio.run(run())


def test_S21_a_task_cancelled_while_pieces_pass_settles(passed: list[bytes]) -> None:
    async def run() -> None:
        exchange = Exchange()
        reply = await exchange.begin()
        for frame in FRAMES[3:8]:
            exchange.bring(reply, frame)
        await asyncio.sleep(0.02)
        assert passed
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task() and task is not exchange.task:
                task.cancel()
        row = await exchange.row()
        assert row.outcome in {Outcome.SHUTDOWN, Outcome.CLIENT_GONE}
        exchange.bring(reply, FRAMES[8])  # nobody hears it any more
        await asyncio.sleep(0.02)
        assert exchange.text == "".join(WORDS[:6])

    asyncio.run(run())


def test_a_middleware_sees_the_task_and_its_context(passed: list[bytes]) -> None:
    """What ``send`` leads to may use timeouts, and what its request set."""

    async def run() -> None:
        mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="none")
        tasks: set[Any] = set()
        marks: set[str] = set()

        async def hook(message: dict[str, Any]) -> None:
            async with asyncio.timeout(5):
                tasks.add(asyncio.current_task())
                marks.add(mark.get())
                if b"word 7 " in message.get("body", b""):
                    await asyncio.sleep(0.01)

        exchange = Exchange(hook)
        mark.set("mine")
        reply = await exchange.begin()
        mark.set("another's")
        bring_all(exchange, reply)
        await exchange.row()
        assert exchange.text == "".join(WORDS)
        assert len(tasks) == 1
        assert None not in tasks
        assert marks == {"mine"}
        assert passed

    asyncio.run(run())


def test_S23_what_comes_with_the_end_is_said_with_it() -> None:
    async def run() -> None:
        exchange = Exchange()
        reply = await exchange.begin()

        def arrive() -> None:
            reply.push(b"".join(FRAMES[3:]))
            reply.end()

        asyncio.get_running_loop().call_soon(arrive)
        row = await exchange.row()
        assert exchange.text == "".join(WORDS)
        last = [message["body"] for message in exchange.sent if message.get("body")][-1]
        assert WORDS[-1].encode() in last
        assert last.endswith(b"data: [DONE]\n\n")
        assert row.outcome is Outcome.OK

    asyncio.run(run())


def test_a_piece_that_comes_in_somebody_elses_step_waits_for_its_own(passed: list[bytes]) -> None:
    async def run() -> None:
        exchange = Exchange()
        reply = await exchange.begin()
        passed.clear()
        reply.push(FRAMES[3])
        reply.wake()  # in this task
        await until(lambda: WORDS[1] in exchange.text)
        assert not passed
        bring_all(exchange, reply, 4)
        row = await exchange.row()
        assert exchange.text == "".join(WORDS)
        assert row.outcome is Outcome.OK

    asyncio.run(run())


@pytest.mark.parametrize("holds", [True, False], ids=["held", "not-held"])
@pytest.mark.parametrize("way", ["whole", "slow", "left", "failed", "broken"])
def test_L5_what_has_ended_is_gone_without_the_collector(way: str, holds: bool) -> None:
    """
    Garbage that knows itself stays in memory until the collector comes, which for what has
    lived as long as a stream is late: hundreds of megabytes later, under load.
    """

    async def one() -> None:
        async def hook(message: dict[str, Any]) -> None:
            if way == "failed" and b"word 9 " in message.get("body", b""):
                raise OSError("gone")

        exchange = Exchange(hook, holds=holds, disconnect="cancel")
        reply = await exchange.begin()
        if way in {"left", "slow"}:
            await asyncio.sleep(0.15)  # somebody listens for it
        if way == "left":
            exchange.left.set()
        elif way == "broken":
            reply.end((Trouble.BROKEN, "in mid-stream"))
        else:
            bring_all(exchange, reply)
        await exchange.row()

    async def run() -> None:
        for _ in range(3):
            await one()
        await asyncio.sleep(0.05)

    kinds = (Passage, Reply, Course, StreamedAnswer, direct.Direct, Ports, _Exchange, Watcher)
    gc.collect()
    before = [each for each in gc.get_objects() if isinstance(each, kinds)]  # other tests'
    known = {id(each) for each in before}
    gc.disable()
    try:
        asyncio.run(run())
        found = [each for each in gc.get_objects() if isinstance(each, kinds)]
        left = [each for each in found if id(each) not in known]
        assert not left, [type(each).__name__ for each in left]
    finally:
        gc.enable()


def test_S02_a_client_that_leaves_is_noticed_on_each_event_loop_that_serves() -> None:
    app: Any = None

    async def run() -> None:
        nonlocal app
        exchange = Exchange(disconnect="cancel")
        if app is None:
            app = exchange.app
        else:  # the first loop's application, on another
            app._proxy = exchange.proxy
            app._faces = None
            exchange.app = app
        await exchange.begin()
        await asyncio.sleep(0.15)
        exchange.left.set()
        assert (await exchange.row()).outcome is Outcome.CLIENT_GONE

    asyncio.run(run())
    asyncio.run(run())


def test_resumed_hands_on_what_its_task_hears() -> None:
    async def run() -> None:
        heard: list[str] = []
        first: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            heard.append(await first)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                heard.append("cancelled")
            await asyncio.sleep(0)
            heard.append("done")

        begun = work().__await__()
        resumed = direct.Resumed(next(begun), begun)

        async def rest() -> None:
            await resumed

        task = asyncio.ensure_future(rest())
        await asyncio.sleep(0)
        first.set_result("first")
        await asyncio.sleep(0.01)
        task.cancel()
        await task
        assert heard == ["first", "cancelled", "done"]

    asyncio.run(run())
