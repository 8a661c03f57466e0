"""``bedrock-proxy usage``, ``ledger``, ``reap`` and ``rebuild``."""

import csv
import io
from datetime import UTC, datetime

import pytest
from attrs import evolve
from tests.adapters.cli.conftest import Run
from tests.running import CLAUDE

from bedrock_proxy.admission import AdmissionRequest, Grant, Lease
from bedrock_proxy.customers import Customer, Key
from bedrock_proxy.usage import LEDGER_FIELDS, Basis, Outcome, State, UsageRecord
from bedrock_proxy_adapters.stores import ledger as ledger_rows
from bedrock_proxy_adapters.stores.sqlite import SqliteStore


def at(day: str, hour: int = 12) -> int:
    return int(datetime.fromisoformat(f"{day}T{hour:02}:00:00+00:00").timestamp()) * 1000


def row(n: int, when: int, customer: str = "cust_a", **more: object) -> UsageRecord:
    values = {
        "request_id": f"req-{n:06}",
        "customer_id": customer,
        "key_id": "key_1",
        "model_id": CLAUDE,
        "model": CLAUDE,
        "dialect": "simple",
        "operation": "InvokeModel",
        "stream": False,
        "admitted_at": when,
        "duration_ms": 5,
        "first_byte_ms": 4,
        "attempts": 1,
        "input_tokens": 10,
        "output_tokens": 20,
        "cache_read_tokens": 1,
        "cache_write_5m_tokens": 2,
        "cache_write_1h_tokens": 3,
        "token_count": 36,
        "basis": Basis.REPORTED,
        "state": State.FINAL,
        "outcome": Outcome.OK,
        **more,
    }
    return UsageRecord(**values)  # type: ignore[arg-type]


@pytest.fixture
def rows(store: SqliteStore) -> SqliteStore:
    """Two customers and five rows, on both sides of a midnight."""
    for name in ("cust_a", "=cust_b"):
        store.create_customer(
            Customer(id=name, name=name, email="e", created_at=1),
            Key(key_id="key_" + name, digest=name.encode(), created_at=1),
        )
    written = [
        row(1, at("2026-01-30", 23)),
        row(2, at("2026-01-31", 0)),
        row(3, at("2026-01-31", 23), outcome=Outcome.ERROR, error_code="upstream_torn"),
        row(4, at("2026-02-01", 0), "=cust_b", model="amazon.nova-lite-v1:0"),
        row(5, at("2026-02-01", 1), "=cust_b"),
    ]

    def enter(connection):  # type: ignore[no-untyped-def]
        for each in written:
            ledger_rows.finish(connection, each)

    store._database.writer().do(enter)
    return store


def test_the_ledger_as_json_is_every_field_in_order(run: Run, rows: SqliteStore) -> None:
    said = run("ledger", "--json")
    assert [list(LEDGER_FIELDS)] * 5 == [list(line) for line in said.lines]
    assert [f"req-{n:06}" for n in range(1, 6)] == [line["request_id"] for line in said.lines]


def test_the_ledger_as_a_table_is_for_people(run: Run, rows: SqliteStore) -> None:
    head, *lines = run("ledger").out.splitlines()
    assert head.split() == [
        *("ADMITTED", "CUSTOMER", "MODEL", "INPUT", "OUTPUT"),
        *("TOKENS", "BASIS", "OUTCOME", "MS"),
    ]
    assert 5 == len(lines)
    assert "2026-01-31 23:00:00Z" in lines[2]
    assert "error (upstream_torn)" in lines[2]
    assert head.index("TOKENS") + len("TOKENS") == lines[0].index(" 36 ") + 3, "to the right"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), [1, 2, 3, 4, 5]),
        (("--start-date", "2026-01-31"), [2, 3, 4, 5]),
        (("--end-date", "2026-01-31"), [1, 2, 3]),
        (("--start-date", "2026-01-31", "--end-date", "2026-01-31"), [2, 3]),
        (("--customer-id", "=cust_b"), [4, 5]),
        (("--limit", "2"), [1, 2]),
        (("--end-date", "9999-12-31"), [1, 2, 3, 4, 5]),
        (("--start-date", "0001-01-01"), [1, 2, 3, 4, 5]),
    ],
    ids=str,
)
def test_the_ledger_is_narrowed_by_utc_days_customer_and_count(
    run: Run, rows: SqliteStore, given: tuple[str, ...], expected: list[int]
) -> None:
    said = run("ledger", "--json", *given)
    assert expected == [int(line["request_id"][-6:]) for line in said.lines]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("day", [("2026-01-30", 1), ("2026-01-31", 2), ("2026-02-01", 2)]),
        (
            "hour",
            [
                ("2026-01-30T23", 1),
                ("2026-01-31T00", 1),
                ("2026-01-31T23", 1),
                ("2026-02-01T00", 1),
                ("2026-02-01T01", 1),
            ],
        ),
        ("model", [("amazon.nova-lite-v1:0", 1), (CLAUDE, 4)]),
        ("customer", [("=cust_b", 2), ("cust_a", 3)]),
    ],
)
def test_usage_adds_up_the_rows_and_every_format_says_the_same(
    run: Run, rows: SqliteStore, by: str, expected: list[tuple[str, int]]
) -> None:
    told = run("usage", "--by", by, "--json")
    assert expected == [(line[by], line["requests"]) for line in told.lines]
    assert 5 * 36 == sum(line["token_count"] for line in told.lines)
    assert told.out == run("usage", "--by", by, "--format", "json").out
    sheet = list(csv.DictReader(io.StringIO(run("usage", "--by", by, "--format", "csv").out)))
    assert [(key.replace("=", "'="), str(count)) for key, count in expected] == [
        (line[by], line["requests"]) for line in sheet
    ]
    assert set(told.lines[0]) == set(sheet[0])
    table = run("usage", "--by", by).out.splitlines()
    assert by.upper() == table[0].split()[0]
    assert [key for key, _ in expected] == [line.split()[0] for line in table[1:-1]]
    assert ["all", "5", "1", "50", "100", "5", "25", "180"] == table[-1].split()


