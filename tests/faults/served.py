"""
A server's work on a store, killed at a named step, and the audit of what it leaves behind:
what the processes of the accounting tests have in common, whichever store they use.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen
from tests.contracts.stories import LEASE_MS, ask, rows, used
from tests.faults.accounting_worker import Log, die, now_ms

from bedrock_proxy.admission import Grant
from bedrock_proxy_adapters.stores.spool import Spool

STEPS = ["admitted", "called", "usage known", "settled", "spool: written"]
"""Where a server may be killed that is at no call of the store."""


@frozen
class Call:
    """
    A call of the store's database at which the process is killed.

    Attributes:
        phase: ``admit``, ``finish``, ``reaper`` or ``replay``: what it is made for.
        name: What the call is called.
        nth: Which of that name, from the phase's beginning.
        after: Whether the database has done it by then.
    """

    phase: str
    name: str
    nth: int = 1
    after: bool = False

    def arm(self, target: type, method: str) -> None:
        """Die at this call, which goes through *method* of *target* with its name first."""
        original: Callable[..., Any] = getattr(target, method)
        seen = 0

        def called(one: Any, name: str, *args: Any, **more: Any) -> Any:
            nonlocal seen
            seen += name == self.name
            dies = name == self.name and seen == self.nth
            if dies and not self.after:
                die()
            reply = original(one, name, *args, **more)
            if dies:
                die()
            return reply

        setattr(target, method, called)


def serve(
    store: Any,
    folder: Path,
    name: str,
    failpoint: str,
    count: int,
    lease: int,
    calls: Mapping[str, Call],
    arm: Callable[[Call], None],
) -> None:
    """Requests one after the other; at the second, the process dies at *failpoint*."""
    log, keeps = Log(folder / "upstream.log"), Spool(folder / "spool")
    dies_at = calls.get(failpoint)
    phase = None if dies_at is None else dies_at.phase
    spools = phase == "replay" or failpoint.startswith("spool")

    def here(place: str) -> None:
        if number == 1 and place == failpoint:
            die()

    def begin(what: str) -> None:
        if dies_at is not None and phase == what:
            arm(dies_at)

    for number in range(count):
        request = ask(f"{name}-{number}", now_ms(), lease_ms=lease)
        if number == 1:
            begin("admit")
        decision = store.admit(request)
        assert isinstance(decision, Grant)
        here("admitted")
        log.say(called=request.request_id)
        here("called")
        record = used(decision.lease, 10 + number)
        here("usage known")
        if spools:
            keeps.append(record, decision.lease)
            here("spool: written")
        else:
            if number == 1:
                begin("finish")
            store.finish(record, decision.lease)
        log.say(told=request.request_id, tokens=record.token_count)
        here("settled")
    if phase in {"reaper", "replay"}:
        for number in range(3):
            store.admit(ask(f"{name}-left-{number}", now_ms(), lease_ms=1))
            log.say(called=f"{name}-left-{number}")
        time.sleep(0.01)
        begin("reaper")
        if phase == "reaper":
            store.reap(now_ms())
    begin("replay")
    keeps.replay(store.finish)


def audit(store: Any, folder: Path) -> int:
    """
    Everything that must be true once the spool is replayed and the reaper has run.

    Returns:
        How often Bedrock was called.
    """
    Spool(folder / "spool").replay(store.finish)
    while store.reap(now_ms() + 2 * LEASE_MS):
        pass
    log = folder / "upstream.log"
    facts = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    called = {fact["called"] for fact in facts if "called" in fact}
    told = {fact["told"]: fact["tokens"] for fact in facts if "told" in fact}
    found = rows(store)
    ids = [row.request_id for row in found]
    assert len(ids) == len(set(ids)), "a request has two rows"
    assert called <= set(ids), f"lost: {called - set(ids)}"
    for row in found:
        if row.request_id in told:
            assert row.token_count == told[row.request_id]
            assert row.state == "final"
    assert store.open_leases() == ()
    state = store.gate_state("ann")
    today = [row for row in found if row.admitted_at // 86_400_000 == state.day]
    assert state.day_requests == len(today)
    assert state.day_tokens == sum(row.token_count for row in today)
    return len(called)
