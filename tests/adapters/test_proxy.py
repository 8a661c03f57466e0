"""What a process holds together: its bounds, its ids, what it logs, and its end."""

import json
import logging
import multiprocessing
import sys
import threading
import time
import uuid

import pytest
from tests.adapters.test_usage_log import ROW
from tests.running import wait_for

from bedrock_proxy.admission import AdmissionRequest, Lease
from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy.http import Request
from bedrock_proxy.rules import Rules
from bedrock_proxy_adapters.proxy import (
    MAX_DRAINS,
    LoggingTelemetry,
    Passage,
    Proxy,
    new_request_id,
)
from bedrock_proxy_adapters.stores.memory import MemoryStore

LEASE = Lease(
    request=AdmissionRequest(
        request_id=ROW.request_id,
        customer_id=ROW.customer_id,
        key_id=ROW.key_id,
        model_id=ROW.model_id,
        model=ROW.model,
        dialect="simple",
        operation=ROW.operation,
        stream=True,
        at=ROW.admitted_at,
        input_tokens=1,
        output_tokens=1,
        cost_nanousd=None,
        price_version=None,
        client_request_id=None,
        lease_ms=1_000,
    ),
    deadline=ROW.admitted_at + 1_000,
)


class Upstream:
    """Enough of one for a proxy that is not called."""

    kind = "blocking"
    max_streams = 3
    retries = 0
    closed = False

    def close(self) -> None:
        self.closed = True


def proxy(**more: object) -> Proxy:
    return Proxy(store=MemoryStore(), upstream=Upstream(), **more)  # type: ignore[arg-type]


def passage(of: Proxy) -> Passage:
    request = Request(
        request_id=new_request_id(), method="GET", path="/healthz", query="", headers=()
    )
    return of.passage(request, None, of.sync_faces())  # type: ignore[arg-type]


def test_no_more_streams_than_the_upstream_carries_and_each_is_given_back() -> None:
    held = proxy()
    passages = [passage(held) for _ in range(4)]
    assert [True, True, True, False] == [each.ports.slots.take_stream() for each in passages]
    assert passages[0].ports.slots.take_stream(), "its own, again"
    passages[0].ended()
    passages[0].ended()
    assert passages[3].ports.slots.take_stream()
    assert not passage(held).ports.slots.take_stream(), "ending twice gives back once"


def test_the_operators_own_bound_comes_first() -> None:
    held = proxy(max_streams=1)
    assert [True, False] == [passage(held).ports.slots.take_stream() for _ in range(2)]


def test_S01_no_more_drains_than_thirty_two_and_none_under_cancel() -> None:
    held = proxy()
    passages = [passage(held) for _ in range(MAX_DRAINS + 1)]
    taken = [each.ports.slots.take_drain() for each in passages]
    assert [True] * MAX_DRAINS + [False] == taken
    passages[0].ended()
    assert passages[-1].ports.slots.take_drain()
    assert not passage(proxy(disconnect="cancel")).ports.slots.take_drain()


def test_retries_are_never_more_than_the_upstreams_own() -> None:
    assert 0 == proxy(rules=Rules(retries=2)).rules.retries


def test_a_native_port_is_refused_by_a_host_without_an_event_loop() -> None:
    class Native(Upstream):
        kind = "native"

    with pytest.raises(ConfigurationError, match="asgi_app"):
        Proxy(store=MemoryStore(), upstream=Native()).sync_faces()  # type: ignore[arg-type]


def test_S20_shutdown_waits_for_what_is_under_way_and_then_interrupts_it() -> None:
    held = proxy()
    quick, slow = passage(held), passage(held)
    assert held.ready
    threading.Timer(0.05, quick.ended).start()
    left: list[int] = []
    stopping = threading.Thread(target=lambda: left.append(held.shutdown(0.2, 0.2)))
    stopping.start()
    wait_for(lambda: not held.ready or None, "readiness to go")
    stopping.join()
    assert [1] == left
    assert slow.interrupts.take() is not None
    slow.ended()
    assert 0 == held.shutdown(0.0, 0.0)


def test_shutdown_returns_as_soon_as_all_is_quiet() -> None:
    held = proxy()
    one = passage(held)
    threading.Timer(0.05, one.ended).start()
    begun = time.monotonic()
    assert 0 == held.shutdown(60.0)
    assert time.monotonic() - begun < 30


def test_closing_closes_what_can_be_closed() -> None:
    held = proxy()
    held.close()
    assert isinstance(held.upstream, Upstream)
    assert held.upstream.closed


def test_request_ids_are_version_7_and_sorted_by_time() -> None:
    ids = []
    for _ in range(5):
        ids.append(new_request_id())
        time.sleep(0.002)
    assert ids == sorted(ids)
    assert {7} == {uuid.UUID(each).version for each in ids}
    assert {uuid.RFC_4122} == {uuid.UUID(each).variant for each in ids}
    many = {new_request_id() for _ in range(10_000)}
    assert 10_000 == len(many)
    assert abs((uuid.UUID(ids[-1]).int >> 80) - time.time() * 1000) < 60_000


def test_a_listener_that_fails_does_not_fail_the_request() -> None:
    def broken(_: object) -> None:
        raise BrokenPipeError

    LoggingTelemetry(finished=broken).finished(ROW)


def test_a_row_that_even_the_spool_refuses_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(_: object, __: object) -> None:
        raise OSError("disk full")

    for telemetry in (LoggingTelemetry(spool=full), LoggingTelemetry()):
        caplog.clear()
        telemetry.spooled(ROW, LEASE)
        critical = [r for r in caplog.records if r.levelno == logging.CRITICAL]
        assert 1 == len(critical)
        row = json.loads(critical[0].getMessage().partition(": ")[2])
        expected = {**ROW.as_dict(), "client_request_id": None}
        assert expected == row, "it can be entered again from there"


def test_a_row_that_the_spool_takes_is_not_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    kept: list[object] = []
    LoggingTelemetry(spool=lambda *each: kept.append(each)).spooled(ROW, LEASE)
    assert [(ROW, LEASE)] == kept
    assert [] == caplog.records


def test_a_defect_is_logged_by_type_and_place_never_in_its_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    try:
        int("CANARY")
    except ValueError as error:
        LoggingTelemetry().fault("req-1", error)
    assert "CANARY" not in caplog.text
    [said] = [r.getMessage() for r in caplog.records]
    assert said.startswith("request req-1 met ValueError at test_a_defect_is_logged")


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="forking beside a thread warns from 3.12 on"
)
def test_what_a_parent_has_under_way_does_not_count_in_its_child() -> None:
    held = proxy(max_streams=1)
    one = passage(held)
    assert one.ports.slots.take_stream()
    assert one.ports.slots.take_drain()

    def child() -> None:
        assert held.under_way == 0
        one.ended()
        others = [passage(held) for _ in range(2)]
        assert [True, False] == [each.ports.slots.take_stream() for each in others]
        for each in others:
            each.ended()
        assert held.shutdown(0.0, 0.0) == 0

    with held._lock:  # as another thread may have it at that moment
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
    process.join(20)
    process.kill()
    assert process.exitcode == 0
    assert held.under_way == 1
    assert not passage(held).ports.slots.take_stream()
