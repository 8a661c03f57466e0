import base64
import inspect
import itertools
import struct
import sys
import tracemalloc
import types
from collections.abc import Mapping
from typing import Any
from zlib import crc32

import pytest
from botocore.eventstream import ChecksumMismatch, EventStreamBuffer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.fixtures import recordings, require_fixtures, vectors

from bedrock_proxy import eventstream
from bedrock_proxy.eventstream import (
    MAX_FRAME,
    MAX_HEADERS,
    Byte,
    Corrupt,
    Decoder,
    Frame,
    HeaderValue,
    Int,
    Long,
    Short,
    Timestamp,
    Torn,
    Uuid,
    encode,
)

EVENT = {":event-type": "chunk", ":content-type": "application/json", ":message-type": "event"}
FRAME = encode(EVENT, b'{"bytes":"eyJhIjoxfQ=="}')


def whole(data: bytes) -> list[Frame]:
    """The frames of *data*, which must be whole."""
    decoder = Decoder()
    frames = decoder.feed(data)
    decoder.close()
    return frames


def prelude(total: int, headers: int, crc: int | None = None) -> bytes:
    lengths = struct.pack(">II", total, headers)
    return lengths + struct.pack(">I", crc32(lengths) if crc is None else crc)


def sealed(block: bytes, payload: bytes = b"") -> bytes:
    """A frame with valid checksums around any block of headers."""
    message = prelude(16 + len(block) + len(payload), len(block)) + block + payload
    return message + struct.pack(">I", crc32(message))


# --- laws -----------------------------------------------------------------------------------

UTF8 = st.text(st.characters(codec="utf-8"), max_size=40)


def numbers(make: Any, bits: int) -> Any:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).map(make)


VALUES: Any = st.one_of(
    st.booleans(),
    numbers(Byte, 8),
    numbers(Short, 16),
    numbers(Int, 32),
    numbers(Long, 64),
    numbers(Timestamp, 64),
    st.binary(max_size=40),
    UTF8,
    st.binary(min_size=16, max_size=16).map(Uuid),
)
HEADERS: Any = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), VALUES, max_size=6
)


def typed(headers: Mapping[str, HeaderValue]) -> list[tuple[str, type, HeaderValue]]:
    return [(name, type(value), value) for name, value in headers.items()]


@given(HEADERS, st.binary(max_size=200))
def test_decoding_gives_back_what_was_encoded(
    headers: dict[str, HeaderValue], payload: bytes
) -> None:
    data = encode(headers, payload)
    (frame,) = whole(data)
    assert typed(headers) == typed(frame.headers)
    assert payload == frame.payload
    assert data == frame.raw


@given(
    st.lists(st.tuples(HEADERS, st.binary(max_size=60)), max_size=5), st.lists(st.integers(0, 999))
)
def test_S23_any_split_of_the_bytes_gives_the_same_frames(
    messages: list[tuple[dict[str, HeaderValue], bytes]], cuts: list[int]
) -> None:
    data = b"".join(encode(headers, payload) for headers, payload in messages)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    decoder = Decoder()
    frames = [
        frame for start, end in itertools.pairwise(edges) for frame in decoder.feed(data[start:end])
    ]
    decoder.close()
    assert whole(data) == frames
    assert data == b"".join(frame.raw for frame in frames)


@given(st.binary(max_size=300), st.integers(1, 50))
@example(sealed(b"\x01"), 3)
@example(sealed(b"\x00\x07\x00\x00"), 3)
def test_garbage_is_a_fault_or_unfinished_and_never_another_error(data: bytes, cut: int) -> None:
    decoder = Decoder()
    for at in range(0, len(data), cut):
        for frame in decoder.feed(data[at : at + cut]):
            assert frame.raw in data
    try:
        decoder.close()
    except (Corrupt, Torn):
        assert data


@given(st.binary(max_size=120), st.binary(max_size=20))
def test_any_block_of_headers_parses_or_is_a_fault(block: bytes, payload: bytes) -> None:
    decoder = Decoder()
    frames = decoder.feed(sealed(block, payload))
    assert [payload] == [f.payload for f in frames] or isinstance(decoder.fault, Corrupt)


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii"), min_size=1, max_size=9), VALUES, max_size=5
    ),
    st.binary(max_size=90),
)
def test_botocore_reads_our_frames_as_we_do(
    headers: dict[str, HeaderValue], payload: bytes
) -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(encode(headers, payload))
    (message,) = list(buffer)
    (frame,) = whole(encode(headers, payload))
    assert message.headers == dict(frame.headers)
    assert message.payload == frame.payload


# --- published vectors ------------------------------------------------------------------------


