"""Lines to a pipe that nobody reads hold nobody up; what is lost of them is told."""

import contextlib
import io
import logging
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from attrs import define
from tests.running import wait_for

from bedrock_proxy_adapters.telemetry import lines as module
from bedrock_proxy_adapters.telemetry.lines import AT_ONCE, Lines, LinesHandler

LINE = "x" * 199


@define
class Pipe:
    """A pipe; *out* is its end for writing, as Python opens standard output."""

    reader: int
    out: TextIO

    def lines(self) -> Lines:
        return Lines(lambda: self.out, "dropped {}".format)

    def read(self, *until: str) -> list[str]:
        """All that comes; each of *until* is in it."""
        got = bytearray()

        def all_of_it() -> bool | None:
            idle = not writers()
            while select.select([self.reader], [], [], 0)[0]:
                got.extend(os.read(self.reader, 65536))
            return (idle and all(each.encode() in got for each in until)) or None

        wait_for(all_of_it, f"{until}")
        return got.decode().splitlines()


@pytest.fixture(params=[-1, 0], ids=["buffered", "unbuffered"])
def pipe(request: pytest.FixtureRequest) -> Iterator[Pipe]:
    reader, writer = os.pipe()
    if request.param == 0:  # python -u
        out: TextIO = io.TextIOWrapper(io.FileIO(writer, "w"), "ascii", write_through=True)  # type: ignore[arg-type]
    else:
        out = os.fdopen(writer, "w", encoding="ascii")
    made = Pipe(reader, out)
    yield made
    # Whoever waits in the thread is let go: its reader is gone.
    with contextlib.suppress(OSError):
        os.close(reader)
    wait_for(lambda: not writers() or None, "the thread to end")
    out.close()


def writers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "bedrock-proxy-lines"]


def test_a_line_that_can_be_written_is_written_at_once_and_without_a_thread(pipe: Pipe) -> None:
    lines = pipe.lines()
    for number in range(1_000):
        lines.write(f"{number}")
        assert f"{number}\n" == os.read(pipe.reader, 100).decode()
        assert [] == writers()


def test_what_was_in_the_streams_own_buffer_comes_first(pipe: Pipe) -> None:
    pipe.out.write("before\n")
    pipe.lines().write("after")
    assert ["before", "after"] == pipe.read("after")


def test_a_pipe_that_nobody_reads_holds_nobody_up_and_loses_nothing(pipe: Pipe) -> None:
    lines = pipe.lines()
    for number in range(5_000):  # a megabyte; a pipe holds 64 KiB
        lines.write(f"{number:05} {LINE}")
    assert 1 == len(writers())
    lines.close(0.01)  # not longer than it may
    got = pipe.read(f"04999 {LINE}")
    assert [f"{number:05} {LINE}" for number in range(5_000)] == got
    wait_for(lambda: not writers() or None, "the thread to end")
    lines.write("again")
    assert ["again"] == pipe.read("again")
    assert [] == writers()


def test_beyond_a_bound_the_newest_are_dropped_and_it_is_told(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 20_000)
    lines = pipe.lines()
    for number in range(5_000):
        lines.write(f"{number:05} {LINE}")
    lines.write("never dropped", droppable=False)
    threading.Thread(target=lines.close, args=(20,)).start()
    got = pipe.read("never dropped", "dropped ")
    kept = [line for line in got if line.endswith(LINE)]
    assert kept[:10] == [f"{number:05} {LINE}" for number in range(10)]
    told = sum(int(line.split()[1]) for line in got if line.startswith("dropped "))
    assert 5_000 == len(kept) + told
    assert told
    assert 0 == lines._size


def test_a_line_that_no_pipe_takes_at_once_is_left_to_the_thread(pipe: Pipe) -> None:
    lines = pipe.lines()
    lines.write("y" * 200_000)
    lines.write("end")
    assert ["y" * 200_000, "end"] == pipe.read("end")
    assert AT_ONCE >= 512


def test_a_descriptor_that_somebody_made_non_blocking_loses_nothing_either(pipe: Pipe) -> None:
    writer = pipe.out.fileno()
    os.set_blocking(writer, False)
    lines = pipe.lines()
    for number in range(2_000):
        lines.write(f"{number:05} {LINE}")
    assert 2_000 == len(pipe.read(f"01999 {LINE}"))


def test_a_reader_that_is_gone_is_an_error_and_no_thread(pipe: Pipe) -> None:
    os.close(pipe.reader)
    with pytest.raises(BrokenPipeError):
        pipe.lines().write("x")
    assert [] == writers()


def test_a_reader_that_goes_while_lines_wait_lets_the_thread_end(pipe: Pipe) -> None:
    lines = pipe.lines()
    for _ in range(1_000):
        lines.write(LINE)
    assert 1 == len(writers())
    os.close(pipe.reader)
    wait_for(lambda: not writers() or None, "the thread to end")


def test_a_file_is_written_at_once_whatever_the_line(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="ascii", errors="backslashreplace") as out:
        lines = Lines(lambda: out, str)
        lines.write("z" * 1_000_000)
        lines.write("é")
        assert [] == writers()
        assert 1_000_006 == (tmp_path / "log").stat().st_size
    assert "z" * 1_000_000 + "\n\\xe9\n" == (tmp_path / "log").read_text()


def test_a_stream_that_is_no_descriptors_is_written_as_any_other() -> None:
    class Own(io.StringIO):
        pass

    streams = [io.StringIO(), Own()]
    lines = Lines(lambda: streams[0], str)
    lines.write("a")
    lines.write("b")
    first = streams.pop(0)
    lines.write("c")
    assert ("a\nb\n", "c\n") == (first.getvalue(), streams[0].getvalue())


def test_a_log_that_nobody_reads_holds_nobody_up_and_keeps_what_is_critical(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 1_000)
    handler = LinesHandler(lambda: pipe.out)
    log = logging.getLogger("test.lines")
    log.addHandler(handler)
    for _ in range(2_000):
        log.warning(LINE)
    log.critical("the row")
    assert "the row" in pipe.read("the row", "lines of the log were dropped: nobody read them.")
    log.removeHandler(handler)
    handler.close()


def test_a_process_whose_output_nobody_reads_still_ends() -> None:
    program = (
        "import sys; from bedrock_proxy_adapters.telemetry.lines import Lines\n"
        "lines = Lines(lambda: sys.stdout, str)\n"
        "for _ in range(5_000): lines.write('x' * 199)\n"
        "lines.close(0.1); print('ended', file=sys.stderr)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        assert 0 == process.wait(60)
        assert b"ended\n" == process.stderr.read()
