"""``bedrock-proxy customers``: who may call, with which tokens, within which limits."""

import secrets
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import click
from attrs import asdict, evolve, fields

from bedrock_proxy.admission import AHEAD_MS
from bedrock_proxy.customers import (
    DEFAULT_GRACE_MS,
    DEFAULT_REQUESTS_PER_DAY,
    Customer,
    CustomerStatus,
    Limits,
)
from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy.store import every_customer
from bedrock_proxy_adapters.cli.keys import (
    KEEP,
    expiry_option,
    look_at_the_pepper,
    mint,
    new_key,
    token_option,
)
from bedrock_proxy_adapters.cli.limits import (
    LIMITS,
    cap,
    limit_options,
    model_list,
    told,
    with_caps,
)
from bedrock_proxy_adapters.cli.opened import existing_store, lasting_store
from bedrock_proxy_adapters.cli.output import as_json, note, table, when
from bedrock_proxy_adapters.config import Settings, store_name


def _json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json_", is_flag=True, help="For programs.")(command)


@click.group()
def customers() -> None:
    """Create, list and change customers and their tokens."""


@customers.command()
@click.option("--name", required=True, help="Who it is.")
@click.option("--email", required=True, help="Where they are reached.")
@token_option
@expiry_option
@limit_options({"requests_per_day": f"{DEFAULT_REQUESTS_PER_DAY:,}"})
@_json_option
def create(
    name: str,
    email: str,
    token: str | None,
    days: int | None,
    models: tuple[str, ...],
    as_json_: bool,
    **caps: Any,
) -> None:
    """Create a customer; its token is shown this once."""
    if not name.strip() or not name.isprintable():
        raise click.BadParameter("must be a name that can be printed.", param_hint="--name")
    if not _is_email(email):
        raise click.BadParameter(f"{email!r} is not an e-mail address.", param_hint="--email")
    try:
        limits = with_caps(Limits(requests_per_day=DEFAULT_REQUESTS_PER_DAY), caps)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None
    settings = Settings.from_env()
    shown = mint(token)
    now = _now()
    customer = Customer(
        id="cust_" + secrets.token_hex(8),
        name=name.strip(),
        email=email,
        limits=limits,
        models=model_list(models),
        created_at=now,
    )
    key = new_key(shown, settings, now, days)
    store = lasting_store(settings.store)
    look_at_the_pepper(store, settings)
    store.create_customer(customer, key)
    if as_json_:
        as_json({"customer_id": customer.id, "key_id": key.key_id, "token": shown})
        return
    click.echo(f"customer_id: {customer.id}")
    click.echo(f"token:       {shown}")
    note(f"Limits: {told(customer.limits)}. Database: {store_name(settings.store)}")
    note(KEEP)


@customers.command("list")
@click.option(
    "--limit",
    default=100,
    show_default=True,
    metavar="NUMBER",
    type=click.IntRange(1, 10_000),
    help="At most so many.",
)
@click.option("--after", default=None, metavar="ID", help="Go on after this customer.")
@click.option("--all", "everyone", is_flag=True, help="All of them.")
@_json_option
def list_(limit: int, after: str | None, everyone: bool, as_json_: bool) -> None:
    """List customers, in the order of their ids."""
    store = existing_store()
    items: Iterable[Customer]
    if everyone:
        items, more = every_customer(store), None
    else:
        page = store.list_customers(limit=limit, after=after)
        items, more = page.items, page.next
    if as_json_:
        for customer in items:
            as_json(_plain(customer))
    else:
        count = table(
            ("CUSTOMER", "NAME", "EMAIL", "STATUS", "REQUESTS/DAY", "CREATED"),
            (
                (
                    c.id,
                    c.name,
                    c.email,
                    c.status,
                    cap(c.limits.requests_per_day),
                    when(c.created_at),
                )
                for c in items
            ),
        )
        if not count:
            note("No customers.")
    if more is not None:
        note(f"There are more: go on with --after {more}, or say --all.")


