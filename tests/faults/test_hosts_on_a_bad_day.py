"""
Hosts that are treated badly: tasks cancelled where they write, replies closed twice, from
elsewhere, or never, and requests that come when the server has already said its end. Each
leaves one ledger row, and nothing under way.
"""

import asyncio
import gc
import io
import json
import multiprocessing
import sys
import threading
import tracemalloc
from typing import Any

import pytest
from tests.flows import TOKEN, Reply, Step, Time, World, ask_claude, claude
from tests.running import wait_for

from bedrock_proxy import tokens
from bedrock_proxy.answers import StreamedAnswer
from bedrock_proxy.course import Course
from bedrock_proxy.customers import UNLIMITED, Customer, Key
from bedrock_proxy.errors import Unavailable
from bedrock_proxy.ports import Ports
from bedrock_proxy.store import every_row
from bedrock_proxy.usage import Outcome
from bedrock_proxy_adapters.hosts import driven
from bedrock_proxy_adapters.hosts.asgi import Application, asgi_app
from bedrock_proxy_adapters.hosts.asgi_requests import to_request
from bedrock_proxy_adapters.hosts.library import answers
from bedrock_proxy_adapters.hosts.wsgi import wsgi_app
from bedrock_proxy_adapters.proxy import Passage, Proxy
from bedrock_proxy_adapters.stores.memory import MemoryStore


class Upstream:
    """Scripted calls of Bedrock."""

    kind = "blocking"
    max_streams = 10
    retries = 0

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps) or list(claude())
        self.calls: list[Reply] = []

    def open(self, call: Any) -> Reply:
        head = World().answers([]).replies[0].head
        self.calls.append(Reply(head, list(self.steps), Time()))
        return self.calls[-1]


class Slow(MemoryStore):
    """A store whose answers can be held back: *gates* maps a method to what it waits for."""

    kind = "blocking"

    def __init__(self) -> None:
        super().__init__()
        self.begun: dict[str, threading.Event] = {}
        self.gates: dict[str, threading.Event] = {}

    def hold(self, name: str) -> None:
        self.begun[name] = threading.Event()
        self.gates[name] = threading.Event()

    def _pass(self, name: str) -> None:
        if name in self.gates:
            self.begun[name].set()
            assert self.gates[name].wait(20)

    def admit(self, request: Any) -> Any:
        self._pass("admit")
        return super().admit(request)

    def finish(self, record: Any, lease: Any) -> None:
        self._pass("finish")
        super().finish(record, lease)


def make(upstream: Upstream, store: MemoryStore | None = None, **more: Any) -> Proxy:
    store = MemoryStore() if store is None else store
    store.create_customer(
        Customer(id="c1", name="T", email="t@example.com", limits=UNLIMITED, created_at=0),
        Key(key_id="k1", digest=tokens.digest(TOKEN, None), created_at=0),
    )
    return Proxy(store=store, upstream=upstream, **more)  # type: ignore[arg-type]


def settled(proxy: Proxy, count: int = 1) -> list[Any]:
    """The rows, once nothing is under way any more."""
    wait_for(lambda: True if not proxy.under_way else None, "the flow to end", 10)
    rows = list(every_row(proxy.store))  # type: ignore[arg-type]
    assert len(rows) == count
    assert not proxy.store.open_leases()  # type: ignore[attr-defined]
    return rows


# --- WSGI -------------------------------------------------------------------------------------


def environ() -> dict[str, Any]:
    content = ask_claude()
    return {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/bedrock",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "t",
        "HTTP_AUTHORIZATION": f"Bearer {TOKEN}",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(content)),
        "wsgi.input": io.BytesIO(content),
    }


def reply_of(proxy: Proxy) -> Any:
    return wsgi_app(proxy)(environ(), lambda status, headers: None)


