"""The examples that are programs: the library without HTTP, the clients in Python and curl."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import pytest
from tests.e2e import tools
from tests.e2e.serving import EXAMPLES
from tests.running import CLAUDE, ROOT, TOKEN, Running, add_customer, on_uvicorn, server_environment

from bedrock_proxy import tokens
from bedrock_proxy.customers import Limits
from bedrock_proxy.store import every_row
from bedrock_proxy.usage import Outcome
from bedrock_proxy_adapters.simulator import Fault, RunningSimulator, start_in_thread
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

UNKNOWN = tokens.mint(bytes(32))
POOR = tokens.mint(bytes(reversed(range(32))))


@pytest.fixture(scope="module")
def fake() -> Iterator[RunningSimulator]:
    with start_in_thread() as simulator:
        yield simulator


@pytest.fixture
def simulator(fake: RunningSimulator) -> RunningSimulator:
    fake.reset()
    return fake


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path / "proxy.db")
    add_customer(store)
    yield store
    store.close()


def run(
    folder: Path, simulator: RunningSimulator, example: str, *words: str, token: str = TOKEN
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "app.py", *words],
        cwd=EXAMPLES / example,
        env=server_environment(
            simulator, folder, TOKEN=token, PYTHONDONTWRITEBYTECODE="1", PYTHONUTF8="1"
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- the library ------------------------------------------------------------------------------


def test_the_sync_library_example_prints_an_answer_and_leaves_a_row(
    tmp_path: Path, simulator: RunningSimulator, store: SqliteStore
) -> None:
    simulator.script(pieces=("Hello, ", "wörld."), input_tokens=4, output_tokens=3)
    ran = run(tmp_path, simulator, "library-sync", "Say hello.")
    assert (0, "Hello, wörld.\n(4 + 3 tokens)\n", "") == (ran.returncode, ran.stdout, ran.stderr)
    (row,) = every_row(store)
    assert (3, Outcome.OK) == (row.output_tokens, row.outcome)
    (call,) = simulator.calls
    assert "Say hello." == json.loads(call.body)["messages"][0]["content"]


def test_the_async_library_example_asks_several_things_at_once(
    tmp_path: Path, simulator: RunningSimulator, store: SqliteStore
) -> None:
    simulator.script(times=2, text="An answer.")
    ran = run(tmp_path, simulator, "library-async", "One?", "Two?")
    assert (0, "One?\n  An answer.\nTwo?\n  An answer.\n", "") == (
        ran.returncode,
        ran.stdout,
        ran.stderr,
    )
    assert 2 == len(list(every_row(store)))


@pytest.mark.parametrize("example", ["library-sync", "library-async"])
def test_a_library_example_says_why_it_was_refused(
    example: str, tmp_path: Path, simulator: RunningSimulator, store: SqliteStore
) -> None:
    ran = run(tmp_path, simulator, example, "Say hello.", token=UNKNOWN)
    assert (1, "unauthorized: The token is not valid.") == (ran.returncode, ran.stderr.strip())
    assert [] == list(every_row(store))


# --- clients ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with on_uvicorn(tmp_path_factory.mktemp("clients")) as running:
        add_customer(running.store, POOR, Limits(requests_per_day=0))
        yield running


@pytest.fixture
def running(proxy: Running) -> Running:
    proxy.simulator.reset()
    return proxy


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "client_example", EXAMPLES / "client-python" / "client.py"
    )
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


REQUEST: dict[str, Any] = {
    "modelId": CLAUDE,
    "anthropic_version": "bedrock-2023-05-31",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Grüß Gott 😀"}],
}


def python_client(module: ModuleType, running: Running, token: str = TOKEN) -> Any:
    return module.Client(f"{running.url}/bedrock", token)


def test_python_a_whole_answer(module: ModuleType, running: Running) -> None:
    running.simulator.script(text="Grüße 😀")
    answer = python_client(module, running).invoke(REQUEST)
    assert "Grüße 😀" == answer["content"][0]["text"]


def test_python_an_answer_as_it_comes(module: ModuleType, running: Running) -> None:
    running.simulator.script(pieces=("Grüße ", "日本 ", "😀"))
    pieces = list(python_client(module, running).stream(REQUEST))
    assert ["Grüße ", "日本 ", "😀"] == [piece["content"] for piece in pieces]


def test_python_a_fault_in_the_middle_is_raised(module: ModuleType, running: Running) -> None:
    fault = Fault("exception", after=4, name="modelStreamErrorException")
    running.simulator.script(pieces=("one", "two", "three"), faults=(fault,))
    got = []
    with pytest.raises(module.BedrockProxyError) as broken:
        for piece in python_client(module, running).stream(REQUEST):
            got.append(piece["content"])
    assert "one" == got[0]
    assert ("upstream_error", None) == (broken.value.code, broken.value.status)
    assert running.row(broken.value.request_id)


def test_python_a_refusal_has_every_fact(module: ModuleType, running: Running) -> None:
    with pytest.raises(module.BedrockProxyError) as refused:
        python_client(module, running, POOR).invoke(REQUEST)
    error = refused.value
    assert (429, "requests_per_day", "over_budget") == (error.status, error.limit, error.code)


def scripted(*replies: bytes) -> str:
    """A server that says exactly this, one reply a connection, a byte at a time."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener:
            for reply in replies:
                connection, _ = listener.accept()
                with connection:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    received = b""
                    while b"\r\n\r\n" not in received or b'"stream"' not in received:
                        received += connection.recv(65536)
                    # A client that has read the end may hang up before the last newline is sent.
                    with suppress(ConnectionError):
                        for at in range(len(reply)):
                            connection.sendall(reply[at : at + 1])

    Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/bedrock"


