"""
``application/vnd.amazon.eventstream``: frames as Bedrock sends them, and broken ones.

A frame is a prelude (total length, headers length, CRC-32 of these eight bytes), headers,
payload and the CRC-32 of everything before it; numbers are big-endian. Source: "Amazon
Event Stream" in the Smithy specification,
https://smithy.io/2.0/aws/amazon-eventstream.html.
"""

import struct
import zlib
from collections.abc import Iterable

from bedrock_proxy_adapters.simulator.values import Body, dump

PRELUDE_BYTES = 12
OVERHEAD_BYTES = 16
_STRING = 7


def _string_header(name: str, value: str, type_: int = _STRING) -> bytes:
    raw_name, raw = name.encode(), value.encode()
    return struct.pack(
        f"!B{len(raw_name)}sBH{len(raw)}s", len(raw_name), raw_name, type_, len(raw), raw
    )


def assemble(headers: bytes, payload: bytes) -> bytes:
    """One valid frame around encoded *headers* and a *payload*."""
    prelude = struct.pack("!II", OVERHEAD_BYTES + len(headers) + len(payload), len(headers))
    body = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + payload
    return body + struct.pack("!I", zlib.crc32(body))


def frame(headers: Iterable[tuple[str, str]], payload: bytes) -> bytes:
    """One frame whose headers are all strings."""
    return assemble(b"".join(_string_header(name, value) for name, value in headers), payload)


def _event_headers(name: str) -> tuple[tuple[str, str], ...]:
    return (
        (":event-type", name),
        (":content-type", "application/json"),
        (":message-type", "event"),
    )


def event(name: str, payload: bytes) -> bytes:
    """An event frame, header for header as Bedrock writes it."""
    return frame(_event_headers(name), payload)


def exception(name: str, body: Body) -> bytes:
    """A modelled exception: ``:message-type`` is ``exception``."""
    headers = (
        (":exception-type", name),
        (":content-type", "application/json"),
        (":message-type", "exception"),
    )
    return frame(headers, dump(body))


def error(code: str, message: str) -> bytes:
    """An unmodelled error: ``:message-type`` is ``error``, the rest is in the headers."""
    headers = ((":message-type", "error"), (":error-code", code), (":error-message", message))
    return frame(headers, b"")


def with_unknown_header_type(name: str, payload: bytes) -> bytes:
    """An event whose last header has a value type no specification knows."""
    known = b"".join(_string_header(*header) for header in _event_headers(name))
    return assemble(known + _string_header("x-novel", "novel", type_=0x2A), payload)


def with_every_header_type(name: str, payload: bytes) -> bytes:
    """An event that carries one header of each of the ten value types, beside the usual ones."""
    known = b"".join(_string_header(*header) for header in _event_headers(name))
    values = (
        b"\x00",
        b"\x01",
        b"\x02" + struct.pack("!b", -1),
        b"\x03" + struct.pack("!h", -2),
        b"\x04" + struct.pack("!i", -3),
        b"\x05" + struct.pack("!q", -4),
        b"\x06" + struct.pack("!H3s", 3, b"\x00\x01\x02"),
        b"\x07" + struct.pack("!H3s", 3, b"txt"),
        b"\x08" + struct.pack("!q", 1_700_000_000_000),
        b"\x09" + bytes(range(16)),
    )
    typed = b"".join(
        struct.pack("!B2s", 2, f"x{number}".encode()) + value for number, value in enumerate(values)
    )
    return assemble(known + typed, payload)


def with_bad_message_crc(data: bytes) -> bytes:
    """The same frame, its last CRC wrong."""
    return data[:-1] + bytes([data[-1] ^ 0xFF])


def with_bad_prelude_crc(data: bytes) -> bytes:
    """The same frame, its prelude's CRC wrong (and its last CRC right again)."""
    body = data[:11] + bytes([data[11] ^ 0xFF]) + data[PRELUDE_BYTES:-4]
    return body + struct.pack("!I", zlib.crc32(body))


def with_flipped_bit(data: bytes, bit: int) -> bytes:
    """The same frame, one bit of it flipped; bit 0 is the first byte's highest."""
    where, mask = bit // 8 % len(data), 0x80 >> bit % 8
    return data[:where] + bytes([data[where] ^ mask]) + data[where + 1 :]


def with_lengths(data: bytes, total: int | None, headers: int | None) -> bytes:
    """The same frame under a prelude that lies about lengths, its CRCs right."""
    true_total, true_headers = struct.unpack_from("!II", data)
    prelude = struct.pack(
        "!II",
        true_total if total is None else total,
        true_headers if headers is None else headers,
    )
    body = prelude + struct.pack("!I", zlib.crc32(prelude)) + data[PRELUDE_BYTES:-4]
    return body + struct.pack("!I", zlib.crc32(body))


def split(data: bytes) -> tuple[bytes, ...]:
    """
    Cut recorded bytes into frames, by their length prefixes. What does not make a whole
    frame is the last element.
    """
    found: list[bytes] = []
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big") if at + 4 <= len(data) else 0
        end = at + length if OVERHEAD_BYTES <= length <= len(data) - at else len(data)
        found.append(data[at:end])
        at = end
    return tuple(found)
