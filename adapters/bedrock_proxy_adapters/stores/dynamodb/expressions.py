"""
The conditional updates of a gate item: pure, from an image to what is asked of DynamoDB.

Each update does one thing if, and only if, the item still allows it. The image it was made
from may be old: it chose the branch, and every number that matters is checked again in the
condition (AWS, Amazon DynamoDB Developer Guide, "Condition expressions"). Conditions cannot
calculate, so that what is compared is calculated here.
"""

from typing import Final

from attrs import evolve, frozen

from bedrock_proxy import admission
from bedrock_proxy.admission import (
    CONCURRENCY_RETRY_AFTER,
    AdmissionRequest,
    Grant,
    Limit,
    Refusal,
)
from bedrock_proxy.buckets import MINUTE_MS, NOTHING_TAKEN, Bucket, Taken
from bedrock_proxy.periods import DAY_MS, day_of, month_of, start_of_month
from bedrock_proxy_adapters.stores.dynamodb.image import Image
from bedrock_proxy_adapters.stores.dynamodb.packing import (
    ADJUSTMENT,
    Adjustment,
    Held,
    Settings,
    held_of,
    lease_name,
    pack_adjustment,
    pack_lease,
    pack_settings,
)
from bedrock_proxy_adapters.stores.dynamodb.update import Update

GENERATION_MS: Final = 20_000
"""How long a generation of leases lasts while the bucket of tokens does not drain."""

MAX_EXPIRED: Final = 100
"""How many expired leases one admission may count as free: an expression has 4 KB at most."""

_REQUESTS: Final = 0
_TOKENS: Final = 1


# --- admission ----------------------------------------------------------------------------------


@frozen
class Admission:
    """How to admit a request: the update, and what has been granted once it is done."""

    update: Update
    grant: Grant


def admission_update(image: Image, request: AdmissionRequest) -> Admission | Refusal:
    """
    The update that admits *request* if the item is much as *image* says (see :func:`hold`);
    or the refusal, if it is exactly so.
    """
    limits = image.limits
    now = max(image.clock, request.at)
    live = image.live(now)
    barred = admission.bar(image.settings.status, image.key(request.key_id), request.at)
    if barred is not None:
        return admission.refused(barred, image.state, limits, len(live), request.at)
    decision, after = admission.decide(image.state, limits, request, len(live))
    if isinstance(decision, Refusal):
        return decision
    update = Update()
    update.when(f"cv = {update.number('cv', image.version)}")
    if not _take_place(update, image, live):
        # There is room, but it is taken by more expired leases than can be named at once.
        return Refusal(
            reason=Limit.CONCURRENCY,
            retry_after=CONCURRENCY_RETRY_AFTER,
            cap=limits.concurrency,
            limits=admission.limit_states(image.state, limits, len(live), request.at),
        )
    steady = (
        day_of(now) == day_of(image.clock)
        and limits.requests_per_minute in {None, image.rates[_REQUESTS]}
        and limits.tokens_per_minute in {None, image.rates[_TOKENS]}
    )
    generation = (
        _take_in_step(update, image, request, now) if steady else _take_anew(update, image, after)
    )
    took_tokens = limits.tokens_per_minute is not None
    lease = evolve(
        decision.lease,
        of_requests=Taken(1) if limits.requests_per_minute is not None else NOTHING_TAKEN,
        of_tokens=Taken(decision.lease.tokens, 0, generation) if took_tokens else NOTHING_TAKEN,
    )
    return Admission(update, evolve(decision, lease=lease))


def hold(wanted: Admission, shape: bytes) -> Update:
    """The update with the lease in it: it is what makes a repetition harmless."""
    lease, update = wanted.grant.lease, wanted.update
    request_id = lease.request.request_id
    path = update.entry("r", lease_name(request_id))
    update.when(f"attribute_not_exists({path})")
    update.put(path, update.binary("r", pack_lease(request_id, held_of(lease, shape))))
    return update


def _take_place(update: Update, image: Image, live: set[str]) -> bool:
    """The limit of concurrency: expired leases count as free, if they are still the same."""
    limit = image.limits.concurrency
    if limit is None:
        return True
    needed = max(0, len(image.entries) - limit + 1)
    if needed > MAX_EXPIRED:
        return False
    names = {lease_name(request_id) for request_id in live}
    free = [name for name in image.entries if name not in names][:needed]
    update.when(f"size(L) < {update.number('places', limit + len(free))}")
    for number, name in enumerate(free):
        path = update.entry(f"e{number}", name)
        update.when(f"{path} = {update.binary(f'e{number}', image.entries[name])}")
    return True


