"""The command as a process: exit codes, what goes where, and no traceback for a mistake."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.running import ROOT

from bedrock_proxy import __version__
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

COMMAND = [sys.executable, "-c", "from bedrock_proxy_adapters.cli import main; main()"]


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "BEDROCK_PROXY_"))}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "adapters")]),
        "HOME": str(folder),
        "AWS_EC2_METADATA_DISABLED": "true",
        **more,
    }


def run(folder: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment(folder, **more),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def refused(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    """It ended with exit code 1, one sentence on stderr and nothing on stdout."""
    assert (1, "") == (done.returncode, done.stdout)
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert line.endswith(".")
    for word in words:
        assert word in line


def test_help_and_version(tmp_path: Path) -> None:
    said = run(tmp_path, "--help")
    assert (0, "") == (said.returncode, said.stderr)
    for command in (
        "serve",
        "demo",
        "simulate",
        "customers",
        "ledger",
        "usage",
        "reap",
        "rebuild",
        "enter",
    ):
        assert f"\n  {command} " in said.stdout
    assert __version__ in run(tmp_path, "--version").stdout
    assert 2 == run(tmp_path, "custmers").returncode
    assert [] == list(tmp_path.iterdir()), "nothing was made"


@pytest.mark.parametrize("arguments", [("--help",), ("customers", "list", "--help")], ids=" ".join)
def test_help_and_look_ups_load_neither_aws_nor_a_server(arguments: tuple[str, ...]) -> None:
    """What makes a command slow to start is what it imports."""
    code = (
        "import sys; from bedrock_proxy_adapters.cli import bedrock_proxy\n"
        f"try: bedrock_proxy.main({arguments!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'boto3', 'botocore', 'uvicorn', 'bedrock_proxy.exchange', 'urllib3'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(ROOT),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "[]" == done.stderr.strip()


def test_a_look_up_in_the_wrong_folder_makes_no_empty_database(tmp_path: Path) -> None:
    for arguments in (("customers", "list"), ("usage",), ("ledger",), ("reap",), ("rebuild",)):
        refused(
            run(tmp_path, *arguments), str(tmp_path / "bedrock-proxy.db"), "BEDROCK_PROXY_STORE"
        )
    assert [] == list(tmp_path.iterdir())
    made = run(tmp_path, "customers", "create", "--name", "a", "--email", "a@b")
    assert 0 == made.returncode
    assert str(tmp_path / "bedrock-proxy.db") in made.stderr
    listed = run(tmp_path, "customers", "list")
    assert (0, "") == (listed.returncode, listed.stderr)


def test_every_unusable_store_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database at all\n" * 100)
    import sqlite3

    with sqlite3.connect(tmp_path / "others.db") as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    for url, words in {
        "sqlite:///text.db": "not a database",
        "sqlite:///others.db": "did not make",
        "sqlite:///no/such/folder/x.db": "does not exist",
        f"sqlite:///{tmp_path}": "cannot be used",
        "mysql://x": "mysql://x",
        "sqlite://relative.db": "sqlite:///relative.db",
        "memory:": "memory:",
        "": "BEDROCK_PROXY_STORE is set but empty",
    }.items():
        refused(run(tmp_path, "customers", "list", BEDROCK_PROXY_STORE=url), words)


@pytest.mark.skipif(os.geteuid() != 0 and sys.platform == "linux", reason="needs another user")
def test_a_database_of_another_user_is_a_sentence(tmp_path: Path) -> None:
    """As a user who may read neither the folder's files nor write there."""
    path = tmp_path / "root.db"
    SqliteStore(path).close()
    code = (
        "import os\n"
        "from bedrock_proxy_adapters.cli import main, ledger\n"
        "from bedrock_proxy_adapters.stores import sqlite\n"
        "os.setuid(65534)\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "ledger"],
        cwd="/",
        env=environment(tmp_path, BEDROCK_PROXY_STORE=f"sqlite:///{path}"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    refused(done, str(tmp_path), "ermission denied")


def test_misspelt_and_wrong_settings_are_refused_by_every_command(tmp_path: Path) -> None:
    refused(run(tmp_path, "ledger", BEDROCK_PROXY_PEPER="x"), "BEDROCK_PROXY_PEPER ")
    refused(run(tmp_path, "ledger", BEDROCK_PROXY_PEPPER=""), "BEDROCK_PROXY_PEPPER ")
    refused(run(tmp_path, "serve", BEDROCK_PROXY_MAX_STREAMS="0"), "BEDROCK_PROXY_MAX_STREAMS ")


def test_serve_says_what_keeps_it_from_serving(tmp_path: Path) -> None:
    region = {"AWS_REGION": "us-east-1"}
    refused(run(tmp_path, "serve", "--port", "0"), "AWS_REGION")
    refused(run(tmp_path, "serve", "--port", "0", AWS_REGION="no such region"), "no such region")
    refused(run(tmp_path, "serve", "--port", "0", AWS_PROFILE="nope", **region), "nope")
    spool = str(tmp_path / "no" / "spool")
    refused(run(tmp_path, "serve", "--port", "0", BEDROCK_PROXY_SPOOL=spool, **region), spool)
    refused(run(tmp_path, "serve", "--host", "203.0.113.1", "--port", "0", **region), "203.0.113.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for command in ("serve", "simulate", "demo"):
            done = run(tmp_path, command, "--port", port, **region)
            refused(done, f"127.0.0.1:{port}", "Address already in use", "--port")


def test_serve_without_uvicorn_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from bedrock_proxy_adapters.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "--port", "0"],
        cwd=tmp_path,
        env=environment(tmp_path, AWS_REGION="us-east-1"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert 1 == done.returncode
    assert "pip install 'bedrock-proxy[serve]'" in done.stderr
    assert "Traceback" not in done.stderr


def start(folder: Path, *arguments: str, **more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment(folder, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background ignores SIGINT, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_serve_says_where_it_is_and_ends_well(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "serve", "--port", "0", AWS_REGION="us-east-1")
    try:
        assert process.stderr is not None
        assert f"Store: {tmp_path / 'bedrock-proxy.db'}\n" == process.stderr.readline()
        url = process.stderr.readline().removeprefix("Listening on ").strip()
        host, _, port = url.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(port)), 5) as client:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert ("", "") == (out, err)
        assert process.returncode in {0, -number}
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_ends_the_simulator_and_the_demo(tmp_path: Path) -> None:
    for arguments, ready in (
        (("simulate", "--port", "0"), "export AWS_REGION"),
        (("demo", "--port", "0"), "until Ctrl-C"),
    ):
        process = start(tmp_path, *arguments)
        try:
            assert process.stderr is not None
            assert process.stdout is not None
            stream = process.stderr if arguments[0] == "simulate" else process.stdout
            until = time.monotonic() + 60
            while ready not in stream.readline():
                assert time.monotonic() < until
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
            assert 0 == process.returncode
            assert "Traceback" not in err
        finally:
            process.kill()
            process.communicate()


def test_the_demo_once_shows_an_answer_and_its_row_and_leaves_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "demo", "--once", TMPDIR=str(tmp_path))
    assert max(map(len, done.stdout.splitlines())) < 80  # what a terminal is wide, usually
    assert (0, "") == (done.returncode, done.stderr)
    assert "Your token was checked" in done.stdout
    assert "reported  ok" in done.stdout
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments", [("ledger", "--json"), ("usage", "--format", "csv")], ids=" ".join
)
def test_a_reader_that_has_seen_enough_is_no_error(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    from tests.adapters.cli.test_ledger import at, row

    from bedrock_proxy_adapters.stores import ledger

    store = SqliteStore(tmp_path / "bedrock-proxy.db")

    def enter(connection):  # type: ignore[no-untyped-def]
        for n in range(3_000):
            ledger.finish(connection, row(n, at("2026-01-01") + n * 86_400_000))

    store._database.writer().do(enter)
    store.close()
    process = start(tmp_path, *arguments)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert "" == process.stderr.read()
    process.stderr.close()
    assert 0 == process.wait(30)


def test_a_terminal_that_cannot_show_a_name_does_not_end_the_command(tmp_path: Path) -> None:
    run(tmp_path, "customers", "create", "--name", "Ann \u2013 \u5b89", "--email", "a@b")
    said = run(tmp_path, "customers", "list", PYTHONIOENCODING="latin-1")
    assert 0 == said.returncode
    assert "Ann \\u2013 \\u5b89" in said.stdout
    told = run(tmp_path, "customers", "list", "--json", PYTHONIOENCODING="latin-1")
    assert '"Ann \\u2013 \\u5b89"' in told.stdout


def test_a_store_that_does_not_answer_is_told_with_its_reason(tmp_path: Path) -> None:
    """A database whose tables are gone stands for a disk that fails."""
    import sqlite3

    run(tmp_path, "customers", "create", "--name", "a", "--email", "a@b")
    with sqlite3.connect(tmp_path / "bedrock-proxy.db") as connection:
        connection.execute("DROP TABLE ledger")
    connection.close()
    refused(run(tmp_path, "usage"), "database is not reachable", "no such table: ledger")
