"""
Emulators of DynamoDB, each in a process of its own on a free port of the loopback
interface, gone when the tests end.

Neither is DynamoDB. dynalite is strict about paths, and knows neither transactions nor the
image of a failed condition; ministack knows both, and is lenient. A store that passes on both
leans on neither's weakness. moto checks a condition and writes in two steps, with a thread
for each request: the checks of atomicity must find that out.
"""

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import boto3
from attrs import define, field
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from tests.e2e.tools import missing, node
from tests.servers.ports import free_port

from bedrock_proxy_adapters.stores.dynamodb import create_table

TOOLS = Path(__file__).resolve().parents[2] / ".tools"

Name = Literal["dynalite", "ministack", "moto"]
NAMES: tuple[Name, ...] = ("dynalite", "ministack")
"""Those that are atomic, as DynamoDB is."""

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "emulated",
    "AWS_SECRET_ACCESS_KEY": "emulated",
    "AWS_REGION": "us-east-1",
}


@define(slots=False)
class Emulator:
    """A running emulator."""

    name: Name
    port: int
    folder: Path
    process: "subprocess.Popen[bytes] | None" = None
    tables: list[str] = field(factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **config: Any) -> Any:
        settings = {"retries": {"total_max_attempts": 3, "mode": "standard"}, **config}
        return boto3.client(
            "dynamodb",
            region_name="us-east-1",
            endpoint_url=self.url,
            aws_access_key_id="emulated",
            aws_secret_access_key="emulated",
            config=Config(max_pool_connections=64, **settings),
        )

    @cached_property
    def shared_client(self) -> Any:
        return self.client()

    def table(self, name: str | None = None) -> str:
        """A table of our own; a new one where none is named."""
        made = f"t-{uuid4().hex[:12]}" if name is None else name
        if made not in self.tables:
            create_table(self.shared_client, made)
            self.tables.append(made)
        return made

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        if self.name == "dynalite":
            command = [node(), str(_program("dynalite")), "--host", "127.0.0.1"]
            command += ["--port", str(self.port), "--createTableMs", "0"]
        elif self.name == "moto":
            command = [str(_program("moto")), "-H", "127.0.0.1", "-p", str(self.port)]
        else:
            command = [str(_program("ministack"))]
            environment |= {
                "BIND_HOST": "127.0.0.1",
                "GATEWAY_PORT": str(self.port),
                "SERVICES": "dynamodb",
                "LOG_LEVEL": "ERROR",
                "TMPDIR": str(self.folder),
                "S3_DATA_DIR": str(self.folder / "s3"),
            }
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=log, stderr=log
        )
        log.close()
        self._wait()

    def _wait(self) -> None:
        client = self.client(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5)
        end = time.monotonic() + 60
        while True:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "log").read_text()
            try:
                client.list_tables()
                break
            except (BotoCoreError, ClientError):
                assert time.monotonic() < end, f"{self.name} does not answer"
                time.sleep(0.05)
        client.close()

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(30)
            self.process = None

    def pause(self) -> None:
        """It takes connections and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


def _program(name: Name) -> Path:
    path = {
        "dynalite": TOOLS / "dynalite" / "node_modules" / "dynalite" / "cli.js",
        "ministack": TOOLS / "ministack" / "bin" / "ministack",
        "moto": TOOLS / "moto" / "bin" / "moto_server",
    }[name]
    if not path.is_file():
        missing(f"{name} is not installed (scripts/dynamodb-tools does that)")
    return path


def start(name: Name) -> Emulator:
    """An emulator of one test's own; the caller stops it."""
    _program(name)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    emulator = Emulator(name, free_port(), folder)
    emulator.start()
    return emulator


@cache
def shared(name: Name) -> Emulator:
    """The emulator that tests share; each has a table of its own in it."""
    emulator = start(name)

    def end() -> None:
        emulator.shared_client.close()
        emulator.stop()
        shutil.rmtree(emulator.folder, ignore_errors=True)

    atexit.register(end)
    return emulator
