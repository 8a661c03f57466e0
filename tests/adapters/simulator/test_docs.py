"""What the documentation says of the simulator is so."""

import os
import pathlib
import re
import subprocess
import sys
import typing

import attrs

from bedrock_proxy_adapters.simulator import ERROR_STATUS, Call, Fault, RunningSimulator, Script
from bedrock_proxy_adapters.simulator.families import FAMILIES
from bedrock_proxy_adapters.simulator.scripts import FaultKind

DOCS = pathlib.Path(__file__).parents[3] / "docs"


def test_the_how_tos_code_runs(tmp_path):
    page = (DOCS / "how-to/test-your-integration.md").read_text()
    conftest, *blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_page.py").write_text("\n\n".join(blocks))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout
    assert f"{page.count('def test_')} passed" in ran.stdout


def test_the_reference_names_everything_a_script_can_say():
    page = (DOCS / "reference/simulator.md").read_text()
    told = set(re.findall(r"`([A-Za-z0-9_./-]+)`", page))
    members = {field.name for field in attrs.fields(Script)}
    faults = {field.name for field in attrs.fields(Fault)}
    assert members - told == set()
    assert faults - told == set()
    assert set(typing.get_args(FaultKind)) - told == set()
    assert set(ERROR_STATUS) - told == set()
    assert set(FAMILIES) - told == set()
    called = {name for name in vars(RunningSimulator) if not name.startswith("_")}
    assert {name for name in called if f"`{name}" not in page} == set()
    attributes = vars(Call(0, "invoke", "", "", (), b"", ""))
    assert {name for name in attributes if not name.startswith("_") and name not in told} == set()
