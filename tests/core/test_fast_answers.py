"""The fast way through a stream gives what the obvious way gives, after every single read."""

import base64
import json
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.plain_answer import PlainAnswer, array, sse
from tests.fixtures import Recording, recordings, require_fixtures
from tests.flows import request

from bedrock_proxy import answers, patterns
from bedrock_proxy.answers import ConverseFrames, InvokeFrames, StreamedAnswer
from bedrock_proxy.dialects import simple
from bedrock_proxy.eventstream import Decoder, encode
from bedrock_proxy.models import family_of
from bedrock_proxy.models.names import parse_model_id
from bedrock_proxy.parts import Part
from bedrock_proxy.sent import NOTHING_SENT

CLAUDE = "anthropic.claude-3-haiku-20240307-v1:0"
MODELS = [
    CLAUDE,
    "amazon.nova-lite-v1:0",
    "amazon.titan-text-express-v1",
    "meta.llama3-8b-instruct-v1:0",
    "mistral.mistral-7b-instruct-v0:2",
    "cohere.command-text-v14",
    "cohere.command-r-v1:0",
    "ai21.jamba-1-5-mini-v1:0",
    "openai.gpt-oss-20b-1:0",
    "qwen.qwen3-32b-v1:0",
    "of.nobody-knows",
]


def frame(kind: str, payload: bytes, message: str = "event") -> bytes:
    return encode(
        {":event-type": kind, ":content-type": "application/json", ":message-type": message},
        payload,
    )


def chunk(document: bytes, padding: str | None = "abcdefgh") -> bytes:
    inner = base64.b64encode(document).decode()
    tail = "" if padding is None else f',"p":"{padding}"'
    return frame("chunk", f'{{"bytes":"{inner}"{tail}}}'.encode())


def pieces(stream: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for begin, end in pairwise(places):
        yield stream[begin:end]


def reader_of(model: str | None) -> Any:
    return None if model is None else family_of(parse_model_id(model).canonical).reader()


def fast(model: str | None, *, keep_frames: bool = False) -> StreamedAnswer:
    reader = reader_of(model)
    frames = ConverseFrames() if reader is None else InvokeFrames(reader)
    return StreamedAnswer(frames, keep_frames=keep_frames)


def compare(model: str | None, stream: bytes, cuts: Sequence[int]) -> None:
    """The parts, both formats of the simple dialect, and the frames passed on, read by read."""
    ways = {
        (kind, full): simple.Streamed(fast(model), kind(full, "r"))
        for kind in (simple._Events, simple._Array)
        for full in (False, True)
    }
    bare, native, plain = fast(model), fast(model, keep_frames=True), PlainAnswer(reader_of(model))
    wrote = {False: False, True: False}

    def check(fed: Callable[[Any], Any], expected: list[Part], passed: bytes) -> None:
        assert fed(bare) == expected
        fed(native)
        assert native.passed is not None
        assert b"".join(native.passed) == passed
        native.passed.clear()
        for (kind, full), way in ways.items():
            said = fed(way)
            events = kind is simple._Events
            before = wrote[full]
            would = sse(expected, full) if events else array(expected, full, before)
            if plain.fault is None and fed is end:
                would += way._writer.end(plain.meter.usage)
                if not events and not before and not array(expected, full, before):
                    assert said.startswith(b"[")
                    continue
            assert said == would
        for full in (False, True):
            wrote[full] = wrote[full] or bool(array(expected, full, False))
        for way in (bare, native, *ways.values()):
            answer = way._answer if isinstance(way, simple.Streamed) else way
            assert answer.meter.usage == plain.meter.usage
            assert answer.meter.seen_output_tokens == plain.meter.seen_output_tokens
            assert answer.frames == plain.frames
            assert answer.ended == plain.ended
            assert (answer.fault is None) == (plain.fault is None)

    def end(way: Any) -> Any:
        return way.finish()

    for piece in pieces(stream, cuts):

        def feed(way: Any, piece: bytes = piece) -> Any:
            return way.feed(piece)

        before = len(plain.passed)
        check(feed, plain.feed(piece), b"".join(plain.passed[before:]))
        plain.passed = plain.passed[:0]
    check(end, plain.finish(), b"")


STREAMED = {"InvokeModelWithResponseStream", "ConverseStream"}
STREAMS = [one for one in recordings(status=200) if one.operation in STREAMED] or [None]


@pytest.mark.parametrize("recording", STREAMS, ids=lambda one: "absent" if one is None else one.id)
def test_every_recording_in_any_chunking(recording: Recording | None) -> None:
    if recording is None:
        require_fixtures()
    assert recording is not None
    model = None if recording.operation == "ConverseStream" else recording.model_id
    rng = random.Random(recording.id)
    size = len(recording.response)
    compare(model, recording.response, [])
    compare(model, recording.response, range(0, size, 1 + size // 400))
    for _ in range(4):
        compare(model, recording.response, rng.sample(range(size), min(size, rng.randint(1, 60))))


# --- made-up streams -----------------------------------------------------------------------------

TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "Hello", " world", "text", "text_delta", "delta", ",", '","', '"', "\\", "\n", "\x7f",
         "é", "\u2028", "<reasoning>", "</reasoning>", "a:b", "index", "type", "😀", "\x85"]
    ),
)  # fmt: skip


