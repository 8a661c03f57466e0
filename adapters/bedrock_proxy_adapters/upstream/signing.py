"""
AWS Signature Version 4 for one service in one region.

botocore's own signer builds its canonical request from objects that cost more than the
rest of a short call does. Here it is a few joins and two digests; the key that a day, a
region and a service derive is kept. The result is botocore's to the character, which a
test proves on thousands of random requests.

Source: AWS, "AWS Signature Version 4 for API requests" (IAM user guide), "Create a signed
AWS API request".
"""

import hmac
from functools import lru_cache
from hashlib import sha256
from time import gmtime, strftime
from typing import Final, NamedTuple
from urllib.parse import quote

from attrs import field, frozen

from bedrock_proxy.http import Headers

ALGORITHM: Final = "AWS4-HMAC-SHA256"

_DATE: Final = "x-amz-date"
_TOKEN: Final = "x-amz-security-token"  # noqa: S105 -- the name of a header
_LAST: Final = "\x7f"
"""After every name of a header."""


@frozen
class Keys:
    """What a request is signed with: an access key pair, and the token of a session if any."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


_EMPTY: Final = sha256()
_BLOCK: Final = 64
"""Bytes of a block of SHA-256: a derived key, 32 bytes long, is never above it."""


def _digest(data: bytes) -> str:
    # To copy one costs a tenth of what OpenSSL takes to look the algorithm up again.
    made = _EMPTY.copy()
    made.update(data)
    return made.hexdigest()


class _Mac:
    """
    HMAC-SHA-256 (RFC 2104) under one *key*: its two padded forms are digested once, where
    ``hmac`` would look the algorithm up and do so for every text.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        padded = key.ljust(_BLOCK, b"\0")
        self._inner = sha256(bytes([octet ^ 0x36 for octet in padded]))
        self._outer = sha256(bytes([octet ^ 0x5C for octet in padded]))

    def of(self, text: bytes) -> str:
        """The code of *text*, in hexadecimal."""
        inner = self._inner.copy()
        inner.update(text)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.hexdigest()


class _Form(NamedTuple):
    """
    The canonical request of all that are sent alike: what stands before the date, between it and
    the session's token where there is one, and after that, up to the digest of the body.
    """

    before: str
    between: str
    after: str
    names: str


@lru_cache(maxsize=64)  # clients choose some of the headers, and up to 32 KiB of them
def _form(method: str, path: str, headers: Headers, with_token: bool) -> _Form:
    added = [_DATE, _TOKEN] if with_token else [_DATE]
    names = ";".join(sorted([*added, *(name for name, _ in headers)]))
    lines = [(name, f"{name}:{' '.join(value.split())}\n") for name, value in sorted(headers)]
    last = added[-1]

    def part(first: str, end: str) -> str:
        return "".join([line for name, line in lines if first < name < end])

    # Every service but S3 wants what is encoded already to be encoded once more.
    target = quote(path, safe="/-_.~")
    return _Form(
        before=f"{method}\n{target}\n\n{part('', _DATE)}{_DATE}:",
        between=f"\n{part(_DATE, _TOKEN)}{_TOKEN}:" if with_token else "",
        after=f"\n{part(last, _LAST)}\n{names}\n",
        names=names,
    )


class Signer:
    """
    Signs requests to one service in one region.

    Args:
        region: The region that the signature is for.
        service: The service's signing name.
    """

    def __init__(self, region: str, service: str = "bedrock") -> None:
        self._region = region
        self._service = service
        self._derived: tuple[str, str, _Mac] = ("", "", _Mac(b""))
        self._stamp: tuple[int, str] = (-1, "")

    def sign(
        self,
        keys: Keys,
        method: str,
        path: str,
        headers: Headers,
        body: bytes,
        now: float,
    ) -> list[tuple[str, str]]:
        """
        The headers that make a request a signed one: ``x-amz-date``,
        ``x-amz-security-token`` where there is one, and ``authorization``.

        Args:
            path: As it goes on the wire, percent-encoded, without a query.
            headers: All that are to be signed, ``host`` among them, each once; names in lower
                case.
            now: Seconds since the epoch.
        """
        stamp = self._stamp_of(int(now))
        added = [(_DATE, stamp)]
        token = keys.session_token
        form = _form(method, path, headers, token is not None)
        dated = f"{form.before}{stamp}"
        if token is not None:
            added.append((_TOKEN, token))
            dated = f"{dated}{form.between}{' '.join(token.split())}"
        canonical = f"{dated}{form.after}{_digest(body)}"
        day = stamp[:8]
        scope = f"{day}/{self._region}/{self._service}/aws4_request"
        digest = _digest(canonical.encode())
        text = f"{ALGORITHM}\n{stamp}\n{scope}\n{digest}"
        signature = self._mac(keys.secret_key, day).of(text.encode())
        credential = f"{ALGORITHM} Credential={keys.access_key}/{scope}"
        said = f"{credential}, SignedHeaders={form.names}, Signature={signature}"
        added.append(("authorization", said))
        return added

    def _stamp_of(self, second: int) -> str:
        known = self._stamp
        if known[0] != second:
            known = self._stamp = (second, strftime("%Y%m%dT%H%M%SZ", gmtime(second)))
        return known[1]

    def _mac(self, secret: str, day: str) -> _Mac:
        known = self._derived
        if known[0] == secret and known[1] == day:
            return known[2]
        key = f"AWS4{secret}".encode()
        for step in (day, self._region, self._service, "aws4_request"):
            key = hmac.digest(key, step.encode(), "sha256")
        mac = _Mac(key)
        self._derived = (secret, day, mac)
        return mac
