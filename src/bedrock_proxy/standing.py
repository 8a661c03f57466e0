"""How a customer stands: what is used, and what remains."""

from attrs import frozen

from bedrock_proxy.admission import LimitState


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
        limits: Every limit that is set.
        in_flight: Leases that have not passed their deadline.
        today, month: The UTC day and month of the time asked about.
    """

    customer_id: str
    limits: tuple[LimitState, ...]
    in_flight: int
    today: Spent
    month: Spent