def test_usage_by_customer_names_the_customers_to_people(run: Run, rows: SqliteStore) -> None:
    rows.update_customer("cust_a", lambda customer: evolve(customer, name="Ann Lee"))
    head, other, ann, altogether = run("usage", "--by", "customer").out.splitlines()
    assert ["CUSTOMER", "NAME", "REQUESTS"] == head.split()[:3]
    assert ["=cust_b", "=cust_b", "2"] == other.split()[:3]
    assert ["cust_a", "Ann", "Lee", "3"] == ann.split()[:4]
    assert ["all", "5"] == altogether.split()[:2]
    [_, alone] = run("usage", "--by", "customer", "--customer-id", "cust_a").out.splitlines()
    assert ["cust_a", "Ann", "Lee", "3"] == alone.split()[:4]


def test_estimates_have_a_column_where_there_are_any(run: Run, rows: SqliteStore) -> None:
    assert "ESTIMATED" not in run("usage").out
    when = int(datetime.now(UTC).timestamp() * 1000) - 60_000
    lease(rows, when)
    run("reap")
    head, *_, last, altogether = run("usage").out.splitlines()
    assert ["DAY", "REQUESTS", "ERRORS", "ESTIMATED", "INPUT"] == head.split()[:5]
    assert ["1", "1", "1"] == last.split()[1:4]
    assert ["all", "6", "2", "1"] == altogether.split()[:4]


def test_a_spreadsheet_takes_nothing_for_a_formula(run: Run, rows: SqliteStore) -> None:
    sheet = run("usage", "--by", "customer", "--format", "csv").out
    assert all(not line.startswith(("=", "+", "-", "@")) for line in sheet.splitlines())
    assert "'=cust_b," in sheet


@pytest.mark.parametrize("command", ["usage", "ledger"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--start-date", "2026-02-30"), "'2026-02-30' is not a day like 2026-01-31."),
        (("--start-date", "yesterday"), "'yesterday' is not a day like 2026-01-31."),
        (("--start-date", "2026-02-02", "--end-date", "2026-02-01"), "--end-date is before"),
    ],
    ids=str,
)
def test_a_wrong_day_is_a_sentence(
    run: Run, rows: SqliteStore, command: str, given: tuple[str, ...], said: str
) -> None:
    answer = run(command, *given)
    assert (2, "") == (answer.code, answer.out)
    assert said in answer.err


FORMATS = [
    ("usage",),
    ("usage", "--json"),
    ("usage", "--format", "csv"),
    ("ledger",),
    ("ledger", "--json"),
]


@pytest.mark.parametrize("command", FORMATS, ids=" ".join)
def test_a_mistyped_customer_is_an_error_in_every_format_and_nothing_is_printed(
    run: Run, rows: SqliteStore, command: tuple[str, ...]
) -> None:
    wrong = run(*command, "--customer-id", "nobody")
    assert (1, "", "There is no customer 'nobody'.") == (wrong.code, wrong.out, wrong.err)


@pytest.mark.parametrize("command", FORMATS, ids=" ".join)
def test_a_quiet_customer_is_no_error(
    run: Run, rows: SqliteStore, command: tuple[str, ...]
) -> None:
    quiet = run(*command, "--customer-id", "cust_a", "--start-date", "2027-01-01")
    assert 0 == quiet.code
    if command[1:] == ():
        assert "No usage in this period." in quiet.err


@pytest.mark.parametrize("command", FORMATS, ids=" ".join)
def test_rows_can_be_read_of_a_customer_whom_somebody_took_out_of_the_database(
    run: Run, rows: SqliteStore, command: tuple[str, ...]
) -> None:
    for table, column in (("keys", "customer_id"), ("customers", "id")):
        sql = f"DELETE FROM {table} WHERE {column} = 'cust_a'"
        rows._database.writer().do(lambda connection, sql=sql: connection.execute(sql))
    said = run(*command, "--customer-id", "cust_a")
    assert 0 == said.code
    assert "20" in said.out


