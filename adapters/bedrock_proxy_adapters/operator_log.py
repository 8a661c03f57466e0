"""
What the operator is told of Bedrock and the store while they cannot be used: why, and what to do,
in the log ``bedrock_proxy`` and never to a client.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from bedrock_proxy.errors import Code, ProxyError, StoreUnavailable
from bedrock_proxy.models.names import without_account
from bedrock_proxy_adapters.causes import cause_of, cleaned

_log = logging.getLogger("bedrock_proxy")

SAID_AGAIN_AFTER: Final = 60.0
"""Seconds in which the same sentence is said once."""

MAX_SENTENCES: Final = 64
"""How many different sentences are said in that time; what is beyond is counted with the rest."""

_CREDENTIALS: Final = "check the AWS credentials of this process"
_KEY: Final = "check the access key and its secret, and the clock of this machine"
_ACCESS: Final = (
    "these AWS credentials need the right to bedrock:InvokeModel and its like, and their account "
    "access to the model {where}"
)
_ADVICE: Final = {
    "AccessDeniedException": _ACCESS,
    "AccessDenied": _ACCESS,
    "NotAuthorized": _ACCESS,
    "ExpiredTokenException": "the session has expired: renew the AWS credentials of this process",
    "ExpiredToken": "the session has expired: renew the AWS credentials of this process",
    "UnrecognizedClientException": _CREDENTIALS,
    "InvalidClientTokenId": _CREDENTIALS,
    "InvalidSignatureException": _KEY,
    "SignatureDoesNotMatch": _KEY,
    "RequestExpired": "check the clock of this machine",
    "OptInRequired": "this AWS account must first be subscribed to Bedrock {where}",
}


class OperatorLog:
    """
    Says why a request failed, where the operator can do something about it.

    Args:
        region: Where Bedrock is called, if that is known.
        spools: Whether rows that the store does not take wait in a spool; else each is a line of
            the log itself.
    """

    def __init__(self, region: str | None, *, spools: bool) -> None:
        self._region = region
        self._spools = spools
        self._seldom = Seldom()

    def failing(self, request_id: str, error: ProxyError, model: str, settling: bool) -> None:
        """See :meth:`bedrock_proxy.ports.Telemetry.failing`."""
        sentence = sentence_of(error, self._region)
        if settling and not self._spools and not (error.cause or error.__cause__):
            return  # the row's own line says as much
        if settling:
            waits = "waits in the spool" if self._spools else "is in the log"
            sentence += f" The request's usage row {waits}."
        named = f" ({without_account(model)})" if model else ""
        self._seldom.warn(sentence, f"request {request_id}{named}: ")


class Seldom:
    """
    Warnings that come with every request while something is broken: each sentence once a
    minute, with how often it was not said since. Any thread may call.

    Args:
        seconds: The monotonic clock.
    """

    def __init__(self, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._said: dict[str, list[float]] = {}  # since when, and how often since
        self._others = 0

    def warn(self, sentence: str, about: str = "") -> None:
        """
        Log *sentence*, unless that was done a short while ago.

        Args:
            about: What it begins with, which may be another each time (a request's id).
        """
        with self._lock:
            unsaid = self._unsaid(sentence)
        if unsaid is None:
            return
        more = f" ({unsaid} more were not logged.)" if unsaid else ""
        _log.warning("%s%s%s", about, sentence, more)

    def _unsaid(self, sentence: str) -> int | None:
        """How many were not said since the last one; None where this one is not said either."""
        now = self._seconds()
        known = self._said.get(sentence)
        if known is not None and now - known[0] < SAID_AGAIN_AFTER:
            known[1] += 1
            return None
        if known is None and len(self._said) >= MAX_SENTENCES:
            for each in [s for s, (at, _) in self._said.items() if now - at >= SAID_AGAIN_AFTER]:
                self._others += int(self._said.pop(each)[1])
            if len(self._said) >= MAX_SENTENCES:
                self._others += 1
                return None
        self._said[sentence] = [now, 0]
        others, self._others = self._others, 0
        return others + (0 if known is None else int(known[1]))


def sentence_of(error: ProxyError, region: str | None = None) -> str:
    """What *error* is for the operator: why, and what to do. Without an exception's own words."""
    if isinstance(error, StoreUnavailable):
        cause = error.cause or cause_of(error.__cause__) or str(error).rstrip(".")
        return cleaned(f"the customer database cannot be used: {cause}.")
    where = "in the region of the endpoint" if region is None else f"in {region}"
    if error.code is Code.UPSTREAM_CONFIG:
        # What Bedrock did not answer at all has nothing to do with the model.
        answered = error.upstream_type or error.cause.startswith("HTTP ")
        usual = f"{_CREDENTIALS}, and the model access {{where}}" if answered else _CREDENTIALS
        advice = _ADVICE.get(error.upstream_type or "", usual).format(where=where)
        return cleaned(f"Bedrock cannot be called ({error.cause}); {advice}.")
    return cleaned(
        f"Bedrock could not be reached ({error.cause}); check the endpoint, and the way from this "
        f"machine to Bedrock {where}."
    )
