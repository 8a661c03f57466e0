"""
What Bedrock answers to a request: a status, headers, and the steps that send the body.
"""

import base64
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal, TypeAlias

from attrs import evolve, frozen

from bedrock_proxy_adapters.simulator import frames
from bedrock_proxy_adapters.simulator.answers import LATENCY_MS, Tokens, compose
from bedrock_proxy_adapters.simulator.converse import (
    converse_events,
    converse_prompt,
    converse_whole,
    counted_body,
    token_count,
)
from bedrock_proxy_adapters.simulator.families import FAMILIES, Family, family_of_body
from bedrock_proxy_adapters.simulator.guardrails import verdict
from bedrock_proxy_adapters.simulator.scripts import ERROR_STATUS, Hangup, Script
from bedrock_proxy_adapters.simulator.timeline import Step, steps
from bedrock_proxy_adapters.simulator.values import Body, InvalidBody, Json, dump, parse_body

Operation: TypeAlias = Literal[
    "invoke",
    "invoke-with-response-stream",
    "converse",
    "converse-stream",
    "count-tokens",
    "apply-guardrail",
]
Headers: TypeAlias = tuple[tuple[str, str], ...]

JSON: Final = "application/json"
EVENT_STREAM: Final = "application/vnd.amazon.eventstream"
_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_CREDENTIAL_ERRORS: Final = (
    "ExpiredTokenException",
    "InvalidSignatureException",
    "MissingAuthenticationTokenException",
    "UnrecognizedClientException",
    "UnknownOperationException",
)
_MESSAGES: Final = {
    "AccessDeniedException": "You don't have access to the model with the specified model ID.",
    "ExpiredTokenException": "The security token included in the request is expired",
    "ModelNotReadyException": "The model is not ready yet. Please try again.",
    "ModelTimeoutException": "The model took too long to answer.",
    "ResourceNotFoundException": "The resource could not be found.",
    "ServiceQuotaExceededException": "Too many tokens, please wait before trying again.",
    "ThrottlingException": "Too many requests, please wait before trying again.",
    "UnrecognizedClientException": "The security token included in the request is invalid.",
}


@frozen
class Reply:
    """
    An answer, ready to be played.

    Attributes:
        status: The HTTP status.
        headers: Names in lower case; without the request id and the framing.
        steps: How the body is sent.
        length: The body's length where it is announced; None for a chunked body.
        delay: Seconds before the head.
        hang_up: Drop the connection instead.
    """

    status: int
    headers: Headers
    steps: tuple[Step, ...]
    length: int | None
    delay: float = 0.0
    hang_up: Hangup | None = None


def error_reply(
    code: str,
    message: str | None = None,
    status: int | None = None,
    script: Script | None = None,
) -> Reply:
    """
    An error before the stream: ``{"message"}`` and the header ``x-amzn-errortype``.

    Source: recorded answers; the service model of Bedrock Runtime for statuses.
    """
    service = "com.amazon.coral.service" if code in _CREDENTIAL_ERRORS else "com.amazon.bedrock"
    said: dict[str, Json] = {
        "message": message or _MESSAGES.get(code, f"The simulator was told to say {code}.")
    }
    if code in ("ModelErrorException", "ModelStreamErrorException"):
        said["originalStatusCode"] = 500
    body = dump(said)
    script = script or Script()
    return Reply(
        status or ERROR_STATUS.get(code, 400),
        (
            ("content-type", JSON),
            ("x-amzn-errortype", f"{code}:http://internal.amazon.com/coral/{service}/"),
            *script.headers,
        ),
        steps((body,), Script()),
        len(body),
        script.delay,
    )


def padding(payload: bytes) -> str:
    """The ``p`` of an event: a beginning of the alphabet, as long as its payload decides."""
    return _ALPHABET[: 1 + zlib.crc32(payload) % (len(_ALPHABET) - 1)]


def chunk_frame(chunk: Body, padded: bool) -> bytes:
    """One chunk of InvokeModelWithResponseStream: base64 in ``bytes``, beside the padding."""
    inner = dump(chunk)
    payload = b'{"bytes":"%s"' % base64.b64encode(inner)
    payload += b',"p":"%s"}' % padding(inner).encode() if padded else b"}"
    return frames.event("chunk", payload)


def converse_frame(name: str, event: dict[str, Json], padded: bool) -> bytes:
    """One event of ConverseStream: members sorted, the padding among them."""
    if padded:
        event = {**event, "p": padding(dump(event))}
    return frames.event(name, dump(dict(sorted(event.items()))))


