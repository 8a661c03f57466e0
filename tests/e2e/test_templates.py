"""
The deployment templates in ``examples``: cfn-lint finds nothing in them, they grant no more
than is named, and what they set exists.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cfnlint.decode.cfn_yaml import load
from tests.running import ROOT

from bedrock_proxy.ports import Operation
from bedrock_proxy_adapters.config import Settings
from bedrock_proxy_adapters.hosts.lambda_runtime import DEFAULT_HANDLER
from bedrock_proxy_adapters.hosts.lambda_runtime import __name__ as PROGRAM
from bedrock_proxy_adapters.unsettled import UNSETTLED

EXAMPLES = ROOT / "examples"
TEMPLATES = sorted(EXAMPLES.glob("*/template.yaml"))
FUNCTIONS = [path for path in TEMPLATES if path.parent.name.startswith("lambda-")]


def name_of(path: Path) -> str:
    return path.parent.name


def lint(*paths: Path) -> "subprocess.CompletedProcess[str]":
    command = [
        str(Path(sys.executable).with_name("cfn-lint")),
        "--regions",
        "us-east-1",
        "--",
        *map(str, paths),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def resources(path: Path, kind: str) -> list[Any]:
    found = load(str(path))["Resources"].values()
    return [resource["Properties"] for resource in found if resource["Type"] == kind]


def statements(path: Path) -> list[Any]:
    roles = resources(path, "AWS::IAM::Role")
    policies = [policy for role in roles for policy in role["Policies"]]
    return [one for policy in policies for one in policy["PolicyDocument"]["Statement"]]


def test_every_deployment_has_a_template() -> None:
    names = {name_of(path) for path in TEMPLATES}
    assert names == {"lambda-function-url", "lambda-api-gateway", "lambda-container", "reporting"}


def test_cfn_lint_finds_nothing() -> None:
    done = lint(*TEMPLATES)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_cfn_lint_finds_what_is_wrong(tmp_path: Path) -> None:
    text = TEMPLATES[0].read_text().replace("!GetAtt Table.Arn", "!GetAtt Tabel.Arn")
    (tmp_path / "template.yaml").write_text(text)
    assert "E1010" in lint(tmp_path / "template.yaml").stdout


@pytest.mark.parametrize("path", TEMPLATES, ids=name_of)
def test_no_role_may_do_everything_or_anything_anywhere(path: Path) -> None:
    assert statements(path)
    for one in statements(path):
        assert one["Effect"] == "Allow"
        actions = [one["Action"]] if isinstance(one["Action"], str) else one["Action"]
        assert not any("*" in action for action in actions)
        assert one["Resource"] != "*"


@pytest.mark.parametrize("path", FUNCTIONS, ids=name_of)
def test_a_function_may_call_the_named_models_and_use_the_one_table(path: Path) -> None:
    grants = [(one["Action"], one["Resource"]) for one in statements(path)]
    services = {
        action.partition(":")[0]: resource for actions, resource in grants for action in actions
    }
    assert services == {
        "bedrock": {"Ref": "Models"},
        "dynamodb": {"Fn::GetAtt": ["Table", "Arn"]},
        "logs": {"Fn::GetAtt": ["Logs", "Arn"]},
    }


RIGHTS = {
    Operation.INVOKE: "bedrock:InvokeModel",
    Operation.INVOKE_STREAM: "bedrock:InvokeModelWithResponseStream",
    Operation.CONVERSE: "bedrock:InvokeModel",
    Operation.CONVERSE_STREAM: "bedrock:InvokeModelWithResponseStream",
    Operation.COUNT_TOKENS: "bedrock:CountTokens",
}
"""AWS, Service Authorization Reference, "Actions, resources, and condition keys for Amazon Bedrock"."""


@pytest.mark.parametrize("path", FUNCTIONS, ids=name_of)
def test_a_function_may_do_with_a_model_whatever_the_proxy_does(path: Path) -> None:
    # A guardrail is no model: whoever has one grants the right to it.
    assert set(RIGHTS) == set(Operation) - {Operation.APPLY_GUARDRAIL}
    granted = {action for one in statements(path) for action in one["Action"]}
    assert {each for each in granted if each.startswith("bedrock:")} == set(RIGHTS.values())


def test_the_page_of_the_buffered_function_names_every_right() -> None:
    page = (EXAMPLES / "lambda-buffered" / "README.md").read_text()
    assert all(f"`{right}`" in page for right in RIGHTS.values())


@pytest.mark.parametrize("path", FUNCTIONS, ids=name_of)
def test_a_function_is_set_up_with_settings_that_there_are(path: Path) -> None:
    (function,) = resources(path, "AWS::Serverless::Function")
    variables = function["Environment"]["Variables"]
    known = {f"BEDROCK_PROXY_{name.upper()}" for name in Settings.__annotations__}
    assert {name for name in variables if name.startswith("BEDROCK_PROXY_")} <= known
    if name_of(path) == "lambda-container":
        assert DEFAULT_HANDLER not in str(function)
    else:
        assert function["Handler"] == DEFAULT_HANDLER
        wrapper = EXAMPLES / "lambda-function-url" / "stream"
        assert variables["AWS_LAMBDA_EXEC_WRAPPER"] == f"/var/task/{wrapper.name}"
        assert os.access(wrapper, os.X_OK)


@pytest.mark.parametrize("path", FUNCTIONS, ids=name_of)
def test_a_deployment_keeps_its_table_bounds_its_logs_and_raises_alarms(path: Path) -> None:
    table = load(str(path))["Resources"]["Table"]
    assert table["DeletionPolicy"] == table["UpdateReplacePolicy"] == "Retain"
    assert table["Properties"]["PointInTimeRecoverySpecification"]
    (logs,) = resources(path, "AWS::Logs::LogGroup")
    assert logs["RetentionInDays"] == {"Ref": "LogRetentionDays"}
    alarms = {alarm["MetricName"] for alarm in map(dict, resources(path, "AWS::CloudWatch::Alarm"))
              if isinstance(alarm["MetricName"], str)}  # fmt: skip
    assert alarms == {"Errors", "Throttles"}
    (rows,) = resources(path, "AWS::Logs::MetricFilter")
    assert rows["FilterPattern"] == '"unsettled usage row"'


@pytest.mark.parametrize("name", ["api-gateway", "container", "function-url"])
def test_the_alarm_for_lost_rows_looks_for_the_words_that_are_logged(name: str) -> None:
    template = EXAMPLES / f"lambda-{name}" / "template.yaml"
    assert f"""FilterPattern: '"{UNSETTLED.rstrip(": ")}"'""" in template.read_text()


def test_every_mode_of_a_rest_api_has_a_deployment_of_its_own() -> None:
    """A REST deployment is a snapshot: under the same name CloudFormation makes no new one."""
    template = load(str(EXAMPLES / "lambda-api-gateway" / "template.yaml"))
    parts, conditions = template["Resources"], template["Conditions"]
    deployments = {
        name: one for name, one in parts.items() if one["Type"] == "AWS::ApiGateway::Deployment"
    }
    methods = {name for name, one in parts.items() if one["Type"] == "AWS::ApiGateway::Method"}
    assert all(set(one["DependsOn"]) == methods for one in deployments.values())
    modes = {name: conditions[one["Condition"]]["Fn::Equals"] for name, one in deployments.items()}
    assert [{"Ref": "Front"}, "rest-streaming"] in modes.values()
    assert [{"Ref": "Front"}, "rest"] in modes.values()
    condition, then, otherwise = parts["RestStage"]["Properties"]["DeploymentId"]["Fn::If"]
    assert modes[then["Ref"]] == conditions[condition]["Fn::Equals"]
    assert modes[otherwise["Ref"]] == [{"Ref": "Front"}, "rest"]
    # What a method says depends on nothing else that a parameter chooses.
    for name in methods:
        chosen = str(parts[name]["Properties"]["Integration"]).count("Fn::If")
        by_mode = str(parts[name]["Properties"]["Integration"]).count("{'Fn::If': ['Streams'")
        assert chosen == by_mode > 0


@pytest.mark.parametrize("path", FUNCTIONS, ids=name_of)
def test_concurrency_is_reserved_only_where_that_is_asked_for(path: Path) -> None:
    template = load(str(path))
    assert template["Parameters"]["Concurrency"]["Default"] == 0
    assert template["Conditions"]["Reserves"] == {
        "Fn::Not": [{"Fn::Equals": [{"Ref": "Concurrency"}, 0]}]
    }
    (function,) = resources(path, "AWS::Serverless::Function")
    assert function["ReservedConcurrentExecutions"] == {
        "Fn::If": ["Reserves", {"Ref": "Concurrency"}, {"Ref": "AWS::NoValue"}]
    }


DOCKERFILE = EXAMPLES / "lambda-container" / "Dockerfile"


def instructions(name: str) -> list[str]:
    lines = DOCKERFILE.read_text().splitlines()
    return [line.removeprefix(name).strip() for line in lines if line.startswith(f"{name} ")]


def test_the_image_is_made_of_the_package_alone_and_that_is_enough(tmp_path: Path) -> None:
    """As `docker build` does it, without an engine: what is copied makes the wheel."""
    copied: set[str] = set()
    for copy in instructions("COPY"):
        *sources, target = copy.split()
        assert target.startswith("/tmp/source/")
        copied.update(sources)
        folder = tmp_path / target.lstrip("/")
        for source in sources:
            if (ROOT / source).is_dir():
                skipped = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, folder, ignore=skipped)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, folder)
    assert copied == {"pyproject.toml", "README.md", "LICENSE", "src", "adapters"}
    made = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run(
        [*made, str(tmp_path / "tmp" / "source")], check=True, capture_output=True, timeout=300
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("src/bedrock_proxy", "adapters/bedrock_proxy_adapters"):
        base = (ROOT / package).parent
        assert {str(each.relative_to(base)) for each in (ROOT / package).rglob("*.py")} <= names


def test_the_image_finds_modules_of_the_users_own_where_the_guide_puts_them() -> None:
    guide = (ROOT / "docs" / "how-to" / "deploy-as-a-lambda-container.md").read_text()
    assert instructions("WORKDIR") == ["/var/task"]
    assert "COPY app.py /var/task/" in guide
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["python", "-m", PROGRAM]