def test_every_published_vector_is_read_or_refused_as_published() -> None:
    require_fixtures()
    seen = {True: 0, False: 0}
    for name, valid, data, vector in vectors():
        decoder = Decoder()
        frames = decoder.feed(data)
        if not valid:
            assert frames == [], name
            assert isinstance(decoder.fault, Corrupt), name
            with pytest.raises(Corrupt):
                decoder.close()
        else:
            decoder.close()
            (frame,) = frames
            (message,) = vector["botocore"]["messages"]
            assert message["headers"] == {k: plain(v) for k, v in frame.headers.items()}, name
            assert base64.b64decode(message["payload"]) == frame.payload, name
            assert data == frame.raw, name
            assert data == encode(frame.headers, frame.payload), name
        seen[valid] += 1
    assert seen[True] >= 29
    assert seen[False] >= 12


def plain(value: HeaderValue) -> object:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def test_recorded_streams_come_out_as_botocore_reads_them() -> None:
    require_fixtures()
    streams = [r for r in recordings(status=200) if r.operation.endswith("Stream")]
    assert len(streams) >= 50
    for recording in streams:
        buffer = EventStreamBuffer()
        buffer.add_data(recording.response)
        theirs = [(message.headers, message.payload) for message in buffer]
        ours = whole(recording.response)
        assert theirs == [(dict(frame.headers), frame.payload) for frame in ours], recording.id
        assert recording.response == b"".join(frame.raw for frame in ours), recording.id
        assert recording.expected["frames"] == len(ours), recording.id


# --- faults ------------------------------------------------------------------------------------


def test_S07_S08_a_stream_that_ends_inside_a_frame_is_torn_at_every_offset() -> None:
    for end in range(1, len(FRAME)):
        decoder = Decoder()
        assert decoder.feed(FRAME + FRAME[:end]) == whole(FRAME)
        assert decoder.fault is None
        with pytest.raises(Torn):
            decoder.close()
    Decoder().close()


