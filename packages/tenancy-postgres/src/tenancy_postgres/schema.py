"""Isolation ``schema``: a schema for each tenant."""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from sqlalchemy import MetaData, text

from tenancy_core.errors import ConfigurationError, IdentifierCollision
from tenancy_core.sql import require_own
from tenancy_core.sql.postgres import LOCK_PROVISION, LOCK_TENANT
from tenancy_postgres.ddl import creation_script, has_own_types, shared_tables, tenant_tables
from tenancy_postgres.isolation import PostgresIsolation
from tenancy_postgres.quoting import quote_identifier, quote_literal
from tenancy_postgres.scope import SCOPE, Scope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection

    from tenancy_core.tenant import Tenant

__all__ = ["SchemaIsolation"]

_THERE: Final = frozenset({"42P06", "42710", "23505"})
"""Somebody made the schema, or the role, already: duplicate_schema, duplicate_object, and the
unique_violation that CREATE SCHEMA raises where two do it at once."""

_COMMENT: Final = text(
    """
    SELECT n.oid IS NOT NULL AS is_there, pg_catalog.obj_description(n.oid, 'pg_namespace') AS mark
      FROM (SELECT pg_catalog.to_regnamespace(:name)::oid AS oid) AS n
    """
)
_ROLE_THERE: Final = text("SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = :name")
_SET_SEARCH_PATH: Final = text("SELECT pg_catalog.set_config('search_path', :path, true)")


