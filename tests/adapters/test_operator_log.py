"""What the operator reads while Bedrock or the store cannot be used: why, what to do, and no more."""

import errno
import socket
import sqlite3
import ssl
from typing import Any

import botocore.exceptions as b
import pytest
import redis.exceptions
from attrs import define
from tests.adapters.test_proxy import LEASE
from tests.adapters.test_usage_log import ROW

from bedrock_proxy import faults
from bedrock_proxy.errors import ConfigurationError, ProxyError, store_unavailable
from bedrock_proxy.ports import Loggable, Trouble, UpstreamHead
from bedrock_proxy.sent import NOTHING_SENT
from bedrock_proxy_adapters.causes import cause_of
from bedrock_proxy_adapters.operator_log import (
    MAX_SENTENCES,
    SAID_AGAIN_AFTER,
    Seldom,
    sentence_of,
)
from bedrock_proxy_adapters.proxy import LoggingTelemetry

SECRET = "canary"
ARN = "arn:aws:iam::210987654321:role/canary-role"
URL = f"https://user:{SECRET}@host.example:8443/model/{ARN}/invoke?token={SECRET}"


def refusal(name: str, status: int = 403, message: str = SECRET) -> ProxyError:
    head = UpstreamHead(status, (("x-amzn-errortype", name),))
    return faults.from_reply(head, f'{{"message":"{message}"}}'.encode(), NOTHING_SENT)


def caused(error: BaseException, by: BaseException) -> BaseException:
    error.__cause__ = by
    return error


def refused() -> OSError:
    return ConnectionRefusedError(errno.ECONNREFUSED, SECRET)


CAUSES: dict[str, tuple[BaseException, str]] = {
    "a refused port": (refused(), "ConnectionRefusedError: Connection refused"),
    "several of them": (
        OSError(f"Multiple exceptions: [Errno {errno.ECONNREFUSED}] {SECRET}, [Errno 1] {SECRET}"),
        "OSError: Connection refused",
    ),
    "a name": (socket.gaierror(-2, SECRET), "gaierror: the host's name is not known"),
    "tls": (ssl.SSLCertVerificationError(1, SECRET), "SSLCertVerificationError"),
    "nothing known": (RuntimeError(f"{SECRET} {ARN}"), "RuntimeError"),
    "our own": (ConfigurationError("No table; `x` makes it."), "No table; `x` makes it"),
    "no credentials": (b.NoCredentialsError(), "NoCredentialsError: no AWS credentials were found"),
    "half of them": (
        b.PartialCredentialsError(provider="env", cred_var="aws_secret_access_key"),
        "PartialCredentialsError: env, aws_secret_access_key is missing",
    ),
    "a process": (
        b.CredentialRetrievalError(provider="custom-process", error_msg=f"printed {SECRET}"),
        "CredentialRetrievalError: custom-process",
    ),
    "an endpoint": (
        caused(b.EndpointConnectionError(endpoint_url=URL), refused()),
        "EndpointConnectionError: no connection, host.example:8443, Connection refused",
    ),
    "a proxy": (
        b.ProxyConnectionError(proxy_url=URL, error=SECRET),
        "ProxyConnectionError: host.example:8443",
    ),
    "no url": (
        b.ConnectTimeoutError(endpoint_url=f"//[{SECRET}"),
        "ConnectTimeoutError: no connection in time",
    ),
    "sts": (
        b.ClientError({"Error": {"Code": "AccessDenied", "Message": ARN}}, "AssumeRole"),
        "ClientError: AssumeRole met AccessDenied",
    ),
    "sts, in words": (
        b.ClientError({"Error": {"Code": f"{SECRET} {ARN}", "Message": ARN}}, "AssumeRole"),
        "ClientError",
    ),
    "redis away": (
        caused(
            redis.exceptions.ConnectionError("Error 111 connecting to cache:6379. Refused."),
            refused(),
        ),
        "ConnectionError: cache:6379, Connection refused",
    ),
    "redis by url": (
        redis.exceptions.ConnectionError(f"Error connecting to redis://u:{SECRET}@cache:6379. No."),
        "ConnectionError",
    ),
    "redis refuses": (
        redis.exceptions.ResponseError(f"MISCONF Redis cannot keep {SECRET}"),
        "ResponseError: MISCONF",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CAUSES)
def test_a_cause_is_told_by_its_names_and_never_in_its_words(name: str) -> None:
    error, said = CAUSES[name]
    assert said == cause_of(error)
    assert SECRET not in said


def test_what_sqlite_says_is_told_by_its_name() -> None:
    with pytest.raises(sqlite3.Error) as met:
        sqlite3.connect("/nowhere/at/all.db")
    assert "OperationalError: SQLITE_CANTOPEN" == cause_of(met.value)


def test_our_own_words_lose_arns_accounts_passwords_and_line_ends() -> None:
    words = f"a {ARN} b 210987654321 c {URL} d redis://:p@ss@host/0 e\nf\x1b[0m."
    said = cause_of(ConfigurationError(words))
    for secret in (SECRET, "210987654321", "user", "p@ss", "ss@", "\n", "\x1b"):
        assert secret not in said
    assert "redis://host/0" in said


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (refusal("AccessDeniedException"), ("AccessDeniedException", "bedrock:", "eu-west-1")),
        (refusal("ExpiredTokenException"), ("ExpiredTokenException", "renew the AWS credentials")),
        (refusal("UnrecognizedClientException"), ("check the AWS credentials",)),
        (refusal("SignatureDoesNotMatch"), ("secret", "clock")),
        (refusal("", 403), ("HTTP 403", "check the AWS credentials", "model access in eu-west-1")),
        (
            faults.from_trouble(Trouble.CREDENTIALS, Loggable("no AWS credentials were found")),
            ("no AWS credentials were found", "check the AWS credentials"),
        ),
        (
            faults.from_trouble(Trouble.UNREACHABLE, Loggable("gaierror, at host:443")),
            ("gaierror, at host:443", "check the endpoint", "eu-west-1"),
        ),
        (store_unavailable("the spool /x is full"), ("the spool /x is full",)),
        (store_unavailable(), ("not reachable",)),
        (
            caused(store_unavailable(), ConfigurationError("No table; `bedrock-proxy store create` makes it")),
            ("customer database", "`bedrock-proxy store create` makes it"),
        ),
    ],
    ids=lambda value: getattr(value, "cause", ""),
)  # fmt: skip
def test_the_sentence_says_why_and_what_to_do(error: Any, parts: tuple[str, ...]) -> None:
    sentence = sentence_of(error, "eu-west-1")
    for part in parts:
        assert part in sentence
    assert SECRET not in sentence
    assert sentence.endswith(".")
    assert 1 == len(sentence.splitlines())


