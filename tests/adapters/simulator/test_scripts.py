"""Which script answers which call, scripts as JSON, and the control endpoint."""

import json
import urllib.error
import urllib.request

import attrs
import pytest

from bedrock_proxy_adapters.simulator import (
    Bedrock,
    CallTimeout,
    Fault,
    Replay,
    Script,
    Tool,
    start_in_thread,
)


def said(reply):
    return reply["output"]["message"]["content"][0]["text"]


def control(simulator, method, name, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{simulator.url}/_simulator/{name}", data=data, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as reply:
        return json.load(reply)


def test_scripts_with_a_number_wait_in_a_queue(simulator, call):
    simulator.script(text="first")
    simulator.script(text="second", times=2)
    assert [said(call.converse()) for _ in range(3)] == ["first", "second", "second"]
    assert said(call.converse()).startswith("You said:")


def test_a_script_for_ever_holds_until_a_newer_one_and_the_queue_goes_first(simulator, call):
    simulator.script(text="old", times=None)
    simulator.script(text="new", times=None)
    simulator.script(text="once")
    assert [said(call.converse()) for _ in range(3)] == ["once", "new", "new"]


def test_a_script_can_be_for_some_models_only(simulator, call):
    simulator.script(text="nova", model="*nova*", times=None)
    assert said(call.converse()).startswith("You said:")
    assert said(call.converse("amazon.nova-lite-v1:0")) == "nova"


def test_the_default_can_be_set_and_survives_a_reset(simulator, call):
    simulator.default({"text": "default"})
    simulator.script(text="forgotten", times=None)
    simulator.reset()
    assert said(call.converse()) == "default"


def test_a_script_and_members_together_are_refused(simulator):
    with pytest.raises(ValueError, match="not both"):
        simulator.script(Script(), text="x")


@pytest.mark.parametrize("number", [{"times": 0}, {"every": 0}])
def test_numbers_below_one_are_refused(number, simulator):
    with pytest.raises(ValueError, match="at least 1"):
        simulator.script(text="x", **number)


def test_every_member_can_be_said_in_json():
    given = {
        "text": "x",
        "pieces": ["x", "y"],
        "events": 2,
        "thinking": "t",
        "tools": [{"name": "n", "input": {"a": 1}, "id": "i"}],
        "stop_reason": "s",
        "input_tokens": 1,
        "output_tokens": 2,
        "cache_read_tokens": 3,
        "cache_write_tokens": 4,
        "cache_write_1h_tokens": 5,
        "usage": "zero",
        "guardrail": True,
        "delay": 0.5,
        "first_event_delay": 1,
        "pace": 0.25,
        "gate": True,
        "stall_after": 3,
        "stall": 1.5,
        "batch": 2,
        "chunk_sizes": [1, 2],
        "chunk_seed": 9,
        "padding": False,
        "hang_up": "rst",
        "error": "ThrottlingException",
        "error_status": 430,
        "error_message": "m",
        "faults": [
            {
                "kind": "lengths",
                "after": 1,
                "name": "n",
                "message": "m",
                "at": 2,
                "how": "rst",
                "total_length": 0,
                "headers_length": 1,
            }
        ],
        "replay": {"body_base64": "aGk=", "status": 201, "headers": {"X-A": "b"}},
        "headers": {"X-More": "1"},
    }
    assert set(given) == {field.name for field in attrs.fields(Script)}
    assert set(given["faults"][0]) == {field.name for field in attrs.fields(Fault)}
    script = Script.from_json(given)
    assert script.tools == (Tool("n", '{"a": 1}', "i"),)
    assert script.faults == (Fault("lengths", 1, "n", "m", 2, "rst", 0, 1),)
    assert script.replay == Replay(b"hi", 201, (("x-a", "b"),))
    assert script.headers == (("x-more", "1"),)
    assert script.chunk_sizes == (1, 2)
    assert Script.from_json({}) == Script()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "must be an object"),
        ({"txt": "x"}, "no member 'txt'"),
        ({"text": 1}, "text must be str"),
        ({"batch": True}, "batch must be int"),
        ({"batch": 0}, "at least 1"),
        ({"pace": -1}, "negative"),
        ({"chunk_sizes": [0]}, "at least 1"),
        ({"chunk_sizes": 3}, "must be an array"),
        ({"usage": "some"}, "usage must be one of"),
        ({"hang_up": "maybe"}, "fin or rst"),
        ({"tools": [{"input": {}}]}, "needs a name"),
        ({"faults": [{"after": 1}]}, "needs a kind"),
        ({"faults": [{"kind": "gremlins"}]}, "kind must be one of"),
        ({"faults": [{"kind": "cut", "how": "gently"}]}, "fin or rst"),
        ({"replay": {}}, "needs body_base64"),
        ({"replay": {"body_base64": "*"}}, "not base64"),
        ({"headers": []}, "must be an object"),
    ],
)
def test_a_wrong_script_is_refused_by_name(given, words):
    with pytest.raises(ValueError, match=words):
        Script.from_json(given)


def test_a_client_in_another_process_scripts_by_http(simulator, call):
    control(simulator, "POST", "script", {"script": {"text": "over http"}, "times": 2})
    control(simulator, "POST", "script", {"script": {"text": "x"}, "times": None, "model": "y"})
    assert [said(call.converse()) for _ in range(2)] == ["over http"] * 2
    first, second = control(simulator, "GET", "calls")
    assert first["operation"] == "converse"
    assert second["index"] == 1
    assert second["finished"] is True
    assert "authorization" not in first["headers"]
    assert b"hello there" in simulator.calls[0].body
    control(simulator, "POST", "reset")
    assert simulator.calls == []


def test_a_gate_is_released_by_http(simulator, call):
    control(simulator, "POST", "script", {"script": {"text": "one", "gate": True}})
    stream = call.converse_stream()
    control(simulator, "POST", "release", {"call": 0, "events": 100})
    assert len(list(stream)) == 5


@pytest.mark.parametrize(
    ("method", "name", "body", "status"),
    [
        ("POST", "script", {"script": {"txt": 1}}, 400),
        ("POST", "script", {"scripts": {}}, 400),
        ("POST", "script", {"script": {}, "every": "x"}, 400),
        ("POST", "release", {"call": 99}, 400),
        ("POST", "nothing", {}, 404),
        ("GET", "script", None, 404),
    ],
)
def test_the_control_endpoint_refuses_what_it_does_not_know(simulator, method, name, body, status):
    with pytest.raises(urllib.error.HTTPError) as refusal:
        control(simulator, method, name, body)
    with refusal.value as answer:
        assert answer.code == status
        assert json.load(answer)["message"]
    assert simulator.calls == []


def test_models_of_ones_own_have_a_family():
    with start_in_thread(models={"my-model": "titan"}) as simulator:
        reply = simulator.client().invoke_model(
            modelId="my-model", body=json.dumps({"inputText": "hello"})
        )
        assert "results" in json.loads(reply["body"].read())


def test_a_family_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no family 'gpt'"):
        Bedrock(models={"x": "gpt"})


def test_waiting_for_calls_ends_in_a_sentence(simulator):
    with pytest.raises(CallTimeout, match=r"waited 0\.01 s for 1 calls: 0"):
        simulator.wait_calls(1, timeout=0.01)


def test_old_calls_are_forgotten():
    bedrock = Bedrock(keep=2)
    for _ in range(5):
        bedrock.receive("POST", "/model/amazon.nova-lite-v1:0/converse", (), b"{}")
    assert [call.index for call in bedrock.calls] == [3, 4]
