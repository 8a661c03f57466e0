"""
Rows added up, and pages of them: shared by the stores.
"""

from collections.abc import Iterable
from datetime import UTC, datetime

from bedrock_proxy.admission import GateState, limit_states, rolled
from bedrock_proxy.customers import Customer, Key
from bedrock_proxy.standing import Spent, Standing
from bedrock_proxy.store import By, UsageSum
from bedrock_proxy.usage import FAILED, State, UsageRecord


def page_key(row: UsageRecord) -> str:
    """Where *row* stands in the order of a page: by time of admission, then by id."""
    return f"{row.admitted_at:015d}/{row.request_id}"


def sum_key(by: By, row: UsageRecord) -> str:
    """Which sum *row* belongs to."""
    match by:
        case By.MODEL:
            return row.model
        case By.CUSTOMER:
            return row.customer_id
        case By.DAY | By.HOUR:
            return time_key(by, row.admitted_at)


def time_key(by: By, at: int) -> str:
    """The UTC day or hour of *at* (epoch milliseconds), as a sum's key."""
    time = datetime.fromtimestamp(at // 1000, UTC)
    return time.strftime("%Y-%m-%d" if by is By.DAY else "%Y-%m-%dT%H")


def sum_rows(by: By, rows: Iterable[UsageRecord]) -> tuple[UsageSum, ...]:
    """*rows* added up, in the order of the keys."""
    groups: dict[str, list[UsageRecord]] = {}
    for row in rows:
        groups.setdefault(sum_key(by, row), []).append(row)
    return tuple(_sum(key, groups[key]) for key in sorted(groups))


def _sum(key: str, rows: list[UsageRecord]) -> UsageSum:
    return UsageSum(
        key=key,
        requests=len(rows),
        errors=sum(row.outcome in FAILED for row in rows),
        estimated=sum(row.state is State.ESTIMATED for row in rows),
        input_tokens=sum(row.input_tokens for row in rows),
        output_tokens=sum(row.output_tokens for row in rows),
        cache_read_tokens=sum(row.cache_read_tokens for row in rows),
        cache_write_5m_tokens=sum(row.cache_write_5m_tokens for row in rows),
        cache_write_1h_tokens=sum(row.cache_write_1h_tokens for row in rows),
        token_count=sum(row.token_count for row in rows),
        cost_nanousd=sum(row.cost_nanousd or 0 for row in rows),
        unpriced=sum(row.cost_nanousd is None for row in rows),
    )


def standing_of(
    customer: Customer, keys: Iterable[Key], state: GateState, live: int, at: int
) -> Standing:
    """How *customer* with its *keys* stands at *at* (epoch ms), with *live* leases in flight."""
    now = rolled(state, at)
    return Standing(
        customer_id=customer.id,
        status=customer.status,
        keys=frozenset(key.key_id for key in keys if key.is_valid(at)),
        limits=limit_states(state, customer.limits, live, at),
        in_flight=live,
        today=Spent(requests=now.day_requests, tokens=now.day_tokens, cost_nanousd=now.day_cost),
        month=Spent(
            requests=now.month_requests, tokens=now.month_tokens, cost_nanousd=now.month_cost
        ),
        ahead_ms=max(0, state.clock - at),
    )
