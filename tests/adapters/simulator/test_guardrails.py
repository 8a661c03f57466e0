"""ApplyGuardrail: passed, blocked, refused, with the members of a recorded answer."""

import json
from typing import Any

import pytest
import urllib3
from botocore.exceptions import ClientError
from tests.fixtures import recordings, require_fixtures

TEXT = "Give stock suggestions. " * 60
ASKED: dict[str, Any] = {
    "guardrailIdentifier": "274u1upxm897",
    "guardrailVersion": "1",
    "source": "INPUT",
    "content": [{"text": {"text": TEXT}}],
}


def test_a_guardrail_passes_what_no_script_blocks(simulator, client):
    said = client.apply_guardrail(**ASKED)
    assert (said["action"], said["outputs"]) == ("NONE", [])
    assert said["usage"]["contentPolicyUnits"] == 2
    assert said["guardrailCoverage"]["textCharacters"] == {
        "guarded": len(TEXT),
        "total": len(TEXT),
    }
    [call] = simulator.calls
    assert (call.operation, call.model_id) == ("apply-guardrail", "274u1upxm897:1")


def test_a_script_blocks_and_says_what(simulator, client):
    simulator.script(guardrail=True, model="274u*:1")
    said = client.apply_guardrail(**ASKED)
    assert said["action"] == "GUARDRAIL_INTERVENED"
    assert said["outputs"] == [{"text": "Sorry, the model cannot answer this question."}]
    simulator.script(guardrail=True, text="No.")
    assert client.apply_guardrail(**ASKED)["outputs"] == [{"text": "No."}]


@pytest.mark.parametrize(
    "wrong", [{"source": "BOTH"}, {"content": []}, {"content": [{"qualifiers": ["query"]}]}]
)
def test_what_bedrock_would_refuse_is_refused(simulator, wrong):
    asked = {"source": "INPUT", "content": ASKED["content"], **wrong}
    with urllib3.PoolManager() as pool:
        path = "/guardrail/274u1upxm897/version/1/apply"
        refused = pool.request("POST", simulator.url + path, body=json.dumps(asked))
    assert refused.status == 400
    assert "ValidationException" in refused.headers["x-amzn-errortype"]


def test_a_scripts_error_is_said_as_for_every_call(simulator, client):
    simulator.script(error="ThrottlingException")
    with pytest.raises(ClientError) as refusal:
        client.apply_guardrail(**ASKED)
    assert refusal.value.response["Error"]["Code"] == "ThrottlingException"


def members(value: Any, under: str = "") -> set[str]:
    """The names in *value*, each with those above it; of a list, those of its first element."""
    if isinstance(value, list):
        return members(value[0], under) if value else set()
    if not isinstance(value, dict):
        return set()
    names = {f"{under}.{name}" for name in value}
    return names.union(*(members(each, f"{under}.{name}") for name, each in value.items()))


def test_the_members_are_those_of_a_recorded_answer(simulator, client):
    require_fixtures()
    [recorded] = recordings("ApplyGuardrail")
    simulator.script(guardrail=True)
    with urllib3.PoolManager() as pool:
        path = "/guardrail/274u1upxm897/version/1/apply"
        said = pool.request("POST", simulator.url + path, body=json.dumps(recorded.body)).json()
    # "output" is older than "outputs"; policies that this guardrail does not have are null there.
    assert members(said) <= members(recorded.json())
    assert said["guardrailCoverage"] == recorded.json()["guardrailCoverage"]
