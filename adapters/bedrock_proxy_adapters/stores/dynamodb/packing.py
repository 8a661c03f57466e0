"""
Leases, limits and keys in few bytes, so that a customer's gate item stays within one write
unit: 1 KB (AWS, Amazon DynamoDB Developer Guide, "Read and write operations").

Whole numbers are written as in protocol buffers: seven bits a byte, the lowest first, the
eighth bit says that more follow. ``docs/explanation/dynamodb.md`` has the layout.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from attrs import evolve, fields, frozen

from bedrock_proxy.admission import AdmissionRequest, Lease
from bedrock_proxy.buckets import NOTHING_TAKEN, Taken
from bedrock_proxy.customers import CustomerStatus, Limits

SHAPE_BYTES: Final = 6
"""How long the name of a shape is: what many leases have in common is written once, apart."""

NONCE_BYTES: Final = 8

ADJUSTMENT: Final = "~"
"""How the name of an adjustment begins; the rest is the name of the request's lease."""

_VERSION: Final = 1
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_KEY_ID: Final = re.compile(r"key_[0-9A-Za-z]{11}\Z")
_PACKED_NAME: Final = 22
_PLAIN_NAME: Final = "="
_LIMITS: Final = tuple(field.name for field in fields(Limits))
_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

_HAS_COST: Final = 1
_HAS_CLIENT_ID: Final = 2
_CLIENT_ID_IS_UUID: Final = 4
_TOOK_REQUEST: Final = 8
_TOOK_TOKENS: Final = 16

_KEY_IS_OURS: Final = 1
_KEY_EXPIRES: Final = 2
_KEY_IS_DEPRECATED: Final = 4


# --- whole numbers ----------------------------------------------------------------------------


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _signed(value: int) -> bytes:
    return _number(value * 2 if value >= 0 else -value * 2 - 1)


def _span(ms: int) -> bytes:
    """A time span; whole seconds take a byte less."""
    seconds, rest = divmod(ms, 1_000)
    return _number(ms * 2 + 1 if rest else seconds * 2)


class _Reader:
    """What was packed, from the front."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self._at = 0

    def take(self, count: int) -> bytes:
        taken = self._packed[self._at : self._at + count]
        if len(taken) != count:
            raise ValueError("a packed value ends too early")
        self._at += count
        return taken

    def rest(self) -> bytes:
        return self.take(len(self._packed) - self._at)

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def signed(self) -> int:
        value = self.number()
        return -(value + 1) // 2 if value % 2 else value // 2

    def span(self) -> int:
        value = self.number()
        return value // 2 if value % 2 else value // 2 * 1_000


# --- names --------------------------------------------------------------------------------------


def lease_name(request_id: str) -> str:
    """What a request's lease is called within the gate item: a UUID takes 22 characters."""
    if _UUID.match(request_id):
        return base64.urlsafe_b64encode(UUID(request_id).bytes).rstrip(b"=").decode()
    return _PLAIN_NAME + request_id


def request_id_of(name: str) -> str:
    """
    The request whose lease or adjustment is called *name*.

    Raises:
        ValueError: Nothing of ours is called so.
    """
    name = name.removeprefix(ADJUSTMENT)
    if name.startswith(_PLAIN_NAME):
        return name[1:]
    try:
        packed = base64.urlsafe_b64decode(name + "==")
    except binascii.Error:
        packed = b""
    if len(name) != _PACKED_NAME or len(packed) != 16:
        raise ValueError(f"no lease is called {name!r}")
    return str(UUID(bytes=packed))


def _origin(request_id: str) -> int:
    """The time in a UUIDv7 (RFC 9562, section 5.7), which is about that of admission; or 0."""
    if _UUID.match(request_id) and request_id[14] == "7":
        return UUID(request_id).int >> 80
    return 0


# --- leases -------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Held:
    """
    A lease as the gate item has it: what decisions and settlements need.

    Attributes:
        shape: The name of the rest.
        generation: Which refunds of tokens it may get; see ``guards``. None where it took
            none.
    """

    shape: bytes
    at: int
    deadline: int
    input_tokens: int
    output_tokens: int
    cost_nanousd: int | None
    took_request: bool
    generation: int | None
    client_request_id: str | None

    @property
    def tokens(self) -> int:
        """The reservation, in tokens."""
        return self.input_tokens + self.output_tokens


