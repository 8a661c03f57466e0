"""What a cold start loads: a module that nobody needs yet costs every one of them."""

import subprocess
import sys

BELOW = "import attrs, json, hashlib, typing, enum, re, functools, operator"
"""What the core is written with; what these load in their turn is theirs."""

LOOP = "bedrock_proxy_adapters.hosts.lambda_runtime"


def loaded(statement: str, before: str = "pass") -> set[str]:
    """The modules that *statement* loads in a fresh interpreter which has done *before*."""
    program = (
        f"import sys; {before}; had = set(sys.modules); {statement}; "
        "print(*(set(sys.modules) - had))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return set(done.stdout.split())


def outside(modules: set[str]) -> set[str]:
    """The packages of others among *modules*, without the C halves of the standard library."""
    tops = {name.partition(".")[0] for name in modules}
    return {top for top in tops if not top.startswith(("_", "bedrock_proxy"))}


def test_the_core_loads_nothing_of_others_but_small_modules_that_every_request_uses() -> None:
    assert outside(loaded("import bedrock_proxy.exchange", BELOW)) <= {
        "binascii",
        "datetime",
        "hmac",
        "math",
        "struct",
        "zlib",
    }


def test_the_core_loads_no_module_of_ours_that_is_not_on_the_way_of_a_request() -> None:
    ours = loaded("import bedrock_proxy.exchange")
    assert not ours & {"bedrock_proxy.accounts", "bedrock_proxy.store", "bedrock_proxy_adapters"}


def test_a_familys_reader_is_loaded_by_the_first_answer_that_needs_it() -> None:
    """Converse is Bedrock's own form, and Nova's: its reader is always there."""
    families = {
        f"bedrock_proxy.models.{name}"
        for name in ("anthropic", "completions", "openai", "responses", "shapes")
    }
    before = "import bedrock_proxy.exchange"
    assert not loaded(before) & families
    asked = "from bedrock_proxy.models import family_of; family_of('{}').reader()"
    for model, readers in (
        ("anthropic.claude-v2", {"anthropic"}),
        ("amazon.titan-text-express-v1", {"completions"}),
        ("amazon.nova-lite-v1:0", set[str]()),
    ):
        wanted = {f"bedrock_proxy.models.{name}" for name in readers}
        assert loaded(asked.format(model), before) & families == wanted


def test_the_streaming_loop_loads_one_host_and_neither_boto3_nor_a_store() -> None:
    modules = loaded(f"import {LOOP}, bedrock_proxy_adapters.config")
    assert not outside(modules) & {
        "asyncio",
        "boto3",
        "botocore",
        "click",
        "concurrent",
        "multiprocessing",
        "redis",
        "sqlite3",
        "starlette",
        "subprocess",
        "tempfile",
        "xml",
    }
    assert "urllib.request" not in modules
    assert {name for name in modules if name.startswith("bedrock_proxy_adapters.")} == {
        "bedrock_proxy_adapters.config",
        "bedrock_proxy_adapters.hosts",
        "bedrock_proxy_adapters.hosts.api_gateway",
        "bedrock_proxy_adapters.hosts.deadlines",
        "bedrock_proxy_adapters.hosts.events",
        "bedrock_proxy_adapters.hosts.lambda_log",
        "bedrock_proxy_adapters.hosts.lambda_runtime",
        "bedrock_proxy_adapters.hosts.paths",
        "bedrock_proxy_adapters.hosts.runtime_api",
        "bedrock_proxy_adapters.hosts.settlement",
        "bedrock_proxy_adapters.hosts.lambda_sigterm",
        "bedrock_proxy_adapters.loading",
        "bedrock_proxy_adapters.proxy",
        "bedrock_proxy_adapters.unsettled",
        "bedrock_proxy_adapters.upkeep",
    }
