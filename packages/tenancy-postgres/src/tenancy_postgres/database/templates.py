"""The database that tenants' databases are copies of: with the application's tables, and closed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from sqlalchemy import MetaData

from tenancy_core.errors import ConfigurationError
from tenancy_core.sql import close_engine
from tenancy_core.sql.postgres import LOCK_PROVISION
from tenancy_core.sql.scoped import SETTING
from tenancy_postgres.administering import LONGEST
from tenancy_postgres.database.copies import drop_database, make_copy
from tenancy_postgres.ddl import creation_script
from tenancy_postgres.making import rights_on_coming, rights_on_own
from tenancy_postgres.marks import MARK
from tenancy_postgres.quoting import quote_identifier, quote_literal

if TYPE_CHECKING:
    from tenancy_postgres.database.server import Server

__all__ = ["Template"]

_PREFIX: Final = "tenancy_template_"
_DIGITS: Final = 16
_STATE: Final = """
    SELECT pg_catalog.shobj_description(d.oid, 'pg_database') AS mark,
           d.datallowconn OR d.datconnlimit = -2 AS is_unusable,
           pg_catalog.pg_has_role(d.datdba, 'USAGE') AS is_own
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

    Attributes:
        base: What it is a copy of itself.
        name: Of the template.
        schemas: Those of the application's tables.
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
        self.base = base
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
                    # Before PostgreSQL 15 everybody may: a tenant could have what it makes there
                    # called by the role that makes databases.
                    "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
                    *(line for s in self.schemas for line in rights_on_coming(s, grantee)),
                    tables,
                ),
            )
        )
        # Two services may have one role for their tenants, and one base.
        maker = server.address.admin_url.username
        content = f"{base}\0{grantee}\0{maker}\0{self._script}".encode()
        self.name = _PREFIX + hashlib.sha256(content).hexdigest()[:_DIGITS]
        self._mark = f"{MARK}template"
        self._is_ready = False

    async def grant(self, driver: asyncpg.Connection[Any]) -> None:
        """Give the grantee its rights on what is in a copy.

        Args:
            driver: Connected to it, as the role that makes databases.
        """
        lines = [
            *(line for schema in self.schemas for line in rights_on_coming(schema, self._grantee)),
            *await rights_on_own(driver, self.schemas, self._grantee),
        ]
        await driver.execute(";".join(lines))

    async def prepare(self) -> None:
        """Make it, unless it is there. A half-made one is made again.

        Raises:
            BackendUnavailable: The server cannot be used now, or others took too long.
            ConfigurationError: There is no base, or somebody else has a database of its name.
        """
        if self._is_ready:
            return
        async with self._server.locked(LOCK_PROVISION) as work:
            found = await work.driver.fetchrow(_STATE, self.name)
            if found is not None and not found["is_own"]:
                raise ConfigurationError(
                    f"There is a database {self.name!r} that was not made by the role of "
                    f"{self._server.address.admin_setting}, and tenants' databases are to be "
                    "copies of it. Remove it."
                )
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
        try:
            await make_copy(driver, self.name, of=self.base, patience=self._patience)
        except asyncpg.InvalidCatalogNameError as error:
            raise ConfigurationError(
                f"There is no database {self.base!r}, of which tenants' databases are to be "
                "copies: TENANCY_POSTGRES_DATABASE_TEMPLATE."
            ) from error
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