# --- how often --------------------------------------------------------------------------------


@define
class Clock:
    now: float = 5.0

    def __call__(self) -> float:
        return self.now


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [r.getMessage() for r in caplog.records if r.name == "bedrock_proxy"]
    assert {"WARNING"} >= {r.levelname for r in caplog.records}
    caplog.clear()
    return found


def test_a_sentence_is_said_once_a_minute_with_how_often_it_was_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    seldom = Seldom(clock)
    for number in range(5):
        seldom.warn("It is broken.", f"request {number}: ")
    seldom.warn("Another is.")
    assert ["request 0: It is broken.", "Another is."] == said(caplog)
    clock.now += SAID_AGAIN_AFTER
    seldom.warn("It is broken.")
    seldom.warn("Another is.")
    assert [
        "It is broken. (4 more were not logged.)",
        "Another is.",
    ] == said(caplog)


def test_however_many_different_sentences_there_are_memory_and_log_are_bounded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    seldom = Seldom(clock)
    for number in range(10 * MAX_SENTENCES):
        seldom.warn(f"Broken: {number}.")
    assert MAX_SENTENCES == len(said(caplog)) == len(seldom._said)
    clock.now += SAID_AGAIN_AFTER
    seldom.warn("New.")
    assert [f"New. ({9 * MAX_SENTENCES} more were not logged.)"] == said(caplog)
    assert 1 == len(seldom._said)


def test_a_row_that_waits_in_the_spool_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = LoggingTelemetry(spool=lambda *_: None)
    error = caused(store_unavailable(), refused())
    telemetry.failing("r-1", error, "arn:aws:bedrock:x:210987654321:profile/p", True)  # type: ignore[arg-type]
    (line,) = said(caplog)
    assert (
        "request r-1 (profile/p): the customer database cannot be used: ConnectionRefusedError: "
        "Connection refused. The request's usage row waits in the spool."
    ) == line


def test_without_a_spool_a_row_is_one_line_unless_there_is_a_reason_to_tell(
    caplog: pytest.LogCaptureFixture,
) -> None:
    telemetry = LoggingTelemetry()
    telemetry.failing("r-1", store_unavailable(), "m", True)
    telemetry.spooled(ROW, LEASE)
    assert ["CRITICAL"] == [r.levelname for r in caplog.records]
    caplog.clear()
    telemetry.failing("r-1", store_unavailable("away"), "m", True)
    assert 1 == len(said(caplog))
