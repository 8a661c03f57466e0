"""
Why something outside cannot be used, in words that a log may hold.

An exception's own words are never among them: a client library quotes URLs with passwords, a
credential process what it printed, AWS the roles it refused and the request it was sent. What
is told is what they are called, and facts that have a form: a host and its port, the name of an
operation, the text of an error number.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from bedrock_proxy.errors import BedrockProxyError

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_REDIS_CODE: Final = re.compile(r"[A-Z]{4,20}(?= )")
_REDIS_PLACE: Final = re.compile(r" connecting to ([A-Za-z0-9_.:-]{1,255}:[0-9]{1,5})\.")

_NUMBER: Final = re.compile(r"\[Errno ([0-9]{1,3})\]")
_HOST: Final = re.compile(r"[A-Za-z0-9_.:-]{1,255}")
_IN_URL: Final = re.compile(r"(?<=//)\S*@")
_ARN: Final = re.compile(r"\barn(?::|%3[Aa])[^\s\"',]*")
_ACCOUNT: Final = re.compile(r"(?<![0-9A-Za-z])[0-9]{12}(?![0-9A-Za-z])")

_SAYINGS: Final = {
    "NoCredentialsError": "no AWS credentials were found",
    "EndpointConnectionError": "no connection",
    "ConnectTimeoutError": "no connection in time",
}
_DEEP: Final = 5


def cause_of(error: BaseException | None) -> str:
    """What *error* is and was caused by; empty where there is none."""
    if error is None:
        return ""
    if isinstance(error, BedrockProxyError):
        return cleaned(str(error).rstrip("."))
    name = type(error).__name__
    facts = [fact for fact in (_SAYINGS.get(name), *_own(error), _number(error)) if fact]
    return f"{name}: {', '.join(facts)}" if facts else name


def cleaned(text: str) -> str:
    """*text* on one line, without ARNs, account ids and what stands before a host in a URL."""
    text = "".join(char if char.isprintable() else " " for char in text)
    return _ACCOUNT.sub("<account>", _ARN.sub("<arn>", _IN_URL.sub("", text)))


def _own(error: BaseException) -> list[str]:
    """The facts that an exception of a client library has, each of a form that is known."""
    facts: list[str] = []
    library = type(error).__module__.partition(".")[0]
    if library == "botocore":
        response: Any = getattr(error, "response", None)
        if isinstance(response, Mapping):
            answer: Mapping[str, Any] = response  # pyright: ignore[reportUnknownVariableType]
            code = _name(answer.get("Error", {}).get("Code"))
            operation = _name(getattr(error, "operation_name", None))
            facts += [f"{operation} met {code}"] if code and operation else []
        told: Any = getattr(error, "kwargs", None)
        if isinstance(told, Mapping):
            given: Mapping[str, Any] = told  # pyright: ignore[reportUnknownVariableType]
            facts += [_name(given.get("provider"))]
            facts += [_place(given.get(url)) for url in ("endpoint_url", "proxy_url")]
            missing = _name(given.get("cred_var"))
            facts += [f"{missing} is missing"] if missing else []
    elif library == "redis":
        words = str(error)
        for found in (_REDIS_CODE.match(words), _REDIS_PLACE.search(words)):
            if found is not None:
                facts.append(found[found.lastindex or 0])
    elif library == "sqlite3":
        facts.append(_name(getattr(error, "sqlite_errorname", None)))
    return facts


def _number(error: BaseException) -> str:
    """What the system says of the error that is at the bottom of it."""
    found: BaseException | None = error
    for _ in range(_DEEP):
        kind = type(found).__name__
        if kind.startswith("SSL"):
            return _name(getattr(found, "reason", None))
        if kind == "gaierror":
            return "the host's name is not known"
        if isinstance(found, OSError):
            # Where several addresses were tried, asyncio tells the numbers in its words alone.
            told = _NUMBER.search(str(found)) if found.errno is None else None
            number = int(told[1]) if told is not None else found.errno
            if isinstance(number, int):
                return os.strerror(number)
        found = None if found is None else found.__cause__ or found.__context__
    return ""


def _name(value: object) -> str:
    return value if isinstance(value, str) and _NAME.fullmatch(value) else ""


def _place(url: object) -> str:
    """The host and port of *url*."""
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return ""
    if not _HOST.fullmatch(host):
        return ""
    return f"{host}:{port}" if port is not None else host
