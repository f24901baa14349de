"""Ports of the loopback that nobody listens on at this moment."""

from __future__ import annotations

import random
import socket
from typing import Final

LOOPBACK: Final = "127.0.0.1"

# Below what Linux gives to outgoing connections, so that none of these takes the port of a server
# which a test restarts.
_PORTS: Final = range(15000, 32000)
_random = random.SystemRandom()  # workers are started with one seed


def free_port() -> int:
    """Return a port that is free now; a server that finds it taken after all gets another."""
    while True:
        port = _random.choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        return port