def spelled(draw: Callable[[st.SearchStrategy[Any]], Any], event: Any) -> bytes:
    """*event* as JSON, in one of the spellings that JSON allows."""
    compact = draw(st.booleans())
    said = json.dumps(
        event,
        ensure_ascii=draw(st.booleans()),
        separators=(",", ":") if compact else (", ", ": "),
    )
    if draw(st.integers(0, 15)) == 0:
        said = draw(st.sampled_from([f" {said}", f"{said}\n", said[:-1], f"{said}}}", f"[{said}]",
                                     said.replace("e", "\\u0065", 1)]))  # fmt: skip
    return said.encode("utf-8", "surrogatepass")


@st.composite
def claude_event(draw: Any) -> bytes:
    text = draw(TEXTS)
    kind = draw(st.sampled_from(["text_delta"] * 6 + ["thinking_delta", "input_json_delta", "x"]))
    field = {"thinking_delta": "thinking", "input_json_delta": "partial_json"}.get(kind, "text")
    event: Any = draw(
        st.sampled_from(
            [
                {"type": "content_block_delta", "index": 0, "delta": {"type": kind, field: text}},
                {"type": "content_block_delta", "index": 0, "delta": {"type": kind, field: text}},
                {"delta": {field: text, "type": kind}, "type": "content_block_delta"},
                {"type": "ping"},
                {"type": "content_block_start", "index": 1,
                 "content_block": {"type": "tool_use", "id": "t", "name": text, "input": {}}},
                {"type": "message_delta", "delta": {"stop_reason": text or None},
                 "usage": {"output_tokens": len(text)}},
                {"completion": text, "stop_reason": None},
                {"completion": text, "amazon-bedrock-invocationMetrics": {"outputTokenCount": 3}},
            ]
        )
    )  # fmt: skip
    return spelled(draw, event)


@st.composite
def other_event(draw: Any) -> bytes:
    text = draw(TEXTS)
    event: Any = draw(
        st.sampled_from(
            [
                {"contentBlockDelta": {"delta": {"text": text}, "contentBlockIndex": 0}},
                {"outputText": text, "index": 0, "totalOutputTextTokenCount": None,
                 "completionReason": None, "inputTextTokenCount": 7},
                {"generation": text, "prompt_token_count": None, "generation_token_count": 2,
                 "stop_reason": None},
                {"outputs": [{"text": text, "stop_reason": None}]},
                {"text": text, "is_finished": False, "index": 1},
                {"event_type": "text-generation", "text": text, "is_finished": False},
                {"event_type": "stream-end", "response": {"text": text}, "finish_reason": "C"},
                {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]},
                {"choices": [{"index": 0, "delta": {"content": text}}], "model": "gpt-oss"},
                {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
                {"type": "response.output_text.delta", "delta": text},
            ]
        )
    )  # fmt: skip
    return spelled(draw, event)


