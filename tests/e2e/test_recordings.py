"""
Every recorded InvokeModel and InvokeModelWithResponseStream answer, served by a real HTTP
fake in random chunk sizes, through real boto3 and the proxy, on each host.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.fixtures import Recording, recordings, require_fixtures
from tests.running import Running, post, sse_text

from bedrock_proxy.usage import Basis, State
from bedrock_proxy_adapters.simulator import Replay, Script

INVOKED = [
    *recordings(operation="InvokeModel"),
    *recordings(operation="InvokeModelWithResponseStream"),
]
EXPECTED_COUNT = 53
STATUS = {
    "ValidationException": (400, "invalid_request"),
    "ResourceNotFoundException": (404, "model_not_found"),
    "AccessDeniedException": (502, "upstream_config"),
    "InvalidSignatureException": (502, "upstream_config"),
}


def test_every_invoke_recording_is_here() -> None:
    require_fixtures()
    assert EXPECTED_COUNT == len(INVOKED)


def request_of(recording: Recording) -> bytes:
    sent: dict[str, Any] = dict(recording.body) if isinstance(recording.body, dict) else {}
    sent.pop("stream", None)
    stream = recording.operation == "InvokeModelWithResponseStream"
    return json.dumps({"modelId": recording.model_id, **sent, "stream": stream}).encode()


def expected_counts(expected: dict[str, Any]) -> dict[str, int] | None:
    """The counts the ledger must hold: the model's own, then metrics, then headers."""
    merged: dict[str, int] = {}
    for source in ("header_usage", "invocation_metrics", "usage"):
        merged |= {k: v for k, v in (expected.get(source) or {}).items() if isinstance(v, int)}
    if "input_text_token_count" in expected and "input_tokens" not in merged:
        merged["input_tokens"] = expected["input_text_token_count"]
    if "input_tokens" not in merged and "output_tokens" not in merged:
        return None
    return {
        "input_tokens": merged.get("input_tokens", 0),
        "output_tokens": merged.get("output_tokens", 0),
        "cache_read_tokens": merged.get("cache_read_input_tokens", 0),
        "cache_write": merged.get("cache_write_input_tokens", 0),
    }


@pytest.fixture(scope="module", autouse=True)
def _recordings_are_here() -> Iterator[None]:
    require_fixtures()
    yield


@pytest.mark.parametrize("recording", INVOKED, ids=lambda r: r.id)
def test_a_recording_comes_through_whole(host: Running, recording: Recording) -> None:
    headers = tuple(
        (name, value)
        for name, value in recording.response_headers
        if name not in {"content-length", "transfer-encoding", "connection", "date"}
    )
    host.simulator.script(
        Script(
            replay=Replay(body=recording.response, status=recording.status, headers=headers),
            chunk_seed=len(recording.response),
        )
    )
    status, reply_headers, said = post(host, request_of(recording))
    row = host.row(reply_headers["x-request-id"])
    expected = recording.expected
    assert recording.model_id == row.model_id

    fault = expected.get("error") or expected.get("exception")
    if fault:
        name = fault.get("code") or fault["type"][:1].upper() + fault["type"][1:]
        wanted, code = STATUS[name]
        error = json.loads(said)
        assert (wanted, code) == (status, error["code"])
        assert (code, 0) == (row.error_code, row.token_count)
        if code != "upstream_config":
            assert fault["message"] == error["error"]
        return

    assert 200 == status
    if recording.operation == "InvokeModel":
        assert recording.response == said
    else:
        assert said.endswith(b"data: [DONE]\n\n")
        text = expected.get("text_without_inline_reasoning", expected["text"])
        assert text == sse_text(said)
    counts = expected_counts(expected)
    if counts is None:
        assert (Basis.ESTIMATED, State.ESTIMATED) == (row.basis, row.state)
    else:
        assert counts == {
            "input_tokens": row.input_tokens,
            "output_tokens": row.output_tokens,
            "cache_read_tokens": row.cache_read_tokens,
            "cache_write": row.cache_write_5m_tokens + row.cache_write_1h_tokens,
        }
        assert (Basis.REPORTED, State.FINAL) == (row.basis, row.state)
    assert 1 == len([other for other in host.rows() if other.request_id == row.request_id])