def held_of(lease: Lease, shape: bytes) -> Held:
    """*lease* without what its shape says."""
    request = lease.request
    return Held(
        shape=shape,
        at=request.at,
        deadline=lease.deadline,
        input_tokens=request.input_tokens,
        output_tokens=request.output_tokens,
        cost_nanousd=request.cost_nanousd,
        took_request=lease.of_requests.units > 0,
        generation=lease.of_tokens.seq or None,
        client_request_id=request.client_request_id,
    )


def lease_of(held: Held, request: AdmissionRequest) -> Lease:
    """The lease, where *request* has what the shape says."""
    return Lease(
        request=evolve(
            request,
            at=held.at,
            input_tokens=held.input_tokens,
            output_tokens=held.output_tokens,
            cost_nanousd=held.cost_nanousd,
            client_request_id=held.client_request_id,
        ),
        deadline=held.deadline,
        of_requests=Taken(1) if held.took_request else NOTHING_TAKEN,
        of_tokens=NOTHING_TAKEN
        if held.generation is None
        else Taken(held.tokens, 0, held.generation),
    )


def pack_lease(request_id: str, held: Held) -> bytes:
    """*held* as it is kept under the request's name."""
    flags = 0
    client_id = b""
    if held.cost_nanousd is not None:
        flags |= _HAS_COST
    if held.client_request_id is not None:
        flags |= _HAS_CLIENT_ID
        if _UUID.match(held.client_request_id):
            flags |= _CLIENT_ID_IS_UUID
            client_id = UUID(held.client_request_id).bytes
        else:
            client_id = held.client_request_id.encode()
    if held.took_request:
        flags |= _TOOK_REQUEST
    if held.generation is not None:
        flags |= _TOOK_TOKENS
    return b"".join(
        (
            bytes((flags,)),
            held.shape,
            _signed(held.at - _origin(request_id)),
            _span(held.deadline - held.at),
            _number(held.input_tokens),
            _number(held.output_tokens),
            b"" if held.cost_nanousd is None else _number(held.cost_nanousd),
            b"" if held.generation is None else _signed(held.at // 1_000 - held.generation),
            client_id,
        )
    )


def unpack_lease(request_id: str, packed: bytes) -> Held:
    """
    What :func:`pack_lease` wrote.

    Raises:
        ValueError: It did not write this.
    """
    reader = _Reader(packed)
    flags = reader.byte()
    shape = reader.take(SHAPE_BYTES)
    at = reader.signed() + _origin(request_id)
    deadline = at + reader.span()
    input_tokens, output_tokens = reader.number(), reader.number()
    cost = reader.number() if flags & _HAS_COST else None
    generation = at // 1_000 - reader.signed() if flags & _TOOK_TOKENS else None
    client_id: str | None = None
    if flags & _HAS_CLIENT_ID:
        rest = reader.rest()
        client_id = str(UUID(bytes=rest)) if flags & _CLIENT_ID_IS_UUID else rest.decode()
    return Held(
        shape=shape,
        at=at,
        deadline=deadline,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cost_nanousd=cost,
        took_request=bool(flags & _TOOK_REQUEST),
        generation=generation,
        client_request_id=client_id,
    )


# --- adjustments --------------------------------------------------------------------------------


@frozen(kw_only=True)
class Adjustment:
    """
    A change of the counters that is under way: what they say of a request now, until its row
    has changed and the difference has been counted.

    Attributes:
        nonce: The row that carries the same is the one that this adjustment is for.
        at: The request's admission, in epoch milliseconds.
        deadline: Epoch milliseconds after which a reaper may complete or cancel it.
        requests, tokens, cost_nanousd: What the counters say.
    """

    nonce: bytes
    at: int
    deadline: int
    requests: int
    tokens: int
    cost_nanousd: int


def pack_adjustment(adjustment: Adjustment) -> bytes:
    """*adjustment* as it is kept in the gate item."""
    return adjustment.nonce + b"".join(
        map(
            _number,
            (
                adjustment.at,
                max(0, adjustment.deadline - adjustment.at),
                adjustment.requests,
                adjustment.tokens,
                adjustment.cost_nanousd,
            ),
        )
    )


def unpack_adjustment(packed: bytes) -> Adjustment:
    """
    What :func:`pack_adjustment` wrote.

    Raises:
        ValueError: It did not write this.
    """
    reader = _Reader(packed)
    nonce, at = reader.take(NONCE_BYTES), reader.number()
    return Adjustment(
        nonce=nonce,
        at=at,
        deadline=at + reader.number(),
        requests=reader.number(),
        tokens=reader.number(),
        cost_nanousd=reader.number(),
    )


# --- what operators set ---------------------------------------------------------------------------


@frozen(kw_only=True)
class Terms:
    """How long a key is valid, in epoch milliseconds; see :class:`~bedrock_proxy.customers.Key`."""

    expires_at: int | None = None
    deprecated_at: int | None = None


@frozen(kw_only=True)
class Settings:
    """All that operators set and admission checks."""

    status: CustomerStatus
    limits: Limits
    keys: Mapping[str, Terms]


def pack_settings(settings: Settings) -> bytes:
    """*settings* as the gate item has them."""
    limits = [getattr(settings.limits, name) for name in _LIMITS]
    parts = [
        bytes((_VERSION, settings.status is CustomerStatus.ACTIVE)),
        _number(sum(1 << n for n, limit in enumerate(limits) if limit is not None)),
        *(_number(limit) for limit in limits if limit is not None),
    ]
    for key_id, terms in settings.keys.items():
        ours = _key_number(key_id)
        flags = _KEY_IS_OURS if ours is not None else 0
        flags |= _KEY_EXPIRES if terms.expires_at is not None else 0
        flags |= _KEY_IS_DEPRECATED if terms.deprecated_at is not None else 0
        parts.append(bytes((flags,)))
        if ours is not None:
            parts.append(ours)
        else:
            raw = key_id.encode()
            parts += (_number(len(raw)), raw)
        parts += (
            _number(time) for time in (terms.expires_at, terms.deprecated_at) if time is not None
        )
    return b"".join(parts)


def unpack_settings(packed: bytes) -> Settings:
    """
    What :func:`pack_settings` wrote.

    Raises:
        ValueError: A later version wrote it: what it limits must not pass for unlimited.
    """
    reader = _Reader(packed)
    if reader.byte() != _VERSION:
        raise ValueError("these settings are of a later version")
    status = CustomerStatus.ACTIVE if reader.byte() else CustomerStatus.DISABLED
    present = reader.number()
    if present >> len(_LIMITS):
        raise ValueError("there are limits of a later version")
    limits = {name: reader.number() for n, name in enumerate(_LIMITS) if present >> n & 1}
    keys: dict[str, Terms] = {}
    rest = _Reader(reader.rest())
    while True:
        try:
            flags = rest.byte()
        except ValueError:
            break
        if flags & _KEY_IS_OURS:
            key_id = _key_id(rest.take(9))
        else:
            key_id = rest.take(rest.number()).decode()
        expires_at = rest.number() if flags & _KEY_EXPIRES else None
        deprecated_at = rest.number() if flags & _KEY_IS_DEPRECATED else None
        keys[key_id] = Terms(expires_at=expires_at, deprecated_at=deprecated_at)
    return Settings(status=status, limits=Limits(**limits), keys=keys)


def _key_number(key_id: str) -> bytes | None:
    """A key id of ours as bytes; 11 base-62 characters may be a little more than 8."""
    if not _KEY_ID.match(key_id):
        return None
    number = 0
    for digit in key_id[4:]:
        number = number * 62 + _DIGITS.index(digit)
    return number.to_bytes(9, "big")


def _key_id(packed: bytes) -> str:
    number = int.from_bytes(packed, "big")
    digits: list[str] = []
    for _ in range(11):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "key_" + "".join(reversed(digits))
