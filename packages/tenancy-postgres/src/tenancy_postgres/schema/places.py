"""Tenants' schemas: made in one message, completed, recognised, removed."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from sqlalchemy import MetaData, inspect, text
from sqlalchemy.exc import DBAPIError

from tenancy_core.errors import ConfigurationError, IdentifierCollision
from tenancy_core.sql.postgres import LOCK_PROVISION, LOCK_TENANT
from tenancy_postgres.administering import LONGEST
from tenancy_postgres.ddl import creation_script, shared_tables, tenant_tables
from tenancy_postgres.making import (
    lacks_rights,
    make_missing_schemas,
    may_not_make,
    rights_on_coming,
    rights_on_existing,
    wait_for_others,
)
from tenancy_postgres.marks import mark_of
from tenancy_postgres.quoting import quote_identifier, quote_literal, quote_table

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from sqlalchemy import Connection, Table
    from sqlalchemy.ext.asyncio import AsyncConnection

    from tenancy_core.tenant import Tenant
    from tenancy_postgres.server import ServerFacts

__all__ = ["SchemaPlaces"]

_THERE: Final = frozenset({"42P06", "42710", "23505", "42939"})
"""Somebody made the schema, or the role, already: duplicate_schema, duplicate_object, the
unique_violation that CREATE SCHEMA raises where two do it at once, and reserved_name."""

_COMMENT: Final = text(
    """
    SELECT n.oid IS NOT NULL AS is_there, pg_catalog.obj_description(n.oid, 'pg_namespace') AS mark
      FROM (SELECT pg_catalog.to_regnamespace(:name)::oid AS oid) AS n
    """
)
_ROLE_THERE: Final = text("SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = :name")
_SET_SEARCH_PATH: Final = text("SELECT pg_catalog.set_config('search_path', :path, true)")

_ONE_BY_ONE: Final = (
    f"SELECT pg_catalog.pg_advisory_xact_lock({LOCK_PROVISION[0]},{LOCK_PROVISION[1]})"
)
"""Of two that change the rights on one table at once, the server refuses one (XX000). Whoever holds
a tenant's lock may wait for this one, and nobody the other way round."""

_MEMBERSHIP_OPTIONS: Final = 160_000
"""From this version on a membership can give the right to become a role without its rights."""


