"""
The way to a Redis server: its scripts, its failures, and whether it keeps what it is told.
"""

from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from threading import Lock
from typing import Any, Final, Literal, TypeAlias, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from attrs import field, frozen
from redis import Redis, exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from bedrock_proxy.errors import ConfigurationError, StoreUnavailable, store_unavailable

T = TypeVar("T")

Clock: TypeAlias = Literal["server", "caller"]

DEFAULT_PREFIX: Final = "bedrock-proxy"
"""What every key begins with."""

TIMEOUT_S: Final = 5.0
"""Seconds a server may take to answer; half of that to accept a connection."""

_AS_REDIS: Final = {"valkey": "redis", "valkeys": "rediss", "redis+unix": "unix"}
_PASSED_ON: Final = frozenset(
    {"db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"}
)


@frozen
class Script:
    """A Lua script that runs as one step, known to the server by its SHA-1."""

    text: str
    sha: str = field(init=False)

    @sha.default  # pyright: ignore -- attrs' own decorator
    def _hash(self) -> str:
        # What EVALSHA goes by (Redis documentation, "Scripting with Lua"): a name, not a secret.
        return sha1(self.text.encode(), usedforsecurity=False).hexdigest()


@cache
def script(name: str) -> Script:
    """One of the scripts beside this file, the rules before it."""
    folder = files("bedrock_proxy_adapters.stores.redis")
    return Script(
        "\n".join(
            folder.joinpath(f"{part}.lua").read_text(encoding="utf-8") for part in ("rules", name)
        )
    )


@frozen(kw_only=True)
class Place:
    """
    What a store's URL says.

    Attributes:
        url: The same in redis-py's words. May hold a password: never show it.
        accepts_loss: The operator accepts a server that may forget.
    """

    url: str
    prefix: str = DEFAULT_PREFIX
    accepts_loss: bool = False
    timeout: float = TIMEOUT_S


def place_of(url: str) -> Place:
    """
    Read ``redis://``, ``rediss://`` (TLS), ``valkey://``, ``valkeys://`` or
    ``redis+unix:///path/to/socket``, with ``?durability=accepted``, ``prefix=``,
    ``timeout=`` (seconds), ``db=`` and ``ssl_…=``.

    Raises:
        ConfigurationError: Something in it has no meaning. The message never quotes the URL,
            which may hold a password.
    """
    parts = urlsplit(url)
    said = dict(parse_qsl(parts.query, keep_blank_values=True))
    passed = {name: said.pop(name) for name in tuple(said) if name in _PASSED_ON}
    durability = said.pop("durability", "required")
    prefix = said.pop("prefix", DEFAULT_PREFIX)
    timeout = said.pop("timeout", str(TIMEOUT_S))
    if said:
        raise ConfigurationError(
            f"The Redis store's URL has options without meaning: {', '.join(sorted(said))}."
        )
    if durability not in {"required", "accepted"}:
        raise ConfigurationError("The Redis store's durability is 'required' or 'accepted'.")
    if not prefix or not prefix.isprintable() or set(prefix) & set("{} "):
        raise ConfigurationError("The Redis store's prefix must be a word without braces.")
    if not timeout.replace(".", "", 1).isdecimal() or not 0 < float(timeout) <= 60:
        raise ConfigurationError(
            "The Redis store's timeout must be above 0 and at most 60 seconds."
        )
    scheme = _AS_REDIS.get(parts.scheme, parts.scheme)
    if scheme == "unix" and not parts.path:
        raise ConfigurationError("redis+unix:// needs the path of a socket.")
    query = urlencode(passed)
    return Place(
        url=f"{scheme}://{parts.netloc}{parts.path}{query and '?'}{query}",
        prefix=prefix,
        accepts_loss=durability == "accepted",
        timeout=float(timeout),
    )


def connect(place: Place) -> Any:
    """
    A client for *place*; nothing is sent yet.

    Raises:
        ConfigurationError: redis-py cannot read the URL.
    """
    try:
        return Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            place.url,
            socket_timeout=place.timeout,
            socket_connect_timeout=place.timeout / 2,
            # A connection that the server closed meanwhile is only noticed when it is used.
            # What takes too long is not asked for again.
            retry=Retry(NoBackoff(), 1, supported_errors=(exceptions.ConnectionError,)),
        )
    except (ValueError, TypeError) as error:
        raise ConfigurationError("The Redis store's URL cannot be read.") from error


