"""SIGTERM under servers that tell their applications nothing (S20): the proxy ends, then the process."""

import asyncio
import signal
import subprocess
import sys
import threading

import pytest
from tests.adapters.test_proxy import proxy
from tests.running import ROOT

from bedrock_proxy_adapters.hosts import asgi, sigterm, wsgi

REQUEST = """
import asyncio, signal, threading, time
from tests.adapters.test_proxy import passage, proxy
from bedrock_proxy_adapters.hosts import asgi, wsgi

def under_way(name):
    held = proxy()
    one = passage(held)
    def until_it_is_told():
        while one.interrupts.take() is None:
            time.sleep(0.01)
        print(name, "was told", flush=True)
        time.sleep(0.3)
        one.ended()
        print(name, "is settled", flush=True)
    threading.Thread(target=until_it_is_told, daemon=True).start()
    return held

def wait(seconds=20):
    print("ready", flush=True)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)
"""

PROGRAMS = {
    "wsgi": "wsgi.end_on_sigterm(under_way('it'), 0.2); wait()",
    "asgi": """
async def main():
    asgi.end_on_sigterm(asgi.asgi_app(under_way('it')), 0.2)
    print("ready", flush=True)
    await asyncio.sleep(20)
asyncio.run(main())
""",
}


def ended(program: str, *, tell: int = 1) -> tuple[int, list[str]]:
    """How *program* ended that is told to, and what it said from then on."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", REQUEST + program],
        env={"PYTHONPATH": f"{ROOT}/src:{ROOT}/adapters:{ROOT}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as said:
        try:
            assert said.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            lines = []
            for _ in range(tell - 1):
                lines.append(said.readline().strip())
                process.send_signal(signal.SIGTERM)
            lines += said.read().splitlines()
            return process.wait(20), lines
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("host", PROGRAMS)
@pytest.mark.parametrize("tell", [1, 2], ids=["once", "twice"])
def test_S20_a_process_that_sigterm_ended_before_ends_once_all_is_settled(
    host: str, tell: int
) -> None:
    code, said = ended(PROGRAMS[host], tell=tell)
    assert said == ["it was told", "it is settled"]
    assert code == -signal.SIGTERM


def test_S20_a_process_with_several_proxies_ends_after_the_last_of_them() -> None:
    program = "for name in 'ab': wsgi.end_on_sigterm(under_way(name), 0.2 if name == 'a' else 0.8)"
    code, said = ended(program + "\nwait()")
    assert said == ["a was told", "a is settled", "b was told", "b is settled"]
    assert code == -signal.SIGTERM


def test_S20_a_process_that_ignored_sigterm_ends_its_streams_and_goes_on() -> None:
    ignored = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    code, said = ended(ignored + PROGRAMS["wsgi"].replace("wait()", "wait(2)"))
    assert said == ["it was told", "it is settled"]
    assert code == 0


def test_S20_whatever_handled_sigterm_still_does() -> None:
    handled = "signal.signal(signal.SIGTERM, lambda *_: print('handled', flush=True))\n"
    code, said = ended(handled + PROGRAMS["wsgi"].replace("wait()", "wait(2)"))
    assert said == ["handled", "it was told", "it is settled"]
    assert code == 0


def test_S20_a_loop_that_has_ended_does_not_keep_its_process_from_ending() -> None:
    program = """
async def main():
    asgi.end_on_sigterm(asgi.asgi_app(proxy()), 0.2)
asyncio.run(main())
wait()
"""
    assert (-signal.SIGTERM, []) == ended(program)


@pytest.mark.parametrize("host", ["wsgi", "asgi"])
def test_off_the_main_thread_nothing_comes_of_it_but_one_warning(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where test clients and embedded servers have their loops."""
    sigterm._warn_once.cache_clear()
    before = signal.getsignal(signal.SIGTERM)
    failed: list[BaseException] = []

    async def on_a_loop() -> None:
        asgi.end_on_sigterm(asgi.asgi_app(proxy()), 1)

    def elsewhere() -> None:
        try:
            for _ in range(2):
                if host == "asgi":
                    asyncio.run(on_a_loop())
                else:
                    wsgi.end_on_sigterm(proxy(), 1)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(20)
    assert not failed
    assert before == signal.getsignal(signal.SIGTERM)
    (said,) = [each.getMessage() for each in caplog.records]
    assert "main thread" in said
