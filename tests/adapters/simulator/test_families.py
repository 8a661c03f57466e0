"""Every family's own shape, on InvokeModel and its stream, as boto3 delivers it."""

import json

import pytest
from botocore.exceptions import ClientError

from bedrock_proxy_adapters.simulator import Script, Tool

TEXT = "one two three four five"
CHAT = {"messages": [{"role": "user", "content": "why is it so"}], "max_tokens": 100}
WEATHER = Tool("weather", '{"city": "Paris"}', "call-1")


def last_metrics(chunks):
    return chunks[-1]["amazon-bedrock-invocationMetrics"]


# model, body, where the whole text is, where a chunk's text is, the stop reason's spelling
FAMILIES = {
    "claude": (
        "us.anthropic.claude-sonnet-4-20250514-v1:0",
        {
            "anthropic_version": "bedrock-2023-05-31",
            "max_tokens": 100,
            "messages": [{"role": "user", "content": "why is it so"}],
        },
        lambda whole: whole["content"][0]["text"],
        lambda chunk: chunk.get("delta", {}).get("text", ""),
        lambda whole: whole["stop_reason"] == "end_turn",
    ),
    "claude-completion": (
        "anthropic.claude-v2:1",
        {"prompt": "why is it so", "max_tokens_to_sample": 100},
        lambda whole: whole["completion"],
        lambda chunk: chunk["completion"],
        lambda whole: whole["stop"] == "\n\nHuman:",
    ),
    "nova": (
        "amazon.nova-lite-v1:0",
        {
            "messages": [{"role": "user", "content": [{"text": "why is it so"}]}],
            "inferenceConfig": {"maxTokens": 100},
        },
        lambda whole: whole["output"]["message"]["content"][0]["text"],
        lambda chunk: chunk.get("contentBlockDelta", {}).get("delta", {}).get("text", ""),
        lambda whole: whole["stopReason"] == "end_turn",
    ),
    "titan": (
        "amazon.titan-text-express-v1",
        {"inputText": "why is it so", "textGenerationConfig": {"maxTokenCount": 100}},
        lambda whole: whole["results"][0]["outputText"],
        lambda chunk: chunk["outputText"],
        lambda whole: whole["results"][0]["completionReason"] == "FINISH",
    ),
    "llama": (
        "meta.llama3-8b-instruct-v1:0",
        {"prompt": "why is it so", "max_gen_len": 100},
        lambda whole: whole["generation"],
        lambda chunk: chunk["generation"],
        lambda whole: whole["stop_reason"] == "stop",
    ),
    "mistral": (
        "mistral.mistral-7b-instruct-v0:2",
        {"prompt": "why is it so", "max_tokens": 100},
        lambda whole: whole["outputs"][0]["text"],
        lambda chunk: chunk["outputs"][0]["text"],
        lambda whole: whole["outputs"][0]["stop_reason"] == "stop",
    ),
    "mistral-chat": (
        "mistral.mistral-large-2407-v1:0",
        CHAT,
        lambda whole: whole["choices"][0]["message"]["content"],
        lambda chunk: chunk["choices"][0]["message"]["content"],
        lambda whole: whole["choices"][0]["stop_reason"] == "stop",
    ),
    "command": (
        "cohere.command-light-text-v14",
        {"prompt": "why is it so", "max_tokens": 100, "stream": True},
        lambda whole: whole["generations"][0]["text"],
        lambda chunk: chunk.get("text", ""),
        lambda whole: whole["generations"][0]["finish_reason"] == "COMPLETE",
    ),
    "command-r": (
        "cohere.command-r-v1:0",
        {"message": "why is it so", "max_tokens": 100},
        lambda whole: whole["text"],
        lambda chunk: chunk.get("text", ""),
        lambda whole: whole["finish_reason"] == "COMPLETE",
    ),
    "jamba": (
        "ai21.jamba-1-5-mini-v1:0",
        CHAT,
        lambda whole: whole["choices"][0]["message"]["content"],
        lambda chunk: chunk["choices"][0]["delta"]["content"] if "choices" in chunk else "",
        lambda whole: whole["choices"][0]["finish_reason"] == "stop",
    ),
    "deepseek": (
        "us.deepseek.r1-v1:0",
        {"prompt": "why is it so", "max_tokens": 100},
        lambda whole: whole["choices"][0]["text"],
        lambda chunk: chunk["choices"][0]["text"],
        lambda whole: whole["choices"][0]["stop_reason"] == "stop",
    ),
    "gpt-oss": (
        "openai.gpt-oss-20b-1:0",
        CHAT,
        lambda whole: whole["choices"][0]["message"]["content"],
        lambda chunk: "".join(c["delta"].get("content", "") for c in chunk["choices"]),
        lambda whole: whole["choices"][0]["finish_reason"] == "stop",
    ),
    "endpoint": (
        "arn:aws:sagemaker:us-east-1:123456789012:endpoint/mine",
        {"prompt": "why is it so", "max_tokens": 100},
        lambda whole: whole["choices"][0]["text"],
        lambda chunk: "".join(c.get("text", "") for c in chunk["choices"]),
        lambda whole: whole["choices"][0]["finish_reason"] == "stop",
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_whole_answer_has_the_familys_shape_and_counts_in_its_headers(name, simulator, call):
    model, body, text_of, _, stopped = FAMILIES[name]
    simulator.script(text=TEXT)
    reply = call.invoke(model, body)
    whole = json.loads(reply["body"].read())
    assert text_of(whole) == TEXT
    assert stopped(whole)
    headers = reply["ResponseMetadata"]["HTTPHeaders"]
    assert headers["x-amzn-bedrock-input-token-count"] == "4"
    assert headers["x-amzn-bedrock-output-token-count"] == "5"
    assert headers["x-amzn-requestid"] == simulator.calls[0].request_id
    assert reply["contentType"] == "application/json"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stream_has_the_familys_chunks_and_metrics_in_the_last(name, simulator, call):
    model, body, _, text_of, _ = FAMILIES[name]
    simulator.script(text=TEXT)
    chunks = call.streamed(model, body)
    *said, last = chunks
    assert "".join(text_of(chunk) for chunk in said if chunk) + _tail(text_of, last) == TEXT
    metrics = last_metrics(chunks)
    assert (metrics["inputTokenCount"], metrics["outputTokenCount"]) == (4, 5)
    assert all("amazon-bedrock-invocationMetrics" not in chunk for chunk in said)


def _tail(text_of, chunk):
    bare = {k: v for k, v in chunk.items() if not k.startswith("amazon-bedrock-")}
    return text_of(bare) if bare else ""


@pytest.mark.parametrize("name", FAMILIES)
def test_the_bodys_own_maximum_cuts_the_answer(name, simulator, call):
    model, body, text_of, _, stopped = FAMILIES[name]
    body = json.loads(json.dumps(body).replace("100", "2"))
    simulator.script(text=TEXT)
    whole = call.invoked(model, body)
    assert text_of(whole) == "one two"
    assert not stopped(whole)


def test_j2_answers_whole_and_does_not_stream(simulator, call):
    simulator.script(text=TEXT, times=2)
    body = {"prompt": "why is it so", "maxTokens": 2}
    completion = call.invoked("ai21.j2-mid-v1", body)["completions"][0]
    assert completion["data"]["text"] == "one two"
    assert completion["finishReason"]["reason"] == "length"
    with pytest.raises(ClientError, match="does not support streaming"):
        call.stream("ai21.j2-mid-v1", body)


def test_claude_thinks_and_calls_tools_in_blocks_of_their_own(simulator, call):
    simulator.script(text="so it is", thinking="let me see", tools=(WEATHER,), times=2)
    whole = call.invoked()
    assert [block["type"] for block in whole["content"]] == ["thinking", "text", "tool_use"]
    assert whole["content"][2]["input"] == {"city": "Paris"}
    assert whole["stop_reason"] == "tool_use"
    chunks = call.streamed()
    deltas = [chunk["delta"] for chunk in chunks if chunk["type"] == "content_block_delta"]
    assert "".join(delta.get("thinking", "") for delta in deltas) == "let me see"
    assert "".join(delta.get("text", "") for delta in deltas) == "so it is"
    given = "".join(delta.get("partial_json", "") for delta in deltas)
    assert json.loads(given) == {"city": "Paris"}
    starts = [c["content_block"]["type"] for c in chunks if c["type"] == "content_block_start"]
    assert starts == ["thinking", "text", "tool_use"]
    assert chunks[-2]["delta"]["stop_reason"] == "tool_use"
    assert any("signature" in delta for delta in deltas)


@pytest.mark.parametrize("name", ["nova", "gpt-oss", "jamba", "mistral-chat", "command-r"])
def test_tools_reach_the_stream_and_the_whole_answer(name, simulator, call):
    model, body, *_ = FAMILIES[name]
    simulator.script(text="so", tools=(WEATHER,), times=2)
    assert "weather" in json.dumps(call.invoked(model, body))
    assert "weather" in json.dumps(call.streamed(model, body))


@pytest.mark.parametrize("name", ["nova", "gpt-oss"])
def test_thinking_reaches_the_stream_and_the_whole_answer(name, simulator, call):
    model, body, *_ = FAMILIES[name]
    simulator.script(text="so", thinking="ponder", times=2)
    assert "ponder" in json.dumps(call.invoked(model, body))
    assert "ponder" in json.dumps(call.streamed(model, body))


def test_nova_gives_every_text_delta_a_block_of_its_own(simulator, call):
    model, body, *_ = FAMILIES["nova"]
    simulator.script(text=TEXT)
    chunks = call.streamed(model, body)
    indices = [
        chunk["contentBlockDelta"]["contentBlockIndex"]
        for chunk in chunks
        if "contentBlockDelta" in chunk
    ]
    assert indices == [0, 1, 2, 3, 4]


def test_titan_counts_are_floats_under_a_guardrail_and_null_before_the_last_chunk(simulator, call):
    model, body, *_ = FAMILIES["titan"]
    simulator.script(text=TEXT, guardrail=True)
    chunks = call.streamed(model, body)
    assert [chunk["totalOutputTextTokenCount"] for chunk in chunks] == [None] * 4 + [5.0]
    assert isinstance(chunks[-1]["totalOutputTextTokenCount"], float)
    assert chunks[-1]["amazon-bedrock-guardrailAction"] == "INTERVENED"


def test_cohere_command_interleaves_generations_and_without_stream_sends_one_chunk(simulator, call):
    model, body, *_ = FAMILIES["command"]
    simulator.script(text="one two", times=2)
    chunks = call.streamed(model, {**body, "num_generations": 2})
    assert [chunk["index"] for chunk in chunks] == [0, 1, 0, 1, 0, 1]
    plain = {k: v for k, v in body.items() if k != "stream"}
    (only,) = call.streamed(model, plain)
    assert only["generations"][0]["text"] == "one two"


def test_command_r_repeats_the_full_text_at_the_end(simulator, call):
    model, body, *_ = FAMILIES["command-r"]
    simulator.script(text=TEXT)
    end = call.streamed(model, body)[-1]
    assert end["event_type"] == "stream-end"
    assert end["response"]["text"] == TEXT


def test_jamba_ends_with_a_chunk_of_metrics_only(simulator, call):
    model, body, *_ = FAMILIES["jamba"]
    assert list(call.streamed(model, body)[-1]) == ["amazon-bedrock-invocationMetrics"]


@pytest.mark.parametrize(
    ("model", "body", "vectors"),
    [
        (
            "amazon.titan-embed-text-v2:0",
            {"inputText": "a b c", "dimensions": 256},
            lambda reply: [reply["embedding"], reply["embeddingsByType"]["float"]],
        ),
        (
            "cohere.embed-english-v3",
            {"texts": ["a b", "c"], "input_type": "search_document"},
            lambda reply: reply["embeddings"],
        ),
        (
            "us.cohere.embed-v4:0",
            {
                "texts": ["a b", "c"],
                "input_type": "search_query",
                "embedding_types": ["float", "int8"],
                "output_dimension": 256,
            },
            lambda reply: reply["embeddings"]["float"],
        ),
        (
            "amazon.nova-2-multimodal-embeddings-v1:0",
            {
                "taskType": "SINGLE_EMBEDDING",
                "singleEmbeddingParams": {"text": {"value": "a b c"}, "embeddingDimension": 256},
            },
            lambda reply: [reply["embeddings"][0]["embedding"]],
        ),
    ],
)
def test_embeddings_are_unit_vectors_that_the_text_decides(model, body, vectors, simulator, call):
    reply = call.invoke(model, body)
    found = vectors(json.loads(reply["body"].read()))
    for vector in found:
        assert len(vector) in (256, 1024)
        assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-3)
    assert found == vectors(call.invoked(model, body))
    headers = reply["ResponseMetadata"]["HTTPHeaders"]
    assert headers["x-amzn-bedrock-input-token-count"] == "3"
    assert "x-amzn-bedrock-output-token-count" not in headers
    with pytest.raises(ClientError, match="does not support streaming"):
        call.stream(model, body)
    with pytest.raises(ClientError, match="does not support Converse"):
        call.converse(model)


def test_rerank_orders_documents_by_shared_words(simulator, call):
    body = {
        "query": "capital of France",
        "documents": ["a river", "Paris is the capital of France", {"text": "capital letters"}],
        "top_n": 2,
    }
    results = call.invoked("cohere.rerank-v3-5:0", body)["results"]
    assert [result["index"] for result in results] == [1, 2]
    assert results[0]["relevance_score"] == 1.0


@pytest.mark.parametrize(
    ("model", "body", "words"),
    [
        (None, {"messages": [], "anthropic_version": "x"}, "max_tokens: Field required"),
        (None, {"messages": [], "max_tokens": 1}, "anthropic_version: Field required"),
        (
            None,
            {"messages": [], "max_tokens": 1, "anthropic_version": "x", "stream": True},
            "stream: Extra inputs are not permitted",
        ),
        ("amazon.nova-lite-v1:0", {"x": 1}, r"required key \[messages\]"),
        ("meta.llama3-8b-instruct-v1:0", {"x": 1}, r"required key \[prompt\]"),
        ("amazon.titan-text-express-v1", {"x": 1}, r"required key \[inputText\]"),
        ("cohere.embed-english-v3", {"x": 1}, r"required key \[texts\]"),
        ("cohere.command-r-v1:0", {"x": 1}, r"required key \[message\]"),
        ("openai.gpt-oss-20b-1:0", {"x": 1}, r"required key \[messages\]"),
    ],
)
def test_a_body_that_bedrock_refuses_is_refused(model, body, words, simulator, call):
    with pytest.raises(ClientError, match=words) as refusal:
        call.invoke(model or FAMILIES["claude"][0], body)
    assert refusal.value.response["Error"]["Code"] == "ValidationException"


def test_the_same_script_says_the_same_through_json(simulator, call):
    given = {"text": TEXT, "tools": [{"name": "weather", "input": {"city": "Paris"}}]}
    simulator.script(given)
    simulator.script(Script(text=TEXT, tools=(Tool("weather", '{"city": "Paris"}'),)))
    assert call.invoked() == call.invoked()


def test_gpt_oss_tells_usage_in_a_chunk_of_its_own_only_when_asked(simulator, call):
    model, body, *_ = FAMILIES["gpt-oss"]
    assert not any("usage" in chunk for chunk in call.streamed(model, body))
    asked = {**body, "stream_options": {"include_usage": True}}
    assert call.streamed(model, asked)[-1]["usage"]["prompt_tokens"] == 4


def test_nova_tells_cache_counts_of_zero(simulator, call):
    model, body, *_ = FAMILIES["nova"]
    headers = call.invoke(model, body)["ResponseMetadata"]["HTTPHeaders"]
    assert headers["x-amzn-bedrock-cache-read-input-token-count"] == "0"
    assert last_metrics(call.streamed(model, body))["cacheWriteInputTokenCount"] == 0


@pytest.mark.parametrize("name", ["claude", "claude-completion", "nova", "titan", "llama"])
def test_behind_an_opaque_arn_the_body_tells_the_family(name, simulator, call):
    _, body, text_of, _, _ = FAMILIES[name]
    profile = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc123"
    simulator.script(text=TEXT)
    assert text_of(call.invoked(profile, body)) == TEXT


def test_the_maximum_cuts_thinking_before_text_and_calls_no_tool(simulator, call):
    simulator.script(text="four five", thinking="one two three", tools=(WEATHER,), times=2)
    body = dict(FAMILIES["claude"][1])
    whole = call.invoked(body={**body, "max_tokens": 4})
    assert [block.get("text", block.get("thinking")) for block in whole["content"]] == [
        "one two three",
        "four",
    ]
    whole = call.invoked(body={**body, "max_tokens": 2})
    assert [block["thinking"] for block in whole["content"]] == ["one two"]
    assert whole["usage"]["output_tokens"] == 2
