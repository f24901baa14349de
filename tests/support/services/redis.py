"""Redis, or Valkey, which speaks the same."""

from __future__ import annotations

import secrets
import signal
from typing import TYPE_CHECKING, ClassVar, Final

from support.services.server import Server
from support.services.urls import DRIVERS, written

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from pathlib import Path

    from support.services.binaries import Binaries

DATABASES: Final = 64
"""Numbers, so that tests which must not meet can each have one of their own."""


class Redis(Server):
    """A Redis with a password that keeps everything in memory.

    Args:
        options: Settings of ``redis.conf``, over those that keep it off the disc.
        binaries: Programs to use instead of those found.
    """

    service: ClassVar = "redis"
    ready: ClassVar = b"Ready to accept connections"
    last_words = signal.SIGKILL  # nothing of it outlives its process

    def __init__(
        self,
        *,
        options: Mapping[str, object] | None = None,
        binaries: Binaries | None = None,
    ) -> None:
        super().__init__(binaries)
        self.user = ""
        self.password = secrets.token_urlsafe(12)
        self._options = dict(options or {})

    def url(self, *, database: int = 0, driver: str = DRIVERS["redis"]) -> str:
        """Return the URL of one of its databases."""
        login, address = (self.user, self.password), (self.host, self.port)
        return written(driver, login, address, str(database))

    def prepare(self) -> None:
        """Nothing has to be made before it starts."""

    def command(self) -> list[str | Path]:
        """Write the settings with the port of now (and not on the command line: the password)."""
        settings: dict[str, object] = {
            "bind": self.host,
            "port": self.port,
            "dir": self.folder,
            "requirepass": self.password,
            "databases": DATABASES,
            "save": '""',
            "appendonly": "no",
            "daemonize": "no",
            **self._options,
        }
        file = self.folder / "redis.conf"
        file.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        file.chmod(0o644)  # in a folder that nobody else enters
        return [self.binaries.path("redis-server", "valkey-server"), file]

    def answers(self, connection: socket.socket) -> bool:
        """Whether it takes the password and a ping."""
        connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
        answer = b""
        while answer.count(b"\n") < 2 and (more := connection.recv(256)):
            answer += more
        return answer == b"+OK\r\n+PONG\r\n"
