"""``bedrock-proxy customers``: what an operator can do, and is told."""

import contextlib
import time

import pytest
from attrs import evolve
from tests.adapters.cli.conftest import Run

from bedrock_proxy import tokens
from bedrock_proxy.customers import Customer, Key, Limits
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

NAMED = ("--name", "Bob", "--email", "bob@example.com")


def now() -> int:
    return time.time_ns() // 1_000_000


def owner(store: SqliteStore, token: str, at: int | None = None):  # type: ignore[no-untyped-def]
    return store.find_token(tokens.digest(token, None), now() if at is None else at)


def test_a_new_customer_has_a_token_that_is_known_and_a_thousand_requests_a_day(
    run: Run, store: SqliteStore
) -> None:
    said = run("customers", "create", *NAMED)
    assert 0 == said.code
    first, second = said.out.splitlines()
    customer_id = first.removeprefix("customer_id: ")
    token = second.removeprefix("token:       ")
    assert customer_id == owner(store, token).customer_id
    assert Limits(requests_per_day=1_000) == store.get_customer(customer_id).limits
    assert "cannot be shown again" in said.err
    assert "requests per day 1,000" in said.err
    assert str(store.path) in said.err


def test_the_token_is_not_in_the_database(
    run: Run, ann: dict[str, str], store: SqliteStore
) -> None:
    store.close()
    for path in store.path.parent.iterdir():
        assert ann["token"].encode() not in path.read_bytes()


def test_every_limit_can_be_set_changed_and_lifted(run: Run, store: SqliteStore) -> None:
    limits = {
        "requests_per_minute": 60,
        "burst": 5,
        "tokens_per_minute": 10_000,
        "concurrency": 4,
        "requests_per_day": 0,
        "tokens_per_day": 1_000_000,
        "tokens_per_month": 9_000_000,
    }
    given = [
        word for name, cap in limits.items() for word in ("--" + name.replace("_", "-"), str(cap))
    ]
    made = run("customers", "create", *NAMED, *given, "--json").json
    customer_id = made["customer_id"]
    assert Limits(**limits) == store.get_customer(customer_id).limits
    changed = run("customers", "update-limits", customer_id, "--burst", "6", "--json")
    assert {**limits, "burst": 6, "cost_per_day": None, "cost_per_month": None} == changed.json[
        "limits"
    ]
    lifted = [w for name in limits for w in ("--" + name.replace("_", "-"), "unlimited")]
    assert 0 == run("customers", "update-limits", customer_id, *lifted).code
    assert Limits() == store.get_customer(customer_id).limits


def test_a_burst_belongs_to_the_requests_a_minute(run: Run, store: SqliteStore) -> None:
    given = ("--requests-per-minute", "60", "--burst", "5", "--json")
    customer_id = run("customers", "create", *NAMED, *given).json["customer_id"]
    update = ("customers", "update-limits", customer_id)
    assert 2 == run(*update, "--burst", "0").code
    lifted = run(*update, "--requests-per-minute", "unlimited")
    assert "The burst of 5 went with the requests a minute" in lifted.err
    assert Limits(requests_per_day=1_000) == store.get_customer(customer_id).limits
    alone = run(*update, "--burst", "6")
    assert 1 == alone.code
    assert "--burst limits nothing without --requests-per-minute" in alone.err
    assert Limits(requests_per_day=1_000) == store.get_customer(customer_id).limits
    both = run(*update, "--requests-per-minute", "60", "--burst", "6")
    assert (0, "") == (both.code, both.err)


def test_a_customer_who_has_a_burst_alone_can_be_changed(
    run: Run, store: SqliteStore, ann: dict[str, str]
) -> None:
    """Earlier versions made such customers."""
    alone = Limits(burst=5)
    store.update_customer(ann["customer_id"], lambda customer: evolve(customer, limits=alone))
    update = ("customers", "update-limits", ann["customer_id"])
    assert 0 == run(*update, "--concurrency", "3").code
    assert Limits(burst=5, concurrency=3) == store.get_customer(ann["customer_id"]).limits
    assert 0 == run(*update, "--burst", "unlimited").code
    assert Limits(concurrency=3) == store.get_customer(ann["customer_id"]).limits


