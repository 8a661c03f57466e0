"""
The route table: every path that is answered, by whom, and behind which gate.

Paths are matched once, as they arrived (raw where the host has them raw). Nothing here
looks at Host or at forwarded headers.
"""

import re
from enum import Enum, unique
from typing import Final, NamedTuple

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


class Route(NamedTuple):
    """
    One line of the table.

    Attributes:
        method: In upper case.
        pattern: A regular expression for the whole path; None where the path is the very text
            of ``path``.
        gate: What stands before it.
        operation: What is asked for, in the words of the dialect or of ``exchange``.
        dialect: Who understands the request and words its errors.
        path: The pattern as a template, for people: ``{model}`` may hold slashes; ``*`` is
            every path.
    """

    method: str
    pattern: str | None
    gate: Gate
    operation: str
    dialect: Dialect = SIMPLE
    path: str = ""

    def variables(self, path: str) -> tuple[str, ...] | None:
        """What stands in *path* for the template's variables; None where it is no match."""
        if self.pattern is None:
            return () if path == self.path else None
        # Compiled when first met: a process rarely serves every route.
        match = re.fullmatch(self.pattern, path)
        return match if match is None else match.groups()


def _route(method: str, path: str, gate: Gate, operation: str, dialect: Dialect = SIMPLE) -> Route:
    pattern = path.format_map(_VARIABLES)
    return Route(method, None if pattern == path else pattern, gate, operation, dialect, path)


_VARIABLES: Final = {"model": r"([\s\S]+)", "guardrail": r"([\s\S]+)", "version": "([^/]+)"}
"""What a template's variables match: a model's ARN may hold slashes, a version is one segment."""


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
    Route("OPTIONS", r"[\s\S]*", Gate.PUBLIC, "preflight", path="*"),
)


_NATIVE: Final = ("/model/", "/guardrail/", "/async-invoke")
"""How the paths of Bedrock Runtime begin: who calls them reads errors as an AWS SDK does."""


class Found(NamedTuple):
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
        variables = route.variables(path)
        if variables is None:
            continue
        if route.method == request.method:
            return Found(route, _model(":".join(variables), request))
        allowed.append(route.method)
    if allowed:
        raise ClientFault(
            f"{_shown(request.method)} is not allowed here; use {' or '.join(allowed)}.",
            Code.METHOD_NOT_ALLOWED,
            headers=(("allow", ", ".join(allowed)),),
        )
    raise ClientFault(
        "The proxy does not serve this operation of Bedrock."
        if path.startswith(_NATIVE)
        else "There is nothing at this path.",
        Code.NOT_FOUND,
    )


def _model(model: str, request: Request) -> str | None:
    if not model:
        return None
    if request.path_is_decoded or "%" not in model:
        return model
    # Here alone is it needed, and it brings `ipaddress` with it.
    from urllib.parse import unquote

    try:
        return unquote(model, errors="strict")
    except UnicodeDecodeError:
        raise ClientFault("The model id in the path is not valid UTF-8.") from None


def dialect_of(request: Request) -> Dialect:
    """Who words an error for *request*, whether or not there is a route for it."""
    path = request.path or "/"
    for route in ROUTES:
        if route.method != "OPTIONS" and route.variables(path) is not None:
            return route.dialect
    return BEDROCK if path.startswith(_NATIVE) else SIMPLE


def _shown(method: str) -> str:
    return method if method.isalpha() and len(method) <= 16 else "This method"
