"""
Families whose body is a ``prompt``: Llama, Mistral text, Cohere Command, J2, DeepSeek R1.

Source: each one's page under "Inference request parameters and response fields" in the
Amazon Bedrock user guide.
"""

from typing import Final

from bedrock_proxy_adapters.simulator.answers import (
    Answer,
    Prompt,
    guardrail_members,
    pieces_of,
)
from bedrock_proxy_adapters.simulator.families.family import (
    Family,
    earlier_reports,
    last_members,
    or_null,
)
from bedrock_proxy_adapters.simulator.values import Body, InvalidBody, Json, as_count, as_text

_STOPS: Final = {"end": "stop", "length": "length", "tool": "stop"}
_COHERE_REASONS: Final = {"end": "COMPLETE", "length": "MAX_TOKENS", "tool": "COMPLETE"}
_J2_REASONS: Final = {"end": "endoftext", "length": "length", "tool": "endoftext"}


def prompt_at(body: Body, maximum: str) -> Prompt:
    """The prompt of a body with ``prompt`` and its maximum at *maximum*."""
    if "prompt" not in body:
        raise InvalidBody(
            "Malformed input request: #: required key [prompt] not found, please reformat your "
            "input and try again."
        )
    text = as_text(body["prompt"])
    return Prompt(text, text, as_count(body.get(maximum)))


def _llama_prompt(body: Body) -> Prompt:
    return prompt_at(body, "max_gen_len")


def _llama_whole(answer: Answer) -> Body:
    said: dict[str, Json] = {"generation": answer.text}
    if answer.usage is not None:
        said["prompt_token_count"] = answer.usage.input
        said["generation_token_count"] = answer.usage.output
    return {**said, "stop_reason": answer.reason(_STOPS), **guardrail_members(answer)}


def _llama_stream(answer: Answer) -> list[Body]:
    usage = answer.usage
    chunks: list[Body] = [
        {
            "generation": piece,
            "prompt_token_count": or_null(usage, "input") if number == 0 else None,
            "generation_token_count": None if usage is None else min(number + 1, usage.output),
            "stop_reason": None,
        }
        for number, piece in enumerate(answer.pieces)
    ]
    last: Body = {
        "generation": "",
        "prompt_token_count": None if chunks else or_null(usage, "input"),
        "generation_token_count": or_null(usage, "output"),
        "stop_reason": answer.reason(_STOPS),
        **last_members(answer),
    }
    return [*chunks, *earlier_reports(answer), last]


def _mistral_output(text: str, reason: str | None) -> Body:
    return {"outputs": [{"text": text, "stop_reason": reason}]}


def mistral_whole(answer: Answer) -> Body:
    """Mistral's completion: no counts in the body, they are in the headers."""
    said = _mistral_output(answer.text, answer.reason(_STOPS))
    return {**said, **guardrail_members(answer)}


def mistral_stream(answer: Answer) -> list[Body]:
    """One chunk a piece; the last piece carries the stop reason."""
    pieces = answer.pieces or ("",)
    return [
        *(_mistral_output(piece, None) for piece in pieces[:-1]),
        *earlier_reports(answer),
        {**_mistral_output(pieces[-1], answer.reason(_STOPS)), **last_members(answer)},
    ]


def _command_prompt(body: Body) -> Prompt:
    return prompt_at(body, "max_tokens")


def _generations(answer: Answer) -> int:
    return max(1, as_count(answer.body.get("num_generations")) or 1)


def _command_whole(answer: Answer) -> Body:
    generations = [
        {
            "id": f"generation-{number}",
            "text": answer.text,
            "finish_reason": answer.reason(_COHERE_REASONS),
        }
        for number in range(_generations(answer))
    ]
    said: dict[str, Json] = {
        "id": "simulated",
        "generations": generations,
        "prompt": answer.prompt.text,
    }
    return {**said, **guardrail_members(answer)}


def _command_stream(answer: Answer) -> list[Body]:
    if answer.body.get("stream") is not True:
        return [{**_command_whole(answer), **last_members(answer)}]
    many = _generations(answer)
    chunks: list[Body] = []
    for piece in answer.pieces:
        for index in range(many):
            place: dict[str, Json] = {"index": index} if many > 1 else {}
            chunks.append({**place, "is_finished": False, "text": piece})
    for index in range(many):
        place = {"index": index} if many > 1 else {}
        reason = answer.reason(_COHERE_REASONS)
        chunks.append({**place, "is_finished": True, "finish_reason": reason})
    chunks[-1:] = [*earlier_reports(answer), {**chunks[-1], **last_members(answer)}]
    return chunks


def _j2_prompt(body: Body) -> Prompt:
    return prompt_at(body, "maxTokens")


def _j2_tokens(text: str) -> list[Json]:
    return [
        {"generatedToken": {"token": piece.replace(" ", "▁"), "logprob": -1.0}}
        for piece in pieces_of(text)
    ]


def _j2_whole(answer: Answer) -> Body:
    completion: Json = {
        "data": {"text": answer.text, "tokens": _j2_tokens(answer.text)},
        "finishReason": {"reason": answer.reason(_J2_REASONS)},
    }
    prompt: Json = {"text": answer.prompt.text, "tokens": _j2_tokens(answer.prompt.text)}
    said: dict[str, Json] = {"id": 1234, "prompt": prompt, "completions": [completion]}
    return {**said, **guardrail_members(answer)}


def _choice(text: str, reason: str | None) -> Body:
    return {"choices": [{"text": text, "stop_reason": reason}]}


def _deepseek_whole(answer: Answer) -> Body:
    return {**_choice(answer.text, answer.reason(_STOPS)), **guardrail_members(answer)}


def _deepseek_stream(answer: Answer) -> list[Body]:
    return [
        *(_choice(piece, None) for piece in answer.pieces),
        *earlier_reports(answer),
        {**_choice("", answer.reason(_STOPS)), **last_members(answer)},
    ]


LLAMA: Final = Family(_llama_prompt, _llama_whole, _llama_stream)
COMMAND: Final = Family(_command_prompt, _command_whole, _command_stream)
J2: Final = Family(_j2_prompt, _j2_whole)
DEEPSEEK: Final = Family(_command_prompt, _deepseek_whole, _deepseek_stream)