def test_models_are_kept_by_their_canonical_names_and_all_lifts_the_list(
    run: Run, store: SqliteStore, ann: dict[str, str]
) -> None:
    update = ("customers", "update-limits", ann["customer_id"], "--models")
    run(
        *update,
        "us.amazon.nova-lite-v1:0,amazon.nova-pro-v1:0",
        "--models",
        "amazon.nova-lite-v1:0",
    )
    assert {"amazon.nova-lite-v1:0", "amazon.nova-pro-v1:0"} == store.get_customer(
        ann["customer_id"]
    ).models
    assert 0 == run("customers", "update-limits", ann["customer_id"], "--concurrency", "3").code
    assert store.get_customer(ann["customer_id"]).models is not None, "not named: it stays"
    run(*update, "all")
    assert store.get_customer(ann["customer_id"]).models is None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("--name", "", "--email", "a@b"), "--name"),
        (("--name", "a\x1b[2J", "--email", "a@b"), "--name"),
        (("--name", "a", "--email", "nobody"), "--email"),
        (("--name", "a", "--email", "a@b@c"), "--email"),
        ((*NAMED, "--requests-per-day", "-1"), "--requests-per-day"),
        ((*NAMED, "--requests-per-day", "1.5"), "--requests-per-day"),
        ((*NAMED, "--burst", "1" * 16), "--burst"),
        ((*NAMED, "--burst", "5"), "--burst limits nothing without --requests-per-minute"),
        ((*NAMED, "--requests-per-minute", "9", "--burst", "0"), "0 would refuse every request"),
        ((*NAMED, "--tokens-per-minute", "9" * 20), "is too large: a limit has at most 15 digits"),
        ((*NAMED, "--concurrency", "\u0663"), "--concurrency"),
        ((*NAMED, "--models", ","), "--models"),
        ((*NAMED, "--models", "all,amazon.nova-lite-v1:0"), "--models"),
        ((*NAMED, "--models", "no such model"), "--models"),
        ((*NAMED, "--token", "short"), "--token"),
        ((*NAMED, "--token", "bpk_" + "a" * 49), "--token"),
        ((*NAMED, "--expires-in-days", "0"), "--expires-in-days"),
        (("--name", "a"), "--email"),
    ],
)
def test_a_wrong_value_makes_no_customer_and_is_named(
    run: Run, store: SqliteStore, given: tuple[str, ...], named: str
) -> None:
    said = run("customers", "create", *given)
    assert 2 == said.code
    assert named in said.err
    assert "" == said.out
    assert () == store.list_customers().items


def test_an_operators_own_token_may_come_from_standard_input(run: Run, store: SqliteStore) -> None:
    made = run(
        "customers", "create", *NAMED, "--token", "-", "--json", stdin="a-token-of-our-own-1\n"
    ).json
    assert made["customer_id"] == owner(store, "a-token-of-our-own-1").customer_id
    again = run("customers", "create", *NAMED, "--token", "a-token-of-our-own-1")
    assert (1, "This token or key id is in use already.") == (again.code, again.err)
    assert 1 == len(store.list_customers().items)


def test_a_token_can_be_given_an_end(run: Run, store: SqliteStore, ann: dict[str, str]) -> None:
    added = run(
        "customers", "add-token", ann["customer_id"], "--expires-in-days", "2", "--json"
    ).json
    day = 86_400_000
    assert owner(store, added["token"]) is not None
    with contextlib.closing(SqliteStore(store.path)) as later:
        assert owner(later, added["token"], now() + 2 * day + 1_000) is None
        assert owner(later, ann["token"], now() + 2 * day + 1_000) is not None


def test_a_customer_has_up_to_four_tokens(run: Run, ann: dict[str, str]) -> None:
    said = [run("customers", "add-token", ann["customer_id"]) for _ in range(4)]
    assert [0, 0, 0, 1] == [each.code for each in said]
    assert "has 4 keys already" in said[-1].err
    assert "" == said[-1].out


def test_rotating_replaces_the_newest_and_leaves_it_its_grace(
    run: Run, store: SqliteStore, ann: dict[str, str]
) -> None:
    second = run("customers", "add-token", ann["customer_id"], "--json").json
    third = run("customers", "rotate-token", ann["customer_id"], "--grace", "3600", "--json").json
    assert second["key_id"] == third["old_key_id"]
    assert abs(third["old_expires_at"] - now() - 3_600_000) < 60_000
    for token in (ann["token"], second["token"], third["token"]):
        assert owner(store, token) is not None
    assert owner(store, second["token"]).key.deprecated_at is not None
    assert owner(store, ann["token"]).key.deprecated_at is None


