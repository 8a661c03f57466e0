"""
Scripts: what the simulator is to answer, how fast, and what is to go wrong.

A script is data: every one can be written as JSON (:meth:`Script.from_json`), so that a
client in another process can set one.
"""

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, Final, Literal, TypeAlias, cast, get_args

from attrs import Attribute, field, frozen
from attrs.validators import optional

UsageReporting: TypeAlias = Literal["normal", "missing", "zero", "twice", "cumulative"]
FaultKind: TypeAlias = Literal[
    "exception",
    "error",
    "cut",
    "end",
    "message_crc",
    "prelude_crc",
    "bit_flip",
    "lengths",
    "bad_json",
    "bad_inner_json",
    "bad_base64",
    "unknown_event",
    "unknown_header_type",
    "every_header_type",
]
Hangup: TypeAlias = Literal["fin", "rst"]

ERROR_STATUS: Final[Mapping[str, int]] = {
    "AccessDeniedException": 403,
    "ExpiredTokenException": 403,
    "InternalServerException": 500,
    "InvalidSignatureException": 403,
    "MissingAuthenticationTokenException": 403,
    "ModelErrorException": 424,
    "ModelNotReadyException": 429,
    "ModelStreamErrorException": 424,
    "ModelTimeoutException": 408,
    "ResourceNotFoundException": 404,
    "ServiceQuotaExceededException": 400,
    "ServiceUnavailableException": 503,
    "ThrottlingException": 429,
    "UnknownOperationException": 404,
    "UnrecognizedClientException": 403,
    "ValidationException": 400,
}
"""
Error types and their statuses: Bedrock Runtime's service model, and the common errors of
every AWS service (the credentials' ones).
"""

STREAM_EXCEPTIONS: Final = (
    "internalServerException",
    "modelStreamErrorException",
    "validationException",
    "throttlingException",
    "modelTimeoutException",
    "serviceUnavailableException",
)
"""The exceptions that the service model lets a stream end with."""


def _non_negative(_: object, attribute: "Attribute[Any]", value: Any) -> None:
    if value is not None and value < 0:
        raise ValueError(f"{attribute.name} is negative")


def _at_least_one(_: object, attribute: "Attribute[Any]", value: Any) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{attribute.name} must be at least 1")


def _sizes(_: object, attribute: "Attribute[Any]", value: Any) -> None:
    if any(size < 1 for size in value):
        raise ValueError(f"{attribute.name}: every size must be at least 1")


def _known_kind(_: object, attribute: "Attribute[Any]", value: Any) -> None:
    if value not in get_args(FaultKind):
        raise ValueError(f"{attribute.name} must be one of {', '.join(get_args(FaultKind))}")


def _known_hangup(_: object, attribute: "Attribute[Any]", value: Any) -> None:
    if value not in get_args(Hangup):
        raise ValueError(f"{attribute.name} must be fin or rst")


def _known_reporting(_: object, attribute: "Attribute[Any]", value: Any) -> None:
    if value not in get_args(UsageReporting):
        raise ValueError(f"{attribute.name} must be one of {', '.join(get_args(UsageReporting))}")


@frozen
class Tool:
    """
    A tool call in the answer.

    Attributes:
        name: The tool's name.
        input_json: The call's input as JSON text.
        id: The call's id; one is made where it is None.
    """

    name: str
    input_json: str = "{}"
    id: str | None = None


@frozen
class Fault:
    """
    Something that goes wrong in a streamed answer.

    Attributes:
        kind: What. ``exception`` and ``error`` add a frame and end the stream; ``cut``
            drops the connection inside an event; ``end`` ends the body properly, too
            early; ``message_crc``, ``prelude_crc``, ``bit_flip`` and ``lengths`` damage
            an event; the others add an event, and the stream goes on (``bad_inner_json``:
            a chunk whose base64 decodes to broken JSON).
        after: How many whole events come first; negative counts from the end.
        name: The exception's type, the error's code, or the unknown event's name.
        message: The exception's or error's message.
        at: ``cut``: the byte of the event at which the connection drops (None: half-way).
            ``bit_flip``: which bit (None: the first of the payload's last byte).
        how: ``cut``: ``fin`` closes the connection, ``rst`` resets it.
        total_length: ``lengths``: what the prelude claims; None leaves the truth.
        headers_length: The same for the headers' length.
    """

    kind: FaultKind = field(validator=_known_kind)
    after: int = 0
    name: str | None = None
    message: str = "The simulator was told to fail here."
    at: int | None = field(default=None, validator=_non_negative)
    how: Hangup = field(default="fin", validator=_known_hangup)
    total_length: int | None = None
    headers_length: int | None = None


