"""Where Bedrock is: held to what a real client sends its requests to, for every kind of endpoint."""

import itertools
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, InvalidRegionError, ProfileNotFound

from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy_adapters.upstream import boto3 as by_boto3
from bedrock_proxy_adapters.upstream import configured
from bedrock_proxy_adapters.upstream.configured import ConfiguredUpstream
from bedrock_proxy_adapters.upstream.endpoint import endpoint_of, region_of

REGIONS = ("us-east-1", "eu-central-1", "us-gov-west-1", "cn-north-1", "us-nowhere-7")
FILE = """
[default]
services = ours
endpoint_url = https://everything.example
region = eu-west-3
[profile plain]
region = eu-west-3
[services ours]
bedrock_runtime =
  endpoint_url = https://from-a-file.example:8443/base
"""


class Sent(Exception):
    """Where a client was about to send its request."""


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with credentials, and no configuration of its own."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return tmp_path / "config"


def by_client(session: botocore.session.Session, region: str) -> str:
    """The origin and the base path to which a client of *session* sends."""
    client: Any = session.create_client(
        "bedrock-runtime", region_name=region, config=Config(retries={"total_max_attempts": 1})
    )

    def stop(request: Any, **_: Any) -> None:
        raise Sent(request.url.removesuffix("/model/m/invoke"))

    client.meta.events.register("before-send.bedrock-runtime", stop)
    with pytest.raises(Sent) as caught:
        client.invoke_model(modelId="m", body=b"{}")
    return str(caught.value)


@pytest.mark.parametrize("region", REGIONS)
def test_the_rules_say_what_a_client_does(region: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    for fips, dual in itertools.product(("false", "true"), repeat=2):
        monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", fips)
        monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", dual)
        session = botocore.session.Session()
        ours = endpoint_of(session, region)
        assert ours == by_client(session, region)
        assert ours is not None
        found.append(ours)
    assert len(set(found)) == 4, "each of the four is an endpoint of its own"
    assert all(urlsplit(url).scheme == "https" for url in found)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "https://from-a-file.example:8443/base"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "http://127.0.0.1:9"),
        ({"AWS_ENDPOINT_URL_BEDROCK_RUNTIME": "http://[::1]:9/x"}, "http://[::1]:9/x"),
        (
            {"AWS_PROFILE": "plain", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            "http://127.0.0.1:9",
        ),
        ({"AWS_PROFILE": "plain"}, "https://bedrock-runtime.eu-west-3.amazonaws.com"),
        (
            {
                "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
                "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": "http://127.0.0.1:9",
            },
            "https://bedrock-runtime.eu-west-3.amazonaws.com",
        ),
    ],
)
def test_what_is_configured_comes_first_as_with_a_client(
    settings: dict[str, str], expected: str, aws: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.write_text(FILE)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    session = botocore.session.Session()
    region = region_of(session.get_config_variable("region"))
    assert region == "eu-west-3"
    assert endpoint_of(session, region) == by_client(session, region) == expected


def test_the_region_is_the_variables_and_then_the_profiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigurationError, match="AWS_REGION"):
        region_of(None)
    assert region_of("a") == "a"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "b")
    assert region_of("a") == "b"
    monkeypatch.setenv("AWS_REGION", "c")
    assert region_of("a") == "c"


def test_what_is_no_region_is_refused_as_by_a_client() -> None:
    with pytest.raises(InvalidRegionError):
        endpoint_of(botocore.session.Session(), "not a region")


def test_a_profile_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "missing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with pytest.raises(ProfileNotFound, match="missing") as caught:
        ConfiguredUpstream(read_timeout=150.0)
    assert isinstance(caught.value, BotoCoreError)


# --- with and without a client -----------------------------------------------------------------


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The regions of the clients that were made."""
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    made: list[str] = []
    make = by_boto3.bedrock_client

    def counted(region: str, **options: Any) -> Any:
        made.append(region)
        return make(region, **options)

    monkeypatch.setattr(configured, "bedrock_client", counted)
    return made


def test_an_event_loop_needs_no_client_and_a_thread_gets_one(clients: list[str]) -> None:
    upstream = ConfiguredUpstream(read_timeout=150.0)
    upstream.native()
    assert clients == []
    assert upstream.blocking() is upstream.blocking()
    assert clients == ["us-east-1"]
    upstream.close()


def test_boto3_by_choice_is_made_at_once(clients: list[str]) -> None:
    ConfiguredUpstream("boto3", read_timeout=150.0).close()
    assert clients == ["us-east-1"]


@pytest.mark.parametrize("why", ["an old name", "another botocore"])
def test_where_only_a_client_can_tell_it_is_asked(
    why: str, clients: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "an old name":
        monkeypatch.setenv("AWS_REGION", "fips-us-east-1")
        host = "bedrock-runtime-fips.us-east-1.amazonaws.com"
    else:
        monkeypatch.setitem(__import__("sys").modules, "botocore.endpoint_provider", None)
        host = "bedrock-runtime.us-east-1.amazonaws.com"
    assert endpoint_of(botocore.session.Session(), region_of(None)) is None
    upstream = ConfiguredUpstream(read_timeout=150.0)
    assert clients == [region_of(None)]
    assert upstream.native()._host == host  # type: ignore[union-attr]
    upstream.close()
