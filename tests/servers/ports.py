"""Ports for servers that must be told one."""

import random
import socket


def free_port() -> int:
    """
    A free port of the loopback interface, which stays so until its server has started.

    The kernel gives the ports from 32,768 on (Linux, ``ip_local_port_range``) to whoever connects or
    binds without a wish: one of those may be somebody else's a moment later. Chosen at random
    below, for several runs of tests may be under way on a machine. (A Redis cluster takes none
    above 55,535.)
    """
    while True:
        port = random.randrange(12_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
