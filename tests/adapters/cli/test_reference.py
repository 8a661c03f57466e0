"""The reference pages say what the code says: commands, errors, ledger fields, routes."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from bedrock_proxy.admission import Limit
from bedrock_proxy.errors import Code, ProxyError
from bedrock_proxy.routes import ROUTES
from bedrock_proxy.usage import LEDGER_FIELDS
from bedrock_proxy_adapters.cli import bedrock_proxy
from bedrock_proxy_adapters.cli.limits import LIMITS

REFERENCE = Path(__file__).resolve().parents[3] / "docs/reference"


def commands(
    command: click.Command = bedrock_proxy, name: str = "bedrock-proxy"
) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its full name."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for sub in command.list_commands(context):
            found = command.get_command(context, sub)
            assert found is not None
            yield from commands(found, f"{name} {sub}")
    else:
        yield name, command


def section(name: str, command: click.Command) -> str:
    """What the reference says of a command, made from its own help."""
    context = click.Context(command, info_name=name)
    arguments = "".join(
        f" {parameter.make_metavar(context)}"
        for parameter in command.params
        if isinstance(parameter, click.Argument)
    )
    paragraphs = [" ".join(part.split()) for part in (command.help or "").strip().split("\n\n")]
    options = [each for each in command.params if isinstance(each, click.Option)]
    records = [option.get_help_record(context) for option in options]
    rows = [
        f"| `{usage.replace('|', chr(92) + '|')}` | {' '.join(meaning.split())} |"
        for usage, meaning in filter(None, records)
    ]
    lines = [f"## {name}{arguments}", "", "\n\n".join(paragraphs)]
    if rows:
        lines += ["", "| Option | Meaning |", "|---|---|", *rows]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=lambda value: str(value))
def test_the_command_line_page_says_what_help_says(name: str, command: click.Command) -> None:
    assert section(name, command) in (REFERENCE / "command-line.md").read_text()


def test_the_command_line_page_tells_of_no_other_commands() -> None:
    page = (REFERENCE / "command-line.md").read_text()
    told = {line.removeprefix("## ") for line in page.splitlines() if line.startswith("## bed")}
    assert {section(*each).partition("\n")[0].removeprefix("## ") for each in commands()} == told


def test_every_command_that_answers_has_json_and_every_option_a_meaning() -> None:
    for name, command in commands():
        options = [each for each in command.params if isinstance(each, click.Option)]
        assert all(option.help for option in options), name
        if name.split()[-1] not in {"serve", "demo", "simulate"}:
            assert any("--json" in option.opts for option in options), name


def test_the_errors_page_lists_every_code_with_its_status_and_whether_to_retry() -> None:
    page = (REFERENCE / "errors.md").read_text()
    told = re.findall(r"^\| `(\w+)` \| (\d{3})[^|]* \| (yes|no) \|", page, re.MULTILINE)
    expected = [
        (str(code), str(error.status), "yes" if error.retryable else "no")
        for code in Code
        for error in [ProxyError("", code)]
    ]
    assert expected == told


def test_the_errors_page_lists_every_limit() -> None:
    page = (REFERENCE / "errors.md").read_text()
    assert [str(limit) for limit in Limit] == re.findall(
        r"^\| `(\w+)` \| [a-z]", page, re.MULTILINE
    )
    assert set(LIMITS) - {"burst"} <= {str(limit) for limit in Limit}


def test_the_ledger_page_lists_every_field_in_order() -> None:
    page = (REFERENCE / "ledger.md").read_text()
    table = page.partition("| Field | Meaning |")[2].partition("\n\n")[0]
    assert list(LEDGER_FIELDS) == re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def test_the_http_page_lists_every_route() -> None:
    page = (REFERENCE / "http.md").read_text()
    told = re.findall(r"^\| `([A-Z]+)` \| `([^`]+)` \| (\w+) \|", page, re.MULTILINE)
    expected = [(route.method, route.path, route.gate.name.lower()) for route in ROUTES]
    assert sorted(expected) == sorted(told)