def reply(kind: str, said: str, status: str = "200 OK", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}Connection: close\r\n\r\n"
    return head.encode() + said.encode()


ARRAY = '[{"content": "a\\u00e9 ]}"},\n {"content": "b\\"{"}, {"deep": [{}]},\n{"done": true}]\n'
SSE = (
    ': ping\n\ndata: {"content": "a\\u00e9 ]}"}\n\ndata: {"content": "b\\"{"}\n\n'
    'data: {"deep": [{}]}\n\ndata: [DONE]\n\n'
)
formats = pytest.mark.parametrize(
    ("kind", "said"),
    [("application/json", ARRAY), ("text/event-stream", SSE)],
    ids=["array", "sse"],
)
PIECES = [{"content": "aé ]}"}, {"content": 'b"{'}, {"deep": [{}]}]


@formats
def test_python_byte_by_byte(module: ModuleType, kind: str, said: str) -> None:
    client = module.Client(scripted(reply(kind, said)), TOKEN)
    assert PIECES == list(client.stream(REQUEST))


@formats
def test_python_a_stream_that_is_cut_off_is_an_error(
    module: ModuleType, kind: str, said: str
) -> None:
    for cut in range(0, len(said) - 3, 7):
        client = module.Client(scripted(reply(kind, said[:cut])), TOKEN)
        got = []
        with pytest.raises(module.BedrockProxyError) as broken:
            for piece in client.stream(REQUEST):
                got.append(piece)
        assert "truncated" == broken.value.code
        assert got == PIECES[: len(got)]


def test_python_a_retry_waits_as_long_as_it_is_told(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waited.append)
    told = '{"error": "Busy.", "code": "rate_limited", "retryable": true, "retry_after": 7}'
    client = module.Client(
        scripted(
            reply("application/json", told, "429 Too Many Requests"),
            reply("text/html", "<h1>Oh</h1>", "502 Bad Gateway"),
            reply("application/json", '{"ok": true}'),
        ),
        TOKEN,
    )
    assert {"ok": True} == module.with_retry(lambda: client.invoke(REQUEST))
    assert 7 == waited[0]
    assert 0 <= waited[1] <= 2


def test_python_a_proxy_that_is_not_there_is_a_network_error(module: ModuleType) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(module.BedrockProxyError) as failed:
        module.Client(f"http://127.0.0.1:{port}/", TOKEN).invoke(REQUEST)
    assert ("network", True) == (failed.value.code, failed.value.retryable)


