"""Who is listened for, and from when on (S02): with one timer for all who wait."""

import asyncio
from typing import Any, cast

import pytest

from bedrock_proxy_adapters.hosts import watching
from bedrock_proxy_adapters.hosts.watching import Watcher, Watchers
from bedrock_proxy_adapters.proxy import Passage


class Client:
    """Leaves at once, or never; knows when it was listened for, and whether that was told."""

    def __init__(self, leaves: bool = True) -> None:
        self.leaves = leaves
        self.listened_at: float | None = None
        self.left = False

    async def receive(self) -> dict[str, Any]:
        self.listened_at = asyncio.get_running_loop().time()
        if not self.leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    def leave(self) -> None:
        self.left = True

    def watcher(self, watchers: Watchers) -> Watcher:
        return Watcher(self.receive, cast("Passage", self), watchers)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_WATCHED_AFTER", 0.05)


def test_S02_each_is_listened_for_when_its_own_time_is_over() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        watchers = Watchers(loop)
        begun: list[float] = []
        clients = [Client() for _ in range(4)]
        for client in clients:
            client.watcher(watchers).begin()
            begun.append(loop.time())
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        for client, since in zip(clients, begun, strict=True):
            assert client.left
            assert client.listened_at is not None
            assert client.listened_at - since >= 0.045

    asyncio.run(run())


def test_those_who_are_answered_in_time_are_never_listened_for_and_set_no_timers() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        watchers = Watchers(loop)
        timers: list[float] = []
        set_timer = loop.call_at

        def call_at(when: float, *given: Any, **more: Any) -> asyncio.TimerHandle:
            timers.append(when)
            return set_timer(when, *given, **more)

        loop.call_at = call_at  # type: ignore[method-assign]
        clients = [Client() for _ in range(200)]
        for client in clients:
            watcher = client.watcher(watchers)
            watcher.begin()
            watcher.end()
        late = Client()
        late.watcher(watchers).begin()
        assert len(timers) == 1
        del loop.call_at  # type: ignore[method-assign]
        await asyncio.sleep(0.15)
        assert late.left
        assert not any(client.listened_at for client in clients)

    asyncio.run(run())


def test_one_that_ended_before_its_body_was_in_is_not_listened_for() -> None:
    async def run() -> None:
        watchers = Watchers(asyncio.get_running_loop())
        client = Client()
        watcher = client.watcher(watchers)
        watcher.end()
        watcher.begin()
        await asyncio.sleep(0.1)
        assert client.listened_at is None

    asyncio.run(run())


def test_an_answer_that_ends_later_ends_the_listening() -> None:
    async def run() -> None:
        watchers = Watchers(asyncio.get_running_loop())
        client = Client(leaves=False)
        watcher = client.watcher(watchers)
        watcher.begin()
        await asyncio.sleep(0.1)
        assert client.listened_at is not None
        before = len(asyncio.all_tasks())
        watcher.end()
        await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == before - 1
        assert not client.left

    asyncio.run(run())
