"""Every setting is read, wrong ones are refused by name, and the reference says the same."""

import re
from pathlib import Path

import pytest
from attrs import fields

from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy_adapters import config
from bedrock_proxy_adapters.config import Settings, open_store, proxy_from_env, store_path
from bedrock_proxy_adapters.stores.memory import MemoryStore
from bedrock_proxy_adapters.stores.spool import SpoolGate
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/configuration.md"

GOOD: dict[str, tuple[str, object]] = {
    "upstream": ("boto3", "boto3"),
    "store": ("sqlite:///x.db", "sqlite:///x.db"),
    "pepper": ("s3cret", "s3cret"),
    "base_path": ("/stage", "/stage"),
    "disconnect": ("cancel", "cancel"),
    "max_streams": ("7", 7),
    "max_body_bytes": ("1024", 1024),
    "first_byte_timeout": ("2.5", 2.5),
    "whole_timeout": ("5.5", 5.5),
    "idle_timeout": ("3", 3.0),
    "max_duration": ("4", 4.0),
    "lease_seconds": ("5", 5.0),
    "spool": ("/var/spool/bedrock", "/var/spool/bedrock"),
    "aws_account": ("123456789012", "123456789012"),
    "s3_locations": (
        "s3://bucket, s3://other.bucket/folder/",
        ("s3://bucket/", "s3://other.bucket/folder/"),
    ),
    "cors_origins": (
        "https://a.test, http://b.test:3000",
        ("https://a.test", "http://b.test:3000"),
    ),
    "lambda_mode": ("buffered", "buffered"),
}

WRONG = [
    ("upstream", "aiohttp"),
    ("store", ""),
    ("pepper", ""),
    ("base_path", "stage"),
    ("disconnect", "Drain"),
    ("disconnect", ""),
    ("max_streams", "0"),
    ("max_streams", "-1"),
    ("max_streams", "1e3"),
    ("max_streams", ""),
    ("max_body_bytes", "20MB"),
    ("first_byte_timeout", "0"),
    ("first_byte_timeout", "nan"),
    ("idle_timeout", "inf"),
    ("idle_timeout", "-1"),
    ("max_duration", "15m"),
    ("lease_seconds", "0.0"),
    ("lease_seconds", " 5"),
    ("spool", ""),
    ("aws_account", "1234"),
    ("aws_account", "12345678901x"),
    ("s3_locations", ""),
    ("s3_locations", "bucket/folder"),
    ("s3_locations", "s3://"),
    ("s3_locations", "s3:///folder"),
    ("s3_locations", "s3://Bucket/"),
    ("s3_locations", "s3://*/"),
    ("s3_locations", "s3://bucket/,"),
    ("s3_locations", "ANY"),
    ("cors_origins", ""),
    ("cors_origins", "https://a.test,"),
    ("cors_origins", "https://a.test/"),
    ("cors_origins", "https://A.test"),
    ("cors_origins", "a.test"),
    ("cors_origins", "https://*.a.test"),
    ("cors_origins", "null"),
    ("lambda_mode", "streaming"),
]

AWS = {
    "AWS_REGION": "eu-west-1",
    "AWS_ACCESS_KEY_ID": "simulated",
    "AWS_SECRET_ACCESS_KEY": "simulated",
}


def variable(name: str) -> str:
    return "BEDROCK_PROXY_" + name.upper()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """boto3 reads the process's environment, whatever we are handed."""
    for name, value in {**AWS, "AWS_CONFIG_FILE": str(tmp_path / "none")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


def test_there_is_an_example_of_every_setting() -> None:
    assert {field.name for field in fields(Settings)} == set(GOOD) == set(config._READERS)


@pytest.mark.parametrize("name", GOOD)
def test_every_setting_is_read(name: str) -> None:
    raw, value = GOOD[name]
    settings = Settings.from_env({variable(name): raw, "PATH": "/bin"})
    assert value == getattr(settings, name)
    assert value != getattr(Settings(), name), "not the default"


@pytest.mark.parametrize(("name", "raw"), WRONG)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(name: str, raw: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_env({variable(name): raw})
    assert str(caught.value).startswith(variable(name) + " ")
    assert str(caught.value).endswith(".")


def test_a_peppers_value_is_never_said() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_env({"BEDROCK_PROXY_PEPPER": "s3cret", "BEDROCK_PROXY_MAX_STREAMS": "x"})
    assert "s3cret" not in str(caught.value)


def test_a_misspelt_setting_does_not_pass_for_a_set_one() -> None:
    with pytest.raises(ConfigurationError, match=r"BEDROCK_PROXY_MAX_STREAM is not a setting"):
        Settings.from_env({"BEDROCK_PROXY_MAX_STREAM": "5"})


def test_the_settings_reach_the_rules() -> None:
    environ = {variable(name): raw for name, (raw, _) in GOOD.items()}
    rules = Settings.from_env(environ).rules("eu-west-1")
    assert (b"s3cret", "eu-west-1", "123456789012") == (rules.pepper, rules.region, rules.account)
    assert (2.5, 3.0, 4.0) == (rules.first_byte_timeout, rules.idle_timeout, rules.max_duration)
    assert 5.5 == rules.whole_timeout
    assert rules.s3_locations == ("s3://bucket/", "s3://other.bucket/folder/")
    assert (5_000, 1_024) == (rules.lease_ms, rules.max_body_bytes)
    assert rules.cors_origins == ("https://a.test", "http://b.test:3000")


def test_the_defaults_are_those_of_the_rules() -> None:
    from bedrock_proxy.rules import Rules

    assert Rules() == Settings().rules(None)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("memory:", None),
        ("sqlite:///a.db", Path("a.db")),
        ("sqlite:///./b/a.db", Path("b/a.db")),
        ("sqlite:////var/lib/a.db", Path("/var/lib/a.db")),
        ("sqlite:///a%20b.db", Path("a b.db")),
        ("sqlite:///a%3Fb%23.db", Path("a?b#.db")),
    ],
)
def test_a_store_url_names_a_file(url: str, path: Path | None) -> None:
    assert (None if path is None else path.absolute()) == store_path(url)


