"""MariaDB, which speaks MySQL's protocol."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, ClassVar, Final

from support.services.server import SqlServer
from support.services.templates import unpack

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from pathlib import Path

    from support.services.binaries import Binaries

USER: Final = "tenancy"
HANDSHAKE: Final = 10
"""First byte of the greeting; an error (255) comes while it refuses connections."""

# Of the tables on disc, so what makes the template has to say the same.
STORED: Final = ("--innodb-log-file-size=8M", "--innodb-flush-method=nosync")
FAST: Final = (
    "--innodb-flush-log-at-trx-commit=2",  # to the kernel, which outlives the server
    "--innodb-buffer-pool-size=64M",
    "--performance-schema=off",
    "--skip-log-bin",
    "--skip-name-resolve",
    "--max-connections=200",
)


class MySQL(SqlServer):
    """A MariaDB with one user, who may do everything and comes by TCP with a password.

    Args:
        options: Settings by name without dashes, ``{"max-connections": 20}``.
        binaries: Programs to use instead of those found.
    """

    service: ClassVar = "mysql"
    database: ClassVar = ""
    ready: ClassVar = b"ready for connections"

    def __init__(
        self,
        *,
        options: Mapping[str, object] | None = None,
        binaries: Binaries | None = None,
    ) -> None:
        super().__init__(binaries)
        self.user = USER
        self.password = secrets.token_urlsafe(12)
        self._options = dict(options or {})

    def prepare(self) -> None:
        """Unpack the system's tables, which were made once on this machine."""
        version = self.binaries.run("mariadbd", "--no-defaults", "--version", folder=self.folder)
        unpack("mysql", f"{version} {STORED}", self.folder / "data", self._install)
        script = self.folder / "init.sql"
        # At every start: it is what is read before the first client, and does no harm again.
        script.write_text(
            f"CREATE USER IF NOT EXISTS '{USER}'@'{self.host}' IDENTIFIED BY '{self.password}';\n"
            f"GRANT ALL PRIVILEGES ON *.* TO '{USER}'@'{self.host}' WITH GRANT OPTION;\n"
        )
        script.chmod(0o644)  # in a folder that nobody else enters

    def command(self) -> list[str | Path]:
        """Run in the foreground, on the port of now."""
        return [
            self.binaries.path("mariadbd"),
            "--no-defaults",
            *self._base(),
            f"--datadir={self.folder / 'data'}",
            f"--tmpdir={self.folder}",
            f"--bind-address={self.host}",
            f"--port={self.port}",
            f"--socket={self.folder / 'socket'}",
            f"--pid-file={self.folder / 'pid'}",
            f"--init-file={self.folder / 'init.sql'}",
            *STORED,
            *FAST,
            *(f"--{name}={value}" for name, value in self._options.items()),
        ]

    def answers(self, connection: socket.socket) -> bool:
        """Whether it greets."""
        greeting = connection.recv(5)
        return len(greeting) == 5 and greeting[4] == HANDSHAKE

    def _install(self, data: Path) -> None:
        # root comes by socket only, as the user that servers run as: nobody has to know a password.
        self.binaries.run(
            "mariadb-install-db",
            "--no-defaults",
            *self._base(),
            f"--datadir={data}",
            "--auth-root-authentication-method=socket",
            "--skip-test-db",
            "--skip-name-resolve",
            *STORED,
            folder=self.folder,
        )

    def _base(self) -> list[str]:
        """Say where its messages and scripts are, if they are not where it was built for."""
        program = self.binaries.path("mariadbd")
        return [] if self.binaries.root is None else [f"--basedir={program.parent.parent}"]
