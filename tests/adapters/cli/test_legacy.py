"""``import-legacy``: the original's customers go on with the tokens they have."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from tests.adapters.cli.conftest import Run

from bedrock_proxy import tokens
from bedrock_proxy.customers import CustomerStatus
from bedrock_proxy_adapters.cli import legacy as command
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

DAY = 86_400


def token(name: str) -> str:
    return f"legacy-{name}-0123456789abcdef"


CUSTOMERS: list[dict[str, Any]] = [
    {
        "customer_id": {"S": "cust_ann"},
        "name": {"S": "Ann"},
        "email": {"S": "ann@example.com"},
        "status": {"S": "active"},
        "rate_limit_daily": {"N": "250"},
        "created_at": {"S": "2024-05-06T07:08:09Z"},
    },
    {
        "customer_id": {"S": "cust_bob"},
        "name": {"S": "Bob"},
        "email": {"S": "bob@example.com"},
        "status": {"S": "suspended"},
        "rate_limit_daily": {"S": "0"},
        "created_at": {"N": "1700000000"},
    },
    {"customer_id": {"S": "cust_carol"}, "name": {"NULL": True}},
    {"customer_id": {"S": "cust_broken"}, "rate_limit_daily": {"S": "lots"}},
    {"name": {"S": "nobody"}},
    {"customer_id": {"S": "cust_odd"}, "created_at": {"S": "yesterday"}},
]


def row(name: str, owner: str, status: str = "active", **more: Any) -> dict[str, Any]:
    return {
        "token": {"S": token(name)},
        "customer_id": {"S": owner},
        "status": {"S": status},
        **more,
    }


TOKENS: list[dict[str, Any]] = [
    row("ann-new", "cust_ann", created_at={"S": "2024-06-01T00:00:00+00:00"}),
    row("ann-old", "cust_ann", "deprecated", created_at={"N": "1714979289"}),
    row("ann-gone", "cust_ann", "revoked"),
    row("ann-late", "cust_ann", expires_at={"N": "1700000000"}),
    row("bob", "cust_bob", expires_at={"N": "4102444800"}),
    row("stray", "cust_nobody"),
    row("broken", "cust_broken"),
    {"token": {"S": "short"}, "customer_id": {"S": "cust_carol"}},
]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client that knows these two tables and refuses every call but the expected scans."""
    client = boto3.client(
        "dynamodb", region_name="eu-west-1", aws_access_key_id="a", aws_secret_access_key="s"
    )
    monkeypatch.setattr(command, "dynamodb_client", lambda region, endpoint_url: client)
    with Stubber(client) as stubber:

        def add(table: str, items: list[dict[str, Any]]) -> None:
            half = len(items) // 2
            key = {"id": {"S": "half"}}
            asked = {"TableName": table, "ConsistentRead": True}
            stubber.add_response("scan", {"Items": items[:half], "LastEvaluatedKey": key}, asked)
            stubber.add_response(
                "scan", {"Items": items[half:]}, {**asked, "ExclusiveStartKey": key}
            )

        def scanned_once(
            customers: str = "bedrock_customers",
            tokens: str = "bedrock_tokens",
            *,
            customer_rows: list[dict[str, Any]] = CUSTOMERS,
            token_rows: list[dict[str, Any]] = TOKENS,
        ) -> None:
            add(customers, customer_rows)
            add(tokens, token_rows)

        scanned_once.stubber = stubber  # type: ignore[attr-defined]
        yield scanned_once
        stubber.assert_no_pending_responses()


