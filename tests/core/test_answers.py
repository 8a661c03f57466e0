"""An answer's parts as whoever reads them gets them, from the bytes of Bedrock's answer on."""

from collections.abc import Sequence
from typing import Any

import pytest
from tests.fixtures import Recording, recordings, require_fixtures
from tests.flows import chunk

from bedrock_proxy.answers import ConverseFrames, InvokeFrames, StreamedAnswer, whole_answer
from bedrock_proxy.models import Family, converse_answer, family_of
from bedrock_proxy.models.names import parse_model_id
from bedrock_proxy.parts import Json, Part, Stop, Text

METRICS: Json = {"inputTokenCount": 3, "outputTokenCount": 4}
STREAMS = ("InvokeModelWithResponseStream", "ConverseStream")
RECORDED = [
    recording
    for operation in (*STREAMS, "InvokeModel", "Converse")
    for recording in recordings(operation=operation, status=200)
    if "text" in recording.expected and "exception" not in recording.expected
]


def family(model: str) -> Family:
    return family_of(parse_model_id(model).canonical)


def streamed(model: str, *events: Any) -> list[Part]:
    """The parts of a stream of InvokeModelWithResponseStream; it is whole."""
    answer = StreamedAnswer(InvokeFrames(family(model).reader()))
    parts = [part for event in events for part in answer.feed(chunk(event))]
    parts += answer.finish()
    assert answer.fault is None
    return parts


def recorded(recording: Recording) -> Sequence[Part]:
    """The parts of a recorded answer, streamed or whole."""
    if recording.operation == "Converse":
        return converse_answer(recording.json())
    if recording.operation == "InvokeModel":
        return whole_answer(family(recording.model_id), recording.response)
    converse = recording.operation == "ConverseStream"
    answer = StreamedAnswer(
        ConverseFrames() if converse else InvokeFrames(family(recording.model_id).reader())
    )
    return [*answer.feed(recording.response), *answer.finish()]


def stops(parts: Sequence[Part]) -> list[tuple[int, str | None]]:
    return [(part.index, part.reason) for part in parts if isinstance(part, Stop)]


@pytest.mark.parametrize("recording", RECORDED or [None], ids=lambda one: getattr(one, "id", "-"))
def test_a_recorded_answer_stops_once_with_its_reason(recording: Recording) -> None:
    require_fixtures()
    assert stops(recorded(recording)) == [(0, recording.expected["stop_reason"])]


def test_most_recorded_answers_are_looked_at() -> None:
    require_fixtures()
    assert len(RECORDED) >= 95
    assert sum(recording.operation in STREAMS for recording in RECORDED) >= 40


def claude(reason: str | None, **last: Any) -> list[Any]:
    delta = {"type": "content_block_delta", "index": 0}
    return [
        {**delta, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "message_delta", "delta": {"stop_reason": reason}},
        {"type": "message_stop", **last},
    ]


def test_metrics_after_a_stop_are_no_second_one() -> None:
    metrics = {"amazon-bedrock-invocationMetrics": METRICS}
    model = "anthropic.claude-3-haiku-20240307-v1:0"
    assert stops(streamed(model, *claude("end_turn", **metrics))) == [(0, "end_turn")]
    assert stops(streamed(model, *claude("end_turn"), metrics)) == [(0, "end_turn")]
    assert stops(streamed(model, *claude(None, **metrics))) == [(0, None)]
    body = b'{"type": "message", "content": [], "stop_reason": "end_turn"}'
    assert stops(whole_answer(family(model), body)) == [(0, "end_turn")]


def test_metrics_are_the_stop_of_a_model_that_names_none() -> None:
    metrics = {"amazon-bedrock-invocationMetrics": METRICS}
    model = "meta.llama3-8b-instruct-v1:0"
    for events in (
        ({"generation": "Hi"}, metrics),
        ({"generation": "Hi", **metrics},),
        ({"generation": "Hi", **metrics}, metrics),
    ):
        assert streamed(model, *events) == [Text("Hi"), Stop(None)]


def test_each_of_several_generations_stops_once() -> None:
    def choice(index: int, text: str, reason: str | None = None) -> Any:
        said = {"index": index, "delta": {"content": text}, "finish_reason": reason}
        return {"choices": [said]}

    parts = streamed(
        "ai21.jamba-1-5-mini-v1:0",
        choice(0, "A"),
        choice(1, "B", "length"),
        choice(0, "", "stop"),
        {"choices": [], "amazon-bedrock-invocationMetrics": METRICS},
    )
    assert stops(parts) == [(1, "length"), (0, "stop")]
