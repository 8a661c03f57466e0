"""
ApplyGuardrail: a guardrail's verdict on a text, without a model.

Members and units as recorded; the service model of Bedrock Runtime for what a request must hold.
"""

from typing import Final

from bedrock_proxy_adapters.simulator.values import (
    Body,
    InvalidBody,
    Json,
    as_list,
    as_object,
    as_text,
)

BLOCKED: Final = "Sorry, the model cannot answer this question."
_CHARACTERS_A_UNIT: Final = 1_000
_LATENCY_MS: Final = 50
_ACCOUNT: Final = "111122223333"


def verdict(guardrail: str, body: Body, *, intervenes: bool, blocked: str | None) -> Body:
    """
    The body of ApplyGuardrail's answer.

    Args:
        guardrail: Its id, a colon, and its version.
        intervenes: Whether it blocks the text.
        blocked: What it says then.

    Raises:
        InvalidBody: The request names no source, or holds nothing to judge.
    """
    if body.get("source") not in {"INPUT", "OUTPUT"}:
        raise InvalidBody("The source must be one of INPUT and OUTPUT.")
    content = [as_object(block) for block in as_list(body.get("content"))]
    if not content or not all("text" in block or "image" in block for block in content):
        raise InvalidBody("The content must be a list of texts and images.")
    size = sum(len(as_text(as_object(block.get("text")).get("text"))) for block in content)
    images = sum("image" in block for block in content)
    name, _, version = guardrail.rpartition(":")
    name = name.rpartition("/")[2]
    units = -(-size // _CHARACTERS_A_UNIT)
    usage: Body = {
        "automatedReasoningPolicies": 0,
        "automatedReasoningPolicyUnits": 0,
        "contentPolicyImageUnits": images,
        "contentPolicyUnits": units,
        "contextualGroundingPolicyUnits": 0,
        "sensitiveInformationPolicyFreeUnits": 0,
        "sensitiveInformationPolicyUnits": 0,
        "topicPolicyUnits": units,
        "wordPolicyUnits": 0,
    }
    coverage: Body = {
        "images": {"guarded": images, "total": images} if images else None,
        "textCharacters": {"guarded": size, "total": size},
    }
    assessment: dict[str, Json] = {
        "appliedGuardrailDetails": {
            "guardrailArn": f"arn:aws:bedrock:us-east-1:{_ACCOUNT}:guardrail/{name}",
            "guardrailId": name,
            "guardrailOrigin": ["REQUEST"],
            "guardrailOwnership": "SELF",
            "guardrailVersion": version,
        },
        "invocationMetrics": {
            "guardrailCoverage": coverage,
            "guardrailProcessingLatency": _LATENCY_MS,
            "usage": usage,
        },
    }
    if intervenes:
        topic: Body = {"action": "BLOCKED", "detected": True, "name": "Simulated", "type": "DENY"}
        assessment["topicPolicy"] = {"topics": [topic]}
    outputs: list[Json] = [{"text": blocked or BLOCKED}] if intervenes else []
    return {
        "action": "GUARDRAIL_INTERVENED" if intervenes else "NONE",
        "actionReason": "Guardrail blocked." if intervenes else "No action.",
        "assessments": [assessment],
        "guardrailCoverage": coverage,
        "output": outputs,
        "outputs": outputs,
        "usage": usage,
    }
