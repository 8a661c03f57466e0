"""
The loads of RELIABILITY.md section 6, L1 to L9, each with its target. ``serve`` as it stands, over
SQLite; what is not met is said, and does not fail the run: figures depend on the machine.
"""

import contextlib
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

from benchmarks import admission, cases, machine
from benchmarks.cases import Results
from benchmarks.lab import Lab, WrongAnswer
from benchmarks.load import Order, request_bytes
from benchmarks.servers import (
    TOKENS,
    Running,
    Target,
    missing,
    running,
)

WARM: Final = 1 / 3
"""The share of a soak that is not counted: what is opened and imported once is no leak."""


NAMES: Final = ("L1", "L2", "L4", "L5", "L6", "L7", "L9", "COLD")


def target() -> Target:
    """The proxy as a user runs it."""
    return cases.headline_targets()[0]


def steady(lab: Lab, results: Results) -> None:
    """L1: 1,000 streams, ten events a second each; how much later every event comes."""
    with running(target(), lab.port) as server:
        reading = lab.measure(
            server, "sse", streams=1_000, events=100, pace=0.1, ramp=4.0,
            record=True, any_status=True,
        )  # fmt: skip
        sent: dict[str, list[float]] = lab.bedrock()["sent"]
    came: dict[str, list[float]] = reading.told["came"]
    errors = reading.requests - len(came)
    results.add("L1", server.target, errors, "errors", goal=0.0)
    begun = max(times[0] for times in sent.values())
    late: list[float] = []
    for number, arrived in came.items():
        pairs = zip(sent[number], arrived, strict=True)
        late += [(there - here) * 1000 for here, there in pairs if here >= begun]
    if not late:
        results.note("L1: the last stream began when the first had ended: nothing to count.")
        return
    results.add(
        "L1",
        server.target,
        machine.percentile(late, 0.99),
        "ms added to an event, p99",
        goal=50.0,
        median=machine.percentile(late, 0.5),
        events=len(late),
        pings=reading.told["pings"],
        timely=reading.timely,
    )


def idle(lab: Lab, results: Results, count: int = 10_000) -> None:
    """L2: idle connections: what each holds, and what they take of the processor."""
    # Each has an end here and an end there, and the proxy needs some for itself.
    count = min(count, machine.allow_files(count + 1_000) - 1_000)
    with running(target(), lab.port) as server, contextlib.ExitStack() as stack:
        lab.measure(server, "plain", repeat=20)
        before, cpu = machine.rss(server.pid), machine.cpu(server.pid)
        for number in range(count):
            # A source address has some 28,000 ports.
            source = (f"127.0.0.{2 + number // 20_000}", 0)
            connection = socket.create_connection(("127.0.0.1", server.port), 30, source)
            stack.callback(connection.close)
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: bench\r\n\r\n")
            if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
                raise WrongAnswer(f"connection {number} was not answered")
        opening = (machine.cpu(server.pid) - cpu) * 1000 / count
        held = (machine.rss(server.pid) - before) * 1024 / count
        cpu, began = machine.cpu(server.pid), time.monotonic()
        time.sleep(5)
        resting = (machine.cpu(server.pid) - cpu) / (time.monotonic() - began)
        plain = lab.measure(server, "plain", repeat=100)
    results.add("L2", server.target, held, "KiB a connection", connections=count)
    results.add("L2", server.target, opening, "CPU ms to open one, an answer included")
    results.add("L2", server.target, resting * 100, "% of a core at rest")
    results.add("L2", server.target, plain.per_request, "CPU ms per request beside them")


def stalled(lab: Lab, results: Results, seconds: float, readers: int = 200) -> None:
    """L4: clients that stop reading: what each holds, and that it stays so."""
    order = Order(port=0, dialect="sse")
    with (
        running(target(), lab.port, BEDROCK_PROXY_DISCONNECT="cancel") as server,
        contextlib.ExitStack() as stack,
    ):
        first_call(lab, server)
        # Far more than the socket buffers of the kernel take.
        lab.bedrock(events=6_000, size=2_000)
        before, calls = machine.rss(server.pid), lab.bedrock()["calls"]
        for number in range(readers):
            connection = socket.socket()
            stack.callback(connection.close)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(request_bytes(order, str(number), TOKENS[number % len(TOKENS)]))
        wait_until(lambda: lab.bedrock()["calls"] == calls + readers, "every reader's call")
        rested(server)
        points: list[tuple[float, float]] = []
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            points.append((time.monotonic() - began, machine.rss(server.pid)))
            time.sleep(0.5)
        stack.close()
        assert server.books is not None
        wait_until(lambda: server.books.count()[0] == readers + 1, "a row for every reader")  # type: ignore[union-attr]
        wait_until(lambda: server.books.leases() == 0, "every lease to end")  # type: ignore[union-attr]
    held = (max(memory for _, memory in points) - before) * 1024 / readers
    results.add("L4", server.target, held, "KiB a stalled reader", goal=256.0, readers=readers)
    rise = machine.slope(points) * 60
    results.add("L4", server.target, rise, "MiB rise a minute", seconds=seconds)