@pytest.mark.parametrize(
    "url", ["sqlite:", "sqlite://a.db", "sqlite:///", "mysql://a/b", "a.db", "memory", ":memory:"]
)
def test_what_is_no_store_url_is_refused_with_the_ways_to_write_one(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"sqlite:////absolute\.db"):
        store_path(url)


@pytest.mark.parametrize("rest", ["?mode=ro", "?", "#ro", "#"])
def test_options_that_sqlite_does_not_have_are_refused_not_dropped(rest: str) -> None:
    with pytest.raises(ConfigurationError, match="has options, and SQLite's has none"):
        store_path(f"sqlite:///x.db{rest}")


def test_stores_are_opened_by_their_urls(tmp_path: Path) -> None:
    assert isinstance(open_store("memory:"), MemoryStore)
    opened = open_store(f"sqlite:///{tmp_path / 'x.db'}")
    assert isinstance(opened, SqliteStore)
    assert tmp_path / "x.db" == opened.path


def test_a_proxy_is_composed_as_the_environment_says(aws: None, tmp_path: Path) -> None:
    environ = {
        variable("store"): "sqlite:///x.db",
        variable("base_path"): "/stage",
        variable("disconnect"): "cancel",
        variable("max_streams"): "7",
    }
    proxy = proxy_from_env(environ)
    assert isinstance(proxy.store, SqliteStore)
    assert tmp_path / "x.db" == proxy.store.path
    assert ("/stage", "cancel", 7) == (proxy.base_path, proxy.disconnect, proxy.max_streams)
    assert "eu-west-1" == proxy.rules.region
    assert isinstance(proxy.sync_faces().gate, SpoolGate), "a full spool closes admission"
    proxy.close()


def test_a_store_in_memory_has_no_spool(aws: None) -> None:
    proxy = proxy_from_env({variable("store"): "memory:"})
    assert proxy.sync_faces().gate is proxy.store
    assert 200 == proxy.sync_faces().upstream.max_streams
    proxy.close()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"AWS_REGION": ""}, "AWS_REGION"),
        ({"AWS_REGION": "no such region"}, "no such region"),
        ({"AWS_PROFILE": "nope"}, "nope"),
        ({"AWS_ENDPOINT_URL_BEDROCK_RUNTIME": "nowhere"}, "nowhere"),
    ],
)
def test_an_aws_configuration_that_cannot_work_is_a_sentence(
    aws: None, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], words: str
) -> None:
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=words):
        proxy_from_env({variable("store"): "memory:"})


def test_a_spool_that_cannot_be_written_is_told_at_the_start(aws: None, tmp_path: Path) -> None:
    missing = str(tmp_path / "no" / "spool")
    with pytest.raises(ConfigurationError, match="BEDROCK_PROXY_SPOOL"):
        proxy_from_env({variable("store"): "memory:", variable("spool"): missing})


@pytest.mark.parametrize("name", ["AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_RUNTIME_API"])
def test_on_lambda_there_is_a_spool_only_where_a_place_was_named(
    aws: None, tmp_path: Path, name: str
) -> None:
    """A file that nobody named would be lost with the sandbox; `/tmp` is all there is."""
    environ = {variable("store"): f"sqlite:///{tmp_path / 'proxy.db'}", name: "x"}
    for given, spooled in (({}, False), ({variable("spool"): str(tmp_path / "spool")}, True)):
        proxy = proxy_from_env({**environ, **given})
        assert isinstance(proxy.sync_faces().gate, SpoolGate) is spooled
        proxy.close()


# --- the reference ----------------------------------------------------------------------------


def told() -> dict[str, tuple[str, str]]:
    """The page's table: variable to default and meaning."""
    rows = re.findall(
        r"^\| `(BEDROCK_PROXY_\w+)` \| (.*?) \| (.*) \|$", PAGE.read_text(), re.MULTILINE
    )
    return {name: (default, meaning) for name, default, meaning in rows}


def shown(default: object) -> str:
    if default in (None, (), ""):
        return "–"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def test_the_reference_lists_every_setting_its_default_and_its_meaning() -> None:
    expected = {
        variable(field.name): (shown(field.default), field.metadata["meaning"])
        for field in fields(Settings)
    }
    assert expected == told()
    assert list(expected) == list(told()), "in order"