def test_S01_a_reply_closed_while_another_thread_iterates_is_settled_once() -> None:
    reading, go_on = threading.Event(), threading.Event()

    def stall() -> None:
        reading.set()
        assert go_on.wait(20)

    steps = claude()
    upstream = Upstream(*steps[:3], stall, *steps[3:])
    proxy = make(upstream)
    reply = reply_of(proxy)
    next(reply)
    met: list[BaseException] = []

    def iterate() -> None:
        try:
            while True:
                next(reply)
        except BaseException as error:
            met.append(error)

    iterating = threading.Thread(target=iterate)
    iterating.start()
    assert reading.wait(20)
    reply.close()
    for thread in threading.enumerate():
        if thread.name == "bedrock-proxy-rest":
            thread.join(0.2)
    assert proxy.under_way == 1, "it is still being read"
    go_on.set()
    iterating.join(20)
    (row,) = settled(proxy)
    assert row.output_tokens == 7
    assert [type(error) for error in met] == [StopIteration]
    assert upstream.calls[0].closed


def test_S01_a_reply_that_is_closed_twice_is_settled_once() -> None:
    hold = threading.Event()
    steps = claude()
    proxy = make(Upstream(*steps[:3], lambda: hold.wait(20), *steps[3:]))
    reply = reply_of(proxy)
    next(reply)
    reply.close()
    reply.close()
    rests = [t for t in threading.enumerate() if t.name == "bedrock-proxy-rest"]
    assert proxy.under_way == 1
    hold.set()
    for thread in rests:
        thread.join(20)
    settled(proxy)


def test_S01_a_server_that_lets_go_of_a_reply_without_closing_it_leaves_a_row() -> None:
    proxy = make(Upstream())
    reply = reply_of(proxy)
    next(reply)
    del reply
    gc.collect()
    (row,) = settled(proxy)
    assert row.outcome is Outcome.CLIENT_GONE


def test_S01_a_server_that_fails_to_begin_the_answer_leaves_a_row() -> None:
    proxy = make(Upstream())

    def start_response(status: str, headers: object) -> None:
        raise OSError("the connection is gone")

    with pytest.raises(OSError, match="gone"):
        wsgi_app(proxy)(environ(), start_response)
    settled(proxy)


