"""The usage log's lines, to the character; what is logged, what is not, and where."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve
from tests.running import CLAUDE, TOKEN, Running, body, on_gunicorn, on_uvicorn, post

from bedrock_proxy.usage import Basis, Outcome, State, UsageRecord
from bedrock_proxy_adapters.proxy import LoggingTelemetry
from bedrock_proxy_adapters.simulator import Fault, Script
from bedrock_proxy_adapters.telemetry.usage_log import log_usage, usage_line, usage_writer

ROW = UsageRecord(
    request_id="0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b",
    customer_id="cust_1",
    key_id="key_1",
    model_id="us.anthropic.claude-3-haiku-20240307-v1:0",
    model=CLAUDE,
    dialect="simple",
    operation="InvokeModelWithResponseStream",
    stream=True,
    admitted_at=1_767_225_599_000,
    duration_ms=1_500,
    first_byte_ms=10,
    attempts=1,
    input_tokens=12,
    output_tokens=34,
    cache_read_tokens=5,
    cache_write_5m_tokens=6,
    cache_write_1h_tokens=7,
    token_count=64,
    basis=Basis.REPORTED,
    state=State.FINAL,
    outcome=Outcome.OK,
    aws_request_id="aws",
    client_request_id="mine",
)

GOLDEN = [
    (
        ROW,
        (
            '{"event_type":"bedrock_stream","customer_id":"cust_1",'
            '"request_id":"0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b",'
            '"model_id":"us.anthropic.claude-3-haiku-20240307-v1:0","input_tokens":12,'
            '"output_tokens":34,"token_count":64,"duration_ms":1500,"timestamp":1767225600}'
        ),
    ),
    (
        evolve(ROW, operation="InvokeModel", stream=False),
        (
            '{"event_type":"bedrock_invoke","customer_id":"cust_1",'
            '"request_id":"0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b",'
            '"model_id":"us.anthropic.claude-3-haiku-20240307-v1:0","input_tokens":12,'
            '"output_tokens":34,"token_count":64,"duration_ms":1500,"timestamp":1767225600}'
        ),
    ),
    (
        evolve(ROW, outcome=Outcome.ERROR, error_code="upstream_throttled"),
        (
            '{"event_type":"bedrock_error","customer_id":"cust_1",'
            '"model_id":"us.anthropic.claude-3-haiku-20240307-v1:0",'
            '"request_id":"0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b",'
            '"error":"upstream_throttled","duration_ms":1500,"timestamp":1767225600}'
        ),
    ),
]


@pytest.mark.parametrize(("row", "line"), GOLDEN, ids=["stream", "invoke", "error"])
def test_a_line_is_the_original_systems_to_the_character(row: UsageRecord, line: str) -> None:
    assert line == usage_line(row)


@pytest.mark.parametrize(
    ("operation", "event"),
    [
        ("InvokeModel", "bedrock_invoke"),
        ("Converse", "bedrock_invoke"),
        ("CountTokens", "bedrock_invoke"),
        ("InvokeModelWithResponseStream", "bedrock_stream"),
        ("ConverseStream", "bedrock_stream"),
    ],
)
def test_the_event_type_says_whether_bedrock_streamed(operation: str, event: str) -> None:
    assert event == json.loads(usage_line(evolve(ROW, operation=operation)))["event_type"]


def test_a_client_that_left_is_not_an_error_of_bedrocks() -> None:
    line = json.loads(usage_line(evolve(ROW, outcome=Outcome.CLIENT_GONE, basis=Basis.PARTIAL)))
    assert "bedrock_stream" == line["event_type"]


def test_an_arn_is_logged_without_its_account() -> None:
    own = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc123"
    known = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us." + CLAUDE
    for error in (None, "upstream_error"):
        opaque = evolve(ROW, model_id=own, model=own, error_code=error)
        assert "application-inference-profile/abc123" == json.loads(usage_line(opaque))["model_id"]
        resolved = evolve(ROW, model_id=known, error_code=error)
        assert CLAUDE == json.loads(usage_line(resolved))["model_id"]


def test_a_line_is_one_line_of_ascii_whatever_it_holds() -> None:
    line = usage_line(evolve(ROW, customer_id='cust\n"é\u2028'))
    assert line.isascii()
    assert 1 == len(line.splitlines())
    assert 'cust\n"é\u2028' == json.loads(line)["customer_id"]


def test_embedded_the_logger_gets_the_bare_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "bedrock_proxy.usage"):
        log_usage(ROW)
    assert [("bedrock_proxy.usage", logging.INFO, GOLDEN[0][1])] == caplog.record_tuples


def test_embedded_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    log_usage(ROW)
    assert ("", "") == capfd.readouterr()


def test_a_server_writes_the_line_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    usage_writer()(ROW)
    assert GOLDEN[0][1] + "\n" == capsys.readouterr().out
    other = io.StringIO()
    usage_writer(other)(ROW)
    assert GOLDEN[0][1] + "\n" == other.getvalue()


# --- on a server ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The proxy on uvicorn in this process, telling the logger."""
    with on_uvicorn(tmp_path_factory.mktemp("usage-log")) as running:
        assert running.proxy is not None
        running.proxy.telemetry = LoggingTelemetry(finished=log_usage)
        yield running


