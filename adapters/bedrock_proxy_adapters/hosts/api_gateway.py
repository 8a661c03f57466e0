"""
The buffered Lambda host: API Gateway (REST and HTTP APIs), Application Load Balancers and
Function URLs, whichever calls.

The answer is handed over whole: a simple stream becomes one JSON array, a native one its
bytes in base64. Everything is settled before the handler returns, for Lambda freezes the
process then.

REST APIs must list the native wire's binary type, or ``*/*``, in ``binaryMediaTypes`` to
pass it on as bytes.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from bedrock_proxy import routes
from bedrock_proxy.drive import drive
from bedrock_proxy.errors import ClientFault, Code
from bedrock_proxy.http import Head
from bedrock_proxy_adapters.hosts.deadlines import cut_after, seconds_for
from bedrock_proxy_adapters.hosts.events import Event, Shape, read_event, size_of
from bedrock_proxy_adapters.hosts.lambda_log import log_usage_to_stdout, on_lambda
from bedrock_proxy_adapters.hosts.settlement import settling_within
from bedrock_proxy_adapters.proxy import Passage, Proxy, new_request_id

Handler: TypeAlias = Callable[[Any, Any], dict[str, Any]]

GATEWAY_SECONDS: Final[Mapping[Shape, float]] = {
    Shape.REST: 29.0,
    Shape.HTTP_V1: 30.0,
    Shape.HTTP_V2: 30.0,
}
"""
How long a gateway waits before it answers for us, without telling the function (AWS,
"Amazon API Gateway quotas", integration timeouts).
"""

ANSWER_BYTES: Final = 6 * 1024 * 1024
"""The largest answer of a buffered function (AWS, "Lambda quotas")."""

ALB_ANSWER_BYTES: Final = 1024 * 1024
"""The largest that a load balancer takes (AWS, "Use Lambda functions as targets")."""


def api_gateway_handler(proxy: Proxy, *, deadline_s: float | None = None) -> Handler:
    """
    *proxy* as a Lambda handler: ``handler(event, context)``. On Lambda its usage lines go to
    standard output, unless you have configured the logger ``bedrock_proxy.usage`` yourself.

    Args:
        deadline_s: How long the front waits for an answer, in seconds. Where None: 29 for
            REST APIs, 30 for HTTP APIs, without bound for the others. Raise it with the
            gateway's own integration timeout. The function's own remaining time always
            counts.

    Raises:
        ConfigurationError: A port of the proxy needs an event loop.
    """
    faces = proxy.sync_faces()
    if on_lambda():
        log_usage_to_stdout()

    def handler(event: Any, context: Any) -> dict[str, Any]:
        arrived = read_event(event, proxy.base_path, _request_id(context))
        if arrived is None:
            # A warmer, a console test: there is nobody to be told more.
            return {"statusCode": 400, "body": "", "isBase64Encoded": False}
        left = _seconds(arrived.shape, context, deadline_s)
        settling = settling_within(proxy, faces, left)
        passage = proxy.passage(arrived.request, arrived.body, settling)
        timer = cut_after(passage, None if left is None else seconds_for(left))
        try:
            head, body = _drive(passage)
        finally:
            passage.ended()
            if timer is not None:
                timer.cancel()
        return _fitting(arrived, head, body)

    return handler


def _drive(passage: Passage) -> tuple[Head, bytes | None]:
    """Everything the flow says; None for a body that is too large for any front."""
    head: Head | None = None
    pieces: list[bytes] = []
    size = 0
    for said in drive(passage.flow, passage.ports, passage.interrupts):
        if isinstance(said, Head):
            head = said
        else:
            size += len(said)
            if size <= ANSWER_BYTES:
                pieces.append(said)
            else:
                pieces.clear()  # the rest is read for the bill alone
    assert head is not None, "a flow says its head first"
    return head, b"".join(pieces) if size <= ANSWER_BYTES else None


def _fitting(event: Event, head: Head, body: bytes | None) -> dict[str, Any]:
    """The answer, or an error in its place where the front would not take it."""
    limit = ALB_ANSWER_BYTES if event.shape is Shape.ALB else ANSWER_BYTES
    if body is not None:
        answer = event.answer(head, body)
        # Escapes make at most six characters of a byte.
        if len(body) * 6 + 65_536 <= limit or size_of(answer) <= limit:
            return answer
    # Not a status that clients retry: the tokens would be spent again.
    error = ClientFault(
        f"The answer is larger than the {limit // (1024 * 1024)} MB that this endpoint can "
        "return; ask for less, or use an endpoint that streams.",
        Code.TOO_LARGE,
    )
    request = event.request
    reply = routes.dialect_of(request).refusal(error, request.request_id)
    kept = tuple(
        (name, value)
        for name, value in head.headers
        if name.startswith("x-ratelimit-") or name in {"x-request-id", "deprecation"}
    )
    return event.answer(Head(reply.status, (*reply.headers, *kept)), reply.body)


def _request_id(context: Any) -> str:
    given = getattr(context, "aws_request_id", None)
    return given if isinstance(given, str) and given else new_request_id()


def _seconds(shape: Shape, context: Any, deadline_s: float | None) -> float | None:
    """Seconds until nobody waits for the answer any more; None is without bound."""
    bounds: list[float] = []
    front = GATEWAY_SECONDS.get(shape) if deadline_s is None else deadline_s
    if front is not None:
        bounds.append(front)
    remaining = getattr(context, "get_remaining_time_in_millis", None)
    if callable(remaining):
        left: Any = remaining()
        bounds.append(float(left) / 1000)
    return min(bounds, default=None)