def first_call(lab: Lab, server: Running) -> None:
    """One answer, so that what the first one opens and imports is there."""
    lab.measure(server, "sse", events=2)


def rested(server: Running) -> None:
    """Wait until the proxy has next to nothing to do for three seconds."""
    quiet = 0
    last = machine.cpu(server.pid)
    end = time.monotonic() + 120
    while quiet < 3 and time.monotonic() < end:
        time.sleep(1)
        now = machine.cpu(server.pid)
        quiet = quiet + 1 if now - last < 0.1 else 0
        last = now


def wait_until(met: Callable[[], bool], what: str, timeout: float = 90.0) -> None:
    """
    Raises:
        WrongAnswer: It is not met in time.
    """
    end = time.monotonic() + timeout
    while not met():
        if time.monotonic() > end:
            raise WrongAnswer(f"waited {timeout:g} s for {what}")
        time.sleep(0.1)


def soak(lab: Lab, results: Results, minutes: float) -> None:
    """L5: 200 streams at a time, every fifth client leaves; what memory does, and the books."""
    with running(target(), lab.port) as server:
        assert server.books is not None
        points: list[tuple[float, float]] = []
        asked = whole = refused = 0
        began = time.monotonic()
        while time.monotonic() - began < minutes * 60:
            # The books are looked at in the end: who left may still be read on for.
            reading = lab.measure(
                server, "sse", streams=200, events=50, pace=0.02, abort=0.2,
                settled=False, any_status=True,
            )  # fmt: skip
            answered = reading.told["statuses"].get("200", 0)
            asked += answered + reading.told["aborted"]
            whole += answered
            refused += reading.requests - answered - reading.told["aborted"]
            points.append((time.monotonic() - began, machine.rss(server.pid)))
        wait_until(lambda: server.books.leases() == 0, "every lease to end")  # type: ignore[union-attr]
        rows, tokens = server.books.count()
        if rows != asked or not whole * 75 <= tokens <= asked * 75:
            raise WrongAnswer(f"L5: {asked} requests, {rows} rows with {tokens} tokens")
    counted = points[int(len(points) * WARM) :]
    rise = machine.slope(counted) * 600 if len(counted) > 2 else 0.0
    results.add(
        "L5",
        server.target,
        rise,
        "MiB rise in 10 minutes",
        goal=1.0 if minutes >= 10 else None,
        minutes=minutes,
        requests=asked,
        rows=rows,
        whole=whole,
        tokens=tokens,
        points=points,
    )
    results.add("L5", server.target, refused, "requests refused", goal=0.0)
    if minutes < 10:
        results.note(f"L5 ran {minutes:g} minutes: its slope is judged from 10 on (--minutes 15).")


def overload(lab: Lab, results: Results, seconds: float = 6.0, bound: int = 100) -> None:
    """L6: twice the streams there may be: how fast the rest is refused, and what still goes through."""
    how = {"events": 25, "pace": 0.02, "seconds": seconds, "any_status": True, "wait": 0.25}
    how["ramp"] = 1.5
    with running(target(), lab.port, BEDROCK_PROXY_MAX_STREAMS=str(bound)) as server:
        first_call(lab, server)
        alone = lab.measure(server, "sse", streams=bound, **how)  # type: ignore[arg-type]
        twice = lab.measure(server, "sse", streams=bound * 2, **how)  # type: ignore[arg-type]
    goodput = (twice.told["statuses"].get("200", 0) / twice.wall_s) / (
        alone.told["statuses"].get("200", 0) / alone.wall_s
    )
    refused = twice.told["refused_ms"]
    if not refused:
        raise WrongAnswer("L6: nothing was refused")
    results.add(
        "L6",
        server.target,
        machine.percentile(refused, 0.99),
        "ms to a refusal, p99",
        goal=50.0,
        refused=len(refused),
        timely=twice.timely,
    )
    results.add("L6", server.target, goodput * 100, "% of the goodput", at_least=90.0)


