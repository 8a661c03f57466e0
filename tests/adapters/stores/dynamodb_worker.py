"""
A process that uses one DynamoDB table as a server would: raced and killed by
``test_dynamodb_processes``. Run as ``python -m tests.adapters.stores.dynamodb_worker
MODE URL NAME …``; it prints ``ready``, waits for a line, does its work, and prints JSON.
"""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.contracts.stories import NOON, ask, used
from tests.faults.served import STEPS, Call, serve

from bedrock_proxy.admission import Grant
from bedrock_proxy.errors import StoreUnavailable
from bedrock_proxy_adapters.stores.dynamodb import DynamoDBStore, connection, gate
from bedrock_proxy_adapters.stores.dynamodb.update import Update
from bedrock_proxy_adapters.stores.spool import Spool

CALLS = {
    "admit: not sent": Call("admit", "update_item"),
    "admit: sent, not told": Call("admit", "update_item", after=True),
    "row: not sent": Call("finish", "put_item"),
    "row: sent, not told": Call("finish", "put_item", after=True),
    "settlement: not sent": Call("finish", "update_item"),
    "settlement: sent, not told": Call("finish", "update_item", after=True),
    "reaper: row not sent": Call("reaper", "put_item"),
    "reaper: row sent, not settled": Call("reaper", "put_item", after=True),
    "reaper: one of several settled": Call("reaper", "update_item", 2, after=True),
    "replay: row not sent": Call("replay", "put_item"),
    "replay: row sent, not settled": Call("replay", "put_item", after=True),
    "replay: one settled, still in the file": Call("replay", "update_item", after=True),
}
"""The calls of DynamoDB at which a process may be killed."""

FAILPOINTS = [*CALLS, *STEPS]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def burst(store: DynamoDBStore, name: str, count: int) -> int:
    return sum(
        isinstance(store.admit(ask(f"{name}-{number}", NOON)), Grant) for number in range(count)
    )


def heard(store: DynamoDBStore, name: str, customers: int, count: int) -> list[int]:
    """
    The same for several customers in turn, on a server that fails now and then: how many of
    each were told to be granted.
    """
    granted = [0] * customers
    for customer in range(customers):
        for number in range(count):
            asked = ask(f"{name}-{customer}-{number}", NOON, customer_id=f"c{customer}")
            with contextlib.suppress(StoreUnavailable):
                granted[customer] += isinstance(store.admit(asked), Grant)
    return granted


def saturate(store: DynamoDBStore, name: str, seconds: float) -> dict[str, Any]:
    """When each was admitted, and how many were not, or got no answer."""
    times: list[int] = []
    refused = unavailable = 0
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        number += 1
        try:
            decision = store.admit(ask(f"{name}-{number}", now_ms()))
        except StoreUnavailable:
            unavailable += 1
            continue
        if isinstance(decision, Grant):
            times.append(decision.lease.request.at)
            store.finish(used(decision.lease, duration_ms=0), decision.lease)
        else:
            refused += 1
    return {"times": times, "refused": refused, "unavailable": unavailable}


def hold(store: DynamoDBStore, name: str, lease_ms: int) -> None:
    """Take leases and keep each for a little, until killed."""
    number = 0
    while True:
        number += 1
        with contextlib.suppress(StoreUnavailable):
            decision = store.admit(ask(f"{name}-{number}", now_ms(), lease_ms=lease_ms))
            if isinstance(decision, Grant):
                print(json.dumps(decision.lease.request.request_id), flush=True)
                time.sleep(0.02)
                store.finish(used(decision.lease), decision.lease)
            else:
                time.sleep(0.005)


def get_then_set() -> None:
    """A defect: the item is looked at, and then written whatever it has become."""
    original = Update.parameters

    def unconditional(self: Update) -> dict[str, Any]:
        parameters = original(self)
        parameters["ConditionExpression"] = "attribute_exists(pk)"
        used = parameters["UpdateExpression"]
        values = parameters.get("ExpressionAttributeValues", {})
        kept = {name: value for name, value in values.items() if _is_used(name, used)}
        parameters["ExpressionAttributeValues"] = kept
        return parameters

    Update.parameters = unconditional  # type: ignore[method-assign]
    admit = gate.admit

    def reading(table: connection.Table, request: Any) -> Any:
        table.images.pop(request.customer_id)
        return admit(table, request)

    gate.admit = reading


def _is_used(name: str, expression: str) -> bool:
    return name in expression.replace(",", " ").split()


def main() -> None:
    mode, url, name, *rest = sys.argv[1:]
    store = DynamoDBStore.from_url(url, reap_at_admission=False)
    store.gate_state("ann")  # connected
    print("ready", flush=True)
    sys.stdin.readline()
    result: Any = None
    match mode:
        case "burst":
            defect, count = rest
            if defect == "get-then-set":
                get_then_set()
            result = burst(store, name, int(count))
        case "serve":
            folder, failpoint, count, lease = rest
            serve(
                *(store, Path(folder), name, failpoint, int(count), int(lease), CALLS),
                lambda call: call.arm(connection.Table, "attempt"),
            )
        case "replay":
            Spool(Path(rest[0]) / name / "spool").replay(store.finish)
        case "heard":
            result = heard(store, name, int(rest[0]), int(rest[1]))
        case "saturate":
            result = saturate(store, name, float(rest[0]))
        case "hold":
            hold(store, name, int(rest[0]))
        case _:
            raise SystemExit(f"no such mode: {mode}")
    print(json.dumps(result), flush=True)
    store.close()


if __name__ == "__main__":
    main()
