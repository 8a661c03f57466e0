"""Connections that are over but for a client that takes nothing are broken; no others are."""

from typing import Any

import pytest

from bedrock_proxy_adapters.cli.stalled import GIVEN_UP_S, Stalled

WITHIN = 60.0


class Cycle:
    def __init__(self, response_complete: bool) -> None:
        self.response_complete = response_complete


class Transport:
    def __init__(self, size: int, closing: bool) -> None:
        self.size = size
        self.closing = closing
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        if self.size < 0:
            raise RuntimeError("the handler is closed")
        return self.size

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.aborted = True


class Connection:
    def __init__(self, size: int, *, whole: bool, closing: bool) -> None:
        self.transport: Any = Transport(size, closing)
        self.cycle = Cycle(whole)


def after(seconds: float, *connections: Connection, each: float = 5.0) -> list[bool]:
    now = 0.0
    stalled = Stalled(list(connections), WITHIN, lambda: now)
    stalled.look()
    while now < seconds:
        now += each
        stalled.look()
    return [connection.transport.aborted for connection in connections]


@pytest.mark.parametrize(
    ("whole", "closing", "patience"),
    [(True, False, WITHIN), (True, True, WITHIN), (False, True, GIVEN_UP_S)],
    ids=["kept", "closed behind its answer", "broken off"],
)
def test_S14_who_takes_nothing_of_what_is_over_is_cut_off(
    whole: bool, closing: bool, patience: float
) -> None:
    connection = Connection(1_000, whole=whole, closing=closing)
    assert after(patience - 5.0, connection) == [False]
    assert after(patience, connection) == [True]


def test_S14_an_answer_under_way_a_connection_at_rest_and_one_that_has_ended_are_let_be() -> None:
    under_way = Connection(1_000_000, whole=False, closing=False)
    at_rest = Connection(0, whole=True, closing=False)
    ended = Connection(-1, whole=True, closing=True)
    assert after(10 * WITHIN, under_way, at_rest, ended) == [False, False, False]


def test_S14_whoever_takes_something_now_and_then_is_waited_for() -> None:
    slow = Connection(10_000, whole=True, closing=True)
    now = 0.0
    stalled = Stalled([slow], WITHIN, lambda: now)
    for _ in range(100):
        now += WITHIN - 1
        slow.transport.size -= 10
        stalled.look()
    assert not slow.transport.aborted
    now += WITHIN
    stalled.look()
    assert slow.transport.aborted


def test_S14_what_has_gone_on_is_forgotten() -> None:
    connection = Connection(1_000, whole=True, closing=False)
    now = 0.0
    stalled = Stalled([connection], WITHIN, lambda: now)
    stalled.look()
    connection.transport.size = 0
    now = WITHIN / 2
    stalled.look()
    connection.transport.size = 1_000
    now = WITHIN
    stalled.look()
    assert not connection.transport.aborted
