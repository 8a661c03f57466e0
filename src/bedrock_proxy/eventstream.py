"""
``application/vnd.amazon.eventstream``: an incremental decoder and an encoder.

One frame is a prelude (total length, header length, CRC-32 of these eight bytes), the
headers, the payload, and the CRC-32 of everything before it; all numbers are big-endian
(AWS, Amazon Transcribe developer guide, "Event stream encoding"; Smithy, "Amazon Event
Stream Specification").
"""

import struct
from collections.abc import Callable, Mapping
from struct import Struct
from types import MappingProxyType
from typing import Final, TypeAlias, cast
from zlib import crc32

from bedrock_proxy.slotted import lean

MAX_FRAME: Final = 24 * 1024 * 1024
"""The longest frame that is believed, in bytes (the specification's own bound is 24 MiB)."""
MAX_HEADERS: Final = 128 * 1024
"""The longest block of headers in bytes, as the specification bounds it."""
MAX_VALUE: Final = 32_767
"""The longest string or byte-array header value in bytes, as the specification bounds it."""

_MIN_FRAME: Final = 16
PRELUDE: Final = Struct(">III")
"""How a frame begins: its length, that of its headers, and the checksum of these two."""
CHECKSUM: Final = Struct(">I")
"""How a frame ends: the checksum of all before it."""
_LENGTHS: Final = Struct(">II")
_U16: Final = Struct(">H")

# Real streams repeat a handful of header blocks of about 80 bytes; the bounds keep a
# hostile stream from turning the cache into a store.
_CACHED_BLOCKS: Final = 16
_CACHED_BLOCK_BYTES: Final = 512


class Byte(int):
    """An 8-bit signed header value."""


class Short(int):
    """A 16-bit signed header value."""


class Int(int):
    """A 32-bit signed header value."""


class Long(int):
    """A 64-bit signed header value."""


class Timestamp(int):
    """A point in time: milliseconds since the epoch, 64-bit signed."""


class Uuid(bytes):
    """The sixteen bytes of a UUID, in network order."""


HeaderValue: TypeAlias = bool | Byte | Short | Int | Long | bytes | str | Timestamp | Uuid
"""A header value; its class says which of the ten wire types it is."""


class EventStreamError(Exception):
    """The bytes are not an event stream, or not a whole one."""


class Corrupt(EventStreamError):
    """A checksum, a length or a header is wrong: nothing after it can be trusted."""


class Torn(EventStreamError):
    """The stream ended in the middle of a frame."""


@lean
class Frame:
    """
    One message that passed both checksums.

    Attributes:
        headers: By name, in the order of the wire. A header of an unknown type ends them:
            its length cannot be known.
        payload: The bytes between the headers and the final checksum.
        raw: The whole frame as it was on the wire.
    """

    headers: Mapping[str, HeaderValue]
    payload: bytes
    raw: bytes

    def text(self, name: str) -> str | None:
        """The value of a string header; None where it is absent or of another type."""
        value = self.headers.get(name)
        return value if isinstance(value, str) else None


Slice: TypeAlias = tuple[Mapping[str, HeaderValue], bytes, int, int]
"""A frame's headers and payload, and where it begins and ends in :attr:`Decoder.octets`."""


class Decoder:
    """
    Turns bytes, however they were cut, into frames. One per stream.

    Attributes:
        fault: Why decoding stopped; None while all is well. Frames that came before the
            fault are returned by the call that met it; later calls return nothing.
        octets: What the last :meth:`scan` looked through: what was left over before, and what
            it was given.
        pending: The beginning of a frame that is not complete.
    """

    __slots__ = ("_blocks", "_max_frame", "_needed", "fault", "octets", "pending")

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self.fault: Corrupt | None = None
        self.octets = b""
        self._max_frame = max_frame
        self.pending = bytearray()
        self._needed = PRELUDE.size
        self._blocks: dict[bytes, Mapping[str, HeaderValue]] = {}

    def feed(self, data: bytes) -> list[Frame]:
        """
        The frames that are complete with *data*, in order. Never raises: see ``fault``.

        Memory grows with what has arrived, never with what a length claims.
        """
        found = self.scan(data)
        octets = self.octets
        return [Frame(headers, payload, octets[at:end]) for headers, payload, at, end in found]

    def scan(self, data: bytes) -> list[Slice]:
        """
        The same without an object for each frame. Equal blocks of headers are one and the same
        mapping, within bounds.
        """
        found: list[Slice] = []
        if self.fault is not None:
            return found
        pending = self.pending
        if pending:
            pending += data
            if len(pending) < self._needed:
                return found
            data = bytes(pending)
            self.pending = bytearray()
        self.octets = data
        try:
            consumed = self._decode(data, found)
        except Corrupt as fault:
            self.fault = fault
            self.pending = bytearray()
            return found
        if consumed < len(data):
            self.pending += memoryview(data)[consumed:]
        return found

    def close(self) -> None:
        """
        Say that no more bytes will come.

        Raises:
            Corrupt: The fault that stopped decoding.
            Torn: Bytes are left over that are not a whole frame.
        """
        if self.fault is not None:
            raise self.fault
        if self.pending:
            raise Torn(f"The stream ended {len(self.pending)} bytes into a frame.")

    def _decode(self, data: bytes, found: list[Slice]) -> int:
        size = len(data)
        at = 0
        blocks = self._blocks
        while size - at >= 12:
            total, header_length, prelude_crc = PRELUDE.unpack_from(data, at)
            # Checked before the lengths are believed: a flipped bit in a length would
            # otherwise wait for bytes that never come, or swallow the frames after it.
            if crc32(data[at : at + 8]) != prelude_crc:
                raise Corrupt("The checksum of a frame's prelude does not match.")
            if total < _MIN_FRAME or total > self._max_frame:
                raise Corrupt(f"A frame claims to be {total} bytes long.")
            if header_length > total - _MIN_FRAME or header_length > MAX_HEADERS:
                raise Corrupt(f"A frame of {total} bytes claims {header_length} of headers.")
            end = at + total
            if size < end:
                self._needed = total
                return at
            # Goes on from the prelude's checksum, which the frame's own covers too.
            if crc32(data[at + 8 : end - 4], prelude_crc) != CHECKSUM.unpack_from(data, end - 4)[0]:
                raise Corrupt("The checksum of a frame does not match.")
            body = at + 12 + header_length
            block = data[at + 12 : body]
            headers = blocks.get(block)
            if headers is None:
                headers = MappingProxyType(_parse_headers(block))
                if len(blocks) < _CACHED_BLOCKS and header_length <= _CACHED_BLOCK_BYTES:
                    blocks[block] = headers
            found.append((headers, data[body : end - 4], at, end))
            at = end
        self._needed = PRELUDE.size
        return at


