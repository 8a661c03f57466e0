"""
Admission and leases in Redis: each operation is one script, put into words here.
"""

import json
from typing import Any

from attrs import asdict, evolve

from bedrock_proxy import admission
from bedrock_proxy.admission import FRESH, AdmissionRequest, GateState, Grant, Lease, Refusal
from bedrock_proxy.buckets import Taken
from bedrock_proxy.customers import UNLIMITED, CustomerStatus
from bedrock_proxy.errors import Unavailable
from bedrock_proxy.standing import Standing
from bedrock_proxy_adapters.stores.redis.connection import Clock, Line, Names, text_of
from bedrock_proxy_adapters.stores.redis.directory import load_customer, load_key, texts_of
from bedrock_proxy_adapters.stores.rows import dump, load_limits, load_state
from bedrock_proxy_adapters.stores.sums import standing_of


def load_lease(text: str, deadline: float) -> Lease:
    """A lease as the script wrote it: figures in the first line, the request in the second."""
    head, _, request = text.partition("\n")
    at, _, _, of_requests, of_tokens = json.loads(head)
    return Lease(
        request=evolve(AdmissionRequest(**json.loads(request)), at=at),
        deadline=int(deadline),
        of_requests=Taken(*of_requests),
        of_tokens=Taken(*of_tokens),
    )


def state_of(text: str | None) -> GateState:
    """A customer's state from its key."""
    return FRESH if text is None else load_state(text)


class RedisGate:
    """See :class:`~bedrock_proxy.ports.Gate`."""

    def __init__(self, line: Line, names: Names, clock: Clock) -> None:
        self._line = line
        self._names = names
        self._clock = clock

    def time(self, at: int) -> int | str:
        """What a script is told of the time: nothing, where the server's clock counts."""
        return at if self._clock == "caller" else ""

    def admit(self, request: AdmissionRequest) -> tuple[Grant | Refusal, int]:
        """See :meth:`~bedrock_proxy.ports.Gate.admit`; and how many leases are overdue."""
        keys = self._names.of(request.customer_id)
        reply = self._line.run(
            "admit",
            [keys.customer, keys.gate, keys.leases, keys.deadlines, keys.rows],
            self.time(request.at),
            request.request_id,
            request.key_id,
            request.input_tokens + request.output_tokens,
            "" if request.cost_nanousd is None else request.cost_nanousd,
            request.lease_ms,
            dump(asdict(request)),
        )
        verdict, time, state_text, live, overdue, status, limits_text, key_text, held, deadline = (
            text_of(each) for each in reply
        )
        at = int(time or 0)
        state, count = state_of(state_text), int(live or 0)
        limits = UNLIMITED if limits_text is None else load_limits(limits_text)
        if held is not None:
            lease = load_lease(held, float(deadline or 0))
            states = admission.limit_states(state, limits, count, at)
            return Grant(lease=lease, limits=states), int(overdue or 0)
        if verdict == "settled":
            raise Unavailable("This request has been settled already.")
        # The script has decided; the same decision from the same values gives it words.
        if request.at != at:
            request = evolve(request, at=at)
        barred = admission.bar(
            None if status is None else CustomerStatus(status),
            None if key_text is None else load_key(request.key_id, key_text),
            at,
        )
        decision: Grant | Refusal
        if barred is not None:
            decision = admission.refused(barred, state, limits, count, at)
        else:
            decision, _ = admission.decide(state, limits, request, count)
        if isinstance(decision, Grant) != (verdict == "granted"):
            raise Unavailable("The store decided otherwise than this process would have.")
        return decision, int(overdue or 0)

    def renew(self, lease: Lease, at: int) -> Lease:
        """See :meth:`~bedrock_proxy.ports.Gate.renew`."""
        keys = self._names.of(lease.request.customer_id)
        reply = self._line.run(
            "renew",
            [keys.leases, keys.deadlines],
            self.time(at),
            lease.request.request_id,
            lease.request.lease_ms,
        )
        if len(reply) == 1:
            return admission.renewed(lease, int(reply[0]))
        return load_lease(str(text_of(reply[1])), float(reply[2]))

    def set_deadline(self, lease: Lease) -> None:
        """Give an open lease the deadline that *lease* has."""
        request = lease.request
        deadlines = self._names.of(request.customer_id).deadlines
        # One that was settled meanwhile has none any more, and gets none.
        self._line.do(
            lambda client: client.zadd(deadlines, {request.request_id: lease.deadline}, xx=True)
        )

    def release(self, request: AdmissionRequest) -> None:
        """See :meth:`~bedrock_proxy.ports.Gate.release`."""
        keys = self._names.of(request.customer_id)
        self._line.run(
            "release",
            [keys.gate, keys.leases, keys.deadlines],
            self.time(request.at),
            request.request_id,
        )

    def state(self, customer_id: str) -> GateState:
        """See :meth:`~bedrock_proxy.store.Books.gate_state`."""
        gate = self._names.of(customer_id).gate
        return state_of(self._line.do(lambda client: text_of(client.get(gate))))

    def standing(self, customer_id: str, at: int) -> Standing | None:
        """See :meth:`~bedrock_proxy.store.Books.standing`; None where there is no customer."""
        keys = self._names.of(customer_id)

        def ask(pipeline: Any) -> None:
            pipeline.hgetall(keys.customer)
            pipeline.get(keys.gate)
            pipeline.zrange(keys.deadlines, 0, -1, withscores=True)

        fields, state_text, deadlines = self._line.many(ask, at_once=True)
        if not fields:
            return None
        state = state_of(text_of(state_text))
        live = sum(deadline > max(at, state.clock) for _, deadline in deadlines)
        found = load_customer(texts_of(fields))
        return standing_of(found.customer, found.keys, state, live, at)

    def open_leases(self, customer_id: str) -> list[Lease]:
        """A customer's leases, by deadline."""
        keys = self._names.of(customer_id)

        def ask(pipeline: Any) -> None:
            pipeline.hgetall(keys.leases)
            pipeline.zrange(keys.deadlines, 0, -1, withscores=True)

        texts, deadlines = self._line.many(ask, at_once=True)
        return [
            load_lease(str(text_of(texts[request_id])), deadline)
            for request_id, deadline in deadlines
        ]

    def overdue(self, ids: list[str], now: int, limit: int) -> list[Lease]:
        """Up to *limit* leases of these customers whose deadline has come."""

        def ask(pipeline: Any) -> None:
            for each in ids:
                pipeline.zrangebyscore(
                    self._names.of(each).deadlines, "-inf", now, start=0, num=limit, withscores=True
                )

        def read(pipeline: Any) -> None:
            for each, request_id, _ in wanted:
                pipeline.hget(self._names.of(each).leases, request_id)

        wanted = [
            (each, request_id, deadline)
            for each, due in zip(ids, self._line.many(ask), strict=True)
            for request_id, deadline in due
        ][:limit]
        texts = self._line.many(read)
        return [
            load_lease(str(text_of(text)), deadline)
            for text, (_, _, deadline) in zip(texts, wanted, strict=True)
            if text is not None
        ]

    def now(self, at: int) -> int:
        """The time that counts, *at* being the caller's."""
        if self._clock == "caller":
            return at
        seconds, micros = self._line.do(lambda client: client.time())
        return int(seconds) * 1000 + int(micros) // 1000
