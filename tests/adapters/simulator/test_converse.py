"""Converse, ConverseStream and CountTokens, as boto3 parses them."""

import json

import pytest
import urllib3
from botocore.exceptions import ClientError

from bedrock_proxy_adapters.simulator import Tool

TEXT = "one two three"
WEATHER = Tool("weather", '{"city": "Paris"}', "call-1")
MODELS = [
    "us.anthropic.claude-sonnet-4-20250514-v1:0",
    "amazon.nova-micro-v1:0",
    "meta.llama3-8b-instruct-v1:0",
    "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc123",
    "arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.amazon.nova-lite-v1:0",
]


def of(events, name):
    return [event[name] for event in events if name in event]


@pytest.mark.parametrize("model", MODELS)
def test_converse_answers_for_every_model(model, simulator, call):
    simulator.script(text=TEXT)
    reply = call.converse(model, "why is it so", system=[{"text": "be brief"}])
    assert reply["output"]["message"]["content"] == [{"text": TEXT}]
    assert reply["stopReason"] == "end_turn"
    assert reply["usage"] == {"inputTokens": 6, "outputTokens": 3, "totalTokens": 9}
    assert simulator.calls[0].model_id == model


@pytest.mark.parametrize("model", MODELS)
def test_converse_stream_answers_for_every_model(model, simulator, call):
    simulator.script(text=TEXT)
    events = list(call.converse_stream(model, "why is it so"))
    deltas = of(events, "contentBlockDelta")
    assert "".join(delta["delta"]["text"] for delta in deltas) == TEXT
    assert not of(events, "contentBlockStart")
    assert of(events, "messageStop") == [{"stopReason": "end_turn"}]
    assert of(events, "metadata")[0]["usage"]["totalTokens"] == 7
    assert list(events[0]) == ["messageStart"]
    assert list(events[-1]) == ["metadata"]


def test_converse_thinks_calls_tools_and_tells_the_cache(simulator, call):
    script = {
        "text": TEXT,
        "thinking": "let me see",
        "tools": [{"name": "weather", "input": {"city": "Paris"}, "id": "call-1"}],
        "cache_read_tokens": 7,
        "cache_write_tokens": 11,
        "cache_write_1h_tokens": 13,
    }
    simulator.script(script, times=2)
    reply = call.converse()
    reasoning, text, tool = reply["output"]["message"]["content"]
    assert reasoning["reasoningContent"]["reasoningText"]["text"] == "let me see"
    assert text == {"text": TEXT}
    assert tool["toolUse"] == {
        "toolUseId": "call-1",
        "name": "weather",
        "input": {"city": "Paris"},
    }
    assert reply["stopReason"] == "tool_use"
    usage = reply["usage"]
    assert usage["cacheReadInputTokens"] == 7
    assert usage["cacheWriteInputTokens"] == 24
    assert usage["cacheDetails"] == [
        {"inputTokens": 11, "ttl": "5m"},
        {"inputTokens": 13, "ttl": "1h"},
    ]
    assert usage["totalTokens"] == usage["inputTokens"] + usage["outputTokens"] + 7 + 24

    events = list(call.converse_stream())
    deltas = [event["delta"] for event in of(events, "contentBlockDelta")]
    thoughts = [delta["reasoningContent"] for delta in deltas if "reasoningContent" in delta]
    assert "".join(thought.get("text", "") for thought in thoughts) == "let me see"
    assert thoughts[-1]["signature"]
    given = "".join(delta["toolUse"]["input"] for delta in deltas if "toolUse" in delta)
    assert json.loads(given) == {"city": "Paris"}
    assert of(events, "contentBlockStart")[0]["contentBlockIndex"] == 2
    assert of(events, "metadata")[0]["usage"] == usage