class SchemaIsolation(PostgresIsolation):
    """Implements :class:`~tenancy_core.contract.IsolationStrategy`.

    The tenant's schema alone is the search path of each of its transactions, so that a table which
    is not there is an error and never another schema's. With one role for all tenants that
    separates names, not rights: ``schema_roles`` adds the rights.

    Attributes:
        name: ``schema``.
    """

    name = "schema"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        metadata = self._metadata if self._metadata is not None else MetaData()
        self._tables = tenant_tables(metadata)
        self._shared_tables = shared_tables(metadata)
        self._script = creation_script(metadata, self._tables)
        self._shared_made = not self._shared_tables

    def _is_tagged(self) -> bool:
        choice = self._settings.statement_tag
        return choice == "always" or (choice == "auto" and has_own_types(self._metadata))

    # -- sessions ------------------------------------------------------------------------------

    def _options(self, tenant: Tenant, *, read_only: bool) -> Mapping[str, Any]:
        place = tenant.placement.name
        quoted = quote_identifier(place)
        settings = f"SET LOCAL search_path={quoted}" + self._ride_along(tenant)
        if self._settings.schema_roles:
            settings += f";SET LOCAL ROLE {quoted}"
        tag = f" /* {place} */" if self._is_tagged() else ""
        return MappingProxyType({SCOPE: Scope(settings, read_only, tag, place)})

    async def _is_missing(self, place: str) -> bool:
        async with self._administering() as connection:
            found = await connection.execute(_COMMENT, {"name": quote_identifier(place)})
            return not found.one().is_there

    # -- the place -----------------------------------------------------------------------------

    async def provision(self, tenant: Tenant, /) -> None:
        """See the contract. What is new is made in one message, which is one transaction.

        Raises:
            IdentifierCollision: The schema is there, and is not this tenant's.
            ConfigurationError: The role may not create it.
        """
        require_own(tenant, self.name)
        await self._make_shared()
        try:
            async with self._administering() as connection:
                await _run(connection, self._creation(tenant))
        except asyncpg.InsufficientPrivilegeError as error:
            raise self._lacks_rights() from error
        except asyncpg.PostgresError as error:
            if error.sqlstate not in _THERE:
                raise
            await self._complete(tenant)

    def _creation(self, tenant: Tenant) -> str:
        place = quote_identifier(tenant.placement.name)
        return ";\n".join(
            part
            for part in (
                self._locking(tenant),
                self._role_creation(place) if self._settings.schema_roles else "",
                f"CREATE SCHEMA {place}",
                f"COMMENT ON SCHEMA {place} IS {quote_literal(_mark(tenant))}",
                f"SET LOCAL search_path={place}",
                self._script,
                self._grants(place),
            )
            if part
        )

    def _locking(self, tenant: Tenant) -> str:
        """Return what makes two of them wait for one another; two GRANTs at once would fail."""
        patience = round(self._config.database_pool_timeout * 1000)
        key = int.from_bytes(tenant.id.bytes[:4], "big", signed=True)
        return (
            f"SET LOCAL lock_timeout={patience};\n"
            f"SELECT pg_catalog.pg_advisory_xact_lock({LOCK_TENANT},{key})"
        )

    def _role_creation(self, place: str) -> str:
        grant = f"GRANT {place} TO {quote_identifier(self.tenants.role)}"
        if self.tenants.version >= 160_000:  # noqa: PLR2004 - where a membership can be limited
            grant += " WITH INHERIT FALSE, SET TRUE"
        return f"CREATE ROLE {place} NOLOGIN;\n{grant}"

    def _grants(self, place: str) -> str:
        role = place if self._settings.schema_roles else quote_identifier(self.tenants.role)
        if not self._settings.schema_roles and self.tenants.role == self.admin.role:
            return ""
        rights = {
            "TABLES": "SELECT, INSERT, UPDATE, DELETE",
            "SEQUENCES": "USAGE, SELECT, UPDATE",
        }
        return ";\n".join(
            (
                f"GRANT USAGE ON SCHEMA {place} TO {role}",
                *(
                    f"GRANT {given} ON ALL {kind} IN SCHEMA {place} TO {role}"
                    for kind, given in rights.items()
                ),
                *(
                    # What a migration adds later.
                    f"ALTER DEFAULT PRIVILEGES IN SCHEMA {place} GRANT {given} ON {kind} TO {role}"
                    for kind, given in rights.items()
                ),
            )
        )

    def _lacks_rights(self) -> ConfigurationError:
        more = " and CREATEROLE" if self._settings.schema_roles else ""
        return ConfigurationError(
            f"The role {self.admin.role!r} of {self._admin_setting} may not make a tenant's "
            f"schema: it needs CREATE on the database {self.admin.database!r}{more}. Run, as its "
            f"owner: GRANT CREATE ON DATABASE {quote_identifier(self.admin.database)} TO "
            f"{quote_identifier(self.admin.role)}; or name another role in "
            "TENANCY_POSTGRES_ADMIN_URL."
        )

    async def _complete(self, tenant: Tenant) -> None:
        """Add what is missing in a schema that is there already."""
        place = quote_identifier(tenant.placement.name)
        async with self._locked(tenant) as connection:
            await self._require_own_schema(connection, tenant)
            if self._settings.schema_roles:
                found = await connection.execute(_ROLE_THERE, {"name": tenant.placement.name})
                if found.first() is None:
                    await _run(connection, self._role_creation(place))
            await connection.execute(_SET_SEARCH_PATH, {"path": place})
            await connection.run_sync(self._make_missing_tables)
            if grants := self._grants(place):
                await _run(connection, grants)

    @asynccontextmanager
    async def _locked(self, tenant: Tenant) -> AsyncGenerator[AsyncConnection, None]:
        async with self._administering() as connection:
            # By SQLAlchemy, so that a transaction begins; the rest is in the same one.
            for statement in self._locking(tenant).split(";\n"):
                await connection.exec_driver_sql(statement)
            yield connection

    def _make_missing_tables(self, connection: Connection) -> None:
        if self._metadata is not None:
            self._metadata.create_all(connection, tables=self._tables)

    async def _require_own_schema(self, connection: AsyncConnection, tenant: Tenant) -> bool:
        name = quote_identifier(tenant.placement.name)
        found = (await connection.execute(_COMMENT, {"name": name})).one()
        if found.is_there and found.mark != _mark(tenant):
            raise IdentifierCollision(
                f"There is a schema {tenant.placement.name!r} that was not made for tenant "
                f"{tenant.identifier!r}; nothing in it was touched."
            )
        return bool(found.is_there)

    async def exists(self, tenant: Tenant, /) -> bool:
        """See the contract."""
        require_own(tenant, self.name)
        async with self._administering() as connection:
            return await self._require_own_schema(connection, tenant)

    async def destroy(self, tenant: Tenant, /) -> None:
        """See the contract.

        Raises:
            BackendUnavailable: A session of the tenant was open for longer than the pool's
                time-out; nothing was removed.
        """
        require_own(tenant, self.name)
        place = quote_identifier(tenant.placement.name)
        async with self._locked(tenant) as connection:
            if await self._require_own_schema(connection, tenant):
                await _run(connection, f"DROP SCHEMA {place} CASCADE")
            if self._settings.schema_roles:
                found = await connection.execute(_ROLE_THERE, {"name": tenant.placement.name})
                if found.first() is not None:
                    await _run(connection, f"DROP ROLE {place}")

    # -- what all tenants share ----------------------------------------------------------------

    async def _make_shared(self) -> None:
        """Make the shared tables that are missing; once for each process."""
        if self._shared_made or self._metadata is None:
            return
        async with self._administering() as connection:
            await connection.exec_driver_sql(
                f"SELECT pg_catalog.pg_advisory_xact_lock({LOCK_PROVISION[0]},{LOCK_PROVISION[1]})"
            )
            schemas = sorted({table.schema for table in self._shared_tables if table.schema})
            for schema in schemas:
                await connection.exec_driver_sql(
                    f"CREATE SCHEMA IF NOT EXISTS {quote_identifier(schema)}"
                )
            await connection.run_sync(self._make_missing_shared_tables)
        self._shared_made = True

    def _make_missing_shared_tables(self, connection: Connection) -> None:
        assert self._metadata is not None  # noqa: S101 - as its caller saw
        self._metadata.create_all(connection, tables=self._shared_tables)


def _mark(tenant: Tenant) -> str:
    return f"tenancy {tenant.id}"


async def _run(connection: AsyncConnection, script: str) -> None:
    """Send several statements in one message."""
    raw = await connection.get_raw_connection()
    driver: Any = raw.driver_connection
    await driver.execute(script)
