"""What users get: the wheel with one extra in an empty environment, and cheap imports."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.running import ROOT


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "BEDROCK_", "PYTHON"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        folder,
        ROOT,
        cwd=ROOT,
    )
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {"bedrock_proxy", "bedrock_proxy_adapters"} == {t for t in tops if ".dist-info" not in t}
    assert "bedrock_proxy/py.typed" in names
    assert "bedrock_proxy_adapters/py.typed" in names
    assert not [
        name
        for name in names
        if name.endswith((".pth", ".db")) or name.rpartition("/")[2].startswith("test_")
    ]


def test_the_wheel_with_serve_runs_the_demo_in_an_empty_environment(
    wheel: Path, tmp_path: Path
) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        f"{wheel}[serve]",
        cwd=tmp_path,
    )
    said = run(tmp_path / "venv" / "bin" / "bedrock-proxy", "demo", "--once", cwd=tmp_path)
    assert "one row in the ledger" in " ".join(said.split())
    assert "reported" in said
    installed = run(
        python, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check", cwd=tmp_path
    )
    assert "pytest" not in installed
    assert "aiohttp" not in installed


LOADED = """
import socket, sys
real = socket.socket
def refused(*a, **k): raise AssertionError("a socket was opened")
socket.socket.__init__ = refused
before = set(sys.modules)
import {module}
print(" ".join(sorted({{name.split(".")[0] for name in set(sys.modules) - before}})))
"""


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("bedrock_proxy", {"boto3", "botocore", "asyncio", "click", "uvicorn", "sqlite3"}),
        ("bedrock_proxy.exchange", {"boto3", "botocore", "asyncio", "click", "uvicorn", "sqlite3"}),
        ("bedrock_proxy_adapters", {"boto3", "botocore", "asyncio", "click", "uvicorn", "sqlite3"}),
        ("bedrock_proxy_adapters.hosts.wsgi", {"boto3", "botocore", "asyncio", "uvicorn", "click"}),
        ("bedrock_proxy_adapters.hosts.asgi", {"boto3", "botocore", "uvicorn", "click", "sqlite3"}),
        ("bedrock_proxy_adapters.upstream.boto3", {"boto3", "uvicorn", "click", "sqlite3"}),
        (
            "bedrock_proxy_adapters.stores.memory",
            {"boto3", "botocore", "asyncio", "sqlite3", "uvicorn"},
        ),
        ("bedrock_proxy_adapters.stores.sqlite", {"boto3", "botocore", "uvicorn", "click"}),
        ("bedrock_proxy_adapters.config", {"boto3", "botocore", "uvicorn", "click", "sqlite3"}),
    ],
)
def test_an_import_loads_only_what_it_needs_and_opens_no_socket(
    module: str, unwanted: set[str], tmp_path: Path
) -> None:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "adapters")])
    loaded = run(sys.executable, "-c", LOADED.format(module=module), cwd=tmp_path, PYTHONPATH=path)
    assert set() == unwanted & set(loaded.split())