def test_rotating_a_named_key_without_grace_ends_it_at_once(
    run: Run, store: SqliteStore, ann: dict[str, str]
) -> None:
    run("customers", "add-token", ann["customer_id"])
    said = run(
        *("customers", "rotate-token", ann["customer_id"]),
        *("--key", ann["key_id"], "--grace", "0"),
    )
    assert 0 == said.code
    assert f"The old token ({ann['key_id']}) has ended." in said.err
    assert owner(store, ann["token"]) is None
    assert owner(store, said.out.split()[-1]) is not None


def test_the_grace_is_a_day_where_nothing_is_said(run: Run, ann: dict[str, str]) -> None:
    said = run("customers", "rotate-token", ann["customer_id"], "--json").json
    assert abs(said["old_expires_at"] - now() - 86_400_000) < 60_000


def test_I12_revoking_wants_a_key_where_there_are_several(
    run: Run, store: SqliteStore, ann: dict[str, str]
) -> None:
    second = run("customers", "add-token", ann["customer_id"], "--json").json
    which = run("customers", "revoke-token", ann["customer_id"])
    assert 2 == which.code
    assert ann["key_id"] in which.err
    assert second["key_id"] in which.err
    assert 2 == len(store.list_keys(ann["customer_id"])), "nothing was revoked"
    both = run("customers", "revoke-token", ann["customer_id"], "--key", "k", "--all")
    assert 2 == both.code
    said = run("customers", "revoke-token", ann["customer_id"], "--key", ann["key_id"], "--json")
    assert {"customer_id": ann["customer_id"], "revoked": [ann["key_id"]]} == said.json
    with contextlib.closing(SqliteStore(store.path)) as fresh:
        assert owner(fresh, ann["token"]) is None
        assert owner(fresh, second["token"]) is not None
    assert 0 == run("customers", "revoke-token", ann["customer_id"]).code, "one is left: no doubt"
    assert () == store.list_keys(ann["customer_id"])


def test_a_customer_without_tokens_can_be_given_one_again(
    run: Run, store: SqliteStore, ann: dict[str, str]
) -> None:
    customer = ann["customer_id"]
    run("customers", "revoke-token", customer, "--all")
    assert "revoked: nothing\n" == run("customers", "revoke-token", customer, "--all").out
    assert "has no token to revoke" in run("customers", "revoke-token", customer).err
    rotated = run("customers", "rotate-token", customer)
    assert (1, "") == (rotated.code, rotated.out)
    assert "customers add-token" in rotated.err
    added = run("customers", "add-token", customer, "--json").json
    assert customer == owner(store, added["token"]).customer_id


def test_disabling_and_enabling(run: Run, store: SqliteStore, ann: dict[str, str]) -> None:
    assert "disabled" == run("customers", "disable", ann["customer_id"], "--json").json["status"]
    assert "disabled" == store.get_customer(ann["customer_id"]).status
    assert "active" in run("customers", "enable", ann["customer_id"]).out
    assert "active" == store.get_customer(ann["customer_id"]).status


@pytest.mark.parametrize(
    "command",
    [
        ("show",),
        ("update-limits", "--burst", "1"),
        ("rotate-token",),
        ("add-token",),
        ("revoke-token",),
        ("revoke-token", "--all"),
        ("disable",),
        ("enable",),
    ],
    ids=" ".join,
)
def test_an_unknown_customer_is_a_sentence(
    run: Run, ann: dict[str, str], command: tuple[str, ...]
) -> None:
    for more in ((), ("--json",)):
        said = run("customers", command[0], "nobody", *command[1:], *more)
        assert (1, "", "There is no customer 'nobody'.") == (said.code, said.out, said.err)


def test_update_limits_without_a_limit_says_so(run: Run, ann: dict[str, str]) -> None:
    said = run("customers", "update-limits", ann["customer_id"])
    assert 2 == said.code
    assert "Name at least one limit" in said.err


def test_show_tells_limits_keys_and_use(run: Run, ann: dict[str, str]) -> None:
    shown = run("customers", "show", ann["customer_id"])
    assert "Ann <ann@example.com>  active" in shown.out
    assert "requests per day         1,000      1,000" in shown.out
    assert "0 requests, 0 tokens" in shown.out
    assert ann["key_id"] in shown.out
    assert ann["token"] not in shown.out
    told = run("customers", "show", ann["customer_id"], "--json").json
    assert [ann["key_id"]] == [key["key_id"] for key in told["keys"]]
    assert {"requests": 0, "tokens": 0, "cost_nanousd": 0} == told["today"]
    assert "digest" not in told["keys"][0]