def _count_headers(tokens: Tokens | None, family: Family) -> Headers:
    """The counts in InvokeModel's headers, as recorded; embeddings have no output."""
    if tokens is None:
        return ()
    found = [("x-amzn-bedrock-input-token-count", str(tokens.input))]
    if family.talks:
        found.append(("x-amzn-bedrock-output-token-count", str(tokens.output)))
    if family.caches or tokens.cache_read or tokens.written:
        found.append(("x-amzn-bedrock-cache-read-input-token-count", str(tokens.cache_read)))
        found.append(("x-amzn-bedrock-cache-write-input-token-count", str(tokens.written)))
    found.append(("x-amzn-bedrock-invocation-latency", str(LATENCY_MS)))
    return tuple(found)


def _whole(body: Body, script: Script, headers: Headers = ()) -> Reply:
    data = dump(body)
    if any(fault.kind == "bad_json" for fault in script.faults):
        data = data[:-1]
    cuts = tuple(fault for fault in script.faults if fault.kind == "cut")
    return Reply(
        200,
        (("content-type", JSON), *headers, *script.headers),
        steps((data,), evolve(script, faults=cuts)),
        len(data),
        script.delay,
    )


def _stream(events: Sequence[bytes], script: Script, headers: Headers, chunks: bool) -> Reply:
    return Reply(
        200,
        (("content-type", EVENT_STREAM), *headers, *script.headers),
        steps(events, script, chunks),
        None,
        script.delay,
    )


def _replayed(script: Script) -> Reply | None:
    replay = script.replay
    if replay is None:
        return None
    headers = tuple(
        (name, value)
        for name, value in replay.headers
        if name not in ("content-length", "transfer-encoding", "connection", "x-amzn-requestid")
    )
    streams = dict(headers).get("content-type") == EVENT_STREAM
    events = frames.split(replay.body) if streams else (replay.body,)
    return Reply(
        replay.status,
        (*headers, *script.headers),
        steps(events, script),
        None if streams else len(replay.body),
        script.delay,
    )


@lru_cache(maxsize=128)
def reply(operation: Operation, model: str, family: str, raw: bytes, script: Script) -> Reply:
    """
    What Bedrock answers. Equal calls have equal answers, so answers are remembered: under
    load an answer is encoded once.

    Args:
        operation: The last part of the path; ``apply-guardrail``.
        model: The model id as called; a guardrail's id, a colon, and its version.
        family: The name of the model's family; empty where the body has to tell.
        raw: The request's body.
        script: What to answer.
    """
    if script.hang_up is not None:
        return Reply(0, (), (), None, script.delay, script.hang_up)
    if script.error is not None:
        return error_reply(script.error, script.error_message, script.error_status, script)
    replayed = _replayed(script)
    if replayed is not None:
        return replayed
    try:
        return _answer(operation, model, family, parse_body(raw), script)
    except InvalidBody as refusal:
        return error_reply("ValidationException", str(refusal))


def _answer(operation: Operation, model: str, named: str, body: Body, script: Script) -> Reply:
    if operation == "apply-guardrail":
        said = verdict(model, body, intervenes=script.guardrail, blocked=script.text)
        return _whole(said, script)
    if operation == "count-tokens":
        kind, counted = counted_body(body)
        read = FAMILIES[named or family_of_body(counted)].prompt
        prompt = converse_prompt(counted) if kind == "converse" else read(counted)
        return _whole(token_count(prompt, script.input_tokens), script)
    family = FAMILIES[named or family_of_body(body)]
    if operation in ("converse", "converse-stream"):
        if not family.talks:
            raise InvalidBody(f"The model {model} does not support Converse.")
        answer = compose(model, body, converse_prompt(body), script)
        if operation == "converse":
            return _whole(converse_whole(answer), script)
        events = [
            converse_frame(name, event, script.padding) for name, event in converse_events(answer)
        ]
        return _stream(events, script, (), chunks=False)
    answer = compose(model, body, family.prompt(body), script)
    if operation == "invoke":
        return _whole(family.whole(answer), script, _count_headers(answer.usage, family))
    if family.stream is None:
        raise InvalidBody(f"The model {model} does not support streaming.")
    chunks = [chunk_frame(chunk, script.padding) for chunk in family.stream(answer)]
    return _stream(chunks, script, (("x-amzn-bedrock-content-type", JSON),), chunks=True)
