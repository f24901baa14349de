"""PostgreSQL."""

from __future__ import annotations

import re
import secrets
import signal
import struct
from typing import TYPE_CHECKING, ClassVar, Final

from support.services.server import SqlServer
from support.services.shared_memory import remove_segment
from support.services.templates import unpack

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from pathlib import Path

    from support.services.binaries import Binaries
    from support.services.certificates import Certificates

SUPERUSER: Final = "postgres"

# Nothing here has to survive a power cut of the machine. What was committed does survive the death
# of the server, as the kernel has it; with synchronous_commit off, it would not.
FAST: Final[Mapping[str, object]] = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": 0,
    "max_connections": 200,
    "shared_buffers": "64MB",
    "jit": "off",
    # In the data folder: it goes with it, however the server ends.
    "dynamic_shared_memory_type": "mmap",
}


class Postgres(SqlServer):
    """A PostgreSQL that takes passwords by SCRAM only, and knows one user, a superuser.

    Args:
        config: Settings for ``postgresql.conf``, over those that make it fast.
        certificates: With them it speaks TLS.
        only_tls: It refuses who does not.
        binaries: Programs to use instead of those found.
    """

    service: ClassVar = "postgres"
    database: ClassVar = "postgres"
    ready: ClassVar = b"ready to accept connections"
    stop_signal = signal.SIGINT  # "fast": it does not wait for its clients
    last_words = signal.SIGQUIT  # "immediate": no checkpoint, but shared memory goes

    def __init__(
        self,
        *,
        config: Mapping[str, object] | None = None,
        certificates: Certificates | None = None,
        only_tls: bool = False,
        binaries: Binaries | None = None,
    ) -> None:
        super().__init__(binaries)
        self.user = SUPERUSER
        self.password = ""
        self.certificates = certificates
        self._only_tls = only_tls
        self._config = dict(config or {})

    def prepare(self) -> None:
        """Unpack a cluster that ``initdb`` made once on this machine."""
        version = self.binaries.run("postgres", "--version", folder=self.folder).strip()
        data = self.folder / "data"
        unpack("postgres", f"{version} {self.binaries.source}", data, self._initdb)
        self.password = (data / "superuser.password").read_text()
        settings = {
            **FAST,
            **self._scram(version),
            "listen_addresses": self.host,
            "unix_socket_directories": str(self.folder),
            **self._tls(data),
            **self._config,
        }
        with (data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {_quoted(value)}\n" for name, value in settings.items())
        host = "hostssl" if self._only_tls else "host"
        (data / "pg_hba.conf").write_text(
            f"local all all scram-sha-256\n{host} all all {self.host}/32 scram-sha-256\n"
        )

    def command(self) -> list[str | Path]:
        """Run in the foreground, on the port of now."""
        return [self.binaries.path("postgres"), "-D", self.folder / "data", "-p", str(self.port)]

    def answers(self, connection: socket.socket) -> bool:
        """Whether it asks for a password, or for TLS if it speaks nothing else."""
        return offers_tls(connection) if self._only_tls else asks_for_password(connection)

    def close(self) -> None:
        """End it at once, and remove its data and the shared memory that a kill leaves behind."""
        marker = self.folder / "data" / "postmaster.pid"
        if self._process is not None and not self.running and marker.exists():
            remove_segment(marker.read_text())
        super().close()

    def _initdb(self, data: Path) -> None:
        # Unlike a fixed one, a password of this machine's template is none for its other users.
        password = self.folder / "password"
        password.write_text(secrets.token_urlsafe(12))
        password.chmod(0o644)  # in a folder that nobody else enters
        arguments = ("-U", SUPERUSER, "--auth", "scram-sha-256", "--pwfile", password, "--no-sync")
        locale = ("--encoding", "UTF8", "--locale", "C")
        self.binaries.run("initdb", "-D", data, *arguments, *locale, folder=self.folder)
        (data / "superuser.password").write_text(password.read_text())
        (data / "superuser.password").chmod(0o644)

    def _tls(self, data: Path) -> dict[str, object]:
        if self.certificates is None:
            return {}
        certificate, key = self.certificates.install(data)
        return {"ssl": "on", "ssl_cert_file": certificate, "ssl_key_file": key}

    @staticmethod
    def _scram(version: str) -> dict[str, object]:
        # 4096 rounds cost the client 5 ms per connection, and protect nothing here.
        found = re.search(r" (\d+)", version)
        return {"scram_iterations": 64} if found and int(found[1]) >= 16 else {}


def asks_for_password(connection: socket.socket) -> bool:
    """Send a start-up message of protocol 3.0; whether the answer is a request to log in."""
    body = struct.pack("!I", 196608) + f"user\0{SUPERUSER}\0database\0postgres\0\0".encode()
    connection.sendall(struct.pack("!I", len(body) + 4) + body)
    return connection.recv(1) == b"R"


def offers_tls(connection: socket.socket) -> bool:
    """Send an SSLRequest; whether the answer is yes."""
    connection.sendall(struct.pack("!II", 8, 80877103))
    return connection.recv(1) == b"S"


def _quoted(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"