def test_a_name_cannot_move_the_cursor_or_break_a_table(run: Run, store: SqliteStore) -> None:
    from bedrock_proxy.customers import Customer, Key

    # Not through the command, which refuses it.
    evil = Customer(id="cust_x", name="a\x1b[2J\nb", email="e", created_at=1)
    store.create_customer(evil, Key(key_id="k", digest=b"d", created_at=1))
    table = run("customers", "list").out
    assert "\x1b" not in table
    assert 2 == len(table.splitlines())


def test_a_thousand_customers_are_listed_in_pages(run: Run, store: SqliteStore) -> None:
    from bedrock_proxy.customers import Customer, Key

    def make(connection):  # type: ignore[no-untyped-def]
        from bedrock_proxy_adapters.stores import directory

        for n in range(1_000):
            key = Key(key_id=f"key_{n}", digest=b"%d" % n, created_at=1)
            customer = Customer(id=f"cust_{n:04}", name=f"N{n}", email="e@x", created_at=1)
            directory.create(connection, customer, key)

    store._database.change(make)
    first = run("customers", "list", "--json")
    assert [f"cust_{n:04}" for n in range(100)] == [each["customer_id"] for each in first.lines]
    assert "--after cust_0099" in first.err
    assert "--after cust_0099" in run("customers", "list").err
    seen, after = 0, ()
    while True:
        page = run("customers", "list", "--json", "--limit", "400", *after)
        seen += len(page.lines)
        if not page.err:
            break
        after = ("--after", page.lines[-1]["customer_id"])
    assert 1_000 == seen
    everyone = run("customers", "list", "--all")
    assert "" == everyone.err
    assert 1_001 == len(everyone.out.splitlines())
    assert 1 == len({line.index("active") for line in everyone.out.splitlines()[1:]}), "aligned"


def test_an_empty_list_says_so_beside_the_table(run: Run, store: SqliteStore) -> None:
    said = run("customers", "list")
    assert "No customers." in said.err
    assert 1 == len(said.out.splitlines())
    assert ("", "") == (
        run("customers", "list", "--json").out,
        run("customers", "list", "--json").err,
    )


def test_a_peppered_token_is_found_only_under_the_same_pepper(
    run: Run, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEDROCK_PROXY_PEPPER", "salt and")
    token = run("customers", "create", *NAMED, "--json").json["token"]
    assert store.find_token(tokens.digest(token, b"salt and"), now()) is not None
    assert store.find_token(tokens.digest(token, None), now()) is None


GIVING = ["create", "add-token", "rotate-token"]


def give(run: Run, command: str, customer_id: str):  # type: ignore[no-untyped-def]
    return run("customers", command, *(NAMED if command == "create" else [customer_id]), "--json")


@pytest.mark.parametrize("command", GIVING)
@pytest.mark.parametrize(
    ("first", "then", "said"),
    [("salt", None, "were made with a pepper"), (None, "salt", "were made without a pepper")],
)
def test_a_token_that_the_stores_server_will_not_know_is_given_with_a_warning(
    run: Run,
    store: SqliteStore,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    first: str | None,
    then: str | None,
    said: str,
) -> None:
    def pepper(value: str | None) -> None:
        if value is None:
            monkeypatch.delenv("BEDROCK_PROXY_PEPPER", raising=False)
        else:
            monkeypatch.setenv("BEDROCK_PROXY_PEPPER", value)

    pepper(first)
    ann = run("customers", "create", *NAMED, "--json")
    same = give(run, command, ann.json["customer_id"])
    assert ("", "") == (ann.err, same.err)
    pepper(then)
    other = give(run, command, ann.json["customer_id"])
    assert 0 == other.code
    assert said in other.err
    assert "BEDROCK_PROXY_PEPPER" in other.err
    assert "salt" not in other.err
    once_more = give(run, command, ann.json["customer_id"])
    assert "" == once_more.err, "there is one of this kind now"


def test_only_the_first_customers_are_looked_at_for_their_pepper(
    run: Run, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not take long where there are many."""
    for number in range(30):
        store.create_customer(
            Customer(id=f"c{number:02}", name="n", email="e", created_at=1),
            Key(key_id=f"k{number}", digest=tokens.digest(str(number), None), created_at=1),
        )
    asked: list[str] = []
    list_keys = SqliteStore.list_keys

    def counting(self: SqliteStore, customer_id: str) -> tuple[Key, ...]:
        asked.append(customer_id)
        return list_keys(self, customer_id)

    monkeypatch.setattr(SqliteStore, "list_keys", counting)
    monkeypatch.setenv("BEDROCK_PROXY_PEPPER", "salt")
    assert "without a pepper" in run("customers", "create", *NAMED).err
    assert [f"c{number:02}" for number in range(10)] == asked
