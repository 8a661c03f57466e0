"""Where Bedrock is: held to what a real client sends its requests to, for every kind of endpoint."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.loaders
import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import InvalidRegionError, UnknownServiceError

from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy_adapters.proxy import Proxy
from bedrock_proxy_adapters.stores.memory import MemoryStore
from bedrock_proxy_adapters.upstream import boto3 as by_boto3
from bedrock_proxy_adapters.upstream import configured
from bedrock_proxy_adapters.upstream.aio import AsyncUpstream
from bedrock_proxy_adapters.upstream.configured import ConfiguredUpstream
from bedrock_proxy_adapters.upstream.endpoint import endpoint_of, region_of
from bedrock_proxy_adapters.upstream.signing import Keys

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


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"AWS_PROFILE": "missing"}, "missing"),
        ({"AWS_REGION": "not a region"}, "not a region"),
        ({"AWS_ENDPOINT_URL": "https://foo..bar"}, "https://foo..bar"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "(?i)partial credentials"),
    ],
)
@pytest.mark.parametrize("way", ["auto", "boto3"])
def test_what_is_wrong_is_said_at_the_start_in_a_sentence(
    settings: dict[str, str], said: str, way: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=said) as caught:
        ConfiguredUpstream(way, read_timeout=150.0)
    assert str(caught.value).startswith("AWS is not configured as it should be: ")


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
    proxy = Proxy(store=MemoryStore(), upstream=upstream)
    assert proxy.sync_faces().upstream is upstream
    assert clients == ["us-east-1"]
    upstream.prepare()
    assert clients == ["us-east-1"]
    upstream.close()


def test_what_only_a_client_minds_is_said_when_the_app_is_built(
    clients: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = ConfiguredUpstream(read_timeout=150.0)
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "nonsense")
    with pytest.raises(ConfigurationError, match="nonsense"):
        Proxy(store=MemoryStore(), upstream=upstream).sync_faces()


def test_boto3_by_choice_is_made_at_once(clients: list[str]) -> None:
    ConfiguredUpstream("boto3", read_timeout=150.0).close()
    assert clients == ["us-east-1"]


@pytest.mark.parametrize("name", ["fips-us-east-1", "us-east-1-fips"])
@pytest.mark.parametrize("way", ["auto", "boto3"])
def test_an_old_name_of_a_region_is_not_the_region_that_is_signed_for(
    name: str, way: Any, clients: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", name)
    upstream = ConfiguredUpstream(way, read_timeout=150.0)
    assert (clients, upstream.region) == ([name], "us-east-1")
    native = upstream.native()
    if isinstance(native, AsyncUpstream):
        assert native._host == "bedrock-runtime-fips.us-east-1.amazonaws.com"
        signed = dict(
            native._signer.sign(Keys("a", "b"), "POST", "/", (("host", "h"),), b"", 1.8e9)
        )
        assert "/us-east-1/bedrock/aws4_request" in signed["authorization"]
    upstream.close()


@pytest.mark.parametrize("missing", ["module", "rules"])
def test_where_botocore_is_arranged_otherwise_a_client_is_asked(
    missing: str, clients: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "module":
        monkeypatch.setitem(sys.modules, "botocore.endpoint_provider", None)
    else:
        load = botocore.loaders.Loader.load_service_model

        def without_rules(loader: Any, service: str, kind: str, **more: Any) -> Any:
            if kind == "endpoint-rule-set-1":
                raise UnknownServiceError(service_name=service, known_service_names="none")
            return load(loader, service, kind, **more)

        monkeypatch.setattr(botocore.loaders.Loader, "load_service_model", without_rules)
    assert endpoint_of(botocore.session.Session(), "us-east-1") is None
    upstream = ConfiguredUpstream(read_timeout=150.0)
    assert clients == ["us-east-1"]
    native = upstream.native()
    assert isinstance(native, AsyncUpstream)
    assert native._host == "bedrock-runtime.us-east-1.amazonaws.com"
    upstream.close()


def test_endpoints_of_the_operators_own_are_the_clients_to_tell(
    clients: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = {
        "version": 3,
        "partitions": [
            {
                "partition": "aws",
                "dnsSuffix": "corp.example",
                "regionRegex": "^us-.*$",
                "regions": {"us-east-1": {}},
                "defaults": {"hostname": "{service}.{region}.{dnsSuffix}", "protocols": ["https"]},
                "services": {},
            }
        ],
    }
    (tmp_path / "endpoints.json").write_text(json.dumps(theirs))
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))
    native = ConfiguredUpstream(read_timeout=150.0).native()
    assert isinstance(native, AsyncUpstream)
    assert native._host == "bedrock-runtime.us-east-1.corp.example"
    assert by_client(botocore.session.Session(), "us-east-1") == f"https://{native._host}"
