"""What the tutorial and the how-tos show is what runs."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import tools
from tests.running import ROOT, TOKEN, add_customer, free_port, server_environment

from bedrock_proxy.customers import Limits
from bedrock_proxy.store import every_row
from bedrock_proxy.usage import Basis, Outcome
from bedrock_proxy_adapters.simulator import RunningSimulator, start_in_thread
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
HOW_TOS = {
    "mount-in-starlette.md": ("mount-starlette/app.py", "mount-starlette/app_fastapi.py"),
    "mount-in-flask.md": ("mount-flask/app.py",),
    "mount-in-django.md": ("mount-django/app.py",),
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def simulator() -> Iterator[RunningSimulator]:
    with start_in_thread() as running:
        yield running


@pytest.mark.parametrize("page", HOW_TOS)
def test_the_code_of_a_how_to_is_in_its_example(page: str) -> None:
    sources = [(EXAMPLES / name).read_text() for name in HOW_TOS[page]]
    shown = blocks(DOCS / "how-to" / page, "python")
    assert shown
    for block in shown:
        assert any(block in source for source in sources), block


@pytest.mark.parametrize(
    "page",
    [
        *sorted(EXAMPLES.rglob("README.md")),
        *sorted((DOCS / "tutorial").glob("*.md")),
        *(DOCS / "how-to" / name for name in HOW_TOS),
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_every_example_is_in_the_overview() -> None:
    told = set(re.findall(r"`((?:mount|library|lambda|client)-[a-z-]+|reporting)`", _overview()))
    assert {folder.name for folder in EXAMPLES.iterdir() if folder.is_dir()} == told


def _overview() -> str:
    return (EXAMPLES / "README.md").read_text()


STOPPED = """
TOKEN=$(bedrock-proxy customers create --name Bob --email bob@example.com --json |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["token"])')
curl -sN --max-time 4 http://127.0.0.1:8080/bedrock -H "Authorization: Bearer $TOKEN" \\
    -H 'Content-Type: application/json' -d '{"modelId": "anthropic.claude-3-haiku-20240307-v1:0",
        "stream": true, "anthropic_version": "bedrock-2023-05-31", "max_tokens": 1024,
        "messages": [{"role": "user", "content": "Say hello."}]}'
for _ in $(seq 60); do bedrock-proxy ledger --json | grep -q client_gone && break; sleep 0.5; done
"""
"""Someone without the tutorial's limit presses *Stop* in the middle."""


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    tools.curl()
    steps = ["set -u", "trap 'kill $(jobs -p)' EXIT"]
    for block in blocks(DOCS / "tutorial" / "first-stream.md", "sh"):
        if block.startswith(("bedrock-proxy simulate", "bedrock-proxy serve")):
            steps.append(f"{block.strip()} 2>>servers.log &")
            path = "_simulator/calls" if "simulate" in block else "healthz"
            port = "9090" if "simulate" in block else "8080"
            steps.append(
                f"for _ in $(seq 300); do curl -fso /dev/null http://127.0.0.1:{port}/{path}"
                " && break; sleep 0.1; done"
            )
        else:
            steps.append(block)
    script = "\n".join([*steps, STOPPED])
    for port in ("9090", "8080"):
        script = script.replace(port, str(free_port()))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "BEDROCK_PROXY_"))}
    ran = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "" == ran.stderr, (tmp_path / "servers.log").read_text()
    assert 2 == ran.stdout.count("data: [DONE]")
    assert 2 == ran.stdout.count('"code": "rate_limited"')
    store = SqliteStore(tmp_path / "first-stream.db")
    try:
        *_, stopped = rows = list(every_row(store))
        assert [Outcome.OK, Outcome.OK, Outcome.CLIENT_GONE] == [row.outcome for row in rows]
        assert (50, Basis.REPORTED) == (stopped.output_tokens, stopped.basis)
    finally:
        store.close()


def test_the_library_page_does_what_it_says(tmp_path: Path, simulator: RunningSimulator) -> None:
    simulator.default({"text": "Hello there.", "output_tokens": 2})
    store = SqliteStore(tmp_path / "proxy.db")
    told = re.search(
        r"--requests-per-minute (\d+)", (DOCS / "tutorial" / "without-http.md").read_text()
    )
    assert told is not None
    add_customer(store, limits=Limits(requests_per_minute=int(told[1])))
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks(DOCS / "tutorial" / "without-http.md", "python"))],
        env=server_environment(simulator, tmp_path, TOKEN=TOKEN),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ("", 0) == (ran.stderr, ran.returncode)
    assert [
        "Hello there.",
        "2 tokens",
        "unauthorized False None",
        "['Hello there.', 'Hello there.']",
    ] == ran.stdout.splitlines()
    rows = list(every_row(store))
    store.close()
    assert 4 == len(rows)
    assert {2} == {row.output_tokens for row in rows}
