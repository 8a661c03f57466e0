"""How a customer stands: what is used, and what remains."""

from attrs import frozen

from bedrock_proxy.admission import LimitState
from bedrock_proxy.customers import CustomerStatus


@frozen(kw_only=True)
class Spent:
    """What a period's counters say: settled usage and open reservations together."""

    requests: int
    tokens: int
    cost_nanousd: int


@frozen(kw_only=True)
class Standing:
    """
    How a customer stands just now, from the counters: never a scan of the ledger.

    Attributes:
        status: The customer's, as it is now.
        keys: The ids of the customer's keys that are valid at the time asked about; whoever comes
            with another one was shut out meanwhile.
        limits: Every limit that is set.
        in_flight: Leases that have not passed their deadline.
        today, month: The UTC day and month of the time asked about.
        ahead_ms: By how many milliseconds the customer's clock is ahead of the time asked about. A
            little is usual where machines share a store; more than
            :data:`~bedrock_proxy.admission.AHEAD_MS` is a clock that was wrong.
    """

    customer_id: str
    status: CustomerStatus
    keys: frozenset[str]
    limits: tuple[LimitState, ...]
    in_flight: int
    today: Spent
    month: Spent
    ahead_ms: int = 0