# --- headers ----------------------------------------------------------------------------

_FIXED: Final[Mapping[int, tuple[Struct, Callable[[int], HeaderValue]]]] = {
    2: (Struct(">b"), Byte),
    3: (Struct(">h"), Short),
    4: (Struct(">i"), Int),
    5: (Struct(">q"), Long),
    8: (Struct(">q"), Timestamp),
}
_BYTES: Final = 6
_STRING: Final = 7
_UUID: Final = 9


def _parse_headers(block: bytes) -> dict[str, HeaderValue]:
    headers: dict[str, HeaderValue] = {}
    at = 0
    size = len(block)
    try:
        while at < size:
            name_end = at + 1 + block[at]
            if name_end == at + 1:
                raise Corrupt("A header has no name.")
            if name_end >= size:
                raise Corrupt("A header's name is cut off.")
            name = block[at + 1 : name_end].decode()
            kind = block[name_end]
            at = name_end + 1
            value: HeaderValue
            if kind in {_STRING, _BYTES}:
                length: int = _U16.unpack_from(block, at)[0]
                at += 2 + length
                if at > size:
                    raise Corrupt("A header's value is cut off.")
                octets = block[at - length : at]
                value = octets.decode() if kind == _STRING else octets
            elif kind in _FIXED:
                layout, make = _FIXED[kind]
                value = make(layout.unpack_from(block, at)[0])
                at += layout.size
            elif kind <= 1:
                value = kind == 0
            elif kind == _UUID:
                at += 16
                if at > size:
                    raise Corrupt("A header's value is cut off.")
                value = Uuid(block[at - 16 : at])
            else:
                # The frame itself is sound; only the length of this value is unknowable.
                return headers
            if name in headers:
                raise Corrupt("A header comes twice.")
            headers[name] = value
    except (struct.error, UnicodeDecodeError) as error:
        raise Corrupt("A frame's headers cannot be read.") from error
    return headers


def _sized(kind: int, octets: bytes) -> bytes:
    if len(octets) > MAX_VALUE:
        raise ValueError(f"A header value may have {MAX_VALUE} bytes, not {len(octets)}.")
    return bytes((kind,)) + _U16.pack(len(octets)) + octets


def _uuid(octets: bytes) -> bytes:
    if len(octets) != 16:
        raise ValueError("A UUID has 16 bytes.")
    return bytes((_UUID,)) + octets


def _number(kind: int) -> Callable[[HeaderValue], bytes]:
    layout, _ = _FIXED[kind]

    def pack(value: HeaderValue) -> bytes:
        try:
            return bytes((kind,)) + layout.pack(value)
        except struct.error as error:
            raise ValueError(f"{value!r} does not fit a {type(value).__name__}.") from error

    return pack


_PACK: Final[Mapping[type, Callable[[HeaderValue], bytes]]] = {
    bool: lambda value: b"\x00" if value else b"\x01",
    Byte: _number(2),
    Short: _number(3),
    Int: _number(4),
    Long: _number(5),
    Timestamp: _number(8),
    bytes: lambda value: _sized(_BYTES, cast("bytes", value)),
    str: lambda value: _sized(_STRING, cast("str", value).encode()),
    Uuid: lambda value: _uuid(cast("Uuid", value)),
}


def encode(headers: Mapping[str, HeaderValue], payload: bytes = b"") -> bytes:
    """
    One frame, with both checksums.

    Raises:
        ValueError: A name, a value, the headers or the frame are longer than the
            specification allows, or a number does not fit its type.
        TypeError: A value is of none of the classes of :data:`HeaderValue`.
    """
    block = bytearray()
    for name, value in headers.items():
        octets = name.encode()
        if not 1 <= len(octets) <= 255:
            raise ValueError("A header's name has 1 to 255 bytes.")
        pack = _PACK.get(type(value))
        if pack is None:
            raise TypeError(f"{type(value).__name__} is not a header value.")
        block.append(len(octets))
        block += octets
        block += pack(value)
    total = _MIN_FRAME + len(block) + len(payload)
    if len(block) > MAX_HEADERS or total > MAX_FRAME:
        raise ValueError("The frame is longer than the specification allows.")
    lengths = _LENGTHS.pack(total, len(block))
    message = b"".join((lengths, CHECKSUM.pack(crc32(lengths)), block, payload))
    return message + CHECKSUM.pack(crc32(message))
