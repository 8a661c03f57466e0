"""
The recorded Bedrock answers, read where they lie.

``BEDROCK_PROXY_FIXTURES`` names their directory; ``none`` says that they are absent on
purpose. Without it they are looked for beside the checkout.
"""

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from attrs import field, frozen

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "fixtures" / "bedrock"


def _find() -> Path | None:
    named = os.environ.get("BEDROCK_PROXY_FIXTURES")
    if named == "none":
        return None
    place = Path(named) if named else _BESIDE
    return place if (place / "INDEX.json").is_file() else None


FIXTURES: Path | None = _find()
"""Where the recordings are, or None."""


@frozen
class Recording:
    """
    One recorded call.

    Attributes:
        body: The request body as JSON, None where only the response was kept.
        response: The response body, byte for byte.
        response_headers: Names in lower case.
        expected: What an independent decoder read from it.
    """

    id: str
    family: str
    operation: str
    model_id: str
    body: Any = field(repr=False)
    status: int
    response: bytes = field(repr=False)
    response_headers: tuple[tuple[str, str], ...] = field(repr=False)
    expected: dict[str, Any] = field(repr=False)
    request_headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    meta: dict[str, Any] = field(factory=dict, repr=False)

    def json(self) -> Any:
        """The response body, parsed."""
        return json.loads(self.response)


def _load(place: Path) -> Recording:
    meta = json.loads((place / "meta.json").read_text())
    request = json.loads((place / "request.json").read_text())
    return Recording(
        id=place.name,
        family=meta["model_family"],
        operation=meta["operation"],
        model_id=request["modelId"] or "",
        body=request["body"],
        status=meta["status"],
        response=(place / meta["response_file"]).read_bytes(),
        response_headers=_pairs(meta["response_headers"]),
        expected=meta["expected"],
        request_headers=_pairs(request.get("headers")),
        meta=meta,
    )


def _pairs(headers: dict[str, Any] | None) -> tuple[tuple[str, str], ...]:
    return tuple((name.lower(), str(value)) for name, value in (headers or {}).items())


@cache
def _all() -> tuple[Recording, ...]:
    if FIXTURES is None:
        return ()
    return tuple(_load(meta.parent) for meta in sorted(FIXTURES.glob("*/meta.json")))


def recordings(
    operation: str | None = None, family: str | None = None, status: int | None = None
) -> list[Recording]:
    """The recordings of an operation, a family and a status; empty where there are none."""
    return [
        recording
        for recording in _all()
        if (operation is None or recording.operation == operation)
        and (family is None or recording.family == family)
        and (status is None or recording.status == status)
    ]


def vectors() -> Iterator[tuple[str, bool, bytes, dict[str, Any]]]:
    """The published event-stream vectors: name, whether valid, bytes, and all that is known."""
    if FIXTURES is None:
        return
    place = FIXTURES / "_eventstream_vectors"
    for vector in json.loads((place / "VECTORS.json").read_text()):
        yield vector["file"], vector["valid"], (place / vector["file"]).read_bytes(), vector


def require_fixtures() -> None:
    """
    Skip the calling test where the recordings are absent; under ``CI=true`` fail it,
    unless ``BEDROCK_PROXY_FIXTURES=none`` says that the absence is meant.
    """
    if FIXTURES is not None:
        return
    reason = "the recorded Bedrock answers are not here (see BEDROCK_PROXY_FIXTURES)"
    if os.environ.get("CI") == "true" and os.environ.get("BEDROCK_PROXY_FIXTURES") != "none":
        pytest.fail(reason)
    pytest.skip(reason)
