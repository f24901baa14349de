"""The control tables at first boot, when several workers may want to make them."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

import anyio
from sqlalchemy import func, insert, inspect, select
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.schema import CreateSchema

from tenancy_core.errors import ConfigurationError
from tenancy_core.sql import sqlite, tables
from tenancy_core.sql.postgres import LOCK_LAYOUT

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["INSTANCE_KEY", "make_tables"]

INSTANCE_KEY: Final = "instance"
_KEY_BYTES: Final = 32

_NO_DATABASE: Final = frozenset({"SQLITE_NOTADB", "SQLITE_CORRUPT"})

_DENIED: Final = "42501"
_WAIT: Final = select(func.pg_catalog.pg_advisory_xact_lock(*LOCK_LAYOUT))

_TRIES: Final = 10
_PAUSE: Final = 0.05


async def make_tables(engine: AsyncEngine, setting: str) -> None:
    """Make the tables that are missing, and what has to be in them.

    Args:
        engine: Of the store.
        setting: The variable that names its database, for the message.

    Raises:
        ConfigurationError: The tables are there in the layout of another version, the file is no
            database, or the role may not make the tables or use them.
    """
    # Whoever loses the race to create a table is told that it exists, and finds it there on the
    # next try.
    for left in reversed(range(_TRIES)):
        try:
            async with engine.begin() as connection:
                if engine.dialect.name == "postgresql":
                    # Of those that come at once one makes them, and the others find them.
                    await connection.execute(_WAIT)
                await connection.run_sync(_make)
        except (IntegrityError, OperationalError, ProgrammingError) as error:
            if getattr(error.orig, "sqlstate", None) == _DENIED:
                raise _lacks_rights(engine, setting) from error
            # Whoever met a lock has waited for it already, and behind PostgreSQL's nobody races.
            waited = engine.dialect.name == "postgresql" or sqlite.code_of(error.orig) is not None
            if not left or waited:
                raise
            await anyio.sleep(_PAUSE)
        except DatabaseError as error:
            if (code := sqlite.code_of(error.orig)) not in _NO_DATABASE:
                raise
            raise ConfigurationError(
                f"The file that {setting} names is no SQLite database, or a damaged one ({code}). "
                "Name another, or restore it from a backup."
            ) from error
        else:
            return


def _make(connection: Connection) -> None:
    counters = tables.counters
    if inspect(connection).has_table(counters.name, schema=_namespace(connection)):
        rows = connection.execute(select(counters.c.name, counters.c.value))
        found = {row.name: row.value for row in rows}
        # Where DDL is no part of a transaction, the tables may be there and not yet the rows.
        if found and found.get("schema") != tables.SCHEMA:
            raise ConfigurationError(
                f"The tables of the tenant store have layout {found.get('schema', 1)}, and this "
                f"version of tenancy-core needs layout {tables.SCHEMA}. Install the version that "
                "made them, or name another database in TENANCY_CONTROL_DATABASE_URL."
            )
        if found:
            return
    namespace = _namespace(connection)
    if namespace is not None and not inspect(connection).has_schema(namespace):
        connection.execute(CreateSchema(namespace))
    tables.METADATA.create_all(connection)
    connection.execute(
        insert(counters),
        [{"name": "changes", "value": 0}, {"name": "schema", "value": tables.SCHEMA}],
    )
    connection.execute(
        insert(tables.keys).values(name=INSTANCE_KEY, value=secrets.token_bytes(_KEY_BYTES))
    )


def _namespace(connection: Connection) -> str | None:
    return tables.NAMESPACE if connection.dialect.name == "postgresql" else None


def _lacks_rights(engine: AsyncEngine, setting: str) -> ConfigurationError:
    quote = engine.dialect.identifier_preparer.quote
    role, database = engine.url.username, engine.url.database
    # A URL that leaves them out has those of the environment, or of the machine's user.
    grantee, place = quote(role or "its_role"), quote(database or "its_database")
    # With one URL for everything its role is the sessions', which had better not read the store.
    first = (
        "Set TENANCY_CONTROL_DATABASE_URL with a role of its own that may create in its database; "
        f"sessions keep that of {setting}. Or have one role for both. "
        if setting == "TENANCY_DATABASE_URL"
        else ""
    )
    return ConfigurationError(
        f"The role {role or ''!r} of {setting} may not make the tables of the tenant store, or may "
        f"not use those that are there. {first}Where there is no schema "
        f"{tables.NAMESPACE} yet, run as the owner of the database: CREATE SCHEMA "
        f"{tables.NAMESPACE} AUTHORIZATION {grantee}; or let it make one: GRANT CREATE ON DATABASE "
        f"{place} TO {grantee}. Where there is one, name the role that owns it in {setting}, or "
        f"run as its owner: GRANT USAGE, CREATE ON SCHEMA {tables.NAMESPACE} TO {grantee}; and, "
        "where the tables are there too: GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN "
        f"SCHEMA {tables.NAMESPACE} TO {grantee}."
    )
