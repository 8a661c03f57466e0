"""
The composition root: environment to proxy.

AWS itself is configured by AWS's own variables (``AWS_REGION``,
``AWS_ENDPOINT_URL_BEDROCK_RUNTIME``, credentials …); ours begin with ``BEDROCK_PROXY_``
and are listed, with their meaning, in :class:`Settings` and in ``docs/reference``.
"""

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, cast
from urllib.parse import unquote, urlsplit

from attrs import field, fields, frozen

from bedrock_proxy.errors import ConfigurationError

if TYPE_CHECKING:
    from bedrock_proxy.ports import Gate
    from bedrock_proxy.rules import Rules
    from bedrock_proxy.usage import UsageRecord
    from bedrock_proxy_adapters.proxy import Disconnect, Proxy
    from bedrock_proxy_adapters.stores.dynamodb import DynamoDBStore
    from bedrock_proxy_adapters.stores.memory import MemoryStore
    from bedrock_proxy_adapters.stores.redis import RedisStore
    from bedrock_proxy_adapters.stores.spool import Spool
    from bedrock_proxy_adapters.stores.sqlite import SqliteStore
    from bedrock_proxy_adapters.upstream.configured import Way

T = TypeVar("T")

DEFAULT_STORE: Final = "sqlite:///bedrock-proxy.db"

_PREFIX: Final = "BEDROCK_PROXY_"

_LAMBDA: Final = ("AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_RUNTIME_API")
"""Set where this is a Lambda function."""

_DYNAMODB: Final = "dynamodb://"
_REDIS: Final = frozenset({"redis", "rediss", "valkey", "valkeys", "redis+unix"})


def _setting(default: T, meaning: str) -> T:
    """One setting: its default, and the sentence that documents it."""
    setting: T = field(default=default, metadata={"meaning": meaning})
    return setting


