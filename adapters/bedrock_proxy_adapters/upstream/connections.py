"""
A hold on the connection of a call, so that closing the call frees whoever waits on it.

boto3 keeps its connections to itself. Closing its response from another thread blocks
until the next chunk comes, and before the response's head has come there is no response
to close. So every call has a :class:`Hold`, and boto3's own connection classes are
extended by two that put their socket into it. Cutting the hold shuts the socket down:
the reading thread wakes up with an end of file at once, and closes what it holds.

A connection goes back to the pool when its reply is complete and may then carry another
call: it leaves the hold first, under the hold's lock, so that a late ``cut`` never hits
somebody else's call.
"""

import socket
import weakref
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse


class Hold:
    """What must be cut to end one call. Empty while the call holds no connection."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._cut: Callable[[], object] | None = None
        self._was_cut = False

    def take(self, cut: Callable[[], object]) -> None:
        """The call now waits on something that *cut* ends; cuts it if the call has ended."""
        with self._lock:
            if self._was_cut:
                _try(cut)
            else:
                self._cut = cut

    def drop(self) -> bool:
        """Let go, before the connection is closed or passed on. Whether it is still whole."""
        with self._lock:
            self._cut = None
            return not self._was_cut

    def cut(self) -> None:
        """End what is held, now and from here on. Never blocks; repeatable."""
        with self._lock:
            self._was_cut = True
            if self._cut is not None:
                _try(self._cut)
                self._cut = None


def _try(cut: Callable[[], object]) -> None:
    # Not connected any more, or no longer ours: then it is cut already.
    with suppress(OSError, RuntimeError, ValueError):
        cut()


HOLD: Final[ContextVar[Hold | None]] = ContextVar("bedrock_proxy_hold", default=None)
"""The hold of the call that this thread is making."""


def hold_response(response: Any, hold: Hold) -> None:
    """
    Hold a live urllib3 response whose connection is not held yet.

    Its ``release_conn`` lets go first; a response that was cut is closed instead of
    going back to the pool half-read.
    """
    hold.take(response.shutdown)
    _drop_before_release(response, hold)


def _drop_before_release(response: Any, hold: Hold) -> None:
    # On the instance, and weakly: a response has no subclass hook, and must not keep
    # itself alive.
    response.release_conn = partial(_release, weakref.ref(response), hold)


def _release(of: "weakref.ref[BaseHTTPResponse]", hold: Hold) -> None:
    response = of()
    if response is None:
        return
    if not hold.drop():
        response.close()
    type(response).release_conn(response)


def _shutdown(sock: Any) -> Callable[[], object] | None:
    if isinstance(sock, socket.socket):
        # Not the TLS socket's own shutdown: that forgets its TLS state first, and a
        # thread still sending would go on in clear text.
        return partial(socket.socket.shutdown, sock, socket.SHUT_RDWR)
    return None


@cache
def _pool_classes() -> dict[str, type]:
    from botocore.awsrequest import (
        AWSHTTPConnection,
        AWSHTTPConnectionPool,
        AWSHTTPSConnection,
        AWSHTTPSConnectionPool,
    )

    class Held:
        sock: Any
        holder: Hold | None = None

        def _hold(self) -> None:
            self.holder = HOLD.get()
            if self.holder is not None and (cut := _shutdown(self.sock)) is not None:
                self.holder.take(cut)

        def connect(self) -> None:
            super().connect()  # type: ignore[misc]
            self._hold()

        def request(self, *args: Any, **kwargs: Any) -> None:
            self._hold()
            super().request(*args, **kwargs)  # type: ignore[misc]

        def getresponse(self) -> Any:
            response = cast("Any", super().getresponse())  # type: ignore[misc]  # pyright: ignore[reportUnknownMemberType]
            if self.holder is not None:
                _drop_before_release(response, self.holder)
            return response

        def close(self) -> None:
            # Its own holder, not the thread's: a garbage collection may close anybody's
            # connection on any thread.
            if self.holder is not None:
                self.holder.drop()
                self.holder = None
            super().close()  # type: ignore[misc]

    def held(pool: type, connection: type) -> type:
        own = type(f"Held{connection.__name__}", (Held, connection), {})
        return type(f"Held{pool.__name__}", (pool,), {"ConnectionCls": own})

    return {
        "http": held(AWSHTTPConnectionPool, AWSHTTPConnection),
        "https": held(AWSHTTPSConnectionPool, AWSHTTPSConnection),
    }


def hold_connections(client: Any) -> bool:
    """
    Let *client* open its connections as ones that can be held, if it has none yet.

    This is the one place that reaches into botocore (1.36 to 1.44 have it
    alike): there is no public way to a connection that still waits for its head. Where
    botocore looks different, or the client brings a transport of its own, nothing is
    changed and False is returned: replies then can be cut only once their head is there.
    """
    endpoint = getattr(client, "_endpoint", None)
    session = getattr(endpoint, "http_session", None)
    classes = getattr(session, "_pool_classes_by_scheme", None)
    if not isinstance(classes, dict):
        return False
    from botocore.awsrequest import AWSHTTPConnectionPool, AWSHTTPSConnectionPool

    ours = _pool_classes()
    known = {"http": AWSHTTPConnectionPool, "https": AWSHTTPSConnectionPool}
    if classes not in (ours, known):
        return False
    cast("dict[str, type]", classes).update(ours)
    return True
