"""
What fronts hand to a Lambda function in place of an HTTP request, and what they want back.

Pure translations, shared by the Lambda hosts. The shapes are told apart by what only they
have; any map in them may be null.

Sources: AWS, API Gateway developer guide, "Lambda proxy integrations in API Gateway" and
"Create AWS Lambda proxy integrations for HTTP APIs"; Elastic Load Balancing user guide,
"Use Lambda functions as targets"; Lambda developer guide, "Invoking Lambda function URLs".
HTTP APIs decode the path before they hand it over; the others leave it percent-encoded
(observed; the guides do not say).
"""

import base64
import json
from collections.abc import Iterator, Mapping
from enum import Enum, unique
from http import HTTPStatus
from typing import Any, Final, cast
from urllib.parse import urlencode

from attrs import frozen

from bedrock_proxy import front
from bedrock_proxy.errors import ClientFault
from bedrock_proxy.http import Head, Headers, Request
from bedrock_proxy.ports import PortKind
from bedrock_proxy_adapters.hosts.paths import below, below_encoded

_NOT_SAID: Final = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding"})
"""The front frames the reply itself."""


@unique
class Shape(Enum):
    """Who sent the event."""

    REST = "API Gateway REST API"
    HTTP_V1 = "API Gateway HTTP API, payload format 1.0"
    HTTP_V2 = "API Gateway HTTP API, payload format 2.0"
    FUNCTION_URL = "Lambda Function URL"
    ALB = "Application Load Balancer"


@frozen
class Event:
    """
    An HTTP request that came as an event.

    Attributes:
        multi_value: Whether an Application Load Balancer wants its answer's headers as
            lists (it must get them as it sent them).
    """

    shape: Shape
    request: Request
    body: "EventBody"
    multi_value: bool = False

    def answer(self, head: Head, body: bytes) -> dict[str, Any]:
        """*head* and *body* as the front wants them."""
        text = _as_text(head, body)
        answer: dict[str, Any] = {
            "statusCode": head.status,
            "body": base64.b64encode(body).decode() if text is None else text,
            "isBase64Encoded": text is None,
        }
        lists = _lists(head.headers)
        if self.shape in {Shape.HTTP_V2, Shape.FUNCTION_URL} and "set-cookie" in lists:
            answer["cookies"] = lists.pop("set-cookie")
        if self.shape in {Shape.REST, Shape.HTTP_V1} or self.multi_value:
            answer["multiValueHeaders"] = lists
        else:
            answer["headers"] = {name: ", ".join(values) for name, values in lists.items()}
        if self.shape is Shape.ALB:
            answer["statusDescription"] = f"{head.status} {_phrase(head.status)}"
        return answer

    @property
    def streams(self) -> bool:
        """Whether there is a way for this front to pass an answer on piece by piece."""
        return self.shape in {Shape.REST, Shape.FUNCTION_URL}


def prelude(head: Head) -> bytes:
    """
    *head* as JSON, for an answer that is streamed (AWS, Lambda developer guide, "Response
    streaming": the metadata before eight NUL bytes).
    """
    lists = _lists(head.headers)
    said: dict[str, Any] = {"statusCode": head.status}
    cookies = lists.pop("set-cookie", None)
    said["headers"] = {name: ", ".join(values) for name, values in lists.items()}
    if cookies is not None:
        said["cookies"] = cookies
    return json.dumps(said, separators=(",", ":")).encode()


class EventBody:
    """The body in an event, decoded when the flow asks."""

    kind: PortKind = "instant"

    def __init__(self, body: object, is_base64: bool) -> None:
        self._body = body
        self._is_base64 = is_base64

    def receive(self, limit: int, within: float) -> bytes:  # noqa: ARG002 -- it is all here
        """See :class:`bedrock_proxy.ports.Body`."""
        body = self._body
        if body is None:
            return b""
        if not isinstance(body, str):
            raise ClientFault("The event's body is not text.")
        if self._is_base64:
            if len(body) // 4 * 3 > limit + 3:
                raise front.too_large(limit)
            try:
                found = base64.b64decode(body, validate=True)
            except ValueError:
                raise ClientFault("The event's body is marked as base64 and is none.") from None
        else:
            # Half a surrogate pair becomes invalid UTF-8, which is refused as such.
            found = body.encode("utf-8", "surrogatepass")
        if len(found) > limit:
            raise front.too_large(limit)
        return found


