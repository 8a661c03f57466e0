"""
A client of the proxy's simple dialect, on Python's standard library alone. Copy it.

    python client.py http://127.0.0.1:8080/bedrock "Say hello."     (the token in TOKEN)
"""

import http.client
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")


class BedrockProxyError(Exception):
    """
    The request was refused, or the answer broke off.

    Attributes:
        code: What happened, for programs; `network`, `truncated` and `invalid_answer` are
            this client's own.
        status: The HTTP status; None where there was none, or the answer had begun.
        retryable: Whether the same request may succeed later.
        retry_after: Seconds to wait before that, if the proxy said so.
        request_id: What the operator finds the request by.
        limit: The limit that refused it, if one did.
    """

    def __init__(self, message: str, code: str, **facts: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status: int | None = facts.get("status")
        self.retryable: bool = facts.get("retryable", False)
        self.retry_after: float | None = facts.get("retry_after")
        self.request_id: str | None = facts.get("request_id")
        self.limit: str | None = facts.get("limit")


class Client:
    """One proxy and one token. *timeout* is the longest silence, in seconds."""

    def __init__(self, endpoint: str, token: str, timeout: float = 60.0) -> None:
        self._url = urlsplit(endpoint)
        self._token = token
        self._timeout = timeout

    def invoke(self, request: dict[str, Any]) -> Any:
        """The model's whole answer, in the model's own JSON."""
        with self._post({**request, "stream": False}) as reply, _network():
            return json.loads(reply.read())

    def stream(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The pieces of an answer as they come: `{"content": "…"}`."""
        with self._post({**request, "stream": True}) as reply, _network():
            kind = reply.getheader("content-type", "").partition(";")[0]
            pieces = events(reply) if kind == "text/event-stream" else elements(reply)
            request_id = reply.getheader("x-request-id")
            for piece in pieces:
                if piece == DONE:
                    return
                if "error" in piece:
                    raise _told(piece, None)
                yield piece
            raise BedrockProxyError(
                "The answer broke off.", "truncated", retryable=True, request_id=request_id
            )

    @contextmanager
    def _post(self, request: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
        url = self._url
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = kind(url.hostname or "", url.port, timeout=self._timeout)
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/json",
        }
        try:
            with _network():
                connection.request("POST", url.path or "/", json.dumps(request), headers)
                reply = connection.getresponse()
                if reply.status >= 400:
                    raise _refused(reply)
            yield reply
        finally:
            connection.close()


DONE: dict[str, Any] = {"done": True}
"""What the parsers give for the end that every whole answer has."""


def events(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Server-Sent Events: each event's data."""
    data: list[str] = []
    for raw in lines:
        line = raw.decode().rstrip("\r\n")
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and data:
            text = "\n".join(data)
            data = []
            yield DONE if text == "[DONE]" else json.loads(text)


def elements(reply: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """A JSON array of objects, each as soon as it is complete."""
    text = ""
    decoder = json.JSONDecoder()
    while chunk := reply.read1(65536):
        # The proxy's JSON is ASCII, so a chunk never ends inside a character.
        text = (text + chunk.decode()).lstrip(" \r\n\t[,")
        while text.startswith("{"):
            try:
                piece, end = decoder.raw_decode(text)
            except ValueError:
                break  # not complete yet
            yield piece
            text = text[end:].lstrip(" \r\n\t,")


def with_retry(call: Callable[[], T], attempts: int = 3, longest: float = 60.0) -> T:
    """What *call* returns; called again, after a pause, while its error says that may help."""
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except BedrockProxyError as error:
            pause = error.retry_after or random.uniform(0, 0.5 * 2**attempt)
            if not error.retryable or attempt == attempts or pause > longest:
                raise
            time.sleep(pause)
    raise AssertionError("attempts must be at least 1")


def _refused(reply: http.client.HTTPResponse) -> BedrockProxyError:
    try:
        told = json.loads(reply.read())
    except ValueError:
        told = None
    if isinstance(told, dict) and isinstance(told.get("error"), str):
        return _told(told, reply.status)
    # Something between us and the proxy answered.
    return BedrockProxyError(
        f"The server answered {reply.status} {reply.reason}.",
        "http_error",
        status=reply.status,
        retryable=reply.status in {429, 502, 503, 504},
    )


def _told(told: dict[str, Any], status: int | None) -> BedrockProxyError:
    names = ("retryable", "retry_after", "request_id", "limit")
    facts = {name: told[name] for name in names if name in told}
    return BedrockProxyError(told["error"], told.get("code", "unknown"), status=status, **facts)


@contextmanager
def _network() -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise BedrockProxyError(
            f"The connection failed: {error}", "network", retryable=True
        ) from error
    except ValueError as error:
        raise BedrockProxyError(
            f"The answer is not what it should be: {error}", "invalid_answer"
        ) from error


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    if not os.environ.get("TOKEN"):
        print("Set TOKEN to a token; `bedrock-proxy customers create` makes one.", file=sys.stderr)
        return 2
    client = Client(sys.argv[1], os.environ["TOKEN"])
    request = {
        "modelId": os.environ.get("MODEL", "anthropic.claude-3-haiku-20240307-v1:0"),
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 300,
        "messages": [{"role": "user", "content": " ".join(sys.argv[2:]) or "Say hello."}],
    }
    try:
        for piece in client.stream(request):
            print(piece.get("content", ""), end="", flush=True)
    except BedrockProxyError as error:
        print(f"\n{error.code}: {error}", file=sys.stderr)
        return 1
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