@customers.command()
@click.argument("customer_id", metavar="CUSTOMER")
@_json_option
def show(customer_id: str, as_json_: bool) -> None:
    """Show a customer: limits, models, keys, and what is used."""
    store = existing_store()
    customer = store.get_customer(customer_id)
    keys = store.list_keys(customer_id)
    standing = store.standing(customer_id, _now())
    if as_json_:
        as_json(
            {
                **_plain(customer),
                "keys": [
                    {
                        "key_id": key.key_id,
                        "created_at": key.created_at,
                        "expires_at": key.expires_at,
                        "deprecated_at": key.deprecated_at,
                    }
                    for key in keys
                ],
                "in_flight": standing.in_flight,
                "today": asdict(standing.today),
                "month": asdict(standing.month),
                "clock_ahead_ms": standing.ahead_ms,
            }
        )
        return
    click.echo(f"{customer.id}  {customer.name} <{customer.email}>  {customer.status}")
    models = "every model" if customer.models is None else ", ".join(sorted(customer.models))
    click.echo(f"models: {models or 'none'}")
    click.echo(
        f"today:  {standing.today.requests:,} requests, {standing.today.tokens:,} tokens; "
        f"this month: {standing.month.requests:,} requests, {standing.month.tokens:,} tokens; "
        f"under way: {standing.in_flight:,}"
    )
    if standing.ahead_ms > AHEAD_MS:
        click.echo(
            f"clock:  {timedelta(seconds=standing.ahead_ms // 1_000)} ahead of this machine's, so that "
            "limits wait for so long. If that is because a server's clock was wrong: "
            f"bedrock-proxy rebuild --customer-id {customer.id} --set-clock"
        )
    click.echo()
    remaining = {state.name.value: state.remaining for state in standing.limits}
    table(
        ("LIMIT", "CAP", "REMAINING"),
        (
            (name.replace("_", " "), cap(getattr(customer.limits, name)), remaining.get(name))
            for name in LIMITS
            if name != "burst" or customer.limits.burst is not None
        ),
    )
    click.echo()
    table(
        ("KEY", "CREATED", "EXPIRES", "ROTATED"),
        ((k.key_id, when(k.created_at), when(k.expires_at), when(k.deprecated_at)) for k in keys),
    )


@customers.command("update-limits")
@click.argument("customer_id", metavar="CUSTOMER")
@limit_options()
@_json_option
def update_limits(customer_id: str, models: tuple[str, ...], as_json_: bool, **caps: Any) -> None:
    """
    Change limits; those not named stay.

    They hold from the next request on; a list of models within a minute, as long as a
    server may remember whose token it is.
    """
    if not models and all(cap is None for cap in caps.values()):
        raise click.UsageError("Name at least one limit, or --models, to change.")
    allowed = model_list(models)
    lifted: int | None = None

    def change(customer: Customer) -> Customer:
        nonlocal lifted
        changed = evolve(customer, limits=with_caps(customer.limits, caps))
        went_along = changed.limits.burst is None and caps["burst"] is None
        lifted = customer.limits.burst if went_along else None
        return evolve(changed, models=allowed) if models else changed

    _said(existing_store().update_customer(customer_id, change), as_json_)
    if lifted is not None:
        note(f"The burst of {lifted:,} went with the requests a minute, to which it belonged.")


@customers.command("rotate-token")
@click.argument("customer_id", metavar="CUSTOMER")
@click.option("--key", "key_id", metavar="KEY", help="Which key; the newest otherwise.")
@token_option
@expiry_option
@click.option(
    "--grace",
    default=DEFAULT_GRACE_MS // 1000,
    show_default=True,
    metavar="SECONDS",
    type=click.IntRange(0, 366 * 86_400),
    help="How long the old token stays valid.",
)
@_json_option
def rotate_token(
    customer_id: str,
    key_id: str | None,
    token: str | None,
    days: int | None,
    grace: int,
    as_json_: bool,
) -> None:
    """Give a customer a new token in an old one's place, which runs out after its grace."""
    store, now = existing_store(), _now()
    if key_id is None and not store.list_keys(customer_id):
        raise ConfigurationError(
            f"Customer {customer_id!r} has no token to rotate; give it one with "
            "`bedrock-proxy customers add-token`."
        )
    settings = Settings.from_env()
    shown = mint(token)
    new = new_key(shown, settings, now, days)
    look_at_the_pepper(store, settings)
    old = store.rotate_key(customer_id, new, now, grace * 1000, key_id)
    if as_json_:
        as_json(
            {
                "customer_id": customer_id,
                "key_id": new.key_id,
                "token": shown,
                "old_key_id": old.key_id,
                "old_expires_at": old.expires_at,
            }
        )
        return
    click.echo(f"token:       {shown}")
    ends = f"ends {when(old.expires_at)}" if grace else "has ended"
    note(f"The old token ({old.key_id}) {ends}.")
    note(KEEP)


