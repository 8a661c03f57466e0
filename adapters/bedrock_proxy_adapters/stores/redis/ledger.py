"""
The ledger in Redis: a hash for each customer and day, and an index by time.
"""

import heapq
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from attrs import evolve, fields

from bedrock_proxy import accounts
from bedrock_proxy.admission import AHEAD_MS, Lease, put_back
from bedrock_proxy.errors import store_unavailable
from bedrock_proxy.periods import day_of, month_of, start_of_month
from bedrock_proxy.store import By, Page, UsageSum
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.stores.redis.connection import Keys, Line, Names, text_of
from bedrock_proxy_adapters.stores.redis.gate import RedisGate
from bedrock_proxy_adapters.stores.rows import columns_of, dump, record_from_columns
from bedrock_proxy_adapters.stores.sums import page_key, sum_rows

READ_AT_ONCE: Final = 500
"""How many rows are fetched in one round trip."""

_ATTEMPTS: Final = 10
_FIGURES: Final = tuple(field.name for field in fields(UsageSum) if field.name != "key")


def _load_row(text: str) -> UsageRecord:
    head, _, body = text.partition("\n")
    admitted_at, corrected_at, *_ = json.loads(head)
    record = record_from_columns(json.loads(body))
    if record.admitted_at == admitted_at and record.corrected_at == corrected_at:
        return record
    return evolve(record, admitted_at=admitted_at, corrected_at=corrected_at)


class RedisLedger:
    """See :class:`~bedrock_proxy.ports.Ledger` and :class:`~bedrock_proxy.store.Books`."""

    def __init__(self, line: Line, names: Names, gate: RedisGate) -> None:
        self._line = line
        self._names = names
        self._gate = gate

    def finish(self, record: UsageRecord, lease: Lease, deadline: int | None = None) -> bool:
        """
        See :meth:`~bedrock_proxy.ports.Ledger.finish`.

        Args:
            deadline: Only if the lease still has this one.

        Returns:
            Whether it was done.
        """
        keys = self._names.of(record.customer_id)
        # Only where nobody knows the lease any more is its day another one than the row's.
        day = day_of(lease.request.at)
        for _ in range(_ATTEMPTS):
            reply = self._line.run(
                "finish",
                [
                    *(keys.customer, keys.gate, keys.leases, keys.deadlines, keys.rows),
                    keys.ledger(day),
                ],
                self._gate.time(record.admitted_at + record.duration_ms),
                record.request_id,
                record.admitted_at,
                day,
                record.state.value,
                record.token_count,
                "" if record.cost_nanousd is None else record.cost_nanousd,
                "" if record.corrected_at is None else record.corrected_at,
                dump(columns_of(record)),
                "" if deadline is None else deadline,
            )
            match text_of(reply[0]):
                case "done":
                    return True
                case "kept":
                    return False
                case _:
                    day = int(reply[1])
        raise store_unavailable("others kept changing the same customer")

    def reap(self, ids: list[str], now: int, limit: int) -> int:
        """Settle overdue leases of these customers, as estimated rows."""
        return sum(
            self.finish(accounts.estimated_row(lease), lease, lease.deadline)
            for lease in self._gate.overdue(ids, now, limit)
        )

    def rebuild(self, customer_id: str, at: int, set_clock: bool) -> None:
        """See :meth:`~bedrock_proxy.store.Books.rebuild`."""
        keys = self._names.of(customer_id)
        if set_clock:
            at = self._gate.now(at)
            self._put_back(customer_id, at)
        state = self._gate.state(customer_id)
        if set_clock:
            state = put_back(state, at)
        month = month_of(max(at, state.clock))
        for _ in range(_ATTEMPTS):
            first = day_of(start_of_month(month))
            days = range(first, day_of(start_of_month(month + 1)))
            reply = self._line.run(
                "rebuild",
                [keys.gate, keys.leases, keys.rows, *map(keys.ledger, days)],
                self._gate.time(at),
                month,
                first,
                AHEAD_MS,
                int(set_clock),
            )
            if text_of(reply[0]) == "done":
                return
            month = int(reply[1])
        raise store_unavailable("others kept changing the same customer")

    def _put_back(self, customer_id: str, now: int) -> None:
        for lease in self._gate.open_leases(customer_id):
            match accounts.after_wrong_clock(lease, now):
                case Lease() as shorter:
                    self._gate.set_deadline(shorter)
                case UsageRecord() as row:
                    self.finish(row, lease, lease.deadline)
                case None:
                    pass

    def list_rows(
        self, ids: list[str], start: int | None, end: int | None, limit: int, after: str | None
    ) -> Page[UsageRecord]:
        """See :meth:`~bedrock_proxy.store.Books.list_rows`."""
        size = min(limit + 1, READ_AT_ONCE)
        streams = (self._rows(each, start, end, after, size) for each in ids)
        found = list(islice(heapq.merge(*streams, key=page_key), limit + 1))
        page = tuple(found[:limit])
        return Page(page, page_key(page[-1]) if len(found) > limit else None)

    def sum_usage(
        self, by: By, ids: list[str], start: int | None, end: int | None
    ) -> tuple[UsageSum, ...]:
        """See :meth:`~bedrock_proxy.store.Books.sum_usage`."""
        sums: dict[str, UsageSum] = {}
        for each in ids:
            rows = self._rows(each, start, end, None, READ_AT_ONCE)
            while group := list(islice(rows, READ_AT_ONCE)):
                for part in sum_rows(by, group):
                    known = sums.get(part.key)
                    sums[part.key] = part if known is None else _plus(known, part)
        return tuple(sums[key] for key in sorted(sums))

    def _rows(
        self, customer_id: str, start: int | None, end: int | None, after: str | None, size: int
    ) -> Iterator[UsageRecord]:
        """A customer's rows, oldest first, *size* at a time."""
        keys = self._names.of(customer_id)
        top = "+inf" if end is None else f"({end}"
        while True:
            bottom: int | None = start
            if after is not None:
                bottom = max(int(after.partition("/")[0]), start or 0)
            places = self._places(keys, "-inf" if bottom is None else bottom, top, after, size)
            yield from self._read(keys, places)
            if len(places) < size:
                return
            at, request_id = places[-1]
            after = f"{at:015d}/{request_id}"

    def _places(
        self, keys: Keys, bottom: int | str, top: str, after: str | None, size: int
    ) -> list[tuple[int, str]]:
        """When and as what the next rows were admitted, beyond *after*."""
        places: list[tuple[int, str]] = []
        offset = 0
        while len(places) < size:
            found = self._range(keys.rows, bottom, top, offset, size)
            for member, at in found:
                place = int(at), str(text_of(member))
                if after is None or f"{place[0]:015d}/{place[1]}" > after:
                    places.append(place)
            if len(found) < size:
                break
            offset += size
        return places[:size]

    def _range(
        self, key: str, bottom: int | str, top: str, offset: int, size: int
    ) -> list[tuple[Any, float]]:
        return self._line.do(
            lambda client: client.zrangebyscore(
                key, bottom, top, start=offset, num=size, withscores=True
            )
        )

    def _read(self, keys: Keys, places: list[tuple[int, str]]) -> list[UsageRecord]:
        def ask(pipeline: Any) -> None:
            for at, request_id in places:
                pipeline.hget(keys.ledger(day_of(at)), request_id)

        texts = self._line.many(ask)
        return [_load_row(str(text_of(text))) for text in texts if text is not None]


def _plus(one: UsageSum, other: UsageSum) -> UsageSum:
    return evolve(one, **{name: getattr(one, name) + getattr(other, name) for name in _FIGURES})
