"""
A process that uses one Redis store as a server would: started, raced and killed by the tests
of accounting on Redis. Run as ``python -m tests.faults.redis_worker MODE URL NAME …``.

Each mode prints ``ready``, waits for a line, does its work, and prints JSON.
"""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.contracts.stories import NOON, ask, used
from tests.faults.accounting_worker import now_ms
from tests.faults.served import STEPS, Call, serve

from bedrock_proxy import admission
from bedrock_proxy.admission import AdmissionRequest, Grant, Refusal
from bedrock_proxy.errors import StoreUnavailable
from bedrock_proxy_adapters.stores.redis import RedisStore
from bedrock_proxy_adapters.stores.redis.connection import Line
from bedrock_proxy_adapters.stores.rows import dump_state

CALLS = {
    "admit: not sent": Call("admit", "admit"),
    "admit: sent, not told": Call("admit", "admit", after=True),
    "finish: not sent": Call("finish", "finish"),
    "finish: sent, not told": Call("finish", "finish", after=True),
    "reaper: not sent": Call("reaper", "finish"),
    "reaper: one of several settled": Call("reaper", "finish", 2, after=True),
    "replay: one settled, still in the file": Call("replay", "finish", after=True),
}
"""The scripts at which a process may be killed."""

FAILPOINTS = [*CALLS, *STEPS]


def burst(store: RedisStore, name: str, count: int) -> int:
    """How many of so many requests at one instant are admitted."""
    return sum(
        isinstance(store.admit(ask(f"{name}-{number}", NOON)), Grant) for number in range(count)
    )


def saturate(store: RedisStore, name: str, seconds: float) -> list[int]:
    """When the requests of a client that never pauses were admitted, by the server's clock."""
    times: list[int] = []
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        number += 1
        decision = store.admit(ask(f"{name}-{number}", now_ms()))
        if isinstance(decision, Grant):
            times.append(decision.lease.request.at)
            store.finish(used(decision.lease, duration_ms=0), decision.lease)
        else:
            time.sleep(0.002)
    return times


def hold(store: RedisStore, name: str, lease_ms: int) -> None:
    """Take leases and keep each for a little, until killed."""
    number = 0
    while True:
        number += 1
        decision = store.admit(ask(f"{name}-{number}", now_ms(), lease_ms=lease_ms))
        if isinstance(decision, Grant):
            time.sleep(0.02)
            store.finish(used(decision.lease), decision.lease)
        else:
            time.sleep(0.005)


def get_then_set(store: RedisStore) -> None:
    """A defect: decides here, on what was read, and writes what comes of it."""
    gate: Any = store._gate

    def admit(request: AdmissionRequest) -> tuple[Grant | Refusal, int]:
        limits = store.get_customer(request.customer_id).limits
        decision, after = admission.decide(gate.state(request.customer_id), limits, request)
        if isinstance(decision, Grant):
            name = gate._names.of(request.customer_id).gate
            store._line.do(lambda client: client.set(name, dump_state(after)))
        return decision, 0

    gate.admit = admit


def main() -> None:
    mode, url, name, *rest = sys.argv[1:]
    clock = "caller" if mode == "burst" else "server"
    store = RedisStore.from_url(url, clock=clock, reap_at_admission=False)
    print("ready", flush=True)
    sys.stdin.readline()
    result: Any = None
    match mode:
        case "serve":
            folder, failpoint, count, lease = rest
            serve(
                *(store, Path(folder), name, failpoint, int(count), int(lease), CALLS),
                lambda call: call.arm(Line, "run"),
            )
        case "burst":
            if rest[0] == "get-then-set":
                get_then_set(store)
            result = burst(store, name, int(rest[1]))
        case "saturate":
            result = saturate(store, name, float(rest[0]))
        case "hold":
            with contextlib.suppress(StoreUnavailable):
                hold(store, name, int(rest[0]))
        case "rebuild":
            for _ in range(int(rest[0])):
                store.rebuild(now_ms())
        case _:
            raise SystemExit(f"no such mode: {mode}")
    print(json.dumps(result), flush=True)
    store.close()


if __name__ == "__main__":
    main()
