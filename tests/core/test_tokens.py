"""Tokens: minted from random bytes, refused offline where they cannot be real."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedrock_proxy import tokens
from bedrock_proxy.errors import ConfigurationError

secrets_ = st.binary(min_size=32, max_size=32)


@given(secrets_)
def test_a_minted_token_has_the_documented_shape_and_passes_its_own_check(secret: bytes) -> None:
    token = tokens.mint(secret)
    assert re.fullmatch(r"bpk_[0-9A-Za-z]{49}", token)
    assert tokens.check_shape(token)


@given(secrets_, secrets_)
def test_different_bytes_give_different_tokens(one: bytes, other: bytes) -> None:
    assert (tokens.mint(one) == tokens.mint(other)) == (one == other)


def test_the_token_of_known_bytes_stays_what_it_is() -> None:
    """Tokens given out by an earlier version must stay valid."""
    assert tokens.mint(bytes(32)) == "bpk_" + "0" * 43 + "2vDTGv"
    assert tokens.mint(b"\xff" * 32) == "bpk_yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp10x8adJ"


@given(secrets_, st.data())
def test_M38_a_token_with_one_wrong_character_is_refused_offline(
    secret: bytes, data: st.DataObject
) -> None:
    token = tokens.mint(secret)
    at = data.draw(st.integers(4, len(token) - 1))
    wrong = data.draw(st.sampled_from("09azAZ-_").filter(lambda c: c != token[at]))
    assert not tokens.check_shape(token[:at] + wrong + token[at + 1 :])


@pytest.mark.parametrize(
    "junk",
    [
        "bpk_",
        "bpk_" + "0" * 48,
        "bpk_" + "0" * 50,
        "bpk_" + "0" * 43 + "000000",
        tokens.mint(bytes(32)) + "\n",
        "short",
        "x" * 15,
        "x" * 513,
        "x" * 20 + " y",
        "' OR 1=1; -- aaaaaaaaaaa",
        '{"$ne": "aaaaaaaaaaaaaaa"}',
        "tökenntökenntökenn",
        "\ud800" * 20,
        "",
    ],
)
def test_M38_M39_junk_is_refused_offline(junk: str) -> None:
    assert not tokens.check_shape(junk)


@pytest.mark.parametrize("theirs", ["x" * 16, "x" * 512, "abc.DEF_123~+/=-xyz", "BPK_" + "0" * 49])
def test_an_operators_own_token_passes(theirs: str) -> None:
    assert tokens.check_shape(theirs)


def test_digests_with_and_without_a_pepper_are_standard_hashes() -> None:
    """So that other tools can compute them: RFC 4231 and FIPS 180-4 test vectors."""
    assert tokens.digest("abc", None) == (
        b"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert tokens.digest("what do ya want for nothing?", b"Jefe") == (
        b"v1:5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


@given(st.binary(min_size=1, max_size=64), st.binary(min_size=1, max_size=64))
def test_a_digest_depends_on_the_pepper(one: bytes, other: bytes) -> None:
    token = tokens.mint(bytes(32))
    if one.rstrip(b"\0") != other.rstrip(b"\0"):  # HMAC pads keys with zeros (RFC 2104)
        assert tokens.digest(token, one) != tokens.digest(token, other)
    assert tokens.digest(token, one) != tokens.digest(token, None)


def test_a_digest_tells_whether_there_was_a_pepper() -> None:
    assert tokens.is_peppered(tokens.digest("abc", b"Jefe"))
    assert not tokens.is_peppered(tokens.digest("abc", None))


def test_an_empty_pepper_is_a_mistake_not_a_choice() -> None:
    with pytest.raises(ConfigurationError, match="BEDROCK_PROXY_PEPPER"):
        tokens.digest("abc", b"")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_too_little_randomness_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="32 random bytes"):
        tokens.mint(bytes(size))


def test_a_key_id_is_short_and_public() -> None:
    assert tokens.mint_key_id(bytes(7) + b"\x01") == "key_00000000001"
    with pytest.raises(ValueError, match="8 random bytes"):
        tokens.mint_key_id(b"")
