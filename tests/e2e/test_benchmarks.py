"""The benchmarks measure what they say: tiny cases, and answers and books that are wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from attrs import evolve
from benchmarks import admission, answers, publish, report
from benchmarks.cases import CASES, Entry, Results, compare, headline_targets
from benchmarks.lab import Lab, WrongAnswer, opened, settle
from benchmarks.load import Answer, Order, arrivals, body_of, check
from benchmarks.picture import draw
from benchmarks.servers import SPIKES, running

EVENTS = 5


@pytest.fixture
def lab() -> Iterator[Lab]:
    with opened() as lab:
        yield lab


def test_a_small_case_from_end_to_end(lab: Lab, tmp_path: Path) -> None:
    """Every event is counted, the ledger has a row for each answer, the result can be shown."""
    results = Results()
    small = evolve(CASES["S1"], streams=2, repeat=2, events=EVENTS, rounds=1)
    plain = evolve(CASES["N1"], repeat=2, rounds=1)
    with running(headline_targets()[0], lab.port) as serve, running(SPIKES[0], lab.port) as raw:
        entries = [Entry(None), Entry(serve), Entry(raw)]
        reading = lab.measure(serve, "sse", streams=2, repeat=2, events=EVENTS)
        compare(lab, results, small, entries)
        compare(lab, results, plain, entries)
        assert serve.books is not None
        # Four streams twice, each of 25 tokens in and one for each event; two plain answers.
        assert serve.books.count() == (10, 8 * (25 + EVENTS) + 2 * 205)
        with pytest.raises(WrongAnswer, match="should have 9"):
            serve.seen = (9, 0)
            settle(serve, 0, 0)
    assert (reading.requests, reading.events) == (4, 4 * EVENTS)
    said = report.document(results, 0.0)
    report.write(said, tmp_path / "result.json")
    read = json.loads((tmp_path / "result.json").read_text())
    assert {(each["case"], each["target"]) for each in read["figures"]} == {
        (case, name) for case in ("S1", "N1") for name in ("fake", serve.target.name, "raw")
    }
    assert all(each["value"] > 0 for each in read["figures"])
    picture = ET.fromstring(draw(read))
    bars = [each for each in picture.iter() if each.get("class") in {"proxy", "spike"}]
    assert len(bars) == 2
    page = publish.filled(publish.PAGE.read_text(), publish.parts_of(read))
    assert report.table(read) in page


@pytest.mark.parametrize("dialect", ["array", "invoke", "converse"])
def test_every_dialect_is_checked_byte_for_byte(lab: Lab, dialect: str) -> None:
    with running(headline_targets()[0], lab.port) as serve:
        assert lab.measure(serve, dialect, events=EVENTS).events == EVENTS


def _answer(body: bytes) -> Answer:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    half = len(body) // 2
    pieces = [head + b"%x\r\n%b\r\n" % (half, body[:half])]
    pieces.append(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) - half, body[half:]))
    return Answer(number="0-0", sent=1.0, pieces=pieces, times=[2.0, 3.0], first=2.0, ended=3.0)


def test_a_wrong_byte_or_a_lost_event_is_no_answer() -> None:
    order = Order(port=0, dialect="sse", events=EVENTS)
    right = answers.sse(EVENTS)
    assert check(order, [_answer(right)])["statuses"] == {200: 1}
    wrong = (
        right.replace(b"bles", b"bles "),
        answers.sse(EVENTS - 1),
        right.removesuffix(b"data: [DONE]\n\n"),
    )
    for body in wrong:
        with pytest.raises(ValueError, match="answer 0-0 is 200"):
            check(order, [_answer(body)])
    torn = _answer(right)
    torn.pieces[-1] = torn.pieces[-1].removesuffix(b"0\r\n\r\n")
    with pytest.raises(ValueError, match="torn"):
        check(order, [torn])


def test_an_event_came_with_the_read_that_brought_its_end() -> None:
    answer = _answer(answers.sse(4))
    _, body, where = body_of(answer)
    assert arrivals(answer, body, where, answers.ENDS["sse"]) == [2.0, 2.0, 3.0, 3.0]


def test_admissions_are_measured_on_a_loop(tmp_path: Path) -> None:
    figures = list(admission.cpu(tmp_path, ((1, 5), (16, 2))))
    assert [unit for _, _, unit, _ in figures] == ["CPU ms"] * 2
    assert all(value > 0 for _, value, _, _ in figures)


def test_a_ratio_is_the_median_of_the_rounds_own() -> None:
    def figure(case: str, target: str, kind: str, rounds: list[float]) -> dict[str, object]:
        return {"case": case, "target": target, "label": target, "kind": kind, "dialect": "sse",
                "value": 0.0, "rounds": rounds}  # fmt: skip

    said = {
        "figures": [
            figure("S1", "serve", "proxy", [2.0, 9.0, 4.0]),
            figure("S1", "aiohttp", "spike", [1.0, 3.0, 4.0]),
            figure("N1", "serve", "proxy", [float(n) for n in range(1, 10)]),
            figure("N1", "aiohttp", "spike", [1.0] * 9),
            figure("TTFT", "serve", "proxy", [1.0, 3.0]),
            figure("TTFT", "aiohttp", "spike", [0.0, 2.0]),
        ]
    }
    assert report.ratios(said) == [
        "serve ÷ aiohttp spike: S1 2.00, N1 5.00 (2.50 to 7.50), TTFT 1.50"
    ]