@pytest.fixture(autouse=True)
def pepper(monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setenv("BEDROCK_PROXY_PEPPER", "salt")
    return b"salt"


def test_customers_and_their_valid_tokens_come_across(
    run: Run, tables: Any, store: SqliteStore, pepper: bytes
) -> None:
    tables()
    said = run("import-legacy", "--json").json
    assert (said["customers"], said["tokens"], said["endless"]) == (3, 3, 1)
    ann, bob, carol = (store.get_customer(f"cust_{name}") for name in ("ann", "bob", "carol"))
    assert (ann.name, ann.email, ann.status) == ("Ann", "ann@example.com", CustomerStatus.ACTIVE)
    assert ann.limits.requests_per_day == 250
    assert ann.created_at == 1_714_979_289_000
    assert (bob.status, bob.limits.requests_per_day) == (CustomerStatus.DISABLED, 0)
    assert (carol.name, carol.limits.requests_per_day) == ("cust_carol", 1_000)
    assert store.list_keys("cust_carol") == ()
    for name, owner in (("ann-new", "cust_ann"), ("ann-old", "cust_ann"), ("bob", "cust_bob")):
        found = store.find_token(tokens.digest(token(name), pepper), 1_750_000_000_000)
        assert found is not None
        assert found.customer_id == owner
        assert (found.key.deprecated_at is not None) == (name == "ann-old")
        assert (found.key.expires_at is not None) == (name == "bob")


def test_what_was_skipped_is_said_with_the_reason_and_without_the_token(
    run: Run, tables: Any
) -> None:
    tables()
    said = run("import-legacy")
    assert said.code == 0
    for words in (
        "imported: 3 customers, 3 tokens",
        "skipped: 8",
        "its rate_limit_daily is 'lots'",
        "its created_at is 'yesterday'",
        "it has no customer_id",
        "its status is 'revoked'",
        "it has expired",
        "its customer is not in the customers' table, or was skipped",
        "it has not the shape of a token",
    ):
        assert words in said.out
    assert "1 tokens had been rotated" in said.err
    assert "legacy-" not in said.out + said.err


def test_no_plaintext_token_reaches_the_database(run: Run, tables: Any, database: Path) -> None:
    tables()
    run("import-legacy")
    stored = b"".join(path.read_bytes() for path in database.parent.glob("proxy.db*"))
    assert b"cust_ann" in stored
    assert b"legacy-ann" not in stored


def test_importing_again_changes_nothing_that_was_changed_since(
    run: Run, tables: Any, store: SqliteStore
) -> None:
    tables()
    run("import-legacy")
    run("customers", "update-limits", "cust_ann", "--requests-per-day", "9")
    before = store.list_customers(), store.list_keys("cust_ann")
    tables()
    again = run("import-legacy", "--json").json
    assert (again["customers"], again["tokens"]) == (0, 0)
    assert (again["known_customers"], again["known_tokens"]) == (3, 3)
    assert (store.list_customers(), store.list_keys("cust_ann")) == before


def test_a_token_that_was_revoked_since_stays_revoked_unless_the_operator_asks(
    run: Run, tables: Any, store: SqliteStore, pepper: bytes
) -> None:
    tables()
    run("import-legacy")
    run("customers", "revoke-token", "cust_ann", "--all")
    tables()
    again = run("import-legacy", "--json").json
    assert again["tokens"] == 0
    assert {"--add-tokens" in each["reason"] for each in again["skipped"]} == {True, False}
    assert store.list_keys("cust_ann") == ()
    tables()
    assert run("import-legacy", "--add-tokens", "--json").json["tokens"] == 2
    assert len(store.list_keys("cust_ann")) == 2


def test_a_dry_run_says_the_same_and_writes_nothing(
    run: Run, tables: Any, database: Path, tmp_path: Path
) -> None:
    tables()
    tried = run("import-legacy", "--dry-run", "--json").json
    assert not database.exists()
    tables()
    done = run("import-legacy", "--json").json
    assert tried.pop("dry_run")
    assert not done.pop("dry_run")
    assert tried == done


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_missing_pepper_is_warned_of_before_tokens_are_imported_without_it(
    run: Run, tables: Any, dry: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("customers", "create", "--name", "Eve", "--email", "eve@example.com")
    tables()
    assert "pepper" not in run("import-legacy", "--dry-run").err
    monkeypatch.delenv("BEDROCK_PROXY_PEPPER")
    tables()
    said = run("import-legacy", *dry).err
    assert "were made with a pepper, and BEDROCK_PROXY_PEPPER is not set here" in said
    assert "refuses the tokens that are imported" in said


def test_of_more_than_four_tokens_the_ones_in_use_come_first(
    run: Run, tables: Any, store: SqliteStore, pepper: bytes
) -> None:
    rows = [
        row(f"t{n}", "cust_ann", "deprecated" if n == 9 else "active", created_at={"N": f"{n}000"})
        for n in range(1, 10)
    ]
    tables(token_rows=rows)
    said = run("import-legacy", "--json").json
    assert said["tokens"] == 4
    kept = {key.digest for key in store.list_keys("cust_ann")}
    assert kept == {tokens.digest(token(f"t{n}"), pepper) for n in (5, 6, 7, 8)}


def test_a_token_of_another_customer_is_not_taken_away(
    run: Run, tables: Any, store: SqliteStore, pepper: bytes
) -> None:
    run("customers", "create", "--name", "Z", "--email", "z@z.z", "--token", token("ann-new"))
    tables()
    said = run("import-legacy", "--json").json
    assert said["tokens"] == 2
    assert "another customer has it" in {each["reason"] for each in said["skipped"]}
    found = store.find_token(tokens.digest(token("ann-new"), pepper), 1_750_000_000_000)
    assert found is not None
    assert found.customer_id != "cust_ann"


def test_other_tables_can_be_named_and_a_missing_one_is_a_sentence(run: Run, tables: Any) -> None:
    tables("their_customers", "their_tokens")
    done = run(
        "import-legacy",
        *("--customers-table", "their_customers", "--tokens-table", "their_tokens", "--json"),
    )
    assert done.json["customers"] == 3
    tables.stubber.add_client_error("scan", "ResourceNotFoundException")
    missing = run("import-legacy")
    assert missing.code == 1
    assert "'bedrock_customers' cannot be read: there is no such table" in missing.err
    tables.stubber.add_client_error("scan", "AccessDeniedException")
    assert "dynamodb:Scan" in run("import-legacy").err


def test_without_a_region_there_is_a_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    assert "region" in run("import-legacy").err
