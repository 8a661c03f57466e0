"""Our signatures are botocore's."""

import datetime as dt
import random
from types import SimpleNamespace

import pytest
from botocore import auth
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from bedrock_proxy_adapters.upstream.signing import Keys, Signer

REQUESTS = 10_000
UNRESERVED = "ABCxyz019-._~"
NAMES = ["accept", "content-type", "content-length", "x-amzn-bedrock-trace", "accept-encoding",
         "x-amz-between", "x-amz-target", "zz"]  # fmt: skip


def botocores(keys, region, path, headers, body, now, monkeypatch):
    """What botocore's own signer adds to the same request at the same time."""
    moment = dt.datetime.fromtimestamp(now, dt.UTC)
    monkeypatch.setattr(auth, "get_current_datetime", lambda *_, **__: moment)
    request = AWSRequest("POST", f"https://{dict(headers)['host']}{path}", dict(headers), body)
    signer = SigV4Auth(
        Credentials(keys.access_key, keys.secret_key, keys.session_token), "bedrock", region
    )
    signer.add_auth(request)
    return {
        name.lower(): value
        for name, value in request.headers.items()
        if name.lower() in {"authorization", "x-amz-date", "x-amz-security-token"}
    }


def segment(rng):
    """A part of a path; not one of dots, which the grammar of model ids refuses (M73)."""
    return "m" + "".join(
        rng.choice(UNRESERVED) if rng.random() < 0.8 else f"%{rng.randrange(256):02X}"
        for _ in range(rng.randint(0, 40))
    )


def drawn(rng):
    keys = Keys(
        "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", k=20)),
        "".join(rng.choices("abcXYZ019+/", k=40)),
        "".join(rng.choices("abcXYZ019+/=", k=rng.randint(1, 900))) if rng.random() < 0.5 else None,
    )
    headers = [("host", rng.choice(["bedrock-runtime.us-east-1.amazonaws.com", "127.0.0.1:4711"]))]
    for name in rng.sample(NAMES, rng.randint(0, len(NAMES))):
        words = ("".join(rng.choices("aZ9/;=*,-_", k=rng.randint(1, 9))) for _ in range(3))
        headers.append((name, rng.choice([" ", "  ", "\t"]).join(words)))
    rng.shuffle(headers)
    path = "/model/" + "/".join(segment(rng) for _ in range(rng.randint(1, 3)))
    body = rng.randbytes(rng.choice([0, 1, 50, 2_000]))
    return keys, path, tuple(headers), body, rng.uniform(0, 4e9)


def test_ten_thousand_random_requests_are_signed_as_botocore_signs_them(monkeypatch):
    rng = random.Random(4)
    signers = {region: Signer(region) for region in ("us-east-1", "eu-central-1", "us-gov-west-1")}
    keys, path, headers, _, _ = drawn(rng)
    for _ in range(REQUESTS):
        region = rng.choice(list(signers))
        # Half of them are like the one before in something of which a part is kept.
        others = drawn(rng)
        keys, path, headers = (
            rng.choice([one, other])
            for one, other in zip((keys, path, headers), others[:3], strict=True)
        )
        body, now = others[3:]
        ours = dict(signers[region].sign(keys, "POST", path, headers, body, now))
        assert ours == botocores(keys, region, path, headers, body, now, monkeypatch)


def test_the_kept_key_is_of_this_secret_and_this_day(monkeypatch):
    """The same signer, in an order in which every kept value is wrong at least once."""
    signer = Signer("us-east-1")
    first, second = Keys("A" * 20, "one"), Keys("A" * 20, "two")
    headers = (("host", "h"),)
    for keys, now in (
        (first, 1e9), (first, 1e9), (second, 1e9), (first, 1e9 + 1), (first, 1e9 + 86_400),
        (first, 1e9),
    ):  # fmt: skip
        ours = dict(signer.sign(keys, "POST", "/model/m/invoke", headers, b"{}", now))
        assert ours == botocores(
            keys, "us-east-1", "/model/m/invoke", headers, b"{}", now, monkeypatch
        )


@pytest.mark.parametrize("changed", ["region", "path", "body", "header", "second", "secret"])
def test_whatever_is_signed_changes_the_signature(changed):
    """The comparison above would notice."""

    def signature(**differs):
        sent = SimpleNamespace(
            region="us-east-1", path="/model/m/invoke", body=b"{}", header="a", second=1e9,
            secret="s",
        )  # fmt: skip
        vars(sent).update(differs)
        signed = Signer(sent.region).sign(
            Keys("A" * 20, sent.secret), "POST", sent.path,
            (("host", "h"), ("accept", sent.header)), sent.body, sent.second,
        )  # fmt: skip
        return dict(signed)["authorization"]

    other = {"region": "eu-west-1", "path": "/model/n/invoke", "body": b"[]", "header": "b",
             "second": 1e9 + 1, "secret": "t"}  # fmt: skip
    assert signature() == signature()
    assert signature(**{changed: other[changed]}) != signature()


@given(st.text(min_size=1), st.text(min_size=1))
def test_a_secret_never_shows_in_the_keys_words(secret, token):
    keys = Keys("AKID", f"secret-{secret}", f"token-{token}")
    assert "secret-" not in repr(keys)
    assert "token-" not in repr(keys)