def admissions(results: Results, seconds: float) -> None:
    """L7: what an admission takes, in each store."""
    for case, value, unit, goal in admission.figures(seconds):
        results.add("L7", None, value, f"{unit} ({case})", goal=goal)
    why = missing("redis")
    if why is not None:
        results.note(f"L7: Redis is not measured, {why}.")
    results.note("L7: DynamoDB's round trips (one an admission) are counted by tests, not timed.")


def aborts(lab: Lab, results: Results, count: int, seconds: float) -> None:
    """L9: clients that connect and go, at every stage of a request; what stays of them."""
    chance = random.Random(9)
    with running(target(), lab.port) as server:
        assert server.books is not None
        first_call(lab, server)
        lab.bedrock(events=20, pace=0.002)
        leave(server, chance, 200, 2)
        wait_until(lambda: lab.bedrock()["open"] < 60, "the calls to end")
        wait_until(lambda: server.books.leases() == 0, "their rows")  # type: ignore[union-attr]
        calls = lab.bedrock()["calls"]
        rows = server.books.count()[0]
        memory, files = machine.rss(server.pid), machine.open_files(server.pid)
        leave(server, chance, count, seconds)
        wait_until(lambda: server.books.leases() == 0, "every lease to end")  # type: ignore[union-attr]
        called = lab.bedrock()["calls"] - calls
        rows = server.books.count()[0] - rows
        # Kept-alive connections to Bedrock are no leak: they are as many as the bound.
        wait_until(lambda: machine.open_files(server.pid) <= files + 200, "files to be closed", 30)
        left = machine.open_files(server.pid) - files
        grown = machine.rss(server.pid) - memory
        lab.measure(server, "sse", settled=False)
    if rows != called:
        raise WrongAnswer(f"L9: Bedrock was called {called} times, the ledger has {rows} rows")
    results.add(
        "L9", server.target, grown, "MiB grown", clients=count, seconds=seconds, called=called
    )
    results.add("L9", server.target, left, "files left open")


def leave(server: Running, chance: random.Random, count: int, seconds: float) -> None:
    """*count* clients that leave: at once, in mid-request, after it, or in mid-answer; half rudely."""
    request = request_bytes(Order(port=0, dialect="sse", events=20), "x", TOKENS[0])
    began = time.monotonic()
    for number in range(count):
        ahead = began + seconds * number / count - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
        with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
            if chance.random() < 0.5:
                # Closing sends a reset.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stage = chance.randrange(4)
            if stage == 1:
                connection.sendall(request[: chance.randrange(1, len(request))])
            elif stage >= 2:
                connection.sendall(request)
                if stage == 3:
                    connection.recv(4096)


def cold_start(results: Results) -> None:
    """What ``benchmarks.cold_start`` says, line by line."""
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.cold_start"],
        capture_output=True, text=True, check=True, timeout=300,
    ).stdout  # fmt: skip
    print("".join(f"  {line}\n" for line in said.splitlines()), flush=True)
    about = ""
    for line in said.splitlines():
        value, unit, name = ([*line.split(None, 2), "", ""])[:3]
        if unit == "ms" and line.startswith(" "):
            results.figures.append(
                {"case": "COLD", "target": name, "label": about, "kind": "import",
                 "dialect": "", "value": float(value), "unit": "ms"}
            )  # fmt: skip
        else:
            about = line


def run(
    lab: Lab, results: Results, wanted: Callable[[str], bool], *, everything: bool, minutes: float
) -> None:
    """Those that are *wanted*, in their order."""
    if wanted("L1"):
        steady(lab, results)
    if wanted("L2"):
        idle(lab, results)
    if wanted("L4"):
        stalled(lab, results, 60.0 if everything else 10.0)
    if wanted("L5"):
        soak(lab, results, minutes)
    if wanted("L6"):
        overload(lab, results)
    if wanted("L7"):
        admissions(results, 5.0 if everything else 2.0)
    if wanted("L9"):
        count = 10_000 if everything or minutes >= 1 else 1_000
        aborts(lab, results, count, count / 167)
    if wanted("COLD"):
        cold_start(results)
