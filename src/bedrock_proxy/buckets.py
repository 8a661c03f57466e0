"""
Leaky buckets in whole numbers: what "so many a minute" means here.

This is GCRA in other clothes: its theoretical arrival time is ``since + units / rate``.
Counting units since the bucket was last empty, rather than keeping that time, needs no
rounding: in every window of W minutes at most ``burst + rate x W`` units are taken, and at a
standing clock exactly the burst is.

Times are epoch milliseconds and must not decrease from one call to the next.
"""

from typing import Final, NamedTuple

MINUTE_MS: Final = 60_000

# How many low-water marks a bucket remembers. Beyond it the nearest two become one, which
# can only make a refund smaller.
_MAX_LOWS: Final = 16


class Taken(NamedTuple):
    """
    What a lease took from a bucket, and where in the bucket's history it stands.

    Attributes:
        units: Units taken; 0 where there was no limit.
        since, seq: The bucket's own, just after.
    """

    units: int = 0
    since: int = 0
    seq: int = 0


NOTHING_TAKEN: Final = Taken()


class Bucket(NamedTuple):
    """
    A leaky bucket: *units* units came in since *since*, and *rate* a minute drain away.

    Attributes:
        rate: Units a minute, as of the last taking.
        since: Epoch milliseconds when it was last seen empty (or its rate changed).
        units: Units taken since then, refunds deducted.
        seq: Takings since then.
        lows: ``(seq, level)`` of the later takings that found the bucket lower than all
            after them did, oldest first: what a refund must not go below.
    """

    rate: int = 0
    since: int = 0
    units: int = 0
    seq: int = 0
    lows: tuple[tuple[int, int], ...] = ()


EMPTY_BUCKET: Final = Bucket()


def level(bucket: Bucket, now: int) -> int:
    """How full the bucket is, in units x 60,000: whole numbers at millisecond times."""
    return max(0, bucket.units * MINUTE_MS - (now - bucket.since) * bucket.rate)


def drained(bucket: Bucket, rate: int, now: int) -> Bucket:
    """The bucket as the next taking finds it."""
    if bucket.since == now and bucket.rate == rate:
        return bucket
    left = level(bucket, now)
    if not left:
        return Bucket(rate, now) if bucket.since != now else bucket._replace(rate=rate)
    if bucket.rate == rate:
        return bucket
    if bucket.since == now:
        return bucket._replace(rate=rate)
    # What was taken at another rate is carried over as a level; the leases of that time
    # then have nothing to get back, which errs on the safe side.
    return Bucket(rate, now, -(-left // MINUTE_MS))


def try_take(
    bucket: Bucket, rate: int | None, burst: int | None, units: int, now: int
) -> tuple[Bucket, Taken, int | None]:
    """
    The bucket after taking *units*, what was taken, and None; or, where it would overflow,
    the milliseconds to wait (0: waiting does not help).
    """
    if rate is None or burst is None:
        return bucket, NOTHING_TAKEN, None
    if rate == 0 or units > burst:
        return bucket, NOTHING_TAKEN, 0
    bucket = drained(bucket, rate, now)
    over = (bucket.units + units - burst) * MINUTE_MS - (now - bucket.since) * rate
    if over > 0:
        return bucket, NOTHING_TAKEN, -(-over // rate)
    bucket, taken = take(bucket, units, now)
    return bucket, taken, None


def take(bucket: Bucket, units: int, now: int) -> tuple[Bucket, Taken]:
    """The bucket after taking *units*, whether or not there is room; see :func:`drained`."""
    lows = bucket.lows
    seq = bucket.seq + 1
    if bucket.seq:
        low = level(bucket, now) // MINUTE_MS
        end = len(lows)
        while end and lows[end - 1][1] >= low:
            end -= 1
        lows = _shortened((*lows[:end], (seq, low)))
    after = Bucket(bucket.rate, bucket.since, bucket.units + units, seq, lows)
    return after, Taken(units, bucket.since, seq)


def refund(bucket: Bucket, taken: Taken, units: int, now: int) -> Bucket:
    """
    The bucket with *units* of what was taken put back, as far as that is safe.

    The result is where the bucket would be had the refunded units never been taken. That
    holds only if, without them, no later taking would have found it empty: the bucket
    would then have wasted the time, not saved it.
    """
    if not taken.units or bucket.since != taken.since or taken.seq > bucket.seq:
        return bucket
    units = min(units, taken.units, level(bucket, now) // MINUTE_MS)
    for seq, low in bucket.lows:
        if seq > taken.seq:
            units = min(units, low)
            break
    if units <= 0:
        return bucket
    lows = tuple((seq, low - units if seq > taken.seq else low) for seq, low in bucket.lows)
    return bucket._replace(units=bucket.units - units, lows=_lowered(lows))


def _lowered(lows: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Only the marks below every later one."""
    kept: list[tuple[int, int]] = []
    for mark in lows:
        while kept and kept[-1][1] >= mark[1]:
            kept.pop()
        kept.append(mark)
    return tuple(kept)


def _shortened(lows: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """At most :data:`_MAX_LOWS` marks: the nearest two become one, lower and later."""
    if len(lows) <= _MAX_LOWS:
        return lows
    nearest = min(range(1, len(lows)), key=lambda i: lows[i][1] - lows[i - 1][1])
    return (*lows[: nearest - 1], (lows[nearest][0], lows[nearest - 1][1]), *lows[nearest + 1 :])