def test_two_formats_at_once_are_refused(run: Run, rows: SqliteStore) -> None:
    assert 2 == run("usage", "--json", "--format", "csv").code
    assert 0 == run("usage", "--json", "--format", "json").code


@pytest.mark.parametrize("limit", ["0", "-1", "x", "9" * 30])
def test_a_wrong_count_of_rows_is_refused(run: Run, rows: SqliteStore, limit: str) -> None:
    assert 2 == run("ledger", "--limit", limit).code


def test_ten_thousand_rows_come_out_whole(run: Run, rows: SqliteStore) -> None:
    def enter(connection):  # type: ignore[no-untyped-def]
        for n in range(10_000):
            ledger_rows.finish(connection, row(100 + n, at("2026-03-01") + n))

    rows._database.writer().do(enter, 60.0)
    lines = run("ledger", "--start-date", "2026-03-01", "--json").out.splitlines()
    assert 10_000 == len(lines) == len(set(lines))
    table = run("ledger", "--start-date", "2026-03-01").out.splitlines()
    assert 10_001 == len(table)
    assert 1 == len({line.index(CLAUDE) for line in table[1:]})


def lease(store: SqliteStore, when: int) -> Lease:
    store.create_customer(
        Customer(id="cust_l", name="L", email="e", created_at=1),
        Key(key_id="key_l", digest=b"l", created_at=1),
    )
    return leased(store, "left-behind", when)


def leased(store: SqliteStore, request_id: str, when: int) -> Lease:
    granted = store.admit(
        AdmissionRequest(
            request_id=request_id,
            customer_id="cust_l",
            key_id="key_l",
            model_id=CLAUDE,
            model=CLAUDE,
            dialect="simple",
            operation="InvokeModel",
            stream=False,
            at=when,
            input_tokens=3,
            output_tokens=4,
            cost_nanousd=None,
            price_version=None,
            client_request_id=None,
            lease_ms=1_000,
        )
    )
    assert isinstance(granted, Grant)
    return granted.lease


def test_I13_reap_settles_what_was_left_behind(run: Run, store: SqliteStore) -> None:
    lease(store, int(datetime.now(UTC).timestamp() * 1000) - 60_000)
    assert {"settled": 1} == run("reap", "--json").json
    assert () == store.open_leases()
    [line] = run("ledger", "--json").lines
    assert ("left-behind", "estimated", 7) == (
        line["request_id"],
        line["state"],
        line["token_count"],
    )
    assert "leases settled: 0\n" == run("reap").out


def test_reap_leaves_what_is_under_way(run: Run, store: SqliteStore) -> None:
    lease(store, int(datetime.now(UTC).timestamp() * 1000) + 3_600_000)
    assert {"settled": 0} == run("reap", "--json").json
    assert 1 == len(store.open_leases())


def test_A13_rebuild_counts_again_from_the_ledger(run: Run, rows: SqliteStore) -> None:
    when = int(datetime.now(UTC).timestamp() * 1000)
    rows.finish(row(9, when, "cust_l", request_id="left-behind"), lease(rows, when))
    show = ("customers", "show", "cust_l", "--json")
    before = run(*show).json
    assert {"requests": 1, "tokens": 36, "cost_nanousd": 0} == before["today"]
    rows._database.writer().do(lambda c: c.execute("DELETE FROM gates"))
    assert 0 == run(*show).json["today"]["requests"]
    assert {"recounted": 1} == run("rebuild", "--customer-id", "cust_l", "--json").json
    assert before == run(*show).json
    assert "customers recounted: 3\n" == run("rebuild").out
    assert 1 == run("rebuild", "--customer-id", "nobody").code


def test_A08_a_clock_that_was_wrong_is_told_of_and_put_back(run: Run, store: SqliteStore) -> None:
    now = int(datetime.now(UTC).timestamp() * 1000)
    show = ("customers", "show", "cust_l")
    lease(store, now)
    assert "clock" not in run(*show).out
    leased(store, "ahead", now + 86_400_000)
    shown = run(*show).out
    assert "clock:  23:59:" in shown or "clock:  1 day, 0:00:00" in shown
    assert "bedrock-proxy rebuild --customer-id cust_l --set-clock" in shown
    assert 86_000_000 < run(*show, "--json").json["clock_ahead_ms"] <= 86_400_000
    run("rebuild", "--customer-id", "cust_l")
    assert "clock" in run(*show).out
    run("rebuild", "--customer-id", "cust_l", "--set-clock")
    assert "clock" not in run(*show).out
    assert 0 == run(*show, "--json").json["clock_ahead_ms"]
    # The other had been reaped: by that clock its time was over.
    assert ["left-behind", "ahead"] == [row.request_id for row in store.list_rows().items]
    assert () == store.open_leases()
