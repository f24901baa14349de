"""Fresh PostgreSQL databases, each with roles that have exactly the rights they are named for."""

from __future__ import annotations

import asyncio
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

    import asyncpg

Result = TypeVar("Result")

# Every character here means something in a URL: who forgets to quote learns it in the first test.
AWKWARD: Final = "@:/%?#+"


_MADE_DATABASES: Final = """
    SELECT datname FROM pg_catalog.pg_database
     WHERE pg_catalog.pg_get_userbyid(datdba) = ANY ($1::text[])
"""
_MADE_ROLES: Final = """
    SELECT DISTINCT made.rolname
      FROM pg_catalog.pg_auth_members AS m
      JOIN pg_catalog.pg_roles AS made ON made.oid = m.roleid
     WHERE pg_catalog.pg_get_userbyid(m.member) = ANY ($1::text[])
       AND made.rolname LIKE ANY (ARRAY['tenant\\_%', '%\\_tenants'])
"""
"""Roles that tenancy made for a tenant, or for all of them: whoever makes one is its member."""


class PostgresServer(Protocol):
    """A PostgreSQL that the tests run, or that somebody else does."""

    host: str
    port: int
    user: str
    password: str

    def url(
        self,
        *,
        user: str | None = ...,
        password: str | None = ...,
        database: str = ...,
        driver: str = ...,
    ) -> str:
        """Return the URL of a user; the superuser if nobody is named."""
        ...


