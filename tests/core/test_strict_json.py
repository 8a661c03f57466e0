"""The strict JSON front: rows M46 to M61 of RELIABILITY.md, on the body alone."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.measured import cpu_of

from bedrock_proxy.errors import ClientFault, Code
from bedrock_proxy.strict_json import (
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_MEMBERS,
    MAX_VALUES,
    parse_object,
    without,
)

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
    "M55 digits": b'{"a": ' + b"9" * (MAX_DIGITS + 1) + b"}",
    "M55 digits below 0": b'{"a": [-' + b"1" * (MAX_DIGITS + 1) + b"]}",
    "M55 as many as Python reads": b'{"a": ' + b"9" * 4_300 + b"}",
    "M55 more than Python reads": b'{"a": ' + b"9" * 4_301 + b"}",
    "M56 high surrogate": b'{"a": "\\ud800"}',
    "M56 low surrogate": b'{"a": "\\udc00x"}',
    "M56 in a key": b'{"\\uD83D": 1}',
    "M56 swapped": b'{"a": "\\ude00\\ud83d"}',
    "M50 control character": b'{"a": "\n"}',
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_one_strict_json_object_is_a_400(body: bytes) -> None:
    with pytest.raises(ClientFault) as caught:
        parse_object(body)
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


# --- bodies of very many values -------------------------------------------------------------

MANY = "0," * 60_000
"""So many values that they are counted before they are read."""


def size(value: object) -> int:
    """Its values, as they count: what is in an array or an object; and 1 for an empty one."""
    if not isinstance(value, dict | list):
        return 0
    inner = list(value.values()) if isinstance(value, dict) else value
    return max(1, len(inner)) + sum(map(size, inner))


PUNCTUATED = st.recursive(
    st.integers() | st.text('",:[]{}\\\\\n u\u00e4\U0001f600', max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text('",[{\\:', max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=40, deadline=None)
@given(PUNCTUATED, st.booleans(), st.none() | st.just(1))
def test_M61_a_body_may_hold_so_many_values_and_no_more_whatever_its_strings_hold(
    value: object, ascii_only: bool, indent: int | None
) -> None:
    said = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    left = MAX_VALUES - 2 - size(value)
    zeros = "0," * (left - 1) + "0"
    full = f'{{"value": {said}, "zeros": [{zeros}]}}'.encode()
    assert parse_object(full) == {"value": value, "zeros": [0] * left}
    with pytest.raises(ClientFault) as caught:
        parse_object(full.replace(b'"zeros": [', b'"zeros": [0,'))
    assert (caught.value.code, caught.value.status) == (Code.TOO_LARGE, 413)
    assert "100,000" in caught.value.message


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON_VALUES, max_size=5),
    st.booleans(),
)
def test_M61_what_is_counted_is_read_like_what_is_not(
    value: dict[str, object], ascii_only: bool
) -> None:
    said = json.dumps(value, ensure_ascii=ascii_only)
    many = f'{{"many": [{MANY}0], "value": {said}}}'
    assert repr(parse_object(many.encode())["value"]) == repr(json.loads(said))


DIGITS = "0123456789"


@given(
    st.text("123456789", min_size=1, max_size=1),
    st.integers(MAX_DIGITS - 2, MAX_DIGITS + 25),
    st.sampled_from(["", "-"]),
    st.text(DIGITS + 'x",\\', max_size=400),
    st.text(" \n", max_size=12),
    st.sampled_from(["", ".5", "e5", "E-400", "." + "7" * 4_400]),
    st.booleans(),
)
def test_M55_an_integer_has_so_many_digits_and_no_more_wherever_it_is_and_whoever_reads_it(
    first: str, digits: int, sign: str, text: str, blanks: str, rest: str, many: bool
) -> None:
    number = sign + first + "0123456789"[int(first) :] * 100
    number = number[: digits + len(sign)] + rest
    more = f', "many": [{MANY}0]' if many else ""
    body = f'{{"text": {json.dumps(text)},{blanks}"value": [{number}, "{number}"]{more}}}'.encode()
    if rest or digits <= MAX_DIGITS:
        assert parse_object(body)["value"] == [json.loads(number), number]
        return
    with pytest.raises(ClientFault, match=f"integer of more than {MAX_DIGITS} digits") as caught:
        parse_object(body)
    assert (caught.value.code, caught.value.status) == (Code.INVALID_REQUEST, 400)


ROWS = ("M50", "M52", "M53", "M54", "M55", "M56")


@pytest.mark.parametrize("name", [name for name in REFUSED if name.startswith(ROWS)])
@pytest.mark.parametrize("before", [True, False])
def test_M61_what_is_counted_is_as_strictly_read(name: str, before: bool) -> None:
    body = REFUSED[name]
    with pytest.raises(ClientFault) as plain:
        parse_object(body)
    many = f'"many": [{MANY}0]'.encode()
    body = b'{%b, "value": %b}' % (many, body) if before else b'{"value": %b, %b}' % (body, many)
    with pytest.raises(ClientFault) as caught:
        parse_object(body)
    assert caught.value.code is Code.INVALID_REQUEST
    if not name.startswith("M50"):  # there the place is said
        assert caught.value.message == plain.value.message


@pytest.mark.parametrize(
    "piece", [",{[", '\\",', "\\n,", "\\\\,", '{\\"a\\": [1, 2]},\\n', "\\u00e4,", "\u00e4,"]
)
def test_a_body_of_one_long_string_is_read_whatever_is_in_it(piece: str) -> None:
    text = piece * (19 * 1024 * 1024 // len(piece.encode()))
    assert len(str(parse_object(f'{{"a": "{text}"}}'.encode())["a"])) > MAX_VALUES


def _tried(body: bytes) -> Code | None:
    try:
        parse_object(body)
    except ClientFault as fault:
        return fault.code
    return None


@pytest.mark.parametrize(
    "piece",
    [
        "{},",
        "[],",
        '{"a":0},',
        "[[0]],",
        '"",',
        "0,",
        '"\\"",',
        '"\\\\",',
        "1e5,",
        '{"k":{"k":[]}},',
    ],
)
def test_M61_T08_very_many_values_are_refused_in_less_time_than_they_are_read(piece: str) -> None:
    body = f'{{"messages": [{piece * (1_500_000 // len(piece))}0]}}'.encode()
    assert _tried(body) is Code.TOO_LARGE
    assert cpu_of(lambda: _tried(body)) < cpu_of(lambda: json.loads(body))


@pytest.mark.parametrize("digits", [MAX_DIGITS + 1, 1_000, 4_299, 100_000])
@pytest.mark.parametrize("before", ["", "0," * 40_000])
def test_M55_T08_long_integers_are_refused_in_less_time_than_text_is_read(
    digits: int, before: str
) -> None:
    numbers = ",".join(["1" * digits] * (1_500_000 // digits))
    body = f'{{"messages": [{before}{numbers}]}}'.encode()
    text = f'{{"messages": [{before}"{numbers}"]}}'.encode()
    assert _tried(body) is Code.INVALID_REQUEST
    # The slowest text: every byte of it is looked at before it is read.
    assert cpu_of(lambda: _tried(body)) < 2 * cpu_of(lambda: _tried(text))


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        ('{"a": "', ","),
        ('{"a": "', "\\"),
        ('{"a": "', '\\"'),
        ("", '\\"'),
        ("", '"\\'),
        ("", '"'),
        ("", "["),
        ("", "]"),
        ("", '{"a":'),
    ],
)
def test_M61_garbage_is_refused_in_a_time_that_grows_with_its_length(
    begin: str, piece: str
) -> None:
    def body(length: int) -> bytes:
        return f"{begin}{piece * (length // len(piece))}{',' * 60_000}".encode()

    small, large = body(1_000_000), body(4_000_000)
    assert _tried(small) is not None
    assert _tried(large) is not None
    assert cpu_of(lambda: _tried(large)) < 10 * cpu_of(lambda: _tried(small))


# --- a body without what is not for Bedrock -------------------------------------------------

NAMES = ("modelId", "model", "stream", "stream_events")
KEYS = st.sampled_from(NAMES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
BLANKS = st.text(" \t\n\r", max_size=2)


@st.composite
def spelled(draw: st.DrawFn, name: str) -> str:
    """A name as JSON, with some of its characters as escapes."""
    if draw(st.integers(0, 3)):
        return json.dumps(name, ensure_ascii=draw(st.booleans()))
    escaped = [
        f"\\u{ord(c):04x}" if draw(st.booleans()) and ord(c) < 0x10000 else json.dumps(c)[1:-1]
        for c in name
    ]
    return '"' + "".join(escaped) + '"'


@st.composite
def written(draw: st.DrawFn) -> tuple[dict[str, object], list[str], list[str]]:
    """An object, and its text: the blanks around its punctuation, and what each member is there."""
    values = st.sampled_from(NAMES) | st.dictionaries(KEYS, JSON_VALUES, max_size=2) | JSON_VALUES
    value: dict[str, object] = dict(draw(st.dictionaries(KEYS, values, max_size=5)))
    members: list[str] = []
    for name, member in value.items():
        said = json.dumps(
            member, ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.just(1))
        )
        members.append(f"{draw(spelled(name))}{draw(BLANKS)}:{draw(BLANKS)}{said}")
    return value, [draw(BLANKS) for _ in range(2 * len(members) + 3)], members


@given(written(), st.data())
def test_without_some_of_its_members_the_others_are_as_they_were_written(
    sent: tuple[dict[str, object], list[str], list[str]], data: st.DataObject
) -> None:
    value, blanks, members = sent
    between = iter(blanks)
    inside = ",".join([f"{next(between)}{said}{next(between)}" for said in members])
    text = f"{next(between)}{{{inside or next(between)}}}{next(between)}"
    assert parse_object(text.encode()) == value
    taken = {name for name in value if name in NAMES and data.draw(st.booleans())}
    # The comparison of reprs tells 1 from 1.0, and the order of the members.
    rest = {
        name: member for name, member in parse_object(text.encode()).items() if name not in taken
    }
    left = without(text, taken, rest)
    assert repr(parse_object(left.encode())) == repr(rest)
    at = 0
    for said in [said for name, said in zip(value, members, strict=True) if name not in taken]:
        found = left.index(said, at)
        assert left[at:found].strip(" \t\n\r,{") == ""
        at = found + len(said)
    assert left[at:].strip(" \t\n\r{") == "}"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('{"modelId": "m", "a": 1.50}', '{"a": 1.50}'),
        ('{"a": 1.50, "modelId": "m"}', '{"a": 1.50}'),
        ('{ "modelId" : "m" }', "{ }"),
        ('{"a": 1, "modelId": "m", "b": 2}\n', '{"a": 1, "b": 2}\n'),
        ('{"a": {"modelId": 1}, "modelId": "m"}', '{"a": {"modelId": 1}}'),
        ('{"a": "modelId", "modelId": "modelId"}', '{"a": "modelId"}'),
        (r'{"a": "\"modelId", "modelId": "m"}', r'{"a": "\"modelId"}'),
        (r'{"a": {"modelId": 1}, "model\u0049d": "m"}', '{"a": {"modelId": 1}}'),
        (r'{"a": "\u00e4", "modelId": "m"}', r'{"a": "\u00e4"}'),
    ],
)
def test_the_member_itself_is_left_out_and_nothing_that_looks_like_it(text: str, left: str) -> None:
    assert without(text, ["modelId"], {}) == left


@pytest.mark.parametrize("more", [0, 1, 1_000])
def test_a_name_behind_many_members_is_left_out_of_an_object_written_anew(more: int) -> None:
    before = ", ".join([f'"m{number}": 1.50' for number in range(MAX_MEMBERS - 1 + more)])
    text = f'{{{before}, "modelId": "m", "x": {{"modelId": 1.0}}}}'
    rest = {k: v for k, v in parse_object(text.encode()).items() if k != "modelId"}
    left = without(text, ["modelId"], rest)
    assert json.loads(left) == rest
    assert ("1.50" in left) == (more == 0)
    # Where it is the only one of its name, none is looked at.
    assert without(f'{{{before}, "modelId": "m"}}', ["modelId"], {}) == f"{{{before}}}"


@given(st.binary(max_size=60))
def test_garbage_is_read_or_refused_and_nothing_else(body: bytes) -> None:
    try:
        parse_object(body)
    except ClientFault as fault:
        assert fault.status == 400
