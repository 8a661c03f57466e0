"""
From events to steps: what is written, what is waited for, and where it breaks off.
"""

import base64
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from attrs import frozen

from bedrock_proxy_adapters.simulator import frames
from bedrock_proxy_adapters.simulator.scripts import Fault, Hangup, Script

_LARGEST_RANDOM_CHUNK: Final = 1024
_BAD_BASE64: Final = {
    True: b'{"bytes":"e3*0"}',
    False: b'{"contentBlockIndex":0,"delta":{"reasoningContent":{"redactedContent":"e3*0"}}}',
}
"""By whether the stream is InvokeModel's; the second is the only base64 Converse streams."""


@frozen
class Write:
    """Send these bytes; the last byte of *events* events is among them."""

    data: bytes
    events: int = 0


@frozen
class Pause:
    """Wait; None waits for ever."""

    seconds: float | None


@frozen
class Gate:
    """Wait until this many more events were released."""

    events: int


@frozen
class Cut:
    """Drop the connection: close it, or reset it."""

    how: Hangup


Step: TypeAlias = Write | Pause | Gate | Cut


def _added(fault: Fault, streams_chunks: bool) -> bytes:
    """The frame that a fault adds; the payloads of the bad ones are bad on purpose."""
    name = "chunk" if streams_chunks else "contentBlockDelta"
    match fault.kind:
        case "exception":
            body = {"message": fault.message}
            return frames.exception(fault.name or "internalServerException", body)
        case "error":
            return frames.error(fault.name or "InternalError", fault.message)
        case "bad_json":
            return frames.event(name, b'{"bytes": "e30=", ')
        case "bad_base64":
            return frames.event(name, _BAD_BASE64[streams_chunks])
        case "bad_inner_json":
            return frames.event("chunk", b'{"bytes":"%s"}' % base64.b64encode(b'{"type": '))
        case "unknown_event":
            return frames.event(fault.name or "novelEvent", b'{"novel":true}')
        case "unknown_header_type":
            return frames.with_unknown_header_type(name, b"{}")
        case _:
            return frames.with_every_header_type(fault.name or "novelEvent", b'{"novel":true}')


def _damaged(fault: Fault, data: bytes) -> bytes:
    match fault.kind:
        case "message_crc":
            return frames.with_bad_message_crc(data)
        case "prelude_crc":
            return frames.with_bad_prelude_crc(data)
        case "bit_flip":
            bit = (len(data) - 5) * 8 if fault.at is None else fault.at
            return frames.with_flipped_bit(data, bit)
        case _:
            return frames.with_lengths(data, fault.total_length, fault.headers_length)


_DAMAGING: Final = ("message_crc", "prelude_crc", "bit_flip", "lengths")


def _with_faults(
    events: Sequence[bytes], faults: Iterable[Fault], streams_chunks: bool
) -> tuple[list[Write], Cut | None]:
    """The writes that faults leave, and how the connection ends where it is cut."""
    placed = sorted(
        (
            (max(0, len(events) + fault.after) if fault.after < 0 else fault.after, fault)
            for fault in faults
        ),
        key=lambda item: item[0],
    )
    writes: list[Write] = []
    for number in range(len(events) + 1):
        data = events[number] if number < len(events) else None
        for place, fault in placed:
            if place != number and not (data is None and place > number):
                continue
            if fault.kind == "end":
                return writes, None
            if fault.kind == "cut":
                whole = data or b""
                at = len(whole) // 2 if fault.at is None else fault.at
                return [*writes, Write(whole[:at])], Cut(fault.how)
            if fault.kind in _DAMAGING:
                data = None if data is None else _damaged(fault, data)
                continue
            writes.append(Write(_added(fault, streams_chunks), 1))
            if fault.kind in ("exception", "error"):
                return writes, None
        if data is not None:
            writes.append(Write(data, 1))
    return writes, None


def _sizes(script: Script) -> Iterator[int]:
    if script.chunk_sizes:
        yield from itertools.cycle(script.chunk_sizes)
    chance = random.Random(script.chunk_seed)  # noqa: S311 - sizes, not secrets
    while True:
        yield chance.randint(1, _LARGEST_RANDOM_CHUNK)


def _split(writes: Sequence[Write], sizes: Iterator[int]) -> Iterator[Write]:
    """Cut the bytes of a run of writes anew; an event counts with its last byte."""
    whole = b"".join(write.data for write in writes)
    ends = itertools.accumulate(len(write.data) for write in writes)
    counted = [(end, write.events) for end, write in zip(ends, writes, strict=True)]
    at = 0
    while at < len(whole):
        end = min(at + next(sizes), len(whole))
        done = sum(events for place, events in counted if at < place <= end)
        yield Write(whole[at:end], done)
        at = end


def steps(events: Sequence[bytes], script: Script, streams_chunks: bool = True) -> tuple[Step, ...]:
    """
    The steps that send *events* under *script*.

    Args:
        events: Encoded frames; or one element, a whole body.
        script: Its pace, gate, stall, batches, chunk sizes and faults apply.
        streams_chunks: Whether the events are InvokeModel's chunks: bad frames look alike.
    """
    writes, cut = _with_faults(events, script.faults, streams_chunks)
    found: list[Step] = []
    sizes = _sizes(script) if script.chunk_sizes or script.chunk_seed is not None else None
    run: list[Write] = []

    def flush() -> None:
        if run:
            found.extend(_split(run, sizes) if sizes is not None else run)
            run.clear()

    def wait(step: Pause | Gate) -> None:
        flush()
        found.append(step)

    if script.first_event_delay:
        wait(Pause(script.first_event_delay))
    batches = _batches(writes, script)
    sent = 0
    for number, batch in enumerate(batches):
        if script.stall_after is not None and sent == script.stall_after:
            wait(Pause(script.stall))
        if script.pace and number:
            wait(Pause(script.pace))
        events_here = sum(write.events for write in batch)
        if script.gate:
            wait(Gate(max(1, events_here)))
        run.append(Write(b"".join(write.data for write in batch), events_here))
        sent += len(batch)
    if script.stall_after is not None and script.stall_after >= sent and sent:
        wait(Pause(script.stall))
    flush()
    if cut is not None:
        found.append(cut)
    return tuple(found)


def _batches(writes: Sequence[Write], script: Script) -> Iterator[Sequence[Write]]:
    """Groups of ``batch`` writes; a stall never falls inside one."""
    at = 0
    while at < len(writes):
        end = at + script.batch
        if script.stall_after is not None and at < script.stall_after < end:
            end = script.stall_after
        yield writes[at:end]
        at = end