@dataclass(frozen=True)
class PostgresDatabase:
    """A database, and the three roles that may connect to it (beside the superuser).

    * *owner*: owns the database, and so its schema ``public``; creates what it likes in it;
    * *control*: may create schemas in the database, and roles and databases if that was asked for;
      owns nothing of others and has no rights in ``public``;
    * *app*: may connect, nothing else.

    None of them is a superuser, bypasses row-level security or replicates.
    """

    server: PostgresServer
    name: str
    password: str = field(repr=False)
    """The password of the three roles."""

    @property
    def owner(self) -> str:
        """Name of the owner's role."""
        return f"{self.name}_owner"

    @property
    def control(self) -> str:
        """Name of the control plane's role."""
        return f"{self.name}_control"

    @property
    def app(self) -> str:
        """Name of the application's role."""
        return f"{self.name}_app"

    @property
    def owner_url(self) -> str:
        """URL for the owner."""
        return self.url(self.owner)

    @property
    def control_url(self) -> str:
        """URL for the tenant store, for DDL and for provisioning."""
        return self.url(self.control)

    @property
    def app_url(self) -> str:
        """URL for tenant sessions."""
        return self.url(self.app)

    @property
    def superuser_url(self) -> str:
        """URL for the superuser: for looking, never for what is under test."""
        return self.server.url(database=self.name)

    def url(self, role: str, *, via: PostgresServer | None = None) -> str:
        """Return the URL of one of the roles, through another server (a PgBouncer) if given."""
        server = via or self.server
        return server.url(user=role, password=self.password, database=self.name)

    @asynccontextmanager
    async def connection(self, role: str | None = None) -> AsyncIterator[asyncpg.Connection]:
        """Open an asyncpg connection as a role; as the superuser if none is named."""
        async with _connection(self.server, self.name, role, self.password) as connection:
            yield connection

    async def admin(self, *statements: str) -> None:
        """Run statements as the superuser, each by itself."""
        async with self.connection() as connection:
            for statement in statements:
                await connection.execute(statement)

    async def fetch(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query of the superuser."""
        async with self.connection() as connection:
            return [tuple(row) for row in await connection.fetch(query, *values)]

    async def fetchval(self, query: str, *values: Any) -> Any:
        """Return the one value of a query of the superuser."""
        async with self.connection() as connection:
            return await connection.fetchval(query, *values)

    async def drop(self) -> None:
        """Drop the database with whoever is connected, its three roles, and what those made."""
        roles = (self.owner, self.control, self.app)
        async with _connection(self.server) as connection:
            made = await connection.fetch(_MADE_DATABASES, roles)
            for name in (self.name, *(row[0] for row in made)):
                await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            for row in await connection.fetch(_MADE_ROLES, roles):
                await connection.execute(f'DROP ROLE IF EXISTS "{row[0]}"')
            for role in roles:
                await _drop_role(self.server, connection, role)


async def create_database(
    server: PostgresServer,
    *,
    createrole: bool = False,
    createdb: bool = False,
    prefix: str = "t",
) -> PostgresDatabase:
    """Create a database with its roles.

    Args:
        server: Where; its own user has to be a superuser.
        createrole: The control role may create roles.
        createdb: The control role may create databases.
        prefix: The name's begin, of letters and digits.
    """
    password = secrets.token_urlsafe(9) + AWKWARD
    database = PostgresDatabase(server, f"{prefix}_{secrets.token_hex(5)}", password)
    name, owner, control, app = database.name, database.owner, database.control, database.app
    plain = "LOGIN NOSUPERUSER NOBYPASSRLS NOREPLICATION"
    rights = f"{'CREATEROLE' if createrole else ''} {'CREATEDB' if createdb else ''}"
    async with _connection(server) as connection:
        await connection.execute(
            f"CREATE ROLE {owner} {plain} NOCREATEROLE PASSWORD '{password}';"
            f"CREATE ROLE {app} {plain} NOCREATEROLE PASSWORD '{password}';"
            f"CREATE ROLE {control} {plain} {rights} PASSWORD '{password}'"
        )
        # Half as long as STRATEGY wal_log, which is the default from 15 on and unknown before.
        newer = connection.get_server_version().major >= 15
        strategy = "STRATEGY file_copy" if newer else ""
        await connection.execute(f"CREATE DATABASE {name} OWNER {owner} {strategy}")
        await connection.execute(
            f"REVOKE ALL ON DATABASE {name} FROM PUBLIC;"
            f"GRANT CONNECT ON DATABASE {name} TO {app};"
            f"GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {name} TO {control}"
        )
    await database.admin(
        "REVOKE ALL ON SCHEMA public FROM PUBLIC;"
        f"ALTER SCHEMA public OWNER TO {owner};"  # before 15 it is the superuser's
    )
    return database


@contextmanager
def fresh_database(
    server: PostgresServer,
    *,
    createrole: bool = False,
    createdb: bool = False,
    prefix: str = "t",
) -> Iterator[PostgresDatabase]:
    """Create a database for a block, from code that is not asynchronous: fixtures of any scope."""
    making = create_database(server, createrole=createrole, createdb=createdb, prefix=prefix)
    database = finished(making)
    try:
        yield database
    finally:
        finished(database.drop())


def finished(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end on an event loop of its own, whatever runs in this thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@asynccontextmanager
async def _connection(
    server: PostgresServer,
    database: str = "postgres",
    user: str | None = None,
    password: str | None = None,
) -> AsyncIterator[asyncpg.Connection]:
    import asyncpg

    connection = await asyncpg.connect(
        host=server.host,
        port=server.port,
        user=user or server.user,
        password=password if user else server.password,
        database=database,
        timeout=60,
    )
    try:
        yield connection
    finally:
        await connection.close(timeout=60)


async def _drop_role(server: PostgresServer, connection: asyncpg.Connection, role: str) -> None:
    import asyncpg

    try:
        await connection.execute(f'DROP ROLE IF EXISTS "{role}"')
    except asyncpg.DependentObjectsStillExistError:
        # What it has in other databases, which did not go with the test's own.
        others = await connection.fetch(
            "SELECT DISTINCT datname FROM pg_shdepend JOIN pg_database ON pg_database.oid = dbid"
            " WHERE refobjid = $1::text::regrole",
            role,
        )
        for (name,) in others:
            async with _connection(server, name) as other:
                await other.execute(f'DROP OWNED BY "{role}"')
        await connection.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"')
