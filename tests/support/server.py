"""A real uvicorn in a process of its own, and clients that say exactly what a test wants said."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
STARTED_WITHIN = 60.0
"""Seconds; generous, because a machine that runs other tests is slow."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    host: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://{self.host}:{self.port}"

    def raw(self, request: bytes) -> tuple[int, bytes]:
        """Send bytes as they are; return the status and everything that came back.

        The request has to end the connection (``Connection: close``). It is not half-closed here:
        asyncio closes a connection whose other end will send no more, and the answer is lost.
        """
        with socket.create_connection((self.host, self.port), timeout=30) as connection:
            with contextlib.suppress(ConnectionError):  # refused before all of it was sent
                connection.sendall(request)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while chunk := connection.recv(65536):
                    answer += chunk
        status = answer.split(b" ", 2)[1] if answer.startswith(b"HTTP/") else b"0"
        return int(status), answer


@contextlib.contextmanager
def serve(
    app: str,
    folder: Path,
    *,
    environment: Mapping[str, str],
    arguments: tuple[str, ...] = (),
    app_dir: Path = ROOT / "examples" / "fastapi_notes",
    ready: str = "/health",
) -> Iterator[Server]:
    """Run ``uvicorn app`` on a free port of the loopback until the block is left.

    The port is bound here and handed over, so that nobody else can take it in between.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    # uvicorn takes an inherited socket for a Unix one and leaves Nagle's algorithm on: an answer of
    # two writes would wait 40 ms for the client's acknowledgement. Accepted sockets inherit this.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    host, port = listener.getsockname()[:2]
    log = folder / f"uvicorn-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "uvicorn",
                app,
                "--app-dir",
                str(app_dir),
                "--fd",
                str(listener.fileno()),
                "--log-level",
                "warning",
                *arguments,
            ],
            pass_fds=[listener.fileno()],
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    listener.close()
    server = Server(host, port, process, log)
    try:
        _wait_until_ready(server, ready)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(server: Server, path: str) -> None:
    deadline = time.monotonic() + STARTED_WITHIN
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(server.url + path, timeout=5, trust_env=False).status_code < 500:
                return
        time.sleep(0.05)
    raise RuntimeError(f"uvicorn did not start:\n{server.log.read_text()}")
