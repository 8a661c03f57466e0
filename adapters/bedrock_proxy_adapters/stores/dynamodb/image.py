"""
A customer's gate item, read.
"""

from collections.abc import Iterator, Mapping
from itertools import starmap
from typing import Any, Final, TypeAlias

from attrs import frozen

from bedrock_proxy.admission import GateState
from bedrock_proxy.buckets import MINUTE_MS, Bucket
from bedrock_proxy.customers import Key, Limits
from bedrock_proxy.periods import day_of, month_of
from bedrock_proxy_adapters.stores.dynamodb.packing import (
    ADJUSTMENT,
    Adjustment,
    Held,
    Settings,
    Terms,
    pack_settings,
    request_id_of,
    unpack_adjustment,
    unpack_lease,
    unpack_settings,
)

Item: TypeAlias = Mapping[str, Mapping[str, Any]]
"""An item as DynamoDB's own interface writes it: ``{"name": {"N": "1"}}``."""

NUMBERS: Final = (
    *("cv", "ck"),
    *("rr", "rs", "rt"),
    *("tr", "ts", "tt", "t1", "d1", "t2", "d2", "gn", "gp"),
    *("dr", "dt", "dc", "mr", "mt", "mc"),
)
"""The attributes of a gate item that are numbers; all are always there."""


def gate_key(customer_id: str) -> dict[str, Any]:
    """Where a customer's gate item is."""
    return {"pk": {"S": f"G#{customer_id}"}, "sk": {"S": "G"}}


def fresh_gate(customer_id: str, settings: Settings) -> dict[str, Any]:
    """The gate item of a customer who has never called."""
    return (
        gate_key(customer_id)
        | {name: {"N": "0"} for name in NUMBERS}
        | {"cf": {"B": pack_settings(settings)}, "L": {"M": {}}}
    )


@frozen(eq=False)
class Image:
    """
    What a gate item said at one moment.

    Attributes:
        version: Changes with *settings*.
        rates: Requests and tokens a minute as of the last taking: the scale of the times.
        full_at: When each bucket will have drained, in milliseconds times its rate (what
            GCRA calls the theoretical arrival time).
        guards: For the current generation of leases and the one before it: the same time,
            had nothing been taken before the generation began; and how far the bucket's own
            is above it, which is what may be refunded to the generation.
        generations: The current one's number and the former's.
        entries: Leases and adjustments, packed, by name.
        changes: How often the counters were changed by others than requests: adjustments that
            were begun, and recounts. Absent in the item before the first.
    """

    customer_id: str
    version: int
    settings: Settings
    clock: int
    rates: tuple[int, int]
    since: tuple[int, int]
    full_at: tuple[int, int]
    guards: tuple[tuple[int, int], tuple[int, int]]
    generations: tuple[int, int]
    counters: tuple[int, int, int, int, int, int]
    entries: Mapping[str, bytes]
    changes: int

    @property
    def limits(self) -> Limits:
        """The customer's."""
        return self.settings.limits

    @property
    def state(self) -> GateState:
        """The same as the pure rules know it."""
        requests, tokens = (
            Bucket(rate, since, (full_at - since * rate) // MINUTE_MS)
            for rate, since, full_at in zip(self.rates, self.since, self.full_at, strict=True)
        )
        dr, dt, dc, mr, mt, mc = self.counters
        day, month = day_of(self.clock), month_of(self.clock)
        return GateState(self.clock, requests, tokens, day, dr, dt, dc, month, mr, mt, mc)

    def key(self, key_id: str) -> Key | None:
        """One of the customer's keys, as far as admission asks about it."""
        terms = self.settings.keys.get(key_id)
        return None if terms is None else _key(key_id, terms)

    def keys(self) -> Iterator[Key]:
        """All of them, likewise."""
        return starmap(_key, self.settings.keys.items())

    def leases(self) -> Iterator[tuple[str, Held]]:
        """Every lease with its request's id."""
        for name, packed in self.entries.items():
            if not name.startswith(ADJUSTMENT):
                request_id = request_id_of(name)
                yield request_id, unpack_lease(request_id, packed)

    def adjustments(self) -> Iterator[tuple[str, Adjustment]]:
        """Every adjustment with its request's id."""
        for name, packed in self.entries.items():
            if name.startswith(ADJUSTMENT):
                yield request_id_of(name), unpack_adjustment(packed)

    def live(self, now: int) -> set[str]:
        """The requests whose leases have not passed their deadline at *now*."""
        return {request_id for request_id, held in self.leases() if held.deadline > now}

    def is_overdue(self, now: int) -> bool:
        """Whether there is anything that a reaper would settle."""
        return any(held.deadline <= now for _, held in self.leases())


def _key(key_id: str, terms: Terms) -> Key:
    return Key(
        key_id=key_id,
        digest=b"",
        created_at=0,
        expires_at=terms.expires_at,
        deprecated_at=terms.deprecated_at,
    )


def image_of(customer_id: str, item: Item) -> Image:
    """The image of a gate item."""
    numbers = {name: int(item[name]["N"]) for name in NUMBERS}
    dr, dt, dc, mr, mt, mc = (numbers[name] for name in ("dr", "dt", "dc", "mr", "mt", "mc"))
    return Image(
        customer_id=customer_id,
        version=numbers["cv"],
        settings=unpack_settings(item["cf"]["B"]),
        clock=numbers["ck"],
        rates=(numbers["rr"], numbers["tr"]),
        since=(numbers["rs"], numbers["ts"]),
        full_at=(numbers["rt"], numbers["tt"]),
        guards=((numbers["t1"], numbers["d1"]), (numbers["t2"], numbers["d2"])),
        generations=(numbers["gn"], numbers["gp"]),
        counters=(dr, dt, dc, mr, mt, mc),
        entries={name: value["B"] for name, value in item["L"]["M"].items()},
        changes=int(item["an"]["N"]) if "an" in item else 0,
    )