class SchemaPlaces:
    """Makes and removes tenants' schemas, as a role that may.

    Args:
        administering: Opens a transaction of that role.
        metadata: The application's tables; None if it makes them itself.
        roles: Whether each tenant has a role of its own.
        admin_setting: The variable that names the role, for messages.
        patience: Seconds to wait for whoever is at work on the same tenant.
        dialect: Attributes for the dialect that compiles the tables.
    """

    def __init__(
        self,
        administering: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        metadata: MetaData | None,
        *,
        roles: bool,
        admin_setting: str,
        patience: float,
        dialect: Mapping[str, Any],
    ) -> None:
        self._administering = administering
        self._metadata = metadata if metadata is not None else MetaData()
        self._roles = roles
        self._admin_setting = admin_setting
        self._patience = patience
        self._tables = tenant_tables(self._metadata)
        self._shared = shared_tables(self._metadata)
        self._shared_schemas = sorted({table.schema for table in self._shared if table.schema})
        self._script = creation_script(self._metadata, self._tables, **dialect)
        self._shared_made = not self._shared

    def know(self, tenants: ServerFacts, admin: ServerFacts) -> None:
        """Take what is known of the two roles; before anything else is called."""
        self._role = tenants.role
        self._admin = admin

    # -- making --------------------------------------------------------------------------------

    async def provision(self, tenant: Tenant) -> None:
        """Make the schema with its tables, or complete one that is there.

        Raises:
            IdentifierCollision: The schema is there, and is not this tenant's.
            ConfigurationError: The role may not create it.
        """
        try:
            await self._make_shared()
            async with self._administering() as connection:
                await _run(connection, self._creation(tenant))
        except asyncpg.InsufficientPrivilegeError as error:
            raise self._lacks_rights() from error
        except asyncpg.PostgresError as error:
            if error.sqlstate not in _THERE:
                raise
            try:
                await self._complete(tenant)
            except (DBAPIError, asyncpg.PostgresError) as refusal:
                if not lacks_rights(refusal):
                    raise
                raise self._is_not_owner(tenant) from refusal

    def _creation(self, tenant: Tenant) -> str:
        place = quote_identifier(tenant.placement.name)
        return ";\n".join(
            part
            for part in (
                self._locking(tenant),
                self._role_creation(place) if self._roles else "",
                f"CREATE SCHEMA {place}",
                f"COMMENT ON SCHEMA {place} IS {quote_literal(mark_of(tenant))}",
                self._rights(tenant),
                f"SET LOCAL search_path={place}",
                self._script,
                # Last: everybody else waits from here to the end of the transaction.
                self._reading(place) if self._roles else "",
            )
            if part
        )

    def _locking(self, tenant: Tenant) -> str:
        """Return what makes two of them wait for one another; two GRANTs at once would fail."""
        patience = round(self._patience * 1000)
        key = int.from_bytes(tenant.id.bytes[:4], "big", signed=True)
        return (
            f"SET LOCAL lock_timeout={patience};\n"
            f"SELECT pg_catalog.pg_advisory_xact_lock({LOCK_TENANT},{key})"
        )

    def _role_creation(self, place: str) -> str:
        grant = f"GRANT {place} TO {quote_identifier(self._role)}"
        if self._admin.version >= _MEMBERSHIP_OPTIONS:
            grant += " WITH INHERIT FALSE, SET TRUE"
        return f"CREATE ROLE {place} NOLOGIN;\n{grant}"

    def _rights(self, tenant: Tenant, *, existing: bool = False) -> str:
        """Return what gives the sessions' role its rights; before the tables, unless they exist."""
        place = tenant.placement.name
        role = place if self._roles else self._role
        if role == self._admin.role:
            return ""
        lines = rights_on_coming(place, role)
        if existing:
            lines += rights_on_existing(place, role)
        return ";\n".join(lines)

    def _reading(self, place: str) -> str:
        """Return what lets the tenant's own role read what all tenants share."""
        grants = _reading_grants(self._shared, self._shared_schemas, place)
        return f"{_ONE_BY_ONE};\n{grants}" if grants else ""

    def _lacks_rights(self) -> ConfigurationError:
        role = quote_identifier(self._admin.role)
        more, run = "", ""
        if self._roles:
            more = " and, as TENANCY_POSTGRES_SCHEMA_ROLES is on, CREATEROLE"
            run = f"; and, as a superuser: ALTER ROLE {role} CREATEROLE"
        return ConfigurationError(
            f"The role {self._admin.role!r} of {self._admin_setting} may not make a tenant's "
            f"schema: it needs CREATE on the database {self._admin.database!r}{more}. Run, as its "
            f"owner: GRANT CREATE ON DATABASE {quote_identifier(self._admin.database)} TO {role}"
            f"{run}; or name another role in TENANCY_POSTGRES_ADMIN_URL."
        )

    def _is_not_owner(self, tenant: Tenant) -> ConfigurationError:
        place = tenant.placement.name
        return ConfigurationError(
            f"The role {self._admin.role!r} of {self._admin_setting} may not complete the schema "
            f"{place!r}, which is there: it has to own it. Run, as a superuser: ALTER SCHEMA "
            f"{quote_identifier(place)} OWNER TO {quote_identifier(self._admin.role)}; or name the "
            "role that owns it in TENANCY_POSTGRES_ADMIN_URL."
        )

    async def _complete(self, tenant: Tenant) -> None:
        """Add what is missing in a schema that is there already."""
        place = quote_identifier(tenant.placement.name)
        async with self._locked(tenant) as connection:
            await self._require_own_schema(connection, tenant)
            if self._roles and not await _is_role(connection, tenant.placement.name):
                await _run(connection, self._role_creation(place))
            await connection.execute(_SET_SEARCH_PATH, {"path": place})
            await connection.run_sync(self._make_missing_tables)
            if rights := self._rights(tenant, existing=True):
                await _run(connection, rights)
            if self._roles and (reading := self._reading(place)):
                await _run(connection, reading)

    @asynccontextmanager
    async def _locked(self, tenant: Tenant) -> AsyncGenerator[AsyncConnection, None]:
        async with self._administering() as connection:
            # By SQLAlchemy, so that a transaction begins; the rest is in the same one.
            for statement in self._locking(tenant).split(";\n"):
                await connection.exec_driver_sql(statement)
            yield connection

    def _make_missing_tables(self, connection: Connection) -> None:
        self._metadata.create_all(connection, tables=self._tables)

    async def _require_own_schema(self, connection: AsyncConnection, tenant: Tenant) -> bool:
        name = quote_identifier(tenant.placement.name)
        found = (await connection.execute(_COMMENT, {"name": name})).one()
        if found.is_there and found.mark != mark_of(tenant):
            raise IdentifierCollision(
                f"There is a schema {tenant.placement.name!r} that was not made for tenant "
                f"{tenant.identifier!r}; nothing in it was touched."
            )
        return bool(found.is_there)

    # -- looking, removing -------------------------------------------------------------------

    async def is_there(self, name: str) -> bool:
        """Whether there is a schema of that name."""
        async with self._administering() as connection:
            found = await connection.execute(_COMMENT, {"name": quote_identifier(name)})
            return bool(found.one().is_there)

    async def has_role(self, name: str) -> bool:
        """Whether there is a role of that name."""
        async with self._administering() as connection:
            return await _is_role(connection, name)

    async def exists(self, tenant: Tenant) -> bool:
        """Whether the tenant's schema is there.

        Raises:
            IdentifierCollision: A schema of its name is, and is not this tenant's.
        """
        async with self._administering() as connection:
            return await self._require_own_schema(connection, tenant)

    async def destroy(self, tenant: Tenant) -> None:
        """Remove the schema, and the role if there is one.

        Raises:
            BackendUnavailable: A session of the tenant was open for longer than the patience;
                nothing was removed.
            IdentifierCollision: The schema is not this tenant's.
        """
        place = quote_identifier(tenant.placement.name)
        async with self._locked(tenant) as connection:
            if await self._require_own_schema(connection, tenant):
                await _run(connection, f"DROP SCHEMA {place} CASCADE")
            if self._roles and await _is_role(connection, tenant.placement.name):
                # Its rights on what all tenants share go first.
                revokes = _reading_revokes(self._shared, self._shared_schemas, place)
                await _run(connection, f"{_ONE_BY_ONE};\n{revokes}DROP ROLE {place}")

    # -- what all tenants share ----------------------------------------------------------------

    async def _make_shared(self) -> None:
        """Make the shared tables that are missing; once for each process.

        Raises:
            BackendUnavailable: Another process was at it for longer than the patience.
            ConfigurationError: The role may not.
        """
        if self._shared_made:
            return
        async with self._administering() as connection:
            await wait_for_others(connection, self._patience)
            try:
                await connection.run_sync(self._make_missing_shared)
            except DBAPIError as error:
                if not lacks_rights(error):
                    raise
                raise may_not_make(self._shared, self._admin, self._role) from error
        self._shared_made = True

    def _make_missing_shared(self, connection: Connection) -> None:
        make_missing_schemas(connection, self._shared)
        looking = inspect(connection)
        missing = [
            table
            for table in self._shared
            if not looking.has_table(table.name, schema=table.schema)
        ]
        self._metadata.create_all(connection, tables=missing)
        if missing and self._role != self._admin.role:
            # Writing to what all tenants read is for the application to grant.
            schemas = sorted({table.schema for table in missing if table.schema})
            role = quote_identifier(self._role)
            for grant in _reading_grants(missing, schemas, role).split(";\n"):
                connection.exec_driver_sql(grant)


def _reading_grants(tables: Sequence[Table], schemas: Sequence[str], role: str) -> str:
    if not tables:
        return ""
    return (
        f"GRANT USAGE ON SCHEMA {', '.join(map(quote_identifier, schemas))} TO {role};\n"
        f"GRANT SELECT ON {', '.join(map(quote_table, tables))} TO {role}"
    )


def _reading_revokes(tables: Sequence[Table], schemas: Sequence[str], role: str) -> str:
    if not tables:
        return ""
    return (
        f"REVOKE ALL ON {', '.join(map(quote_table, tables))} FROM {role};\n"
        f"REVOKE ALL ON SCHEMA {', '.join(map(quote_identifier, schemas))} FROM {role};\n"
    )


async def _is_role(connection: AsyncConnection, name: str) -> bool:
    return (await connection.execute(_ROLE_THERE, {"name": name})).first() is not None


async def _run(connection: AsyncConnection, script: str) -> None:
    """Send several statements in one message."""
    raw = await connection.get_raw_connection()
    driver: Any = raw.driver_connection
    await driver.execute(script, timeout=LONGEST)