@frozen
class Replay:
    """
    An answer given byte for byte.

    Attributes:
        body: The response's body. An event stream is cut into its frames, so that pace,
            gate and faults apply to them.
        status: The HTTP status.
        headers: Response headers, beside the request id and the framing.
    """

    body: bytes
    status: int = 200
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)


@frozen
class Script:
    """
    One answer. Every field has a default; the default script echoes the prompt.

    Attributes:
        text: What the model says. None: a sentence about the prompt.
        pieces: The same, in exactly these stream events.
        events: Cut the text into this many events, repeating its words if need be.
        thinking: What the model thinks before it answers.
        tools: The tools that the model calls after its text.
        stop_reason: The stop reason, in the model's own spelling, instead of the usual.
        input_tokens, output_tokens: Counts to report instead of the counted words.
        cache_read_tokens, cache_write_tokens, cache_write_1h_tokens: Prompt-cache counts
            (written for five minutes, for one hour).
        usage: ``missing`` reports none anywhere, ``zero`` reports zeros, ``twice`` the same
            twice, ``cumulative`` half of the output first, then all.
        guardrail: Whether a guardrail intervened: its trace is part of the answer.
        delay: Seconds before the response's head.
        first_event_delay: Seconds between the head and the first event.
        pace: Seconds between one event and the next.
        gate: Send each event only when the test says so.
        stall_after: After this many events, nothing comes.
        stall: For how many seconds; None: for ever.
        batch: Events in one write.
        chunk_sizes: Cut the bytes into HTTP chunks of these sizes, in turn.
        chunk_seed: Cut them at random, between 1 and 1,024 bytes, from this seed.
        padding: Whether events carry Bedrock's padding (``p``).
        hang_up: Drop the connection without an answer: ``fin`` or ``rst``.
        error: Answer with this error instead.
        error_status: Its HTTP status, where it is not the usual one.
        error_message: Its message.
        faults: What goes wrong in the stream.
        replay: Answer with these bytes instead.
        headers: Further response headers.
    """

    text: str | None = None
    pieces: tuple[str, ...] | None = None
    events: int | None = field(default=None, validator=_at_least_one)
    thinking: str | None = None
    tools: tuple[Tool, ...] = ()
    stop_reason: str | None = None
    input_tokens: int | None = field(default=None, validator=_non_negative)
    output_tokens: int | None = field(default=None, validator=_non_negative)
    cache_read_tokens: int = field(default=0, validator=_non_negative)
    cache_write_tokens: int = field(default=0, validator=_non_negative)
    cache_write_1h_tokens: int = field(default=0, validator=_non_negative)
    usage: UsageReporting = field(default="normal", validator=_known_reporting)
    guardrail: bool = False
    delay: float = field(default=0.0, validator=_non_negative)
    first_event_delay: float = field(default=0.0, validator=_non_negative)
    pace: float = field(default=0.0, validator=_non_negative)
    gate: bool = False
    stall_after: int | None = field(default=None, validator=_non_negative)
    stall: float | None = field(default=None, validator=_non_negative)
    batch: int = field(default=1, validator=_at_least_one)
    chunk_sizes: tuple[int, ...] = field(default=(), validator=_sizes)
    chunk_seed: int | None = None
    padding: bool = True
    hang_up: Hangup | None = field(default=None, validator=optional(_known_hangup))
    error: str | None = None
    error_status: int | None = None
    error_message: str | None = None
    faults: tuple[Fault, ...] = ()
    replay: Replay | None = None
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_json(cls, value: object) -> "Script":
        """
        The script that a JSON object describes: the attributes above, ``tools`` as
        ``{"name", "input", "id"}``, ``faults`` as objects, ``headers`` as an object, and in
        ``replay`` the body as ``body_base64``.

        Raises:
            ValueError: A member is unknown, or its value cannot be one.
        """
        return cls(**_read(value, "a script", _SCRIPT_MEMBERS))


