"""The database that tenants' databases are copies of: with the application's tables, and closed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import MetaData

from tenancy_core.sql import close_engine
from tenancy_core.sql.postgres import LOCK_PROVISION
from tenancy_core.sql.scoped import SETTING
from tenancy_postgres.database.copies import LONGEST, drop_database, make_copy
from tenancy_postgres.ddl import creation_script
from tenancy_postgres.making import rights_on_coming, rights_on_existing
from tenancy_postgres.marks import MARK
from tenancy_postgres.quoting import quote_identifier, quote_literal

if TYPE_CHECKING:
    import asyncpg

    from tenancy_postgres.database.server import Server

__all__ = ["Template"]

_PREFIX: Final = "tenancy_template_"
_DIGITS: Final = 16
_STATE: Final = """
    SELECT pg_catalog.shobj_description(d.oid, 'pg_database') AS mark,
           d.datallowconn OR d.datconnlimit = -2 AS is_unusable
      FROM pg_catalog.pg_database AS d WHERE d.datname = $1
"""
"""A limit of -2 is what the server notes while it removes a database."""


class Template:
    """The template of one application on one server; another one for each change of its tables.

    Args:
        server: Where it is.
        metadata: The application's tables; None leaves the copies empty.
        base: What it is a copy of itself.
        grantee: The role that gets the rights on what is in it.
        setting: The configuration's ``rls_setting``.
        patience: Seconds to wait until nobody is connected to what it is a copy of.
    """

    def __init__(
        self,
        server: Server,
        metadata: MetaData | None,
        *,
        base: str,
        grantee: str,
        setting: str,
        patience: float,
    ) -> None:
        self._server = server
        self._base = base
        self._grantee = grantee
        self._patience = patience
        metadata = metadata if metadata is not None else MetaData()
        self.schemas = sorted({"public", *(t.schema for t in metadata.tables.values() if t.schema)})
        tables = creation_script(metadata, metadata.sorted_tables, **{SETTING: setting})
        self._script = ";\n".join(
            filter(
                None,
                (
                    *(f"CREATE SCHEMA IF NOT EXISTS {quote_identifier(s)}" for s in self.schemas),
                    *(line for s in self.schemas for line in rights_on_coming(s, grantee)),
                    tables,
                ),
            )
        )
        content = f"{base}\0{grantee}\0{self._script}".encode()
        self.name = _PREFIX + hashlib.sha256(content).hexdigest()[:_DIGITS]
        self._mark = f"{MARK}template"
        self._is_ready = False

    def grants(self) -> list[str]:
        """Return the statements that give the grantee its rights on what is in a copy."""
        return [
            line
            for schema in self.schemas
            for rights in (rights_on_coming, rights_on_existing)
            for line in rights(schema, self._grantee)
        ]

    async def prepare(self) -> None:
        """Make it, unless it is there. A half-made one is made again.

        Raises:
            BackendUnavailable: The server cannot be used now, or others took too long.
        """
        if self._is_ready:
            return
        async with self._server.locked(LOCK_PROVISION) as work:
            found = await work.driver.fetchrow(_STATE, self.name)
            if found is None or found["mark"] != self._mark or found["is_unusable"]:
                await self._make(work.driver, is_there=found is not None)
        self._is_ready = True

    def forget(self) -> None:
        """Look again before the next copy: somebody removed it."""
        self._is_ready = False

    async def _make(self, driver: asyncpg.Connection[Any], *, is_there: bool) -> None:
        name = quote_identifier(self.name)
        if is_there:
            setting = self._server.address.admin_setting
            await drop_database(driver, self.name, setting=setting)
        await make_copy(driver, self.name, of=self._base, patience=self._patience)
        await driver.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
        await driver.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        engine = self._server.admin_engine(self.name)
        try:
            async with engine.begin() as connection:
                raw = await connection.get_raw_connection()
                inside: Any = raw.driver_connection
                await inside.execute(self._script, timeout=LONGEST)
        finally:
            await close_engine(engine)
        await driver.execute(
            f"ALTER DATABASE {name} ALLOW_CONNECTIONS false;"
            f"COMMENT ON DATABASE {name} IS {quote_literal(self._mark)}"
        )
