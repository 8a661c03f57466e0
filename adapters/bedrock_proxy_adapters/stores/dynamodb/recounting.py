"""
Counting again in DynamoDB, beside the requests that change the counters meanwhile.

What is wrong with a counter is the difference between what it says and what rows and leases add up
to. A request changes both alike, so that the difference stays the same for as long as the rows take
to read: it is found for one moment, and taken off at a later one.
``docs/explanation/dynamodb.md`` says how the rows of the moment are told from later ones.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

from bedrock_proxy import accounts, admission
from bedrock_proxy.accounts import Total
from bedrock_proxy.admission import GateState
from bedrock_proxy.periods import DAY_MS, day_of, month_of, start_of_month
from bedrock_proxy_adapters.stores.dynamodb.connection import Backoff, Refused, Table
from bedrock_proxy_adapters.stores.dynamodb.expressions import if_unchanged, raise_changes
from bedrock_proxy_adapters.stores.dynamodb.image import Image
from bedrock_proxy_adapters.stores.dynamodb.ledger import put_leases_back, rows_with_nonces
from bedrock_proxy_adapters.stores.dynamodb.packing import ADJUSTMENT, lease_name
from bedrock_proxy_adapters.stores.dynamodb.update import Update

PATIENCE: Final = 60.0
"""Seconds after which a customer's rows are not read again: a month of them may take a while."""

MOST_NAMED: Final = 100
"""How many leases a recount can demand to be there still: an expression has 4 KB at most."""

Request: TypeAlias = tuple[int, str]
"""A request as its row is found: the time of its admission, and its id."""

Counted: TypeAlias = tuple[int, int, int, int]
"""What a request stands for: the time of its admission; requests, tokens and cost."""


class Untold(Exception):
    """It cannot be told what was to be counted at the moment."""


def rebuild(table: Table, customer_id: str, now: int, ttl: int | None, *, set_clock: bool) -> None:
    """See :meth:`~bedrock_proxy.store.Books.rebuild`."""
    wait = Backoff(patience=PATIENCE)
    step = 0
    while True:
        before = table.read(customer_id)
        if before is None:
            return
        early = {(held.at, request_id) for request_id, held in before.leases()}
        early |= {
            (row.admitted_at, row.request_id)
            for row, _ in rows_with_nonces(table, customer_id, before.clock)
        }
        moment = table.update(customer_id, moment_update(before, step))
        if not isinstance(moment, Refused):
            try:
                update = _correction(table, moment, early, now, step, set_clock=set_clock)
            except Untold:
                step = 1
            else:
                if update is None or not isinstance(table.update(customer_id, update), Refused):
                    break
        wait.once_more()
    if set_clock:
        # Until now the wrong clock may have dated more.
        put_leases_back(table, customer_id, now, ttl)


def moment_update(image: Image, step: int) -> Update:
    """
    The update that sets a moment apart: with another version, nobody is admitted after it by an
    image from before it, and so at an earlier time.

    Args:
        step: Milliseconds by which the clock goes on, so that no two requests on either side are
            of the same time.
    """
    update = Update()
    begin = day_of(image.clock) * DAY_MS
    update.when(
        f"ck BETWEEN {update.number('begin', begin)}"
        f" AND {update.number('end', begin + DAY_MS - 1 - step)}"
    )
    if_unchanged(update, image)
    update.add("cv", "version", 1)
    update.add("ck", "step", step)
    return update


def _correction(
    table: Table, moment: Image, early: set[Request], now: int, step: int, *, set_clock: bool
) -> Update | None:
    """What is to be written, if anything; *early* were there before the moment."""
    state = admission.put_back(moment.state, now) if set_clock else moment.state
    leases = {(held.at, request_id): held for request_id, held in moment.leases()}
    announced = {(each.at, request_id): each for request_id, each in moment.adjustments()}
    held = [(each.at, 1, each.tokens, each.cost_nanousd or 0) for each in leases.values()]
    times = [at for at, _ in (*leases, *announced)]
    newest = max(state.clock, accounts.latest(now, times))
    counted: list[Counted] = []
    start = start_of_month(month_of(newest))
    for row, nonce in rows_with_nonces(table, moment.customer_id, start):
        request = (row.admitted_at, row.request_id)
        if request in leases:
            continue  # its lease still stood for it
        if request in announced:
            if nonce == announced[request].nonce:
                continue  # the counters still had what the announcement says
            del announced[request]
        elif _is_later(request, moment, early, step):
            continue
        counted.append((row.admitted_at, 1, row.token_count, row.cost_nanousd or 0))
    counted += held
    counted += [
        (each.at, each.requests, each.tokens, each.cost_nanousd) for each in announced.values()
    ]
    latest = accounts.latest(now, (at for at, *_ in counted))
    state = admission.rolled(state, max(newest, latest))
    day, month = _total(counted, day_of, state.day), _total(counted, month_of, state.month)
    return recount_update(moment, accounts.recounted(state, day, month))