Reader: TypeAlias = Callable[[object, str], Any]


def _is(*types: type) -> Reader:
    def read(value: object, name: str) -> Any:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            names = " or ".join("null" if kind is NoneType else kind.__name__ for kind in types)
            raise ValueError(f"{name} must be {names}")
        return value

    return read


def _each(reader: Reader) -> Reader:
    def read(value: object, name: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{name} must be an array")  # noqa: TRY004 - one error for bad JSON
        return tuple(reader(item, name) for item in cast("list[object]", value))

    return read


def _or_null(reader: Reader) -> Reader:
    return lambda value, name: None if value is None else reader(value, name)


def _read(value: object, name: str, members: Mapping[str, Reader]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be an object")  # noqa: TRY004 - as above
    given = cast("Mapping[str, object]", value)
    for member in given:
        if member not in members:
            raise ValueError(f"{name} has no member {member!r}")
    return {member: members[member](item, member) for member, item in given.items()}


def _headers(value: object, name: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be an object")  # noqa: TRY004 - as above
    given = cast("Mapping[str, object]", value)
    return tuple((key.lower(), _is(str)(item, key)) for key, item in given.items())


def _base64(value: object, name: str) -> bytes:
    try:
        return base64.b64decode(_is(str)(value, name), validate=True)
    except binascii.Error:
        raise ValueError(f"{name} is not base64") from None


def _tool(value: object, name: str) -> Tool:
    members = {"name": _STRING, "input": _ANY, "id": _is(str, NoneType)}
    read = _read(value, name, members)
    if "name" not in read:
        raise ValueError(f"{name}: a tool needs a name")
    return Tool(read["name"], json.dumps(read.get("input", {})), read.get("id"))


def _fault(value: object, name: str) -> Fault:
    read = _read(value, name, _FAULT_MEMBERS)
    if "kind" not in read:
        raise ValueError(f"{name}: a fault needs a kind")
    return Fault(**read)


def _replay(value: object, name: str) -> Replay:
    members = {"body_base64": _base64, "status": _is(int), "headers": _headers}
    read = _read(value, name, members)
    if "body_base64" not in read:
        raise ValueError(f"{name}: a replay needs body_base64")
    return Replay(body=read.pop("body_base64"), **read)


_ANY: Reader = _is(object)
_STRING: Reader = _is(str)
_SECONDS: Reader = _is(int, float)
_COUNT: Reader = _is(int, NoneType)

_FAULT_MEMBERS: Final[Mapping[str, Reader]] = {
    "kind": _STRING,
    "after": _is(int),
    "name": _is(str, NoneType),
    "message": _STRING,
    "at": _COUNT,
    "how": _STRING,
    "total_length": _COUNT,
    "headers_length": _COUNT,
}

_SCRIPT_MEMBERS: Final[Mapping[str, Reader]] = {
    "text": _is(str, NoneType),
    "pieces": _or_null(_each(_STRING)),
    "events": _COUNT,
    "thinking": _is(str, NoneType),
    "tools": _each(_tool),
    "stop_reason": _is(str, NoneType),
    "input_tokens": _COUNT,
    "output_tokens": _COUNT,
    "cache_read_tokens": _is(int),
    "cache_write_tokens": _is(int),
    "cache_write_1h_tokens": _is(int),
    "usage": _STRING,
    "guardrail": _is(bool),
    "delay": _SECONDS,
    "first_event_delay": _SECONDS,
    "pace": _SECONDS,
    "gate": _is(bool),
    "stall_after": _COUNT,
    "stall": _is(int, float, NoneType),
    "batch": _is(int),
    "chunk_sizes": _each(_is(int)),
    "chunk_seed": _COUNT,
    "padding": _is(bool),
    "hang_up": _is(str, NoneType),
    "error": _is(str, NoneType),
    "error_status": _COUNT,
    "error_message": _is(str, NoneType),
    "faults": _each(_fault),
    "replay": _or_null(_replay),
    "headers": _headers,
}
