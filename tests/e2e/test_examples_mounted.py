"""The proxy mounted in other people's applications, each under the servers they run on."""

import contextlib
import json
from collections.abc import Iterator
from threading import Thread

import pytest
from tests.e2e.serving import Served, served
from tests.running import body, sse_text

from bedrock_proxy import tokens
from bedrock_proxy.usage import Basis, Outcome
from bedrock_proxy_adapters.simulator import RunningSimulator, start_in_thread

GUNICORN = (
    *("-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--worker-class", "gthread"),
    *("--threads", "8", "--timeout", "1000", "--graceful-timeout", "5", "--log-level", "warning"),
)
UVICORN = ("-m", "uvicorn", "--port", "{port}", "--log-level", "warning")

COMMANDS = {
    "starlette-uvicorn": ("mount-starlette", (*UVICORN, "app:app")),
    "fastapi-uvicorn": ("mount-starlette", (*UVICORN, "app_fastapi:app")),
    "flask-werkzeug": ("mount-flask", ("-m", "flask", "run", "--port", "{port}")),
    "flask-gunicorn": ("mount-flask", (*GUNICORN, "app:app")),
    "django-runserver": (
        "mount-django",
        ("app.py", "runserver", "127.0.0.1:{port}", "--noreload"),
    ),
    "django-gunicorn": ("mount-django", (*GUNICORN, "app:application")),
}


@pytest.fixture(scope="module")
def simulator() -> Iterator[RunningSimulator]:
    with start_in_thread() as running:
        yield running


@pytest.fixture(scope="module", params=COMMANDS)
def running(
    request: pytest.FixtureRequest,
    simulator: RunningSimulator,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    example, command = COMMANDS[request.param]
    with served(example, command, "/hello", simulator, tmp_path_factory.mktemp("site")) as here:
        yield here


@pytest.fixture
def site(running: Served) -> Served:
    running.simulator.reset()
    return running


def test_the_own_route_and_the_proxy_answer_beside_each_other(site: Served) -> None:
    status, said = site.get("/hello")
    assert (200, {"hello": "from my own route"}) == (status, json.loads(said))
    status, said = site.get("/ai/healthz")
    assert (200, {"status": "ok"}) == (status, json.loads(said))
    status, said = site.get("/ai/hello")
    assert (404, "not_found") == (status, json.loads(said)["code"])
    assert 404 == site.get("/healthz")[0]


def test_a_whole_answer_and_its_row(site: Served) -> None:
    before = len(site.rows())
    site.simulator.script(text="All of it.", output_tokens=5)
    with site.post("/ai/bedrock", body(stream=False)) as reply:
        assert 200 == reply.status
        assert "All of it." == json.loads(reply.read())["content"][0]["text"]
        row = site.new_row(before)
        assert reply.headers["x-request-id"] == row.request_id
    assert ("InvokeModel", 5, Outcome.OK) == (row.operation, row.output_tokens, row.outcome)


def test_a_stream_comes_piece_by_piece(site: Served) -> None:
    before = len(site.rows())
    site.simulator.script(pieces=("first", "second"), gate=True, output_tokens=6)
    # The head is held back until Bedrock has said something.
    with released(site), site.post("/ai/bedrock", body()) as reply:
        assert "text/event-stream" == reply.headers["content-type"].partition(";")[0]
        (call,) = site.simulator.calls
        said = b""
        while b"first" not in said:
            said += reply.readline()
            call.release()
        assert not call.finished
        call.release(100)
        said += reply.read()
    assert "firstsecond" == sse_text(said)
    assert said.endswith(b"data: [DONE]\n\n")
    row = site.new_row(before)
    assert (6, Outcome.OK, Basis.REPORTED) == (row.output_tokens, row.outcome, row.basis)


@contextlib.contextmanager
def released(site: Served) -> Iterator[None]:
    """Let the first events of the next call through, as soon as there is one."""
    first = Thread(target=lambda: site.simulator.wait_calls(1)[0].release(3))
    first.start()
    yield
    first.join()


def test_an_unknown_token_is_refused(site: Served) -> None:
    before = len(site.rows())
    with site.post("/ai/bedrock", body(), token=tokens.mint(bytes(32))) as reply:
        assert (401, "unauthorized") == (reply.status, json.loads(reply.read())["code"])
    assert before == len(site.rows())
