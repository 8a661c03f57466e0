"""The strict JSON front: rows M46 to M61 of RELIABILITY.md, on the body alone."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedrock_proxy.errors import ClientFault, Code
from bedrock_proxy.parts import Json
from bedrock_proxy.strict_json import MAX_DEPTH, MAX_MEMBERS, Source, parse_object

REFUSED = {
    "M46 empty": b"",
    "M47 invalid utf-8": b'{"a": "\xff"}',
    "M47 overlong": b'{"a": "\xc0\xaf"}',
    "M47 encoded surrogate": b'{"a": "\xed\xa0\x80"}',
    "M48 utf-16": '{"a": 1}'.encode("utf-16"),
    "M48 utf-16 without mark": '{"a": 1}'.encode("utf-16-le"),
    "M48 utf-32": '{"a": 1}'.encode("utf-32"),
    "M49 byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "M50 truncated": b'{"a": ',
    "M50 trailing": b'{"a": 1} x',
    "M50 two values": b'{"a": 1}{"b": 2}',
    "M50 single quotes": b"{'a': 1}",
    "M51 array": b"[1]",
    "M51 string": b'"a"',
    "M51 null": b"null",
    "M51 number": b"1",
    "M52 duplicate": b'{"a": 1, "a": 1}',
    "M52 nested duplicate": b'{"x": [{"a": 1, "a": 2}]}',
    "M52 duplicate by escape": b'{"a": 1, "\\u0061": 2}',
    "M53 NaN": b'{"a": NaN}',
    "M53 Infinity": b'{"a": Infinity}',
    "M53 -Infinity": b'{"a": -Infinity}',
    "M53 1e999": b'{"a": 1e999}',
    "M53 -1e999": b'{"a": [-1e999]}',
    "M54 deep": b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
    "M54 very deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "M54 very deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "M55 digits": b'{"a": ' + b"9" * 4_301 + b"}",
    "M56 high surrogate": b'{"a": "\\ud800"}',
    "M56 low surrogate": b'{"a": "\\udc00x"}',
    "M56 in a key": b'{"\\uD83D": 1}',
    "M56 swapped": b'{"a": "\\ude00\\ud83d"}',
    "M50 control character": b'{"a": "\n"}',
}


def source_members(body: bytes) -> dict[str, Json]:
    return Source(body).members


READERS = pytest.mark.parametrize("read", [parse_object, source_members])
Read = Callable[[bytes], dict[str, Json]]


@READERS
@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_one_strict_json_object_is_a_400(body: bytes, read: Read) -> None:
    with pytest.raises(ClientFault) as caught:
        read(body)
    assert (caught.value.code, caught.value.status) == (Code.INVALID_REQUEST, 400)
    assert caught.value.message.endswith(".")


def test_M54_the_deepest_allowed_body_is_read() -> None:
    body = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert "a" in parse_object(body)


def test_M56_a_whole_pair_is_one_character() -> None:
    assert parse_object(b'{"a": "\\ud83d\\ude00"}') == {"a": "😀"}


def test_M59_special_names_are_plain_data() -> None:
    assert parse_object(b'{"__proto__": {"x": 1}, "__class__": 2}') == {
        "__proto__": {"x": 1},
        "__class__": 2,
    }


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON_VALUES, max_size=5),
    st.booleans(),
)
def test_any_json_object_is_read_as_the_standard_library_reads_it(
    value: dict[str, object], ascii_only: bool
) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert json.loads(body) == parse_object(body)


OBJECTS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"])), JSON_VALUES, max_size=5
)
BLANKS = st.text(" \t\n\r", max_size=2)


@st.composite
def written(draw: st.DrawFn) -> tuple[dict[str, object], str, dict[str, str]]:
    """An object, a way to write it, and how each of its members is written there."""
    value = draw(OBJECTS)
    members: dict[str, str] = {}
    for name, member in value.items():
        indent = draw(st.none() | st.just(1))
        ascii_only = draw(st.booleans())
        said = json.dumps(member, ensure_ascii=ascii_only, indent=indent)
        key = json.dumps(name, ensure_ascii=ascii_only)
        members[name] = f"{key}{draw(BLANKS)}:{draw(BLANKS)}{said}"
    inside = ",".join([f"{draw(BLANKS)}{said}{draw(BLANKS)}" for said in members.values()])
    return value, f"{draw(BLANKS)}{{{inside or draw(BLANKS)}}}{draw(BLANKS)}", members


@given(written(), st.data())
def test_any_of_its_members_go_on_as_they_were_written(
    sent: tuple[dict[str, object], str, dict[str, str]], data: st.DataObject
) -> None:
    value, text, members = sent
    source = Source(text.encode())
    assert source.members == value
    names = [name for name in members if data.draw(st.booleans())]
    assert source.only(names) == f"{{{','.join([members[name] for name in names])}}}".encode()


@pytest.mark.parametrize("more", [0, 1, 1_000])
def test_many_members_are_written_anew(more: int) -> None:
    text = ", ".join([f'"m{number}": 1.50' for number in range(MAX_MEMBERS + more)])
    source = Source(f"{{{text}}}".encode())
    assert len(source.members) == MAX_MEMBERS + more
    assert source.only(["m0", "m9"]) == (
        b'{"m0":1.5,"m9":1.5}' if more else b'{"m0": 1.50,"m9": 1.50}'
    )
    with pytest.raises(ClientFault, match="same key twice"):
        Source(f'{{{text}, "m1": 2}}'.encode())


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """JSON of an object with a few characters of its own put in, taken away or exchanged."""
    text = draw(written())[1]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        put = draw(st.sampled_from([*'{}[]":,\\ \n\x0b\u20280e-.n', "", '"a":1', "NaN", '"a"']))
        text = text[:at] + put + text[at + draw(st.integers(0, 2)) :]
    return text.encode()


@given(spoilt())
def test_member_by_member_nothing_else_is_taken_or_said(body: bytes) -> None:
    try:
        plain = parse_object(body)
    except ClientFault as fault:
        with pytest.raises(ClientFault) as caught:
            Source(body)
        assert caught.value.message == fault.message
    else:
        source = Source(body)
        assert repr(source.members) == repr(plain)
        assert repr(parse_object(source.only(plain))) == repr(plain)


@READERS
@given(body=st.binary(max_size=60))
def test_garbage_is_read_or_refused_and_nothing_else(read: Read, body: bytes) -> None:
    try:
        read(body)
    except ClientFault as fault:
        assert fault.status == 400
