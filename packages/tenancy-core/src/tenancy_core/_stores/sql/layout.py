"""The control tables at first boot, when several workers may want to make them."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

import anyio
from sqlalchemy import insert, inspect, select
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError, ProgrammingError

from tenancy_core.errors import ConfigurationError
from tenancy_core.sql import sqlite, tables

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["INSTANCE_KEY", "make_tables"]

INSTANCE_KEY: Final = "instance"
_KEY_BYTES: Final = 32

_NO_DATABASE: Final = frozenset({"SQLITE_NOTADB", "SQLITE_CORRUPT"})

_TRIES: Final = 10
_PAUSE: Final = 0.05


async def make_tables(engine: AsyncEngine, setting: str) -> None:
    """Make the tables that are missing, and what has to be in them.

    Args:
        engine: Of the store.
        setting: The variable that names its database, for the message.

    Raises:
        ConfigurationError: The tables are there in the layout of another version, or the file is
            no database.
    """
    # Whoever loses the race to create a table is told that it exists, and finds it there on the
    # next try.
    for left in reversed(range(_TRIES)):
        try:
            async with engine.begin() as connection:
                await connection.run_sync(_make)
        except (IntegrityError, OperationalError, ProgrammingError) as error:
            # Whoever met a lock has waited for it already.
            if not left or sqlite.code_of(error.orig) is not None:
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
    if inspect(connection).has_table(counters.name):
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
    tables.METADATA.create_all(connection)
    connection.execute(
        insert(counters),
        [{"name": "changes", "value": 0}, {"name": "schema", "value": tables.SCHEMA}],
    )
    connection.execute(
        insert(tables.keys).values(name=INSTANCE_KEY, value=secrets.token_bytes(_KEY_BYTES))
    )