@st.composite
def invoke_stream(draw: Any, events: st.SearchStrategy[bytes]) -> bytes:
    frames = []
    for document in draw(st.lists(events, max_size=12)):
        # Text that comes twice alike is what patterns are learned from.
        for _ in range(draw(st.integers(1, 2))):
            padding = draw(st.sampled_from([None, "", "a", "abcdefghijk", "_", 'x","q":"1']))
            frames.append(chunk(document, padding))
    if draw(st.integers(0, 9)) == 0:
        frames.append(draw(st.sampled_from([
            frame("chunk", b'{"bytes":"e30"}'), frame("chunk", b'{"bytes":"e30=","p":"a"'),
            frame("chunk", b'{"bytes":"\\u006530="}'), frame("chunk", b'{"bytes":"e30=" ,"p":"a"}'),
            frame("chunk", b'{"p":"a","bytes":"e30="}'), frame("chunk", b"{}"), frame("chunk", b""),
            frame("later", b"not json"), frame("later", b'{"bytes":"e30="}'),
            frame("x", b"{}", "exception"), frame("chunk", b'{"bytes":"e30="}', "odd"),
            frame("chunk", b'{"bytes":"e30=","bytes":"e30="}'), b"\x00" * 40,
        ])))  # fmt: skip
    return b"".join(frames)


CUTS = st.lists(st.integers(0, 10**6), max_size=20)


@settings(max_examples=150)
@given(stream=invoke_stream(claude_event()), cuts=CUTS)
def test_any_stream_of_claudes(stream: bytes, cuts: list[int]) -> None:
    compare(CLAUDE, stream, cuts)


@settings(max_examples=200)
@given(
    model=st.sampled_from(MODELS),
    stream=invoke_stream(st.one_of(other_event(), other_event(), claude_event())),
    cuts=CUTS,
)
def test_any_stream_of_any_family(model: str, stream: bytes, cuts: list[int]) -> None:
    compare(model, stream, cuts)


@st.composite
def converse_stream(draw: Any) -> bytes:
    frames = []
    for text in draw(st.lists(TEXTS, max_size=12)):
        kind, event = draw(
            st.sampled_from(
                [
                    ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": text}}),
                    ("contentBlockDelta", {"delta": {"text": text}, "contentBlockIndex": 0}),
                    ("contentBlockDelta", {"delta": {"reasoningContent": {"text": text}}}),
                    ("contentBlockDelta", {"delta": {"toolUse": {"input": text}}}),
                    ("contentBlockStart", {"start": {"toolUse": {"toolUseId": text, "name": "n"}}}),
                    ("messageStop", {"stopReason": text}),
                    ("metadata", {"usage": {"inputTokens": 1, "outputTokens": len(text)}}),
                    ("later", {"text": text}),
                ]
            )
        )
        padding = draw(st.sampled_from([None, "abc", "", "_"]))
        for _ in range(draw(st.integers(1, 2))):
            padded = event if padding is None else {**event, "p": padding}
            frames.append(frame(kind, spelled(draw, padded)))
    return b"".join(frames)


@settings(max_examples=150)
@given(stream=converse_stream(), cuts=CUTS)
def test_any_stream_of_converse(stream: bytes, cuts: list[int]) -> None:
    compare(None, stream, cuts)


# --- the patterns themselves -----------------------------------------------------------------------


def hello(text: str) -> bytes:
    event = {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": text},
    }
    return json.dumps(event, ensure_ascii=False).encode()


