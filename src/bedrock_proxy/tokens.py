"""
Bearer tokens: made from random bytes, checked without a store, kept only as digests.

A token of ours is ``bpk_``, 43 base-62 characters (256 random bits) and 6 base-62
characters of CRC-32 over what stands before them. The checksum is no secret: it lets a
mistyped or invented token be refused without asking the store.
"""

import hmac
import re
from functools import cache
from hashlib import sha256
from typing import Final
from zlib import crc32

from bedrock_proxy.errors import ConfigurationError

PREFIX: Final = "bpk_"
"""How a token of ours begins, so that secret scanners can find one."""

RANDOM_BYTES: Final = 32
"""How much randomness a token holds: 256 bits need no stretching against guesses."""

KEY_ID_BYTES: Final = 8
"""How much randomness a public key id is made of."""

_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_EMPTY: Final = sha256()
_PEPPERED: Final = b"v1:"
_SECRET_LENGTH: Final = 43
_CHECKSUM_LENGTH: Final = 6
_OURS: Final = re.compile(r"bpk_[0-9A-Za-z]{49}\Z")
# The upper bound keeps a header from being hashed at length; the lower one refuses what
# could be guessed.
_THEIRS: Final = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}\Z")


def mint(random_bytes: bytes) -> str:
    """
    A token made of :data:`RANDOM_BYTES` random bytes.

    Equal bytes give equal tokens: take them from the operating system's secure source.

    Raises:
        ValueError: There are more or fewer bytes.
    """
    if len(random_bytes) != RANDOM_BYTES:
        raise ValueError(f"a token is made of {RANDOM_BYTES} random bytes")
    body = PREFIX + _base62(int.from_bytes(random_bytes, "big"), _SECRET_LENGTH)
    return body + _checksum(body)


def mint_key_id(random_bytes: bytes) -> str:
    """
    A public key id made of :data:`KEY_ID_BYTES` random bytes: ``key_`` and 11 characters.

    Raises:
        ValueError: There are more or fewer bytes.
    """
    if len(random_bytes) != KEY_ID_BYTES:
        raise ValueError(f"a key id is made of {KEY_ID_BYTES} random bytes")
    return "key_" + _base62(int.from_bytes(random_bytes, "big"), 11)


def check_shape(token: str) -> bool:
    """
    Whether *token* could be one that was given out; says nothing about whether it was.

    What begins with ``bpk_`` must be ours, checksum included; anything else may be a token
    that the operator brought: 16 to 512 characters of RFC 6750's ``b64token`` alphabet.
    """
    if token.startswith(PREFIX):
        return (
            _OURS.match(token) is not None
            and _checksum(token[:-_CHECKSUM_LENGTH]) == token[-_CHECKSUM_LENGTH:]
        )
    return _THEIRS.match(token) is not None


def digest(token: str, pepper: bytes | None) -> bytes:
    """
    What is stored and looked up in place of *token*.

    ``v1:`` and the hexadecimal HMAC-SHA-256 under *pepper*; the bare hexadecimal SHA-256
    where there is none. The two never collide, so a pepper can be introduced later: tokens
    given out before it then need to be given out again.

    Raises:
        ConfigurationError: The pepper is set but empty.
    """
    if pepper is None:
        # To copy one costs a tenth of what OpenSSL takes to look the algorithm up again.
        made = _EMPTY.copy()
        made.update(token.encode())
        return made.hexdigest().encode()
    if not pepper:
        raise ConfigurationError(
            "BEDROCK_PROXY_PEPPER is set but empty. Give it a value, or unset it to store "
            "digests without a pepper."
        )
    return _PEPPERED + hmac.digest(pepper, token.encode(), "sha256").hex().encode()


def is_peppered(stored: bytes) -> bool:
    """Whether *stored*, a digest, was made under a pepper; under which, it does not tell."""
    return stored.startswith(_PEPPERED)


def _base62(number: int, length: int) -> str:
    digits: list[str] = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))


def _checksum(text: str) -> str:
    # Two digits at a time: every request has one to check.
    rest, last = divmod(crc32(text.encode()), 3844)
    first, middle = divmod(rest, 3844)
    return _pair(first) + _pair(middle) + _pair(last)


@cache
def _pair(number: int) -> str:
    return _DIGITS[number // 62] + _DIGITS[number % 62]