def flips_are_caught(module: Any) -> None:
    """Every flipped bit of a frame is a fault at once, and only the frame before it comes out."""
    good = module.Decoder().feed(FRAME)
    for bit in range(len(FRAME) * 8):
        flipped = bytearray(FRAME)
        flipped[bit // 8] ^= 1 << bit % 8
        decoder = module.Decoder()
        assert good == decoder.feed(FRAME + bytes(flipped) + FRAME), bit
        assert isinstance(decoder.fault, module.Corrupt), bit
        assert decoder.feed(FRAME) == [], bit
        with pytest.raises(module.Corrupt):
            decoder.close()


def test_S09_every_flipped_bit_is_caught_and_nothing_corrupt_comes_out() -> None:
    flips_are_caught(eventstream)


def mutant(old: str, new: str) -> types.ModuleType:
    """The module with one check taken out."""
    source = inspect.getsource(eventstream)
    assert source.count(old) == 1
    module = types.ModuleType("bedrock_proxy._mutant")
    sys.modules[module.__name__] = module
    try:
        exec(compile(source.replace(old, new), "<mutant>", "exec"), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    return module


@pytest.mark.parametrize(
    "check",
    [
        "crc32(data[at : at + 8]) != prelude_crc",
        "crc32(data[at + 8 : end - 4], prelude_crc) != CHECKSUM.unpack_from(data, end - 4)[0]",
    ],
    ids=["prelude", "message"],
)
def test_S09_without_either_checksum_the_same_test_fails(check: str) -> None:
    blind = mutant(check, "False")
    assert len(blind.Decoder().feed(FRAME)) == 1
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        flips_are_caught(blind)


HOSTILE = {
    "0": prelude(0, 0),
    "15": prelude(15, 0),
    "2^31": prelude(2**31, 0),
    "2^32-1": prelude(2**32 - 1, 2**32 - 1),
    "headers > total": prelude(100, 85),
    "headers > 128 KiB": prelude(MAX_FRAME, MAX_HEADERS + 1),
    "> 24 MiB": prelude(MAX_FRAME + 1, 0),
}


def lengths_are_refused(module: Any, start: bytes) -> None:
    decoder = module.Decoder()
    tracemalloc.start()
    try:
        frames = [decoder.feed(FRAME)[0].payload]
        assert decoder.feed(start) == []
        assert isinstance(decoder.fault, module.Corrupt)
        for _ in range(40):
            assert decoder.feed(b"\0" * 65_536) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert frames == [b'{"bytes":"eyJhIjoxfQ=="}']
    assert peak <= 1024 * 1024


@pytest.mark.parametrize("start", HOSTILE.values(), ids=HOSTILE)
def test_S10_a_hostile_length_is_refused_with_its_prelude_and_never_allocated(start: bytes) -> None:
    lengths_are_refused(eventstream, start)


@pytest.mark.parametrize(
    ("check", "hostile"),
    [
        ("total < _MIN_FRAME or total > self._max_frame", "> 24 MiB"),
        ("header_length > total - _MIN_FRAME or header_length > MAX_HEADERS", "headers > 128 KiB"),
    ],
)
def test_S10_without_its_bounds_the_same_test_fails(check: str, hostile: str) -> None:
    with pytest.raises(AssertionError):
        lengths_are_refused(mutant(check, "False"), HOSTILE[hostile])


def test_S10_a_length_within_the_bounds_costs_only_what_has_arrived() -> None:
    decoder = Decoder()
    tracemalloc.start()
    try:
        decoder.feed(prelude(MAX_FRAME, 0))
        decoder.feed(b"\0" * 65_536)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert decoder.fault is None
    assert peak <= 1024 * 1024


def test_S10_the_bounds_themselves_are_allowed() -> None:
    data = encode({}, bytes(MAX_FRAME - 16))
    assert len(data) == MAX_FRAME
    assert len(whole(data)) == 1
    with pytest.raises(ValueError, match="longer"):
        encode({}, bytes(MAX_FRAME - 15))


def test_a_large_frame_in_small_pieces_is_not_copied_for_each_piece() -> None:
    """The decoder sees the buffer once the frame is whole: its work is linear."""
    data = encode({}, bytes(2 * 1024 * 1024))
    seen: list[int] = []

    class Watched(Decoder):
        def _decode(self, data: bytes, frames: list[Frame]) -> int:
            seen.append(len(data))
            return super()._decode(data, frames)

    decoder = Watched()
    frames = [
        frame for at in range(0, len(data), 1000) for frame in decoder.feed(data[at : at + 1000])
    ]
    assert len(frames) == 1
    assert seen == [1000, len(data)]


def test_S11_a_header_of_an_unknown_type_ends_the_headers_but_not_the_stream() -> None:
    block = b"\x01a\x00" + b"\x01b\x63whatever" + b"\x01c\x00"
    decoder = Decoder()
    data = sealed(block, b"{}") + FRAME
    frames = decoder.feed(data)
    assert decoder.fault is None
    assert dict(frames[0].headers) == {"a": True}
    assert [b"{}", frames[1].payload] == [frame.payload for frame in frames]
    assert data == b"".join(frame.raw for frame in frames)


MALFORMED = {
    "no name": b"\x00\x00",
    "name cut off": b"\x05ab",
    "no type": b"\x01a",
    "no length": b"\x01a\x07\x00",
    "string cut off": b"\x01a\x07\x00\x05ab",
    "bytes cut off": b"\x01a\x06\x00\x05ab",
    "number cut off": b"\x01a\x05\x00",
    "uuid cut off": b"\x01a\x09" + b"\0" * 15,
    "name not UTF-8": b"\x01\xff\x00",
    "value not UTF-8": b"\x01a\x07\x00\x01\xff",
    "twice": b"\x01a\x00\x01a\x01",
}


@pytest.mark.parametrize("block", MALFORMED.values(), ids=MALFORMED)
def test_malformed_headers_are_a_fault_even_under_valid_checksums(block: bytes) -> None:
    decoder = Decoder()
    assert decoder.feed(FRAME + sealed(block) + FRAME) == whole(FRAME)
    assert isinstance(decoder.fault, Corrupt)


def test_repeated_header_blocks_are_parsed_once_and_cannot_be_spoiled() -> None:
    decoder = Decoder()
    first, second = decoder.feed(FRAME + FRAME)
    assert first.headers is second.headers
    with pytest.raises(TypeError):
        first.headers["x"] = "y"  # type: ignore[index]


def test_the_memory_of_header_blocks_is_bounded() -> None:
    decoder = Decoder()
    for number in range(1000):
        decoder.feed(encode({"n": Int(number)}))
        decoder.feed(encode({"n": "x" * 600 + str(number)}))
    assert len(decoder._blocks) <= 16
    assert all(len(block) <= 512 for block in decoder._blocks)


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"": True}, ValueError),
        ({"n" * 256: True}, ValueError),
        ({"n": Byte(128)}, ValueError),
        ({"n": Short(-32_769)}, ValueError),
        ({"n": Int(2**31)}, ValueError),
        ({"n": Long(2**63)}, ValueError),
        ({"n": Uuid(b"short")}, ValueError),
        ({"n": "x" * 32_768}, ValueError),
        ({str(n): "x" * 32_000 for n in range(5)}, ValueError),
        ({"n": 1}, TypeError),
        ({"n": None}, TypeError),
    ],
)
def test_what_the_wire_cannot_say_is_not_encoded(headers: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        encode(headers)


def test_text_is_the_value_of_a_string_header_only() -> None:
    (frame,) = whole(encode({"a": "x", "b": b"x"}))
    assert frame.text("a") == "x"
    assert frame.text("b") is None
    assert frame.text("c") is None


def test_botocore_refuses_what_we_refuse() -> None:
    """The oracle of the differential tests checks checksums at all."""
    buffer = EventStreamBuffer()
    buffer.add_data(FRAME[:-1] + bytes((FRAME[-1] ^ 1,)))
    with pytest.raises(ChecksumMismatch):
        list(buffer)