@pytest.mark.parametrize("host", ["wsgi", "library"])
def test_S01_an_answer_that_the_collector_finds_is_settled_and_not_finalised(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is left in the traceback of an error that somebody kept."""
    met: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lambda unraisable: met.append(unraisable.exc_value))
    steps = claude()

    def garbage() -> Proxy:
        proxy = make(Upstream(*steps))
        if host == "wsgi":
            reply = reply_of(proxy)
        else:
            reply = answers(proxy)(TOKEN, json.loads(ask_claude()))
        next(reply)
        knows_itself: list[object] = [reply]
        knows_itself.append(knows_itself)
        return proxy

    def all_garbage() -> None:
        knows_itself: list[object] = [garbage()]
        knows_itself.append(knows_itself)
        stores.append(knows_itself[0].store)  # type: ignore[attr-defined]

    gc.disable()
    try:
        for _ in range(20):
            proxy = garbage()
            gc.collect()
            (row,) = settled(proxy)
            assert row.outcome is Outcome.CLIENT_GONE
        stores: list[Any] = []
        all_garbage()  # the proxy as well
        gc.collect()
        wait_for(lambda: list(every_row(stores[0])) or None, "its row")
    finally:
        gc.enable()
    wait_for(lambda: True if not driven._under_way else None, "nothing to be kept")
    assert not met


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="forking beside a thread warns from 3.12 on"
)
def test_S01_an_answer_of_the_parent_is_the_parents_to_end() -> None:
    upstream = Upstream()
    proxy = make(upstream)
    parts = answers(proxy)(TOKEN, json.loads(ask_claude()))
    reply = reply_of(proxy)
    next(parts)
    next(reply)

    def child() -> None:
        reply.close()
        driven._end()
        with pytest.raises(Unavailable):
            list(parts)
        assert not list(every_row(proxy.store))  # type: ignore[arg-type]

    with reply._driven._lock:  # as another thread may have it at that moment
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
    process.join(20)
    process.kill()
    assert process.exitcode == 0
    assert list(parts)
    assert list(reply)
    assert [Outcome.OK] * 2 == [row.outcome for row in settled(proxy, 2)]


@pytest.mark.parametrize("pieces", [2, 100], ids=["left", "whole"])
def test_L5_what_has_ended_is_gone_without_the_collector(pieces: int) -> None:
    """``tests/hosts/test_direct.py`` says why, and looks at the ASGI host."""
    proxy = make(Upstream())
    kinds = (Passage, Ports, Course, StreamedAnswer, driven.Driven)
    gc.collect()
    known = {id(each) for each in gc.get_objects() if isinstance(each, kinds)}
    gc.disable()
    try:
        reply = reply_of(proxy)
        for _ in zip(range(pieces), reply, strict=False):
            pass
        reply.close()
        settled(proxy)
        del reply
        found = [each for each in gc.get_objects() if isinstance(each, kinds)]
        left = [type(each).__name__ for each in found if id(each) not in known]
    finally:
        gc.enable()
    assert not left


# --- ASGI -------------------------------------------------------------------------------------


SCOPE: dict[str, Any] = {
    "type": "http",
    "http_version": "1.1",
    "method": "POST",
    "path": "/bedrock",
    "raw_path": b"/bedrock",
    "query_string": b"",
    "headers": [(b"host", b"t"), (b"authorization", f"Bearer {TOKEN}".encode())],
}


async def receive_once(sent: list[bool]) -> dict[str, Any]:
    if not sent:
        sent.append(True)
        return {"type": "http.request", "body": ask_claude(), "more_body": False}
    await asyncio.Event().wait()
    raise AssertionError


def a_loop_that_ends(app: Application, until: Any, on_send: Any) -> None:
    """Serve one request on a loop that ends, cancelling all its tasks, after *until*."""

    async def main() -> None:
        sent: list[bool] = []
        task = asyncio.create_task(
            app(SCOPE, lambda: receive_once(sent), on_send)  # type: ignore[arg-type]
        )
        await until()
        assert not task.done()

    asyncio.run(main())


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_S21_a_loop_that_ends_while_a_reply_is_written_still_settles_it(nth: int) -> None:
    proxy = make(Upstream())
    writing: list[Any] = []

    async def send(message: Any) -> None:
        writing.append(message)
        if len(writing) == nth:
            await asyncio.Event().wait()

    async def until() -> None:
        while len(writing) < nth:
            await asyncio.sleep(0.001)

    a_loop_that_ends(asgi_app(proxy), until, send)
    (row,) = settled(proxy)
    assert row.outcome is Outcome.SHUTDOWN


@pytest.mark.parametrize(("name", "count"), [("admit", 0), ("finish", 1)])
def test_S21_a_loop_that_ends_while_the_store_works_leaves_no_lease(name: str, count: int) -> None:
    store = Slow()
    store.hold(name)
    proxy = make(Upstream(), store)

    async def send(message: Any) -> None: ...

    async def until() -> None:
        while not store.begun[name].is_set():
            await asyncio.sleep(0.001)
        threading.Timer(0.05, store.gates[name].set).start()

    a_loop_that_ends(asgi_app(proxy), until, send)
    settled(proxy, count)


# --- the end ----------------------------------------------------------------------------------


def test_S20_a_request_that_comes_after_the_end_is_told_so_and_costs_nothing() -> None:
    upstream = Upstream()
    proxy = make(upstream)
    proxy.interrupt_all()
    said: list[str] = []
    reply = wsgi_app(proxy)(environ(), lambda status, headers: said.append(status))
    content = b"".join(reply)
    assert said == ["503 Service Unavailable"]
    assert b'"server_shutdown"' in content
    assert not upstream.calls
    settled(proxy, 0)


def test_L5_header_names_that_clients_make_up_are_not_remembered() -> None:
    """Anybody may send some, without a token, and long ones."""
    scope = {"type": "http", "method": "POST", "path": "/bedrock", "query_string": b""}
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1_000):
            name = b"X-%d-" % number + b"n" * 20_000
            request = to_request({**scope, "headers": [(name, b"v")]}, "", "r")
            assert request.first(name.decode().lower()) == "v"
            to_request({**scope, "headers": [(b"x-%d" % number, b"v")]}, "", "r")
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 256 * 1024