def test_most_events_of_a_stream_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all of the above would compare the obvious way with itself."""
    parsed = 0
    loads = answers._loads

    def counted(document: bytes) -> Any:
        nonlocal parsed
        parsed += 1
        return loads(document)

    monkeypatch.setattr(answers, "_loads", counted)
    answer = fast(CLAUDE)
    answer.feed(b"".join(chunk(hello(f" word é {number}"), "abc") for number in range(100)))
    answer.feed(chunk(hello("last word")))
    assert answer.frames == 101
    assert parsed == 101  # digits teach nothing
    answer.feed(chunk(hello("\n")) + chunk(hello('"')))
    assert parsed == 101
    parsed = 0
    answer.feed(b"".join(chunk(hello(f" word é {number}"), "abcd") for number in range(100)))
    assert parsed == 0


def delta(text: bytes, padding: bytes = b"ab") -> bytes:
    """The same of Converse."""
    payload = b'{"contentBlockIndex":0,"delta":{"text":"%b"},"p":"%b"}' % (text, padding)
    return frame("contentBlockDelta", payload)


def with_another_prelude_checksum(sound: bytes) -> bytes:
    """A frame whose own checksum goes on from a wrong one of its prelude."""
    wrong = crc32(sound[:8]) ^ 1
    message = sound[:8] + wrong.to_bytes(4, "big") + sound[12:-4]
    return message + crc32(sound[12:-4], crc32(wrong.to_bytes(4, "big"), wrong)).to_bytes(4, "big")


def summed(prelude: bytes, rest: bytes, checksum: int | None = None) -> bytes:
    """A frame of *rest* behind the two lengths in *prelude*, its checksums right unless given."""
    said = crc32(prelude) if checksum is None else checksum
    message = prelude + said.to_bytes(4, "big") + rest
    return message + crc32(message).to_bytes(4, "big")


def with_a_wrong_prelude_checksum(sound: bytes) -> bytes:
    """A frame whose own checksum is right, also of its prelude's, which is not."""
    return summed(sound[:8], sound[12:-4], crc32(sound[:8]) ^ 1)


def with_another_header_length(sound: bytes) -> bytes:
    """A frame whose checksums are right, and which says that its headers are shorter."""
    shorter = int.from_bytes(sound[4:8], "big") - 1
    return summed(sound[:4] + shorter.to_bytes(4, "big"), sound[12:-4])


EVENT = hello("again")
ENCODED = base64.b64encode(EVENT)


