"""
What an error may repeat to a client: the names that it sent itself, and how little is kept, and
done, to know them.
"""

import json
import tracemalloc
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import flows
from tests.flows import (
    MODEL,
    Conversation,
    GivenBody,
    Reply,
    World,
    ask_claude,
    claude,
    converse,
    exception,
    request,
)
from tests.measured import cpu_of

from bedrock_proxy import faults, sent
from bedrock_proxy.dialects.parts import Inbox, InParts
from bedrock_proxy.drive import Gone
from bedrock_proxy.exchange import exchange
from bedrock_proxy.ports import Operation, UpstreamCall, UpstreamHead
from bedrock_proxy.sent import NOTHING_SENT, Sent

MINE = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc"
OTHER = "arn:aws:iam::999999999999:role/prod-proxy-role"
NATIVE = f"/model/{MODEL}/invoke-with-response-stream"
LONG = "A long prompt \N{GRINNING FACE}. " * 100_000


def said(body: str, model: str = MODEL, *headers: str) -> Sent:
    named = tuple((f"x-{number}", value) for number, value in enumerate(headers))
    return Sent(UpstreamCall(Operation.INVOKE, model, body.encode(), named))


def let_go(one: Sent) -> Sent:
    one.let_go()
    return one


def bodies(*texts: str) -> str:
    return json.dumps({"messages": [{"role": "user", "content": text} for text in texts]})


# --- which names are the client's -------------------------------------------------------------

ACCOUNTS = st.sampled_from(["123456789012", "999999999999", "1234567890123", "12345678901"])
ARNS = st.sampled_from([MINE, OTHER, f"{MINE}d", MINE[:-1], "arn:aws-cn:s3:::b", "arn:aws"])
TEXTS = st.lists(
    st.one_of(
        ARNS,
        ACCOUNTS,
        st.sampled_from([" ", "\n", '"', ".", ":", "\\", "arn:", "é", "x", "\u3000", "{", ","]),
        st.text(max_size=3),
    ),
    max_size=12,
).map("".join)


@given(TEXTS, ARNS, st.booleans())
def test_an_arn_is_the_clients_if_it_is_anywhere_in_its_request(
    text: str, name: str, escaped: bool
) -> None:
    body = json.dumps({"prompt": text}, ensure_ascii=escaped)
    if name != "arn:aws":  # no name yet
        assert (name in said(body)) is (name in body)
        assert (name in let_go(said(body))) is (name in body)


@given(st.lists(TEXTS, max_size=3), st.booleans())
def test_an_account_id_is_the_clients_if_it_is_a_number_of_its_own_in_its_request(
    texts: list[str], escaped: bool
) -> None:
    body = json.dumps(texts, ensure_ascii=escaped)
    runs = "".join(c if c in "0123456789" else " " for c in json.dumps(texts, ensure_ascii=False))
    for name in ("123456789012", "999999999999"):
        for one in (said(body), let_go(said(body))):
            if name in runs.split():
                assert name in one
            if name not in body:
                assert name not in one


@pytest.mark.parametrize("at", [0, 1, 11, 12, 13])
def test_an_account_id_is_found_wherever_it_lies(at: int) -> None:
    """The body is looked at piece by piece."""
    for begin in (sent._PIECE - at, 2 * sent._PIECE - at, 3 * sent._PIECE - at):
        body = "x" * begin + "123456789012" + "x" * sent._PIECE
        assert "123456789012" in said(body)
        assert "123456789012" not in said(body.replace("x1", "51"))
        assert "123456789012" not in said(body.replace("2x", "25"))


def test_a_models_name_and_headers_are_of_the_request_too() -> None:
    for one in (said("{}", MINE, "999999999999"), let_go(said("{}", MINE, "999999999999"))):
        assert MINE in one
        assert "999999999999" in one
        assert OTHER not in one


def test_where_nothing_was_sent_no_name_is_the_clients() -> None:
    assert MINE not in NOTHING_SENT
    assert "123456789012" not in NOTHING_SENT


def test_half_a_surrogate_pair_in_a_name_is_nobodys() -> None:
    assert f"{MINE}\ud83d" not in said(bodies(f"{MINE}?", f"{MINE}\ud83d"))


# --- what it costs -----------------------------------------------------------------------------

