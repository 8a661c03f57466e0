"""
SIGTERM, heard whatever threads the process has.

The kernel gives a signal to any thread that has not blocked it: to one of an agent's that was
there before us, as likely as to our own. So nothing is blocked. The interpreter's handler, which
is the process's, writes a byte to a socket in whichever thread that is; one of ours reads it.
"""

import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_BYTE: Final = bytes([signal.SIGTERM])


@contextmanager
def on_sigterm(act: Callable[[], None]) -> Generator[None]:
    """
    Meanwhile SIGTERM calls *act*, once, in a thread of its own: there it may take any lock, which
    a signal's handler must not, amid those of the thread that it interrupts.

    For the main thread; in any other nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, told = socket.socketpair()
    told.setblocking(False)
    # A daemon: it waits for as long as the process lives.
    threading.Thread(
        target=_wait, args=(heard, act), name="bedrock-proxy-sigterm", daemon=True
    ).start()
    fd_before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    before = signal.signal(signal.SIGTERM, _nothing)
    try:
        yield
    finally:
        # None: it was set by something else than Python, and cannot be set again by us.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        signal.set_wakeup_fd(fd_before)
        told.close()


def _wait(heard: socket.socket, act: Callable[[], None]) -> None:
    # Somebody must take it, though every other thread has blocked it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    with heard:
        while said := heard.recv(64):
            if _BYTE in said:
                act()
                return


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler of Python's own: without one no byte is written."""