@pytest.mark.parametrize(
    ("model", "third"),
    [
        (CLAUDE, with_another_prelude_checksum(chunk(EVENT))),
        (None, with_another_prelude_checksum(delta(b"again"))),
        (CLAUDE, with_a_wrong_prelude_checksum(chunk(EVENT))),
        (None, with_a_wrong_prelude_checksum(delta(b"again"))),
        (CLAUDE, with_another_header_length(chunk(EVENT))),
        (None, with_another_header_length(delta(b"again"))),
        (CLAUDE, frame("chunX", b'{"bytes":"%b"}' % ENCODED)),
        (CLAUDE, frame("chunk", b'{"bytes":"%b"}' % ENCODED, "evenX")),
        (None, frame("contentBlockDeltX", b'{"contentBlockIndex":0,"delta":{"text":"again"}}')),
        (CLAUDE, chunk(EVENT.replace(b"block_delta", b"block_deltX"))),
        (CLAUDE, chunk(EVENT.replace(b"text_delta", b"text_deltX"))),
        (CLAUDE, frame("chunk", b'{"Xytes":"%b"}' % ENCODED)),
        (CLAUDE, frame("chunk", b'{"bytes":"%babcdefxyz"}' % (ENCODED + b'"'))),
        (CLAUDE, frame("chunk", b'{"bytes":"%b","q":"abc"}' % ENCODED)),
        (CLAUDE, frame("chunk", b'{"bytes":"%b","p":"abc]]' % ENCODED)),
        (CLAUDE, frame("chunk", b'{"bytes":"%b","p":"abc"]' % ENCODED)),
        (CLAUDE, frame("chunk", b'{"bytes":"%b","p":"}' % ENCODED)),
        (CLAUDE, frame("chunk", b'{"bytes":"%b!%b"}' % (ENCODED[:-4], ENCODED[-4:]))),
        (CLAUDE, chunk(EVENT[:-1] + b"]")),
        (CLAUDE, chunk(EVENT[:-2] + b"x}")),
        (CLAUDE, chunk(EVENT.replace(b'"again"', b"'again\""))),
        (CLAUDE, chunk(EVENT.replace(b'"again"', b'xagain"'))),
        (CLAUDE, chunk(EVENT.replace(b'"again"', b'"again", "text":"other"'))),
        (CLAUDE, chunk(EVENT, 'a","bytes":"' + base64.b64encode(hello("other")).decode())),
        (CLAUDE, chunk(EVENT, 'a","bytes":"')),
        (CLAUDE, chunk(EVENT, "")),
        (CLAUDE, chunk(EVENT, "a b")),
        (CLAUDE, chunk(EVENT, "\u00e9")),
        (CLAUDE, frame("chunk", b'{"bytes":"' + base64.b64encode(EVENT)[:-1] + b'"}')),
        (CLAUDE, frame("chunk", b'{"bytes":"' + base64.b64encode(EVENT) + b'"')),
        (CLAUDE, frame("chunk", b'{"bytes":"' + base64.b64encode(EVENT))),
        (None, delta(b"again", b'a","delta":{"text":"other"},"p":"b')),
        (None, delta(b"again", b"")),
        (None, delta(b"again", b"a b")),
        (None, delta(b'again","more":"')),
        (None, frame("contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"text":"again"}]')),
        (None, frame("contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"text":"again"')),
    ],
)
def test_S06_what_nearly_looks_like_the_last_frame_is_read_for_what_it_is(
    model: str | None, third: bytes
) -> None:
    """One by one, so that nothing but the third itself is new when it comes."""
    known = [delta(b"Hello"), delta(b"other")] if model is None else []
    known = known or [chunk(hello("Hello")), chunk(hello("other"))]
    stream = b"".join([*known, third, known[0]])
    sizes = [len(known[0]), len(known[1]), len(third)]
    compare(model, stream, [sum(sizes[:n]) for n in range(1, 4)])


@pytest.mark.parametrize("model", [CLAUDE, None], ids=["invoke", "converse"])
def test_frames_that_look_like_the_last_need_no_decoder(
    model: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the tests above would compare the other way with itself."""
    answer = fast(model)
    words = [b"Hello", b"more", b"of it \xc3\xa9", b"a\\nline"]
    said = [delta(word) for word in words]
    if model is not None:
        said = [chunk(hello("QQ").replace(b"QQ", word), "pad" * len(word)) for word in words]
        said[0] = chunk(hello("Hello"))
    answer.feed(said[0])
    scanned: list[bytes] = []
    monkeypatch.setattr(Decoder, "scan", lambda _, data: scanned.append(data) or [])
    answer.feed(b"".join(said[1:]))
    answer.feed(said[1])
    assert not scanned
    assert answer.frames == 5


def test_a_frame_that_is_too_long_is_left_to_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    known, longer = chunk(hello("Hello")), chunk(hello("Hello"), "p" * 400)
    answer = fast(CLAUDE)
    answer.feed(known)
    pattern = answer._pattern
    assert pattern is not None
    monkeypatch.setattr(patterns, "MAX_FRAME", len(known))
    assert pattern.texts(known + longer) == (["Hello"], len(known))
    monkeypatch.undo()
    assert pattern.texts(known + longer) == (["Hello", "Hello"], len(known + longer))


@pytest.mark.parametrize("model", [CLAUDE, None], ids=["invoke", "converse"])
def test_S06_no_flipped_bit_of_a_frame_that_looks_like_the_last_is_passed_over(
    model: str | None,
) -> None:
    """What is known of a frame before it comes must be checked in it all the same."""
    texts = ["Hello", "other", "again"]
    if model is None:
        payloads = [
            b'{"contentBlockIndex":0,"delta":{"text":"%b"},"p":"ab"}' % t.encode() for t in texts
        ]
        first, second, third = (frame("contentBlockDelta", payload) for payload in payloads)
    else:
        first, second, third = (chunk(hello(text)) for text in texts)
    for bit in range(8 * len(third)):
        flipped = bytearray(third)
        flipped[bit // 8] ^= 1 << bit % 8
        answer, plain = fast(model), PlainAnswer(reader_of(model))
        for piece in (first, second, bytes(flipped) + third):
            assert answer.feed(piece) == plain.feed(piece)
            assert answer.frames == plain.frames
            assert (answer.fault is None) == (plain.fault is None)
        assert answer.fault is not None or answer._decoder.pending  # a longer one: it waits


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (b'{"text":"text"}', "text"),
        (b'{"Hello":"\\u0048ello"}', "Hello"),
        (b'{"Hello" : 1, "a":"\\u0048ello"}', "Hello"),
        (b'{"a":1,"b":"\\u002c"}', ","),
        (b'{"a":"Hello","b":"Hello"}', "Hello"),
        (b'{"a":"say \\"Hello\\""}', "Hello"),
        (b'{"a":""}', ""),
    ],
)
def test_where_the_place_of_the_text_is_in_doubt_nothing_is_learned(
    document: bytes, text: str
) -> None:
    assert patterns.learned({}, b"", document, text, 0, wrapped=True) is None


@pytest.mark.parametrize(
    "piece",
    [b'a"b', b"a\\", b"a\nb", b"\x00", b"\x1f", b"\xff", b"\xed\xa0\x80", b"", b'","u":"', b"\\x"],
)
def test_what_is_not_the_inside_of_a_string_does_not_fit(piece: bytes) -> None:
    pattern = patterns.learned({}, b"", b'{"t":"Hello","n":1}', "Hello", 0, wrapped=True)
    assert pattern is not None
    assert pattern.text(b'{"t":"other","n":1}') == "other"
    assert pattern.text(b'{"t":"a\\n\\u00e9\\"b","n":1}') == 'a\né"b'
    assert pattern.text(b'{"t":"' + piece + b'","n":1}') is None


@pytest.mark.parametrize("guard", ["isprintable", "count", "steady"])
def test_the_comparison_finds_out_a_pattern_without_its_guard(
    guard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loose(
        headers: Any, block: bytes, document: bytes, text: str, index: int, *, wrapped: bool
    ) -> Any:
        quoted = b'"%b"' % text.encode()
        if not text or quoted not in document:
            return None
        at = document.index(quoted) + 1
        head, tail = document[:at], document[at + len(quoted) - 2 :]
        return patterns.Pattern(headers, block, head, tail, index, wrapped=wrapped)

    if guard == "count":
        monkeypatch.setattr(answers, "learned", loose)
        stream = chunk(b'{"b":1,"completion":"b"}') + chunk(b'{"other":1,"completion":"b"}')
        model = CLAUDE
    elif guard == "steady":
        monkeypatch.setattr(answers.InvokeFrames, "__init__", _always_steady)
        texts = ["Hello", "<reasoning>", "hidden"]
        stream = b"".join(
            chunk(json.dumps({"choices": [{"delta": {"content": text}}]}).encode())
            for text in texts
        )
        model = "openai.gpt-oss-20b-1:0"
    else:
        monkeypatch.setattr(patterns, "_text", bytes.decode)
        stream = chunk(hello("Hello")) + chunk(hello("a").replace(b'"a"', b'"\\n"'))
        model = CLAUDE
    with pytest.raises(AssertionError):
        compare(model, stream, [])


def _always_steady(self: Any, reader: Any) -> None:
    self._reader = reader
    self.steady = True


def test_the_request_of_this_file_is_what_the_dialect_takes() -> None:
    """The writers compared above are those that the dialect chooses."""
    body = json.dumps({"modelId": CLAUDE, "stream": True, "messages": []}).encode()
    made = simple.SIMPLE.call(request(), body, "invoke", None).translation(NOTHING_SENT)
    assert isinstance(made, simple.Streamed)
    assert isinstance(made._writer, simple._Events)