def command(running: Running, *words: str, token: str = TOKEN) -> Any:
    return subprocess.run(
        words,
        env={**os.environ, "TOKEN": token, "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_python_the_command_prints_the_text(running: Running) -> None:
    running.simulator.script(pieces=("Grüße ", "😀"))
    path = str(EXAMPLES / "client-python" / "client.py")
    ran = command(running, sys.executable, path, f"{running.url}/bedrock", "Hello?")
    assert (0, "Grüße 😀\n", "") == (ran.returncode, ran.stdout, ran.stderr)
    ran = command(running, sys.executable, path, f"{running.url}/bedrock", token=UNKNOWN)
    assert (1, "unauthorized: The token is not valid.") == (ran.returncode, ran.stderr.strip())


@pytest.mark.parametrize(
    "example", ["client-python/client.py", "library-sync/app.py", "library-async/app.py"]
)
def test_a_program_without_a_token_says_how_to_get_one(tmp_path: Path, example: str) -> None:
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / example), "http://127.0.0.1:1/bedrock"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "TOKEN"}
        | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = "Set TOKEN to a token; `bedrock-proxy customers create` makes one.\n"
    assert (2, "", said) == (ran.returncode, ran.stdout, ran.stderr)
    assert [] == list(tmp_path.iterdir())


def curl(running: Running, *words: str, token: str = TOKEN) -> Any:
    tools.curl()
    script = str(EXAMPLES / "client-curl" / "ask.sh")
    *options, prompt = words
    return command(running, "sh", script, *options, f"{running.url}/bedrock", prompt, token=token)


def test_curl_makes_the_three_kinds_of_call(running: Running) -> None:
    running.simulator.script(times=3, pieces=("one ", "two"))
    events = curl(running, "Hello?")
    assert 'data: {"content": "one "}\n\ndata: {"content": "two"}\n\ndata: [DONE]\n\n' == (
        events.stdout
    )
    array = curl(running, "--array", "Hello?")
    assert [{"content": "one "}, {"content": "two"}, {"done": True}] == json.loads(array.stdout)
    whole = curl(running, "--whole", "Hello?")
    assert "one two" == json.loads(whole.stdout)["content"][0]["text"]
    assert [0, 0, 0] == [ran.returncode for ran in (events, array, whole)]


def test_curl_sends_any_prompt_as_it_is(running: Running) -> None:
    prompt = 'say "hi"\n\tback\\slash, $HOME `id` 日本 😀\n  end'
    assert 0 == curl(running, "--whole", prompt).returncode
    (call,) = running.simulator.calls
    assert prompt == json.loads(call.body)["messages"][0]["content"]


def test_curl_shows_a_refusal_and_fails(running: Running) -> None:
    ran = curl(running, "Hello?", token=UNKNOWN)
    assert (22, "unauthorized") == (ran.returncode, json.loads(ran.stdout)["code"])


# --- Lambda -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["example", "rest", "http_api_v2", "function_url", "alb"])
def test_the_lambda_example_answers_every_front_with_an_array(
    shape: str, tmp_path: Path, simulator: RunningSimulator, store: SqliteStore
) -> None:
    simulator.script(pieces=("Hel", "lo"), output_tokens=2)
    folder = EXAMPLES / "lambda-buffered"
    path = folder / "event.json" if shape == "example" else ROOT / f"tests/events/{shape}.json"
    event = json.loads(path.read_text().replace("Bearer TOKEN", f"Bearer {TOKEN}"))
    ran = subprocess.run(
        [sys.executable, "handler.py"],
        input=json.dumps(event),
        cwd=folder,
        env=server_environment(simulator, tmp_path, PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ("", 0) == (ran.stderr, ran.returncode)
    answer = json.loads(ran.stdout)
    assert 200 == answer["statusCode"]
    assert [{"content": "Hel"}, {"content": "lo"}, {"done": True}] == json.loads(answer["body"])
    (row,) = every_row(store)
    assert (2, Outcome.OK) == (row.output_tokens, row.outcome)