def lines_of(
    running: Running, caplog: pytest.LogCaptureFixture, content: bytes, status: int, **headers: str
) -> list[str]:
    with caplog.at_level(logging.INFO, "bedrock_proxy.usage"):
        answer = post(running, content, **headers)
        assert status == answer[0], answer
        running.quiet()
    return [r.getMessage() for r in caplog.records if r.name == "bedrock_proxy.usage"]


def test_one_line_for_a_request_that_was_answered_and_it_says_what_the_row_says(
    serving: Running, caplog: pytest.LogCaptureFixture
) -> None:
    for stream in (True, False):
        caplog.clear()
        serving.simulator.reset()
        serving.simulator.default(Script(text="a b c", input_tokens=7, output_tokens=3))
        [line] = lines_of(serving, caplog, body(stream), 200)
        said = json.loads(line)
        row = serving.row(said["request_id"])
        assert usage_line(row) == line
        assert (7, 3, 10) == (said["input_tokens"], said["output_tokens"], said["token_count"])


def test_one_line_for_a_request_that_bedrock_refused_with_our_code_and_not_its_words(
    serving: Running, caplog: pytest.LogCaptureFixture
) -> None:
    serving.simulator.reset()
    serving.simulator.default(
        Script(error="ValidationException", error_message="the prompt said CANARY")
    )
    [line] = lines_of(serving, caplog, body(), 400)
    said = json.loads(line)
    assert ("bedrock_error", "invalid_request") == (said["event_type"], said["error"])
    assert "CANARY" not in caplog.text


def test_one_line_for_a_stream_that_was_torn(
    serving: Running, caplog: pytest.LogCaptureFixture
) -> None:
    serving.simulator.reset()
    serving.simulator.default(Script(text="a b c", faults=(Fault("end", after=3),)))
    [line] = lines_of(serving, caplog, body(), 200)
    assert ("bedrock_error", "upstream_torn") == (
        json.loads(line)["event_type"],
        json.loads(line)["error"],
    )


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (body(), {"Authorization": "Bearer " + TOKEN[:-1] + "x"}, 401),
        (b"{", {}, 400),
        (body(modelId="no such model"), {}, 400),
        (body(), {"Content-Type": "text/plain"}, 415),
    ],
    ids=["token", "json", "model", "media"],
)
def test_no_line_for_what_was_refused(
    serving: Running,
    caplog: pytest.LogCaptureFixture,
    content: bytes,
    headers: dict[str, str],
    status: int,
) -> None:
    serving.simulator.reset()
    assert [] == lines_of(serving, caplog, content, status, **headers)
    assert [] == list(serving.simulator.calls)


def test_under_another_server_the_environment_alone_prints_nothing(tmp_path: Path) -> None:
    """gunicorn's output stays as it was: the library only logs."""
    with on_gunicorn(tmp_path) as running:
        running.simulator.default(Script(text="a b"))
        assert 200 == post(running)[0]
        running.quiet()
    assert "bedrock_stream" not in (tmp_path / "gunicorn.log").read_text()
