"""Where a spike listens."""

import socket


def announced() -> socket.socket:
    """A listening socket on a free port, which is printed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(listener.getsockname()[1], flush=True)
    return listener
