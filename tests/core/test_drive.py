"""The drivers: no ask is abandoned, interruptions only where the flow says."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from attrs import frozen

from bedrock_proxy.drive import Deadline, Gone, Interrupts, Shutdown, adrive, drive
from bedrock_proxy.effects import Effect, Flow, Open, ask
from bedrock_proxy.errors import ProxyError
from bedrock_proxy.http import Head
from bedrock_proxy.ports import Operation, Ports, UpstreamCall

HEAD = Head(200, ())
NO_PORTS = cast("Ports", None)


def seconds() -> float:
    return 0.0


@frozen
class Do(Effect[object]):
    """An ask answered by a function of the test."""

    what: Callable[[], object]

    def run(self, ports: Ports) -> object:
        return self.what()


class Sink:
    """Runs a flow with either driver and keeps what it said."""

    def __init__(self, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self.said: list[Head | bytes] = []
        self.interrupts = Interrupts()
        self.on_say: Callable[[Head | bytes], None] = lambda said: None

    def run(self, flow: Flow[ProxyError | None]) -> ProxyError | None:
        return asyncio.run(self._arun(flow)) if self.asynchronous else self._run(flow)

    def _run(self, flow: Flow[ProxyError | None]) -> ProxyError | None:
        saying = drive(flow, NO_PORTS, self.interrupts)
        while True:
            try:
                said = next(saying)
            except StopIteration as end:
                return end.value
            self.said.append(said)
            self.on_say(said)

    async def _arun(self, flow: Flow[ProxyError | None]) -> ProxyError | None:
        async def emit(said: Head | bytes) -> None:
            self.said.append(said)
            self.on_say(said)

        async def perform(effect: Effect[Any]) -> Any:
            await asyncio.sleep(0)
            return effect.run(NO_PORTS)

        return await adrive(flow, perform, emit, self.interrupts, seconds)


@pytest.fixture(params=[False, True], ids=["drive", "adrive"])
def sink(request: pytest.FixtureRequest) -> Sink:
    return Sink(request.param)


def test_what_a_flow_says_and_asks_arrives_in_order(sink: Sink) -> None:
    def flow() -> Flow[None]:
        yield HEAD
        got = yield from ask(Do(lambda: b"answer"))
        yield cast("bytes", got)
        yield b""
        yield b"end"

    assert sink.run(flow()) is None
    assert sink.said == [HEAD, b"answer", b"end"]


def test_an_error_of_a_port_reaches_the_flow(sink: Sink) -> None:
    def fails() -> object:
        raise LookupError("no")

    def flow() -> Flow[None]:
        try:
            yield from ask(Do(fails))
        except LookupError:
            yield b"heard"

    sink.run(flow())
    assert sink.said == [b"heard"]


@pytest.mark.parametrize("reason", [Gone(), Gone(cuts=True), Deadline(), Shutdown()], ids=repr)
def test_S21_a_pending_ask_is_answered_before_the_interruption_comes(
    sink: Sink, reason: Gone | Deadline | Shutdown
) -> None:
    heard: list[object] = []

    def interrupt() -> object:
        sink.interrupts.post(reason)
        return "reply"

    def flow() -> Flow[None]:
        heard.append((yield from ask(Do(interrupt))))
        heard.append((yield from ask(Do(lambda: "another"))))
        try:
            yield b"never sent"
        except type(reason) as caught:
            heard.append(caught)
            heard.append((yield from ask(Do(lambda: "settled"))))

    sink.run(flow())
    assert ["reply", "another", reason, "settled"] == heard
    assert sink.said == []
    assert reason.unsaid


def test_an_interruption_after_bytes_went_out_is_heard_at_them(sink: Sink) -> None:
    heard: list[bool] = []

    def flow() -> Flow[None]:
        try:
            yield b"sent"
        except Gone as gone:
            heard.append(gone.unsaid)

    sink.on_say = lambda said: sink.interrupts.post(Gone())
    sink.run(flow())
    assert sink.said == [b"sent"]
    assert heard == [False]


def test_saying_nothing_is_a_place_for_an_interruption(sink: Sink) -> None:
    heard: list[bool] = []

    def flow() -> Flow[None]:
        try:
            yield b""
        except Shutdown as stop:
            heard.append(stop.unsaid)

    sink.interrupts.post(Shutdown())
    sink.run(flow())
    assert heard == [False]


def test_each_interruption_is_delivered_once_and_in_order(sink: Sink) -> None:
    heard: list[str] = []

    def flow() -> Flow[None]:
        for _ in range(3):
            try:
                yield b""
                heard.append("-")
            except (Gone, Shutdown) as reason:
                heard.append(type(reason).__name__)

    sink.interrupts.post(Gone())
    sink.interrupts.post(Shutdown())
    sink.run(flow())
    assert heard == ["Gone", "Shutdown", "-"]


class Reply:
    """An upstream reply that only counts how often it was closed."""

    kind = "instant"

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("early", [False, True], ids=["while it reads", "before it opens"])
@pytest.mark.parametrize(("reason", "closes"), [(Gone(), 0), (Gone(cuts=True), 1), (Deadline(), 1)])
def test_a_cutting_interruption_closes_the_call_under_way(
    sink: Sink, reason: Gone | Deadline, closes: int, early: bool
) -> None:
    reply = Reply()

    class Opened(Open):
        def on(self, ports: Ports) -> Any:
            return None

        def run(self, ports: Ports) -> Any:
            if early:
                sink.interrupts.post(reason)
            return reply

    def flow() -> Flow[None]:
        yield from ask(Opened(UpstreamCall(Operation.INVOKE, "m", b"{}")))
        if not early:
            yield from ask(Do(lambda: sink.interrupts.post(reason)))
        try:
            yield b""
        except (Gone, Deadline):
            return

    sink.run(flow())
    assert closes == reply.closed


def test_an_emit_that_fails_is_a_client_that_left() -> None:
    heard: list[bool] = []

    def flow() -> Flow[None]:
        try:
            yield b"lost"
        except Gone as gone:
            heard.append(gone.unsaid)

    async def emit(said: Head | bytes) -> None:
        raise OSError("reset")

    async def perform(effect: Effect[Any]) -> Any:
        return effect.run(NO_PORTS)

    asyncio.run(adrive(flow(), perform, emit, Interrupts(), seconds))
    assert heard == [True]


def test_the_terminal_error_is_the_flows_value(sink: Sink) -> None:
    error = ProxyError("broken")

    def flow() -> Flow[ProxyError | None]:
        yield HEAD
        return error

    assert error is sink.run(flow())


def test_a_task_that_is_torn_down_is_heard_as_what_it_is() -> None:
    heard: list[str] = []

    def flow() -> Flow[None]:
        try:
            yield from ask(Do(lambda: None))
        except BaseException as error:
            heard.append(type(error).__name__)
            yield from ask(Do(lambda: heard.append("settled")))
            raise

    async def main() -> None:
        calls = 0

        async def perform(effect: Effect[Any]) -> Any:
            nonlocal calls
            calls += 1
            if calls == 1:
                await asyncio.Event().wait()
            return effect.run(NO_PORTS)

        async def emit(said: Head | bytes) -> None: ...

        task = asyncio.create_task(adrive(flow(), perform, emit, Interrupts(), seconds))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert heard == ["CancelledError", "settled"]