MANY = " ".join(f"{number:012d} arn:aws:s3:::{number}" for number in range(1_500, 3_000))
HOSTILE = {
    "one number": "0" * 2_000_000,
    "numbers": "000000000000 " * 150_000,
    "almost numbers": "00000000000x" * 160_000,
    "long numbers": "1712345678901," * 140_000,
    "arns": "arn:aws:a " * 200_000,
    "one arn": "arn:aws" * 280_000,
    "almost arns": "arn:aw " * 280_000,
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_an_error_that_names_much_costs_about_as_much_as_one_that_names_little(
    hostile: str,
) -> None:
    body = HOSTILE[hostile]

    def work(message: str) -> None:
        head = UpstreamHead(400, (("x-amzn-errortype", "ValidationException"),))
        faults.from_reply(head, json.dumps({"message": message}).encode(), said(body))

    assert cpu_of(lambda: work(MANY)) < 4 * cpu_of(lambda: work("000000000001")) + 0.05


def test_of_a_request_with_more_names_than_are_kept_the_first_are_known_and_few_are_held() -> None:
    arns = [f"arn:aws:s3:::bucket-{number}" for number in range(20_000)]
    numbers = [f"{number:012d}" for number in range(20_000)]
    one = said(bodies(*numbers, *arns))
    assert (arns[0] in one, arns[1_000] in one, arns[-1] in one) == (True, True, False)
    assert (numbers[0] in one, numbers[5_000] in one, numbers[-1] in one) == (True, True, False)
    one.let_go()
    assert (arns[0] in one, arns[200] in one, arns[-1] in one) == (True, True, False)
    assert (numbers[0] in one, numbers[500] in one, numbers[-1] in one) == (True, True, False)
    assert len(one._names) < 3 * sent.KEPT


# --- what a stream holds -----------------------------------------------------------------------


class Forgetful(World):
    """Bedrock as it should be: a call that is under way is not written down."""

    def open(self, call: UpstreamCall) -> Reply:
        reply = super().open(call)
        self.calls.clear()
        return reply


@pytest.mark.parametrize("path", ["/bedrock", NATIVE, "parts"])
@pytest.mark.parametrize("gone", [False, True], ids=["heard", "left"])
def test_L3_a_stream_under_way_holds_nothing_of_a_long_request(
    path: str, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may send 20 MiB, and its answer may take an hour."""

    def receive(body: GivenBody, *_: object) -> bytes:
        return bytes(bytearray(body.body))  # one that the flow alone holds

    monkeypatch.setattr(GivenBody, "receive", receive)
    if path == "parts":
        path = "/bedrock"
        monkeypatch.setattr(flows, "exchange", partial(exchange, spoken=InParts(Inbox())))
    body = ask_claude() if path == "/bedrock" else b"{}"
    long = json.dumps({**json.loads(body), "system": LONG}, ensure_ascii=False).encode()
    held: list[int] = []

    def look() -> None:
        held.append(tracemalloc.get_traced_memory()[0])

    def talk(body: bytes) -> None:
        events: list[Any] = claude()
        world = Forgetful().answers([*events[:3], look, *events[3:]])
        conversation = Conversation(world, request(path=path), body)
        if gone:
            conversation.on_say = lambda *_: conversation.interrupts.post(Gone())
        conversation.run()
        assert world.row.output_tokens == 7

    talk(body)
    tracemalloc.start()
    try:
        talk(body)
        talk(long)
    finally:
        tracemalloc.stop()
    assert len(long) > 1_000_000
    _, short_one, long_one = held
    assert long_one - short_one < 64 * 1024


@pytest.mark.parametrize("path", ["/bedrock", NATIVE])
@pytest.mark.parametrize("length", [10, sent.SHORT, 1_000_000])
def test_an_error_within_a_stream_repeats_the_clients_own_names_alone(
    path: str, length: int
) -> None:
    told = f"no {MINE}, 111111111111; {OTHER}, 222222222222"
    body = json.loads(ask_claude()) if path == "/bedrock" else {}
    text = "x" * length + f"\n{MINE}\n111111111111"
    world = World().answers([*claude()[:3], exception("validationException", told)])
    talk = converse(world, json.dumps({**body, "system": text}).encode(), path=path)
    assert f"no {MINE}, 111111111111; <arn>, <account>".encode() in talk.said


def test_S04_a_long_request_that_is_sent_again_is_sent_whole() -> None:
    """Until the answer begins, also where its head has come."""
    world = World()
    world.answers([b"{}"], UpstreamHead(503, ()))
    world.answers([exception("throttlingException")])
    world.answers(claude())
    talk = converse(world, body=ask_claude(system=LONG))
    assert talk.status == 200
    assert [len(call.body) for call in world.calls] == [len(world.calls[0].body)] * 3
    assert json.loads(world.calls[2].body)["system"] == LONG