@frozen(kw_only=True)
class Settings:
    """What the environment can say. The variable is the name in capitals, prefixed."""

    store: str = _setting(
        DEFAULT_STORE,
        "Where customers and the ledger live: `sqlite:///relative.db`, "
        "`sqlite:////absolute.db`, `redis://host:6379/0` (`rediss://`, `valkey://`, "
        "`valkeys://`, `redis+unix:///socket`), `dynamodb://table?region=us-east-1` or "
        "`memory:`.",
    )
    pepper: str | None = _setting(
        None,
        "A secret keyed into every stored token digest. Set it before the first customer and "
        "keep it: changing it invalidates every token. Set but empty is an error.",
    )
    base_path: str = _setting("", "A path prefix that is stripped from every request.")
    disconnect: str = _setting(
        "drain",
        "What happens when a client leaves: `drain` reads the rest for the true usage (30 s "
        "at most), `cancel` closes the call at once.",
    )
    upstream: str = _setting(
        "auto",
        "How Bedrock is called: `auto` uses boto3 where a host gives each request a thread, and "
        "on event loops (`serve`, `asgi_app`) a way without threads, if the extra `async` is "
        "installed and no forward proxy is set; `boto3` uses boto3 everywhere.",
    )
    max_streams: int | None = _setting(
        None,
        "Calls of Bedrock at once; beyond it 503 `overloaded`. Default 200 through boto3, "
        "10,000 without threads.",
    )
    max_body_bytes: int = _setting(20 * 1024 * 1024, "The largest request body, in bytes.")
    first_byte_timeout: float = _setting(
        120.0, "Seconds Bedrock may take, from the call on, until the first event of a stream."
    )
    whole_timeout: float = _setting(
        600.0, "Seconds Bedrock may take, from the call on, for an answer that is not streamed."
    )
    idle_timeout: float = _setting(120.0, "Seconds Bedrock may be silent between two reads.")
    max_duration: float = _setting(900.0, "Seconds one call may take in all.")
    lease_seconds: float = _setting(
        300.0, "How long an admitted request holds its reservation unless renewed."
    )
    spool: str | None = _setting(
        None,
        "A file where settlements wait while the store is down. Default: beside the SQLite "
        "file, with `-spool` at its end; `bedrock-proxy-spool` in the working folder for a "
        "server; none for `memory:` and on Lambda, where a log line takes its place.",
    )
    aws_account: str | None = _setting(
        None, "The AWS account whose ARNs clients may name; unset means any."
    )
    s3_locations: tuple[str, ...] = _setting(
        (),
        "Objects in S3 that a request may name for Bedrock to read, with the proxy's own rights, in "
        "place of bytes: what their URIs begin with, separated by commas "
        "(`s3://bucket/folder/`), or `any`. None unless set.",
    )
    cors_origins: tuple[str, ...] = _setting(
        (),
        "Origins whose web pages may call the proxy, separated by commas "
        "(`https://app.example.com`), or `*`. None unless set. Never beside the CORS settings "
        "of a Function URL or a gateway.",
    )
    lambda_mode: str = _setting(
        "stream",
        "How the streaming Lambda host answers: `stream`, or `buffered` behind a Function URL "
        "or a REST API that is set to buffer.",
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """
        The settings in *environ* (the process's own where None).

        Raises:
            ConfigurationError: A value cannot be read, or a variable with our prefix has
                no meaning (a misspelt limit must not pass for a set one).
        """
        environ = os.environ if environ is None else environ
        known = {_PREFIX + name.name.upper(): name for name in fields(cls)}
        values: dict[str, object] = {}
        for variable, raw in environ.items():
            if not variable.startswith(_PREFIX) or variable == "BEDROCK_PROXY_FIXTURES":
                continue
            if variable not in known:
                raise ConfigurationError(
                    f"{variable} is not a setting; the settings are {', '.join(sorted(known))}."
                )
            values[known[variable].name] = _read(variable, raw, _READERS[known[variable].name])
        return cls(**values)  # type: ignore[arg-type]

    def rules(self, region: str | None) -> "Rules":
        """The numbers the flow goes by."""
        from bedrock_proxy.rules import Rules

        return Rules(
            pepper=None if self.pepper is None else self.pepper.encode(),
            region=region,
            account=self.aws_account,
            s3_locations=self.s3_locations,
            first_byte_timeout=self.first_byte_timeout,
            whole_timeout=self.whole_timeout,
            idle_timeout=self.idle_timeout,
            max_duration=self.max_duration,
            lease_ms=round(self.lease_seconds * 1000),
            max_body_bytes=self.max_body_bytes,
            cors_origins=self.cors_origins,
        )


def _read(variable: str, raw: str, reader: Callable[[str], object]) -> object:
    try:
        return reader(raw)
    except ValueError as error:
        raise ConfigurationError(f"{variable} {error}.") from None


def _text(raw: str) -> str:
    if not raw:
        raise ValueError("is set but empty; unset it, or give it a value")
    return raw


def _path(raw: str) -> str:
    if raw and not raw.startswith("/"):
        raise ValueError("must begin with a slash")
    return raw


def _whole(raw: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,15}", raw):
        raise ValueError(f"must be a whole number above 0, not {raw!r}")
    return int(raw)


def _seconds(raw: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", raw) or not float(raw) > 0:
        raise ValueError(f"must be a number of seconds above 0, not {raw!r}")
    return float(raw)


def _policy(raw: str) -> str:
    if raw not in {"drain", "cancel"}:
        raise ValueError(f"must be drain or cancel, not {raw!r}")
    return raw


def _account(raw: str) -> str:
    if not re.fullmatch(r"[0-9]{12}", raw):
        raise ValueError("must be an AWS account id of 12 digits")
    return raw


def _origins(raw: str) -> tuple[str, ...]:
    from bedrock_proxy.cors import check_origin

    return tuple(check_origin(origin.strip()) for origin in raw.split(","))


def _places(raw: str) -> tuple[str, ...]:
    from bedrock_proxy.s3 import check_prefix

    return tuple(check_prefix(place.strip()) for place in raw.split(","))


def _mode(raw: str) -> str:
    if raw not in {"stream", "buffered"}:
        raise ValueError(f"must be stream or buffered, not {raw!r}")
    return raw


def _way(raw: str) -> str:
    if raw not in {"auto", "boto3"}:
        raise ValueError(f"must be auto or boto3, not {raw!r}")
    return raw


_READERS: Final[Mapping[str, Callable[[str], object]]] = {
    "upstream": _way,
    "store": _text,
    "pepper": _text,
    "base_path": _path,
    "disconnect": _policy,
    "max_streams": _whole,
    "max_body_bytes": _whole,
    "first_byte_timeout": _seconds,
    "whole_timeout": _seconds,
    "idle_timeout": _seconds,
    "max_duration": _seconds,
    "lease_seconds": _seconds,
    "spool": _text,
    "aws_account": _account,
    "s3_locations": _places,
    "cors_origins": _origins,
    "lambda_mode": _mode,
}


def store_path(url: str) -> Path | None:
    """
    The absolute path of the database that *url* names; None where the store is no file.

    Raises:
        ConfigurationError: It names no store we know.
    """
    if url == "memory:" or _is_redis(url) or url.startswith(_DYNAMODB):
        return None
    parts = urlsplit(url)
    if parts.scheme == "sqlite" and not parts.netloc and len(parts.path) > 1:
        if "?" in url or "#" in url:
            raise ConfigurationError(
                f"The store {url!r} has options, and SQLite's has none. In a file's name ? is "
                "written as %3F, and # as %23."
            )
        # As in SQLAlchemy's URLs: three slashes are relative, four absolute.
        return Path(unquote(parts.path[1:])).absolute()
    raise ConfigurationError(
        f"The store {url!r} is not one of sqlite:///relative.db, sqlite:////absolute.db, "
        "redis://host:6379/0, dynamodb://table?region=us-east-1, memory:."
    )


def store_name(url: str) -> str:
    """
    What may be shown of *url*: where the store is, and never a password.

    Raises:
        ConfigurationError: It names no store we know.
    """
    path = store_path(url)
    if path is not None:
        return str(path)
    parts = urlsplit(url)
    if not parts.netloc and not parts.path:
        return url
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def open_store(url: str) -> "SqliteStore | RedisStore | DynamoDBStore | MemoryStore":
    """
    The store that *url* names.

    Raises:
        ConfigurationError: It names none, or cannot be opened.
    """
    path = store_path(url)
    if path is not None:
        from bedrock_proxy_adapters.stores.sqlite import SqliteStore

        return SqliteStore(path)
    if _is_redis(url):
        try:
            from bedrock_proxy_adapters.stores.redis import RedisStore
        except ImportError:
            raise ConfigurationError(
                "A Redis store needs redis-py: pip install 'bedrock-proxy[redis]'."
            ) from None
        return RedisStore.from_url(url)
    if url.startswith(_DYNAMODB):
        from bedrock_proxy_adapters.stores.dynamodb import DynamoDBStore

        return DynamoDBStore.from_url(url)
    from bedrock_proxy_adapters.stores.memory import MemoryStore

    return MemoryStore()


def _is_redis(url: str) -> bool:
    scheme, _, rest = url.partition("://")
    return scheme in _REDIS and bool(rest)


def proxy_from_env(
    environ: Mapping[str, str] | None = None,
    *,
    finished: "Callable[[UsageRecord], None] | None" = None,
) -> "Proxy":
    """
    The proxy that the environment describes.

    Args:
        environ: The process's own where None.
        finished: Hears of every ended request; the logger ``bedrock_proxy.usage`` where None.

    Raises:
        ConfigurationError: A setting is wrong, or AWS's own configuration is.
    """
    from bedrock_proxy_adapters.proxy import LoggingTelemetry, Proxy
    from bedrock_proxy_adapters.telemetry.usage_log import log_usage
    from bedrock_proxy_adapters.upkeep import Upkeep
    from bedrock_proxy_adapters.upstream.configured import ConfiguredUpstream

    settings = Settings.from_env(environ)
    # The socket's own timeout is a net below the flow's, which end a call with a better answer.
    longest = max(settings.first_byte_timeout, settings.whole_timeout, settings.idle_timeout)
    patience = longest + 30.0
    upstream = ConfiguredUpstream(
        cast("Way", settings.upstream), max_streams=settings.max_streams, read_timeout=patience
    )
    store = open_store(settings.store)
    spool = _spool(settings, os.environ if environ is None else environ)
    return Proxy(
        store=store,
        upstream=upstream,
        rules=settings.rules(upstream.region),
        telemetry=LoggingTelemetry(
            finished=log_usage if finished is None else finished,
            spool=None if spool is None else spool.append,
            region=upstream.region,
        ),
        disconnect=cast("Disconnect", settings.disconnect),
        max_streams=settings.max_streams,
        base_path=settings.base_path,
        guard=_open if spool is None else partial(_closed_when_full, spool=spool),
        upkeep=Upkeep(store, settings.lease_seconds / 2, spool),
    )


def _spool(settings: Settings, environ: Mapping[str, str]) -> "Spool | None":
    """
    Where settlements wait while the store is down; nowhere for a store in memory, nor on
    Lambda unless a place was named: a file there is lost with the sandbox.

    Raises:
        ConfigurationError: They could not be written there. It must not come out only when
            the store is down.
    """
    path = store_path(settings.store)
    on_lambda = any(environ.get(name) for name in _LAMBDA)
    if settings.spool is None and (on_lambda or settings.store == "memory:"):
        return None
    from bedrock_proxy_adapters.stores.spool import Spool

    beside = "bedrock-proxy-spool" if path is None else f"{path}-spool"
    place = Path(settings.spool if settings.spool is not None else beside).absolute()
    missing = not place.parent.is_dir()
    if missing or not os.access(place if place.exists() else place.parent, os.W_OK):
        raise ConfigurationError(
            f"The spool {place} cannot be written{': its folder is missing' if missing else ''}; "
            "set BEDROCK_PROXY_SPOOL to a place that can."
        )
    return Spool(place)


def _open(gate: "Gate") -> "Gate":
    return gate


def _closed_when_full(gate: "Gate", spool: "Spool") -> "Gate":
    from bedrock_proxy_adapters.stores.spool import SpoolGate

    return SpoolGate(gate, spool)