def _is_later(request: Request, moment: Image, early: set[Request], step: int) -> bool:
    """
    Whether a request that has a row, and no lease in the image, was admitted after the moment.

    None from before it is of a later time, but for those that a wrong clock has dated; and those
    were there before, as rows or as leases.
    """
    at, _ = request
    if at < moment.clock or request in early:
        return False
    if at == moment.clock and not step:
        raise Untold
    return True


def _total(counted: list[Counted], period: Callable[[int], int], current: int) -> Total:
    mine = [each for each in counted if period(each[0]) == current]
    return Total(*(sum(each[n] for each in mine) for n in (1, 2, 3)))


def recount_update(moment: Image, state: GateState) -> Update | None:
    """
    The update that puts right what was wrong at the *moment*, whatever requests have done since:
    its counters ought to have been those of *state*. None where nothing was wrong.
    """
    update = Update()
    begin = day_of(moment.clock) * DAY_MS
    end = begin + DAY_MS - 1
    if state.clock > moment.clock:
        end = min(end, state.clock)
    update.when(f"ck BETWEEN {update.number('begin', begin)} AND {update.number('end', end)}")
    if_unchanged(update, moment)
    raise_changes(update)
    day, month = day_of(moment.clock) == state.day, month_of(moment.clock) == state.month
    is_wrong = state.clock != moment.clock
    for path, is_current, said, ought in zip(
        ("dr", "dt", "dc", "mr", "mt", "mc"),
        (day, day, day, month, month, month),
        moment.counters,
        (
            *(state.day_requests, state.day_tokens, state.day_cost),
            *(state.month_requests, state.month_tokens, state.month_cost),
        ),
        strict=True,
    ):
        if is_current:
            update.add(path, f"{path}_off", ought - said)
            is_wrong = is_wrong or ought != said
        else:
            update.put(path, update.number(f"{path}_new", ought))
    if not is_wrong:
        return None
    _keep_what_is_not_counted(update, moment, state, day=day, month=month)
    if state.clock != moment.clock:
        update.put("ck", update.number("ck_new", state.clock))
    if state.clock < moment.clock:
        _empty_buckets(update, moment, state.clock)
    return update


def _keep_what_is_not_counted(
    update: Update, moment: Image, state: GateState, *, day: bool, month: bool
) -> None:
    """
    In a period that the item's clock was not in, its counters do not follow what is settled: only
    if all of that is open still.
    """
    entries = [
        *((held.at, lease_name(request_id)) for request_id, held in moment.leases()),
        *((each.at, ADJUSTMENT + lease_name(name)) for name, each in moment.adjustments()),
    ]
    names = [
        name
        for at, name in entries
        if (not day and day_of(at) == state.day) or (not month and month_of(at) == state.month)
    ]
    if len(names) > MOST_NAMED:
        raise Untold
    for number, name in enumerate(names):
        update.when(f"attribute_exists({update.entry(f'e{number}', name)})")


def _empty_buckets(update: Update, image: Image, now: int) -> None:
    """The clock is put back to *now*: nothing is known of the minutes before a wrong one."""
    # With another version nobody admits by an image that still has the wrong clock.
    update.add("cv", "version", 1)
    # No lease that there is may take the next generations for its own.
    taken = {held.generation for _, held in image.leases()}
    generation = now // 1_000
    while taken & {generation, generation - 1}:
        generation += 1
    for letter, rate in zip("rt", image.rates, strict=True):
        update.when(f"{letter}r = {update.number(f'{letter}_rate', rate)}")
        update.put(f"{letter}s", update.number("put_back_to", now))
        update.put(f"{letter}t", update.number(f"{letter}_empty", now * rate))
    zero = update.number("zero", 0)
    for path in ("t1", "t2"):
        update.put(path, ":t_empty")
    for path in ("d1", "d2"):
        update.put(path, zero)
    update.put("gn", update.number("gn_next", generation))
    update.put("gp", update.number("gp_next", generation - 1))