def _take_in_step(update: Update, image: Image, request: AdmissionRequest, now: int) -> int:
    """Same day, same rates: only differences are written, and others may do so meanwhile."""
    limits = image.limits
    tokens, cost = request.input_tokens + request.output_tokens, request.cost_nanousd or 0
    begin = update.number("day", day_of(now) * DAY_MS)
    if now > image.clock:
        update.put("ck", update.number("now", now))
        update.when(f"ck BETWEEN {begin} AND :now")
    else:
        # Ours is the earlier clock: the item's stays, within the day.
        update.when(
            f"ck BETWEEN {begin} AND {update.number('day_end', day_of(now + DAY_MS) * DAY_MS - 1)}"
        )
    if limits.requests_per_minute is not None:
        burst = limits.requests_per_minute if limits.burst is None else limits.burst
        _take_request(update, image, limits.requests_per_minute, burst, now)
    generation = 0
    if limits.tokens_per_minute is not None:
        generation = _take_tokens(update, image, limits.tokens_per_minute, tokens, now)
    for path, name, more, cap in (
        ("dr", "one", 1, limits.requests_per_day),
        ("dt", "tokens", tokens, limits.tokens_per_day),
        ("dc", "cost", cost, limits.cost_per_day),
        ("mr", "one", 1, None),
        ("mt", "tokens", tokens, limits.tokens_per_month),
        ("mc", "cost", cost, limits.cost_per_month),
    ):
        update.add(path, name, more)
        if cap is not None:
            update.when(f"{path} <= {update.number(f'{path}_room', cap - more)}")
    return generation


def _take_request(update: Update, image: Image, rate: int, burst: int, now: int) -> None:
    empty = now * rate
    if image.full_at[_REQUESTS] <= empty:
        update.when(f"rt <= {update.number('r_empty', empty)}")
        update.put("rt", update.number("r_full", empty + MINUTE_MS))
        update.put("rs", update.number("now", now))
    else:
        update.when(
            f"rt BETWEEN {update.number('r_empty', empty)}"
            f" AND {update.number('r_room', empty + (burst - 1) * MINUTE_MS)}"
        )
        update.add("rt", "minute", MINUTE_MS)


def _take_tokens(update: Update, image: Image, rate: int, tokens: int, now: int) -> int:
    """Take from the bucket of tokens; the generation that the lease belongs to."""
    empty, units = now * rate, tokens * MINUTE_MS
    current = image.generations[0]
    update.when(f"gn = {update.number('gn', current)}")
    low = update.number("t_empty", empty)
    fresh = _next_generation(image, now)
    if image.full_at[_TOKENS] <= empty:
        full = update.number("t_full", empty + units)
        update.when(f"tt <= {low}")
        update.put("tt", full)
        update.put("ts", update.number("now", now))
        # Whatever was taken earlier has drained away: there is nothing to refund of it.
        update.put("t2", full)
        update.put("d2", update.number("zero", 0))
        update.put("t1", low)
        update.put("d1", update.number("t_units", units))
        update.put("gp", ":gn")
        update.put("gn", update.number("gn_next", fresh))
        return fresh
    room = update.number("t_room", empty + rate * MINUTE_MS - units)
    update.when(f"tt BETWEEN {low} AND {room}")
    more = update.number("t_units", units)
    update.put("tt", f"tt + {more}")
    begins = now - current * 1_000 >= GENERATION_MS
    # Where a generation begins, the current one becomes the former.
    for number, (guard, _) in enumerate(image.guards[:1] if begins else image.guards, 1):
        to = 2 if begins else number
        if guard >= empty:
            update.when(f"t{number} >= {low}")
            update.put(f"t{to}", f"t{number} + {more}")
            if begins:
                update.put("d2", "d1")
        else:
            update.when(f"t{number} < {low}")
            update.put(f"t{to}", update.number("t_full", empty + units))
            update.put(f"d{to}", f"tt - {low}")
    if not begins:
        return current
    update.put("t1", low)
    update.put("d1", f"tt - {update.number('t_before', empty - units)}")
    update.put("gp", ":gn")
    update.put("gn", update.number("gn_next", fresh))
    return fresh


