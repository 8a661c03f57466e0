"""
The route table: every path that is answered, by whom, and behind which gate.

Paths are matched once, as they arrived (raw where the host has them raw). Nothing here
looks at Host or at forwarded headers.
"""

import re
from enum import Enum, unique
from typing import Final
from urllib.parse import unquote

from attrs import frozen

from bedrock_proxy.dialects.bedrock import BEDROCK
from bedrock_proxy.dialects.dialect import Dialect
from bedrock_proxy.dialects.simple import SIMPLE
from bedrock_proxy.errors import ClientFault, Code
from bedrock_proxy.http import Request


@unique
class Gate(Enum):
    """What stands before a route."""

    PUBLIC = "anyone; no customer data"
    AUTHENTICATED = "a valid token"
    ADMITTED = "a valid token, and admission by its customer's limits"


@frozen
class Route:
    """
    One line of the table.

    Attributes:
        method: In upper case.
        pattern: Matched against the whole path.
        gate: What stands before it.
        operation: What is asked for, in the words of the dialect or of ``exchange``.
        dialect: Who understands the request and words its errors.
        path: The pattern as a template, for people: ``{model}`` may hold slashes; ``*`` is
            every path.
    """

    method: str
    pattern: re.Pattern[str]
    gate: Gate
    operation: str
    dialect: Dialect = SIMPLE
    path: str = ""


def _route(method: str, path: str, gate: Gate, operation: str, dialect: Dialect = SIMPLE) -> Route:
    pattern = "(?s:.*)" if path == "*" else _VARIABLE.sub(_group, re.escape(path))
    return Route(method, re.compile(pattern), gate, operation, dialect, path)


_VARIABLE: Final = re.compile(r"\\\{(\w+)\\\}")
_SEGMENT: Final = frozenset({"version"})
"""The variables that are one segment of a path; the others may hold slashes."""


def _group(variable: re.Match[str]) -> str:
    name = variable[1]
    return f"(?P<{name}>[^/]+)" if name in _SEGMENT else rf"(?P<{name}>[\s\S]+)"


ROUTES: Final[tuple[Route, ...]] = (
    _route("POST", r"/", Gate.ADMITTED, "invoke"),
    _route("POST", r"/bedrock", Gate.ADMITTED, "invoke"),
    *(
        _route("POST", f"/model/{{model}}/{operation}", Gate.ADMITTED, operation, BEDROCK)
        for operation in (
            "invoke",
            "invoke-with-response-stream",
            "converse",
            "converse-stream",
            "count-tokens",
        )
    ),
    _route(
        "POST", "/guardrail/{guardrail}/version/{version}/apply", Gate.ADMITTED, "apply", BEDROCK
    ),
    _route("GET", r"/v1/usage", Gate.AUTHENTICATED, "usage"),
    _route("GET", r"/healthz", Gate.PUBLIC, "health"),
    _route("HEAD", r"/healthz", Gate.PUBLIC, "health"),
    _route("GET", r"/readyz", Gate.PUBLIC, "ready"),
    _route("HEAD", r"/readyz", Gate.PUBLIC, "ready"),
    _route("HEAD", r"/", Gate.PUBLIC, "health"),
    # Last: it matches every path, so that a preflight never tells which paths there are.
    _route("OPTIONS", "*", Gate.PUBLIC, "preflight"),
)


@frozen
class Found:
    """
    A route, and what its path says.

    Attributes:
        model: The model id in the path, decoded once; a guardrail's id and its version,
            with a colon between them.
    """

    route: Route
    model: str | None = None


def find(request: Request) -> Found:
    """
    The route of *request*.

    Raises:
        ClientFault: ``not_found``; ``method_not_allowed`` with the methods that are;
            ``invalid_request`` where the model in the path cannot be decoded.
    """
    path = request.path or "/"
    allowed: list[str] = []
    for route in ROUTES:
        if route.method == "OPTIONS" and request.method != "OPTIONS":
            continue
        match = route.pattern.fullmatch(path)
        if match is None:
            continue
        if route.method == request.method:
            return Found(route, _model(match, request))
        allowed.append(route.method)
    if allowed:
        raise ClientFault(
            f"{_shown(request.method)} is not allowed here; use {' or '.join(allowed)}.",
            Code.METHOD_NOT_ALLOWED,
            headers=(("allow", ", ".join(allowed)),),
        )
    raise ClientFault("There is nothing at this path.", Code.NOT_FOUND)


def _model(match: re.Match[str], request: Request) -> str | None:
    model = ":".join(match.groups())
    if not model:
        return None
    if request.path_is_decoded or "%" not in model:
        return model
    try:
        return unquote(model, errors="strict")
    except UnicodeDecodeError:
        raise ClientFault("The model id in the path is not valid UTF-8.") from None


def dialect_of(request: Request) -> Dialect:
    """Who words an error for *request*, whether or not there is a route for it."""
    path = request.path or "/"
    for route in ROUTES:
        if route.pattern.fullmatch(path):
            return route.dialect
    return SIMPLE


def _shown(method: str) -> str:
    return method if method.isalpha() and len(method) <= 16 else "This method"
