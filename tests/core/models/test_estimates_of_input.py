"""
Nothing sizeable hides from the estimate of the input (I9): all that a client can make a model
read counts, wherever it is put; what only looks like a medium does not pass for one.
"""

import base64
import json
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fixtures import recordings, require_fixtures

from bedrock_proxy.models import estimate, estimate_converse, family_of
from bedrock_proxy.parts import Json

CLAUDE = family_of("anthropic.claude-sonnet-4-20250514-v1:0")
TEXT = "all work and no play " * 1_000
BASE64 = base64.b64encode(TEXT.encode()).decode()
PDF = base64.b64encode(b"%PDF-1.7\n" + bytes(30_000)).decode()
DOCX = base64.b64encode(b"PK\x03\x04" + bytes(30_000)).decode()
COUNTED = len(TEXT) // 3


def asked(*content: Json) -> dict[str, Json]:
    return {"messages": [{"role": "user", "content": list(content)}]}


PLACES: dict[str, Callable[[Json], Json]] = {
    "a tool's input": lambda own: asked({"type": "tool_use", "id": "a", "name": "t", "input": own}),
    "a tool's schema": lambda own: {"tools": [{"name": "t", "input_schema": own}], **asked()},
    "a function's schema": lambda own: {
        "tools": [{"type": "function", "function": {"name": "t", "parameters": own}}],
        **asked(),
    },
    "a result's JSON": lambda own: asked({"toolResult": {"content": [{"json": own}]}}),
    "a Converse tool's input": lambda own: asked({"toolUse": {"name": "t", "input": own}}),
    "a Converse tool's schema": lambda own: {
        "toolConfig": {"tools": [{"toolSpec": {"name": "t", "inputSchema": {"json": own}}}]},
        **asked(),
    },
    "the model's own fields": lambda own: {"additionalModelRequestFields": own, **asked()},
    "an answer's format": lambda own: {
        "response_format": {"type": "json_schema", "json_schema": {"schema": own}},
        **asked(),
    },
    "documents": lambda own: {"message": "hi", "documents": [own]},
    "results of tools": lambda own: {"message": "hi", "tool_results": [{"outputs": [own]}]},
    "a document's context": lambda own: asked({"document": {"context": own, "source": {}}}),
    "a prompt": lambda own: {"prompt": own},
}
"""Where the APIs take whatever a client likes, and the model reads it."""

NAMES = st.sampled_from(
    [
        *("type", "image", "document", "source", "data", "bytes", "signature", "redactedContent"),
        *("messages", "content", "images", "reasoningContent", "reasoningText", "url", "file_data"),
    ]
)
KINDS = st.sampled_from(["image", "document", "thinking", "redacted_thinking", "base64", "text"])
LETTERS = st.text(st.characters(min_codepoint=0x20, blacklist_characters='"\\\x7f', codec="utf-8"))
TEXTS = LETTERS | LETTERS.map(lambda text: "data:image/png;base64," + text)
OWN: st.SearchStrategy[Json] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**30, 10**300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | KINDS
    | TEXTS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(NAMES | LETTERS, inner, max_size=6),
    max_leaves=30,
)


@given(own=OWN, name=st.sampled_from(list(PLACES)))
def test_I9_whatever_a_client_writes_counts_a_third_of_its_json_at_least(
    own: Json, name: str
) -> None:
    place = PLACES[name]
    written = len(json.dumps(own, ensure_ascii=False, separators=(",", ":")).encode())
    for reserved in (estimate, estimate_converse):
        tokens = reserved(CLAUDE, place([own])).input_tokens
        assert tokens is not None
        assert tokens * 3 >= written / 3


