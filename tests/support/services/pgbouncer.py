"""PgBouncer."""

from __future__ import annotations

import signal
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from support.services.errors import ServiceUnavailableError
from support.services.finding import find
from support.services.postgres import asks_for_password
from support.services.server import SqlServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from pathlib import Path

    from support.services.binaries import Binaries
    from support.services.databases import PostgresServer

PoolMode = Literal["session", "transaction", "statement"]
PREPARES_FROM: Final = (1, 21)
"""The version from which PgBouncer carries prepared statements from server to server."""
SIGTERM_WAITS_FROM: Final = (1, 23)
"""The version from which SIGTERM waits for the clients to go."""


class PgBouncer(SqlServer):
    """A PgBouncer in front of a PostgreSQL, for all of its databases and roles.

    The superuser's password is in its user list. Every other role is looked up when it comes, so
    that roles made later (a login per tenant) can log in as well: by SCRAM, whose secret PgBouncer
    uses again towards the server. The superuser is the admin as well, whose console is the database
    ``pgbouncer``.

    Args:
        postgres: What it stands before; its user has to be a superuser.
        pool_mode: When a server connection is free for another client.
        default_pool_size: Server connections for each pair of role and database.
        max_prepared_statements: 0 means that prepared statements do not work across transactions.
            More needs a newer PgBouncer than many machines have; where theirs is older, one is
            fetched for those who ask for it.
        users: Role → password for the user list, for roles that cannot be looked up.
        auth_database: Where roles are looked up; by default in the database that they come for. A
            database that is to be dropped must not have the superuser's connection in it, which
            nobody but a superuser may end. It needs a newer PgBouncer, as prepared statements do.
        options: Further settings of ``[pgbouncer]``.
        binaries: Programs to use instead of those found.
    """

    service: ClassVar = "pgbouncer"
    database: ClassVar = "postgres"
    ready: ClassVar = b"process up"
    stop_signal = signal.SIGTERM
    last_words = signal.SIGTERM

    def __init__(
        self,
        postgres: PostgresServer,
        *,
        pool_mode: PoolMode = "transaction",
        default_pool_size: int = 4,
        max_prepared_statements: int = 0,
        users: Mapping[str, str] | None = None,
        auth_database: str | None = None,
        options: Mapping[str, object] | None = None,
        binaries: Binaries | None = None,
    ) -> None:
        if binaries is None and (max_prepared_statements or auth_database):
            binaries = find(self.service, PREPARES_FROM)
        super().__init__(binaries)
        self.user, self.password = postgres.user, postgres.password
        self._postgres = postgres
        self._users = {self.user: self.password, **(users or {})}
        self._options: dict[str, object] = {
            "auth_type": "scram-sha-256",
            "auth_user": self.user,
            "pool_mode": pool_mode,
            "default_pool_size": default_pool_size,
            "max_client_conn": 1000,
            "admin_users": self.user,
            "ignore_startup_parameters": "extra_float_digits",
            # A client that waits in vain is told so before its test times out.
            "query_wait_timeout": 30,
        }
        if auth_database:
            self._options["auth_dbname"] = auth_database
        self._max_prepared_statements = max_prepared_statements
        self._further = dict(options or {})

    @cached_property
    def version(self) -> tuple[int, int]:
        """Major and minor version."""
        return self.binaries.version(self.service)

    def prepare(self) -> None:
        """Settle what depends on the version.

        Raises:
            ServiceUnavailableError: This PgBouncer cannot do what is asked of it.
        """
        if self.version >= SIGTERM_WAITS_FROM:
            self.stop_signal = self.last_words = signal.SIGQUIT
        if self.version >= PREPARES_FROM:
            self._options["max_prepared_statements"] = self._max_prepared_statements
        elif self._max_prepared_statements:
            raise ServiceUnavailableError(
                f"PgBouncer {'.'.join(map(str, self.version))} from {self.binaries.source} does "
                "not know max_prepared_statements, which came with 1.21. Set "
                "TENANCY_TEST_PGBOUNCER_BIN to the folder of a newer one."
            )

    def command(self) -> list[str | Path]:
        """Write the settings with the port of now, and run in the foreground."""
        users = self.folder / "users"
        users.write_text("".join(f"{_word(*pair)}\n" for pair in self._users.items()))
        settings = {
            "listen_addr": self.host,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_file": users,
            "auth_query": "SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename = $1",
            **self._options,
            **self._further,
        }
        ini = self.folder / "pgbouncer.ini"
        ini.write_text(
            f"[databases]\n* = host={self._postgres.host} port={self._postgres.port}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )
        return [*self.binaries.command("pgbouncer"), ini]

    def answers(self, connection: socket.socket) -> bool:
        """Whether it asks for a password."""
        return asks_for_password(connection)


def _word(name: str, password: str) -> str:
    return " ".join('"' + text.replace('"', '""') + '"' for text in (name, password))