def read_event(
    event: object, base_path: str, request_id: str, *, can_stream: bool = False
) -> Event | None:
    """
    The request in *event*; None where it is of no shape known here.

    Args:
        base_path: A prefix that is stripped from the path, after the stage's.
        request_id: The ledger row's key.
        can_stream: Whether the answer is delivered piece by piece.
    """
    fields = _map(event)
    context = _map(fields.get("requestContext"))
    shape = _shape(fields, context)
    if shape is None:
        return None
    modern = shape in {Shape.HTTP_V2, Shape.FUNCTION_URL}
    http = _map(context.get("http"))
    path = _text(fields.get("rawPath") if modern else fields.get("path"))
    stage = _text(context.get("stage"))
    decoded = shape in {Shape.HTTP_V1, Shape.HTTP_V2}
    if decoded and stage not in {"", "$default"}:
        path = below(path, f"/{stage}")
    lists = isinstance(fields.get("multiValueHeaders"), Mapping)
    headers = list(_headers(fields.get("multiValueHeaders" if lists else "headers")))
    cookies = fields.get("cookies")
    if modern and isinstance(cookies, list) and cookies:
        headers.append(("cookie", "; ".join(map(str, cast("list[object]", cookies)))))
    if not any(name == "host" for name, _ in headers):
        # The front has routed by it already; test events leave it out.
        headers.append(("host", _text(context.get("domainName"))))
    key = _map(context.get("identity")).get("apiKey")
    request = Request(
        request_id=request_id,
        method=_text(http.get("method") if modern else fields.get("httpMethod")).upper(),
        path=(below if decoded else below_encoded)(path, base_path) or "/",
        headers=tuple(headers),
        query=_query(fields, shape),
        path_is_decoded=decoded,
        can_stream=can_stream,
        peer_key=key if isinstance(key, str) and key else None,
    )
    return Event(
        shape,
        request,
        EventBody(fields.get("body"), fields.get("isBase64Encoded") is True),
        multi_value=shape is Shape.ALB and lists,
    )


def _shape(fields: Mapping[str, Any], context: Mapping[str, Any]) -> Shape | None:
    if "elb" in context:
        return Shape.ALB
    if fields.get("version") == "2.0" and isinstance(context.get("http"), Mapping):
        named = ".lambda-url." in _text(context.get("domainName"))
        return Shape.FUNCTION_URL if named else Shape.HTTP_V2
    if isinstance(fields.get("httpMethod"), str):
        return Shape.HTTP_V1 if fields.get("version") == "1.0" else Shape.REST
    return None


def _lists(headers: Headers) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    for name, value in headers:
        if name not in _NOT_SAID:
            lists.setdefault(name, []).append(value)
    return lists


def _headers(fields: object) -> Iterator[tuple[str, str]]:
    for name, value in _map(fields).items():
        values = cast("list[object]", value) if isinstance(value, list) else [value]
        for each in values:
            if each is not None:
                yield str(name).lower(), str(each)


def _query(fields: Mapping[str, Any], shape: Shape) -> str:
    if shape in {Shape.HTTP_V2, Shape.FUNCTION_URL}:
        return _text(fields.get("rawQueryString"))
    name = "multiValueQueryStringParameters"
    if not isinstance(fields.get(name), Mapping):
        name = "queryStringParameters"
    pairs = list(_pairs(fields.get(name)))
    if shape is Shape.ALB:  # it leaves them encoded
        return "&".join(f"{name}={value}" for name, value in pairs)
    return urlencode(pairs, errors="replace")


def _pairs(fields: object) -> Iterator[tuple[str, str]]:
    for name, value in _map(fields).items():
        values = cast("list[object]", value) if isinstance(value, list) else [value]
        for each in values:
            yield str(name), "" if each is None else str(each)


def _as_text(head: Head, body: bytes) -> str | None:
    """The body as text, where it is that; None where only base64 keeps its bytes."""
    if not body:
        return ""
    kind = _content_type(head.headers)
    if kind.startswith("text/") or kind == "application/json" or kind.endswith("+json"):
        try:
            return body.decode()
        except UnicodeDecodeError:
            return None
    return None


def _content_type(headers: Headers) -> str:
    for name, value in headers:
        if name == "content-type":
            return value.partition(";")[0].strip().lower()
    return ""


def _map(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Status"


def size_of(answer: Mapping[str, Any]) -> int:
    """The most bytes that *answer* can take as JSON (runtimes escape less, never more)."""
    return len(json.dumps(answer))