HIDDEN: dict[str, Json] = {
    "a name": {TEXT: 1},
    "a signature": {"signature": TEXT},
    "redacted content": {"redactedContent": TEXT},
    "a thinking block": {"type": "thinking", "signature": TEXT},
    "a redacted block": {"type": "redacted_thinking", "data": TEXT},
    "an image": {"type": "image", "source": {"type": "base64", "data": TEXT}},
    "a Converse image": {"image": {"format": "png", "source": {"bytes": TEXT}}},
    "reasoning": {"reasoningContent": {"redactedContent": TEXT}},
    "a message": {"messages": [{"content": [{"type": "redacted_thinking", "data": TEXT}]}]},
    "images": {"images": [TEXT]},
    "a data URL": {"type": "image_url", "image_url": {"url": "data:image/png;base64," + TEXT}},
    "integers": [10**20] * (len(TEXT) // 20),
    "numbers": [1.23456789] * (len(TEXT) // 10),
    "names": {f"property_number_{number}": {} for number in range(len(TEXT) // 20)},
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("own", HIDDEN.values(), ids=HIDDEN)
def test_I9_what_is_the_clients_own_counts_whatever_it_looks_like(
    own: Json, place: Callable[[Json], Json]
) -> None:
    tokens = estimate(CLAUDE, place(own)).input_tokens
    assert tokens is not None
    assert tokens >= COUNTED


READ: dict[str, Json] = {
    "a text document": {"document": {"format": "txt", "source": {"bytes": BASE64}}},
    "a page": {"document": {"format": "html", "source": {"bytes": BASE64}}},
    "a document of no format": {"document": {"source": {"bytes": BASE64}}},
    "text as it is": {"document": {"format": "pdf", "source": {"text": TEXT}}},
    "text in blocks": {"document": {"source": {"content": [{"text": TEXT}]}}},
    "text of a document": {"type": "document", "source": {"type": "text", "data": TEXT}},
    "a title": {"type": "document", "title": "data:" + TEXT, "source": {"type": "text"}},
    "a source": {"type": "search_result", "source": TEXT, "content": []},
    "a data URL of text": {"type": "file", "file": {"file_data": "data:text/csv;base64," + BASE64}},
    "a drawing": {"type": "image_url", "image_url": {"url": "data:image/svg+xml;base64," + BASE64}},
    "an address": {"type": "image_url", "image_url": {"url": "data:" + TEXT}},
    "reasoning": {"reasoningContent": {"reasoningText": {"text": TEXT, "signature": "s"}}},
    "thinking": {"type": "thinking", "thinking": TEXT, "signature": "s"},
    "beside thinking": {"type": "redacted_thinking", "data": "s", "signature": TEXT},
    "a name beside": {"type": "image", "source": {"type": "base64", "data": "s", TEXT: 1}},
}


@pytest.mark.parametrize("block", READ.values(), ids=READ)
def test_I9_all_of_a_block_that_is_read_as_text_counts(block: Json) -> None:
    for body in (asked(block), asked({"toolResult": {"content": [block]}})):
        tokens = estimate_converse(CLAUDE, body).input_tokens
        assert tokens is not None
        assert COUNTED <= tokens <= COUNTED + 1_700


MEDIA: dict[str, Json] = {
    "a PDF": {"document": {"format": "pdf", "source": {"bytes": PDF}}},
    "a docx": {"document": {"format": "docx", "source": {"bytes": DOCX}}},
    "a PDF of no format": {"document": {"source": {"bytes": PDF}}},
    "a PDF of Claude's": {
        "type": "document",
        "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
    },
    "a file": {"type": "file", "file": {"file_data": "data:application/pdf;base64," + PDF}},
    "a URL": {"type": "image_url", "image_url": "data:image/png;base64," + PDF},
    "sound": {"type": "input_audio", "input_audio": {"data": PDF, "format": "wav"}},
    "video": {"video": {"format": "mp4", "source": {"bytes": PDF}}},
    "an image to be guarded": {"guardContent": {"image": {"source": {"bytes": PDF}}}},
    "a result": {"toolResult": {"content": [{"image": {"source": {"bytes": PDF}}}]}},
    "a fetched page": {
        "type": "web_fetch_tool_result",
        "content": {"content": {"type": "document", "source": {"type": "base64", "data": PDF}}},
    },
}


@pytest.mark.parametrize("block", MEDIA.values(), ids=MEDIA)
def test_a_medium_where_the_api_takes_one_is_1600_tokens(block: Json) -> None:
    for body in (asked(block), {"inputs": [{"content": [block]}]}, {"system": [block]}):
        tokens = estimate_converse(CLAUDE, body).input_tokens
        assert tokens is not None
        assert 1_600 <= tokens <= 1_640


def test_what_an_api_names_itself_costs_nothing() -> None:
    body: dict[str, Any] = {
        **asked({"type": "text", "text": ""}),
        "anthropic_version": "",
        "max_tokens": 64_000,
        "temperature": 0.7,
        "inferenceConfig": {"maxTokens": 64_000, "topP": 0.5},
    }
    assert estimate(CLAUDE, body).input_tokens == -(-len("user" + "text") // 3)


def test_recorded_requests_with_tools_are_reserved_below_what_they_cost_and_nearer_to_it() -> None:
    """
    The structure of a schema is read, too; the provider's own prompt for tools, which no body
    shows, keeps the truth above the estimate.
    """
    require_fixtures()
    ratios: list[float] = []
    for recording in recordings(status=200):
        usage = recording.expected.get("usage") or {}
        billed = sum(usage.get(f"{kind}_tokens") or 0 for kind in ("input", "cache_read"))
        body = recording.body
        if body is None or not billed or not ({"tools", "toolConfig"} & body.keys()):
            continue
        reserved = estimate_converse if recording.operation.startswith("Converse") else estimate
        ratios.append((reserved(CLAUDE, body).input_tokens or 0) / billed)
    assert len(ratios) >= 25
    assert 0.25 <= median(ratios) <= 1