@customers.command("add-token")
@click.argument("customer_id", metavar="CUSTOMER")
@token_option
@expiry_option
@_json_option
def add_token(customer_id: str, token: str | None, days: int | None, as_json_: bool) -> None:
    """Give a customer one more token; up to four are valid side by side."""
    store, now = existing_store(), _now()
    settings = Settings.from_env()
    shown = mint(token)
    key = new_key(shown, settings, now, days)
    look_at_the_pepper(store, settings)
    store.add_key(customer_id, key, now)
    if as_json_:
        as_json({"customer_id": customer_id, "key_id": key.key_id, "token": shown})
        return
    click.echo(f"key_id:      {key.key_id}")
    click.echo(f"token:       {shown}")
    note(KEEP)


@customers.command("revoke-token")
@click.argument("customer_id", metavar="CUSTOMER")
@click.option("--key", "key_id", metavar="KEY", help="Which key; needed where there are several.")
@click.option("--all", "every", is_flag=True, help="Every key of the customer.")
@_json_option
def revoke_token(customer_id: str, key_id: str | None, every: bool, as_json_: bool) -> None:
    """Revoke a token, at once."""
    if every and key_id is not None:
        raise click.UsageError("Name a key or say --all, not both.")
    store = existing_store()
    if every:
        revoked = [key.key_id for key in store.list_keys(customer_id)]
        store.revoke_all_keys(customer_id)
    else:
        if key_id is None:
            keys = store.list_keys(customer_id)
            if len(keys) != 1:
                if not keys:
                    raise ConfigurationError(f"Customer {customer_id!r} has no token to revoke.")
                names = ", ".join(key.key_id for key in keys)
                raise click.UsageError(
                    f"The customer has {len(keys)} keys: {names}; name one with --key, or say --all."
                )
            key_id = keys[0].key_id
        store.revoke_key(customer_id, key_id)
        revoked = [key_id]
    if as_json_:
        as_json({"customer_id": customer_id, "revoked": revoked})
    else:
        click.echo(f"revoked: {', '.join(revoked) or 'nothing'}")


@customers.command()
@click.argument("customer_id", metavar="CUSTOMER")
@_json_option
def disable(customer_id: str, as_json_: bool) -> None:
    """Refuse every further request of a customer."""
    _set_status(customer_id, CustomerStatus.DISABLED, as_json_)


@customers.command()
@click.argument("customer_id", metavar="CUSTOMER")
@_json_option
def enable(customer_id: str, as_json_: bool) -> None:
    """Let a disabled customer call again."""
    _set_status(customer_id, CustomerStatus.ACTIVE, as_json_)


def _set_status(customer_id: str, status: CustomerStatus, as_json_: bool) -> None:
    def change(customer: Customer) -> Customer:
        return evolve(customer, status=status)

    _said(existing_store().update_customer(customer_id, change), as_json_)


def _said(customer: Customer, as_json_: bool) -> None:
    if as_json_:
        as_json(_plain(customer))
        return
    click.echo(f"{customer.id}  {customer.status}  {told(customer.limits)}")


def _plain(customer: Customer) -> dict[str, object]:
    return {
        "customer_id": customer.id,
        "name": customer.name,
        "email": customer.email,
        "status": str(customer.status),
        "limits": {f.name: getattr(customer.limits, f.name) for f in fields(Limits)},
        "models": None if customer.models is None else sorted(customer.models),
        "created_at": customer.created_at,
    }


def _is_email(text: str) -> bool:
    name, at, domain = text.partition("@")
    return (
        bool(name and at and domain)
        and text.isprintable()
        and " " not in text
        and "@" not in domain
    )


def _now() -> int:
    return time.time_ns() // 1_000_000
