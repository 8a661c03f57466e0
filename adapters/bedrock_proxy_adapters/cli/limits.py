"""Limits and lists of models, as options of a command and as people read them."""

from collections.abc import Callable
from typing import Any, Final

import click
from attrs import evolve

from bedrock_proxy.customers import Limits
from bedrock_proxy.errors import ClientFault, ConfigurationError
from bedrock_proxy.models.names import parse_model_id

LIMITS: Final = {
    "requests_per_minute": "Requests a minute, sustained.",
    "burst": "Requests that may come at once; as many as a minute's where not given.",
    "tokens_per_minute": "Tokens a minute, input and output together.",
    "concurrency": "Requests under way at once.",
    "requests_per_day": "Requests a UTC day.",
    "tokens_per_day": "Tokens a UTC day.",
    "tokens_per_month": "Tokens a UTC month.",
}
"""The limits that can be set here; money follows when there are prices."""

_DIGITS: Final = 15


def _cap_given(_: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    """A whole number, ``unlimited``, or None where the option was not given."""
    if value is None or value == "unlimited":
        return value
    if value.isascii() and value.isdecimal():
        if len(value) > _DIGITS:
            raise click.BadParameter(
                f"{value[:20]}{'…' * (len(value) > 20)} is too large: a limit has at most {_DIGITS} "
                "digits. 'unlimited' lifts it.",
                param=param,
            )
        if param.name == "burst" and int(value) == 0:
            raise click.BadParameter(
                "0 would refuse every request; `bedrock-proxy customers disable` shuts a customer "
                "out, and 'unlimited' leaves the burst to --requests-per-minute.",
                param=param,
            )
        return int(value)
    raise click.BadParameter(f"{value!r} is neither a whole number nor 'unlimited'.", param=param)


_models_option = click.option(
    "--models",
    multiple=True,
    metavar="ID[,ID...]",
    help="The only models the customer may call; 'all' lifts the list.",
)


def limit_options(
    defaults: dict[str, str] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Every limit as an option; *defaults* are what the help says of those not given."""

    def options(command: Callable[..., Any]) -> Callable[..., Any]:
        command = _models_option(command)
        for name, meaning in reversed(LIMITS.items()):
            default = (
                None if defaults is None or name == "burst" else defaults.get(name, "unlimited")
            )
            option = click.option(
                "--" + name.replace("_", "-"),
                name,
                metavar="NUMBER|unlimited",
                callback=_cap_given,
                help=meaning if default is None else f"{meaning} Default: {default}.",
            )
            command = option(command)
        return command

    return options


def with_caps(limits: Limits, caps: dict[str, Any]) -> Limits:
    """
    *limits* with the *caps* that were given. A burst goes with the rate that it belongs to;
    one that stood without a rate before stays as it is, and may be lifted.

    Raises:
        ConfigurationError: A burst was given, and there is no rate.
    """
    given = {
        name: None if cap == "unlimited" else cap for name, cap in caps.items() if cap is not None
    }
    after = evolve(limits, **given)
    if isinstance(caps["burst"], int) and after.requests_per_minute is None:
        raise ConfigurationError(
            "--burst limits nothing without --requests-per-minute: it is how many of those "
            "requests may come at once."
        )
    if caps["requests_per_minute"] == "unlimited":
        return evolve(after, burst=None)
    return after


def model_list(given: tuple[str, ...]) -> frozenset[str] | None:
    """The models that were named; None where it is every one."""
    names = [name.strip() for value in given for name in value.split(",") if name.strip()]
    if not given or names == ["all"]:
        return None
    if not names or "all" in names:
        raise click.BadParameter("must be model ids, or 'all' alone.", param_hint="--models")
    try:
        return frozenset(parse_model_id(name).canonical for name in names)
    except ClientFault as fault:
        raise click.BadParameter(fault.message, param_hint="--models") from None


def told(limits: Limits) -> str:
    """The limits that there are, in a line."""
    said = (
        f"{name.replace('_', ' ')} {getattr(limits, name):,}"
        for name in LIMITS
        if getattr(limits, name) is not None
    )
    return ", ".join(said) or "unlimited"


def cap(value: int | None) -> str:
    """One limit."""
    return "unlimited" if value is None else f"{value:,}"