def test_claude_tells_the_cache_in_body_stream_and_headers(simulator, call):
    simulator.script(text=TEXT, cache_read_tokens=7, cache_write_1h_tokens=13, times=2)
    reply = call.invoke()
    usage = json.loads(reply["body"].read())["usage"]
    assert usage["cache_read_input_tokens"] == 7
    assert usage["cache_creation_input_tokens"] == 13
    assert usage["cache_creation"]["ephemeral_1h_input_tokens"] == 13
    headers = reply["ResponseMetadata"]["HTTPHeaders"]
    assert headers["x-amzn-bedrock-cache-read-input-token-count"] == "7"
    assert headers["x-amzn-bedrock-cache-write-input-token-count"] == "13"
    chunks = call.streamed()
    assert chunks[0]["message"]["usage"]["cache_read_input_tokens"] == 7
    metrics = chunks[-1]["amazon-bedrock-invocationMetrics"]
    assert metrics["cacheReadInputTokenCount"] == 7
    assert metrics["cacheWriteInputTokenCount"] == 13


def test_a_guardrail_leaves_its_trace_in_all_four(simulator, call):
    simulator.script(text=TEXT, guardrail=True, times=4)
    reply = call.converse()
    assert reply["stopReason"] == "guardrail_intervened"
    assert reply["trace"]["guardrail"]["modelOutput"] == [TEXT]
    events = list(call.converse_stream())
    assert of(events, "messageStop") == [{"stopReason": "guardrail_intervened"}]
    assert of(events, "metadata")[0]["trace"]["guardrail"]["modelOutput"] == [TEXT]
    assert call.invoked()["amazon-bedrock-guardrailAction"] == "INTERVENED"
    assert call.streamed()[-1]["amazon-bedrock-guardrailAction"] == "INTERVENED"


def test_converse_honours_max_tokens(simulator, call):
    reply = call.converse(inferenceConfig={"maxTokens": 3})
    assert reply["stopReason"] == "max_tokens"
    assert reply["output"]["message"]["content"] == [{"text": "You said: hello"}]
    assert reply["usage"]["outputTokens"] == 3


@pytest.mark.parametrize(
    "given",
    [
        {"converse": {"messages": [{"role": "user", "content": [{"text": "one two three"}]}]}},
        {
            "invokeModel": {
                "body": json.dumps(
                    {
                        "anthropic_version": "x",
                        "max_tokens": 1,
                        "messages": [{"role": "user", "content": "one two three"}],
                    }
                )
            }
        },
    ],
    ids=["converse", "invokeModel"],
)
def test_count_tokens_counts_words(given, simulator, client):
    reply = client.count_tokens(modelId=MODELS[0], input=given)
    assert reply["inputTokens"] == 3
    assert simulator.calls[0].operation == "count-tokens"


def test_an_unknown_model_is_a_validation_exception(simulator, call):
    for ask in (call.converse, call.converse_stream, call.invoke, call.stream):
        with pytest.raises(ClientError) as refusal:
            ask("does-not-exist")
        assert refusal.value.response["Error"] == {
            "Code": "ValidationException",
            "Message": "The provided model identifier is invalid.",
        }
        assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


def test_only_claude_signs_its_reasoning(simulator, call):
    simulator.script(thinking="hm", times=4)
    for model, signed in ((MODELS[0], True), ("qwen.qwen3-32b-v1:0", False)):
        whole = call.converse(model)["output"]["message"]["content"][0]
        assert ("signature" in whole["reasoningContent"]["reasoningText"]) == signed
        assert ("signature" in str(list(call.converse_stream(model)))) == signed


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"invokeModel": {"body": b"[1]"}}, "expected type: JSONObject"),
        ({"invokeModel": {"body": b"{"}}, "Malformed input request"),
    ],
)
def test_count_tokens_refuses_a_body_that_is_no_object(raw, words, simulator, client):
    with pytest.raises(ClientError, match=words):
        client.count_tokens(modelId=MODELS[0], input=raw)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (b"{}", "must hold one of"),
        (b'{"input":{"invokeModel":{"body":"*"}}}', "not base64"),
    ],
)
def test_count_tokens_refuses_an_input_that_is_none(given, words, simulator):
    path = f"/model/{MODELS[1]}/count-tokens"
    with urllib3.PoolManager() as pool:
        reply = pool.request("POST", simulator.url + path, body=given)
    assert reply.status == 400
    assert words in reply.json()["message"]
