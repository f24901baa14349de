"""An issuer's server on the loopback that publishes keys, or misbehaves. It runs in threads."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator


class KeyServer:
    """What it answers can be changed at any time.

    Attributes:
        asked: How many requests came.
        seen: The headers of the last one.
        status: Of its answers.
        headers: Of its answers.
        body: Of its answers.
        gate: While it is not set, requests wait.
        endless: Goes on sending the body until the client leaves.
        sent: Bytes of bodies that were sent.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.asked = 0
        self.seen: dict[str, str] = {}
        self.status = 200
        self.headers: dict[str, str] = {"content-type": "application/json"}
        self.body = b'{"keys":[]}'
        self.gate = threading.Event()
        self.gate.set()
        self.endless = False
        self.sent = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server._answer(self)

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        # A handshake that fails is the client's decision; it is not to be printed.
        self._server.handle_error = lambda *_: None
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._up = True
        self._thread.start()

    @property
    def url(self) -> str:
        """Where the keys are."""
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}/keys"

    def publish(self, *keys: dict[str, Any]) -> None:
        """Answer with these keys from now on."""
        self.status = 200
        self.body = json.dumps({"keys": list(keys)}).encode()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._up:
            self._up = False
            self.gate.set()
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.asked += 1
            self.seen = {name.lower(): value for name, value in request.headers.items()}
        self.gate.wait(60)
        with contextlib.suppress(OSError):  # the client had enough
            request.send_response(self.status)
            for name, value in self.headers.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(self.body)
            self.sent += len(self.body)
            while self.endless:
                request.wfile.write(self.body)
                self.sent += len(self.body)


@contextlib.contextmanager
def key_server(tls: ssl.SSLContext | None = None) -> Iterator[KeyServer]:
    """Run a server until the block is left."""
    server = KeyServer(tls)
    try:
        yield server
    finally:
        server.endless = False
        server.stop()
