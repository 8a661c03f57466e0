"""
The periods that budgets count by: UTC days and months, as numbers of time in milliseconds.
"""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

DAY_MS: Final = 86_400_000
"""A UTC day, in milliseconds."""


def day_of(at: int) -> int:
    """The UTC day of *at* (epoch milliseconds), in days since the epoch."""
    return at // DAY_MS


def month_of(at: int) -> int:
    """The UTC month of *at* (epoch milliseconds), in months since year 0."""
    return month_of_day(at // DAY_MS)


@lru_cache(maxsize=64)
def month_of_day(day: int) -> int:
    """The month of a day as :func:`day_of` counts them, in months since year 0."""
    date = datetime.fromtimestamp(day * 86_400, UTC)
    return date.year * 12 + date.month - 1


@lru_cache(maxsize=64)
def start_of_month(month: int) -> int:
    """The first millisecond of a month as :func:`month_of` counts them."""
    return int(datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC).timestamp()) * 1000