class Line:
    """
    A client, and what every operation goes through. Safe to use from several threads.

    Args:
        client: A redis-py client, or anything like it (a cluster's).
        accepts_loss: Do not look whether the server keeps what it is told.
        owns: Whether :meth:`close` closes the client too.
    """

    def __init__(self, client: Any, *, accepts_loss: bool, owns: bool) -> None:
        self._client = client
        self._owns = owns
        self._closed = False
        self._is_checked = accepts_loss
        self._lock = Lock()

    def check(self) -> None:
        """
        Look whether the server keeps what it is told; a server that cannot be reached is
        looked at when it first can.

        Raises:
            ConfigurationError: It may forget customers and usage.
        """
        try:
            self.do(lambda _: None)
        except StoreUnavailable as error:
            if isinstance(error.__cause__, ConfigurationError):
                raise error.__cause__ from None
        finally:
            if self._owns:
                # A connection must not cross a fork.
                self._client.connection_pool.disconnect()

    def do(self, work: Callable[[Any], T]) -> T:
        """
        What *work* makes of the client.

        Raises:
            StoreUnavailable: The server did not answer, or would not; or we are closed.
        """
        if self._closed:
            raise store_unavailable()
        try:
            if not self._is_checked:
                self._check()
            try:
                return work(self._client)
            except exceptions.ReadOnlyError:
                # This server was the primary once, and keeps its connections as a replica.
                self._let_go_of_connections()
                return work(self._client)
        except (exceptions.RedisError, OSError, ConfigurationError) as error:
            raise store_unavailable() from error

    def run(self, name: str, keys: Sequence[str], *arguments: object) -> Any:
        """What the script *name* returns; one round trip where the server knows it."""
        wanted = script(name)

        def work(client: Any) -> Any:
            try:
                return client.evalsha(wanted.sha, len(keys), *keys, *arguments)
            except exceptions.NoScriptError:
                return client.eval(wanted.text, len(keys), *keys, *arguments)

        return self.do(work)

    def many(self, ask: Callable[[Any], None], *, at_once: bool = False) -> list[Any]:
        """
        The replies to everything that *ask* puts to a pipeline, in one round trip.

        Args:
            at_once: As one step (the keys are one customer's).
        """

        def work(client: Any) -> list[Any]:
            pipeline = client.pipeline(transaction=at_once)
            ask(pipeline)
            return list(pipeline.execute())

        return self.do(work)

    def close(self) -> None:
        """Let go; afterwards every call fails."""
        self._closed = True
        if self._owns:
            self._client.close()

    def _let_go_of_connections(self) -> None:
        """Close those that are at rest, so that the next one goes where the name leads now."""
        pool = getattr(self._client, "connection_pool", None)  # a cluster's client has none
        if pool is not None:
            pool.disconnect(inuse_connections=False)

    def _check(self) -> None:
        with self._lock:
            if not self._is_checked:
                check_durability(self._client.info("persistence"), self._client.info("memory"))
                self._is_checked = True


def check_durability(persistence: dict[str, Any], memory: dict[str, Any]) -> None:
    """
    Refuse a server that forgets, by what ``INFO`` says of it (Redis documentation, "INFO",
    "Redis persistence", "Key eviction").

    Raises:
        ConfigurationError: There is no append-only file, or full memory evicts keys.
    """
    accept = "or add ?durability=accepted to BEDROCK_PROXY_STORE to run without."
    if "aof_enabled" in persistence and not int(persistence["aof_enabled"]):
        raise ConfigurationError(
            "This Redis server keeps no append-only file: a restart would lose usage and tokens. "
            f"Set 'appendonly yes' on the server, {accept}"
        )
    policy = str(memory.get("maxmemory_policy", ""))
    if int(memory.get("maxmemory", 0)) and policy.startswith("allkeys"):
        raise ConfigurationError(
            f"This Redis server evicts any key when memory is full ({policy}), customers and usage "
            f"among them. Set 'maxmemory-policy noeviction' on the server, {accept}"
        )


@frozen(kw_only=True)
class Keys:
    """The names of one customer's keys: in a cluster, all in one slot."""

    customer: str
    gate: str
    leases: str
    deadlines: str
    rows: str
    base: str

    def ledger(self, day: int) -> str:
        """Where the rows of a UTC day are (days since the epoch)."""
        return f"{self.base}ledger:{day}"


@frozen
class Names:
    """The names of all keys, which begin with *prefix*."""

    prefix: str

    @property
    def customers(self) -> str:
        """The ids of all customers, in order."""
        return f"{self.prefix}:customers"

    def of(self, customer_id: str) -> Keys:
        """
        One customer's keys. What stands in braces decides on the slot (Redis cluster
        specification, "Hash tags"), unless there is nothing; braces in the id are written as
        %7B and %7D, and no id as %.
        """
        base = f"{self.prefix}:{{{quote(customer_id, safe='') or '%'}}}:"
        return Keys(
            customer=base + "customer",
            gate=base + "gate",
            leases=base + "leases",
            deadlines=base + "deadlines",
            rows=base + "rows",
            base=base,
        )

    def token(self, digest: bytes) -> str:
        """Who has claimed a token."""
        return f"{self.prefix}:token:{digest.hex()}"

    def key(self, key_id: str) -> str:
        """Who has claimed a key id."""
        return f"{self.prefix}:key:{quote(key_id, safe='')}"


def text_of(value: Any) -> str | None:
    """What Redis said, as text; None where there is nothing."""
    if value is None or isinstance(value, str):
        return value
    return value.decode() if isinstance(value, bytes) else str(value)