def _next_generation(image: Image, now: int) -> int:
    """Numbers are about the second in which a generation began, so that they pack well."""
    return max(image.generations[0] + 1, now // 1_000)


def _take_anew(update: Update, image: Image, after: admission.GateState) -> int:
    """A new day, or a changed rate: everything is written, if nothing has changed."""
    as_it_was(update, image)
    now = after.clock
    update.put("ck", update.number("ck_new", now))
    for index, letter, bucket in ((_REQUESTS, "r", after.requests), (_TOKENS, "t", after.tokens)):
        if image.rates[index] != bucket.rate:
            update.put(f"{letter}r", update.number(f"{letter}r_new", bucket.rate))
        if image.since[index] != bucket.since:
            update.put(f"{letter}s", update.number(f"{letter}s_new", bucket.since))
        update.put(f"{letter}t", update.number(f"{letter}t_new", _full_at(bucket)))
    # What was taken until now is not refunded any more. The new generation begins after this
    # request, which may be refunded as long as nothing else was taken.
    empty = now * after.tokens.rate
    generation = _next_generation(image, now) + 1
    update.put("t1", update.number("t1_new", empty))
    update.put("d1", update.number("d1_new", _full_at(after.tokens) - empty))
    update.put("t2", ":tt_new")
    update.put("d2", update.number("zero", 0))
    update.put("gn", update.number("gn_next", generation))
    update.put("gp", update.number("gp_next", generation - 1))
    _set_counters(update, after)
    return generation


def _full_at(bucket: Bucket) -> int:
    return bucket.since * bucket.rate + bucket.units * MINUTE_MS


def raise_changes(update: Update) -> None:
    """One more change that is none of a request: a recount begun before it is void."""
    zero, once = update.number("no_change", 0), update.number("change", 1)
    update.put("an", f"if_not_exists(an, {zero}) + {once}")


def if_unchanged(update: Update, image: Image) -> None:
    """Only if there was none since the image."""
    if image.changes:
        update.when(f"an = {update.number('an', image.changes)}")
    else:
        update.when("attribute_not_exists(an)")


def as_it_was(update: Update, image: Image) -> None:
    """Only if no clock, bucket or counter is other than in the image."""
    for path, value in (
        ("ck", image.clock),
        ("rt", image.full_at[_REQUESTS]),
        ("tt", image.full_at[_TOKENS]),
        ("gn", image.generations[0]),
        *zip(("dr", "dt", "dc", "mr", "mt", "mc"), image.counters, strict=True),
    ):
        update.when(f"{path} = {update.number(path, value)}")


def _set_counters(update: Update, state: admission.GateState) -> None:
    for path, value in (
        ("dr", state.day_requests),
        ("dt", state.day_tokens),
        ("dc", state.day_cost),
        ("mr", state.month_requests),
        ("mt", state.month_tokens),
        ("mc", state.month_cost),
    ):
        update.put(path, update.number(f"{path}_new", value))


# --- settlement ---------------------------------------------------------------------------------


def settlement_update(
    image: Image, request_id: str, held: Held, tokens: int, cost_nanousd: int, at: int
) -> Update:
    """The update that puts the true usage in the place of what *held* reserved."""
    update = _taking_away(lease_name(request_id))
    _count(update, image, held.at, 0, tokens - held.tokens, cost_nanousd - (held.cost_nanousd or 0))
    if tokens < held.tokens:
        _refund_tokens(update, image, held, held.tokens - tokens)
    elif tokens > held.tokens and image.limits.tokens_per_minute and image.rates[_TOKENS]:
        _charge_tokens(update, image, tokens - held.tokens, max(image.clock, at))
    return update


def release_update(image: Image, request_id: str, held: Held, left_at: int | None) -> Update:
    """
    The update that takes *held* away as if it had never been granted.

    Args:
        left_at: How the admission left the bucket of requests: it gets its permit back
            if nobody has taken another since.
    """
    update = _taking_away(lease_name(request_id))
    _count(update, image, held.at, -1, -held.tokens, -(held.cost_nanousd or 0))
    _refund_tokens(update, image, held, held.tokens)
    if held.took_request and left_at is not None and image.full_at[_REQUESTS] == left_at:
        update.when(f"rt = {update.number('rt', left_at)}")
        update.add("rt", "minute", -MINUTE_MS)
    return update


def _taking_away(name: str) -> Update:
    update = Update()
    path = update.entry("r", name)
    update.when(f"attribute_exists({path})")
    update.drop(path)
    return update


def _count(update: Update, image: Image, at: int, requests: int, tokens: int, cost: int) -> None:
    """Count so much more in the periods of *at*, as far as they are not over."""
    if not (requests or tokens or cost):
        return
    # What is counted depends on nothing but where the item's clock is: the condition is all of
    # the time for which that is the same, so that a clock that was put back is found out.
    day, month = day_of(at), month_of(at)
    today = day == day_of(image.clock)
    this_month = month == month_of(image.clock)
    if today:
        begin, end = day * DAY_MS, (day + 1) * DAY_MS
    elif this_month and at < image.clock:
        begin, end = (day + 1) * DAY_MS, start_of_month(month + 1)
    elif this_month:
        begin, end = start_of_month(month), day * DAY_MS
    elif at < image.clock:
        begin, end = start_of_month(month + 1), None
    else:
        begin, end = 0, start_of_month(month)
    low = update.number("begin", begin)
    if end is None:
        update.when(f"ck >= {low}")
    else:
        update.when(f"ck BETWEEN {low} AND {update.number('end', end - 1)}")
    for path, name, more in (
        ("r", "requests", requests),
        ("t", "tokens", tokens),
        ("c", "cost", cost),
    ):
        if today:
            update.add(f"d{path}", name, more)
        if this_month:
            update.add(f"m{path}", name, more)


def _refund_tokens(update: Update, image: Image, held: Held, tokens: int) -> None:
    """Lower the bucket, but not below where takings after this one would have left it."""
    if held.generation is None or held.generation not in image.generations:
        return
    index = image.generations.index(held.generation)
    units = min(tokens, image.guards[index][1] // MINUTE_MS) * MINUTE_MS
    if units <= 0:
        return
    update.when(f"gn = {update.number('gn', image.generations[0])}")
    update.when(f"d{index + 1} >= {update.number('refund', units)}")
    for path in ("tt", "d1", "d2"):
        update.put(path, f"{path} - :refund")


def _charge_tokens(update: Update, image: Image, tokens: int, now: int) -> None:
    """Raise the bucket for what was used beyond the reservation; it may overflow."""
    units, empty = tokens * MINUTE_MS, now * image.rates[_TOKENS]
    update.when(f"gn = {update.number('gn', image.generations[0])}")
    if image.full_at[_TOKENS] <= empty:
        update.when(f"tt <= {update.number('t_empty', empty)}")
        update.put("ts", update.number("now", now))
        after = update.number("t_full", empty + units)
    else:
        update.when(f"tt > {update.number('t_empty', empty)}")
        after = f"tt + {update.number('t_units', units)}"
    for path in ("tt", "t1", "t2"):
        update.put(path, after)
    zero = update.number("zero", 0)
    update.put("d1", zero)
    update.put("d2", zero)
    fresh = _next_generation(image, now) + 1
    update.put("gn", update.number("gn_next", fresh))
    update.put("gp", update.number("gp_next", fresh - 1))


# --- the rest -----------------------------------------------------------------------------------


def renewal_update(request_id: str, known: bytes, held: Held) -> Update:
    """The update that gives an open lease another deadline, if it is *known* as it is."""
    update = Update()
    path = update.entry("r", lease_name(request_id))
    update.when(f"{path} = {update.binary('known', known)}")
    update.put(path, update.binary("r", pack_lease(request_id, held)))
    return update


def adjustment_begins(request_id: str, adjustment: Adjustment) -> Update:
    """The update that announces a change of the counters."""
    update = Update()
    path = update.entry("r", ADJUSTMENT + lease_name(request_id))
    update.when(f"attribute_not_exists({path})")
    update.put(path, update.binary("r", pack_adjustment(adjustment)))
    raise_changes(update)
    return update


def adjustment_ends(
    image: Image, request_id: str, adjustment: Adjustment, tokens: int, cost_nanousd: int
) -> Update:
    """The update that makes the change: the request now stands for so much."""
    update = _ending(request_id, adjustment)
    _count(
        update,
        image,
        adjustment.at,
        1 - adjustment.requests,
        tokens - adjustment.tokens,
        cost_nanousd - adjustment.cost_nanousd,
    )
    return update


def adjustment_is_void(request_id: str, adjustment: Adjustment) -> Update:
    """The update that takes the announcement back."""
    return _ending(request_id, adjustment)


def _ending(request_id: str, adjustment: Adjustment) -> Update:
    update = Update()
    path = update.entry("r", ADJUSTMENT + lease_name(request_id))
    update.when(f"{path} = {update.binary('r', pack_adjustment(adjustment))}")
    update.drop(path)
    return update


def settings_update(image: Image, settings: Settings) -> Update:
    """The update that puts other settings in place, if nobody else has."""
    update = Update()
    update.when(f"cv = {update.number('cv', image.version)}")
    update.put("cv", update.number("cv_new", image.version + 1))
    update.put("cf", update.binary("cf", pack_settings(settings)))
    return update
