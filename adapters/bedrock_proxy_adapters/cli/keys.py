"""The tokens that commands give out: of which shape, for how long, under which pepper."""

import os
import sys
from typing import Final

import click

from bedrock_proxy import tokens
from bedrock_proxy.customers import Key
from bedrock_proxy.store import Customers
from bedrock_proxy_adapters.cli.output import note
from bedrock_proxy_adapters.config import Settings

KEEP: Final = "Keep the token: it is not stored and cannot be shown again."

_DAY_MS: Final = 86_400_000

_LOOKED_AT: Final = 10
"""So many customers' keys tell how a store's tokens were made: it must not take long."""


def _token_given(_: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A token of the operator's own; ``-`` reads it from standard input."""
    if value is None:
        return None
    token = sys.stdin.readline().strip() if value == "-" else value
    if not tokens.check_shape(token):
        raise click.BadParameter(
            "must be 16 to 512 characters of A-Z a-z 0-9 . _ ~ + / = - (and a token that "
            "begins with bpk_ must be one of ours).",
            param=param,
        )
    return token


token_option = click.option(
    "--token",
    default=None,
    callback=_token_given,
    help="A token of your own, instead of a new one; - reads it from standard input.",
)

expiry_option = click.option(
    "--expires-in-days",
    "days",
    default=None,
    metavar="NUMBER",
    type=click.IntRange(1, 36_500),
    help="Refuse the token after so many days; it is valid for ever otherwise.",
)


def mint(token: str | None) -> str:
    """The token to give out: the operator's own, or a new one."""
    return tokens.mint(os.urandom(tokens.RANDOM_BYTES)) if token is None else token


def new_key(token: str, settings: Settings, now: int, days: int | None) -> Key:
    """The key that stands for *token*, for so many *days* from *now* (epoch milliseconds)."""
    pepper = None if settings.pepper is None else settings.pepper.encode()
    key_id = tokens.mint_key_id(os.urandom(tokens.KEY_ID_BYTES))
    return Key(
        key_id=key_id,
        digest=tokens.digest(token, pepper),
        created_at=now,
        expires_at=None if days is None else now + days * _DAY_MS,
    )


_WITHOUT: Final = (
    "Warning: the other tokens in this store were made with a pepper, and BEDROCK_PROXY_PEPPER is "
    "not set here. A server that has one refuses {these}: set the server's pepper here too, and "
    "{again}."
)
_WITH: Final = (
    "Warning: the other tokens in this store were made without a pepper, and BEDROCK_PROXY_PEPPER "
    "is set here. A server without it refuses {these}: unset it here, and {again}. A server that "
    "has this pepper refuses the other tokens instead."
)


def look_at_the_pepper(
    store: Customers,
    settings: Settings,
    *,
    these: str = "this new token",
    again: str = "make another token",
) -> None:
    """
    Warn where the tokens that *store* has were made with a pepper and here is none, or the
    other way round: the server that knows those will not know what is made here. One of the
    same kind is enough to be silent; that two peppers differ, no digest tells.

    Args:
        these: What was made, or is about to be.
        again: What to do once the pepper is the right one.
    """
    with_pepper = settings.pepper is not None
    others = False
    for customer in store.list_customers(limit=_LOOKED_AT).items:
        for key in store.list_keys(customer.id):
            if tokens.is_peppered(key.digest) is with_pepper:
                return
            others = True
    if others:
        note((_WITH if with_pepper else _WITHOUT).format(these=these, again=again))
