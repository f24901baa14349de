"""The tables that all tenants are in: made with their policies, judged, and emptied of a tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import delete, literal, select, text, union_all
from sqlalchemy.exc import DBAPIError

from tenancy_core.errors import ConfigurationError, IsolationError
from tenancy_core.sql.scoped import TENANT_COLUMN, scope_column
from tenancy_postgres.making import (
    lacks_rights,
    make_missing_schemas,
    may_not_make,
    wait_for_others,
)
from tenancy_postgres.quoting import quote_identifier, quote_table
from tenancy_postgres.rls.policies import (
    FLOOR,
    grant_statements,
    protection_statements,
)
from tenancy_postgres.rls.strangers import strangers_of
from tenancy_postgres.rls.verification import verify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Delete, MetaData, Select, Table
    from sqlalchemy.ext.asyncio import AsyncConnection

    from tenancy_core.tenant import Tenant
    from tenancy_postgres.rls.verification import Verdict
    from tenancy_postgres.server import ServerFacts

__all__ = ["SharedTables"]

_MAY_USE: Final = text("SELECT pg_catalog.has_schema_privilege(:role, :schema, 'USAGE')")


class SharedTables:
    """The application's tables in one database.

    Args:
        metadata: The application's.
        setting: The configuration's ``rls_setting``.
        patience: Seconds to wait for whoever is at work on the same tables.
    """

    def __init__(self, metadata: MetaData, setting: str, patience: float) -> None:
        self._metadata = metadata
        self._setting = setting
        self._patience = patience

    @property
    def _tables(self) -> list[Table]:
        return list(self._metadata.tables.values())

    async def judge(self, connection: AsyncConnection, role: str) -> list[Verdict]:
        """Look at all tables.

        Args:
            connection: Of the role that makes tables.
            role: Of tenants' sessions.
        """
        return await verify(connection, self._tables, role, self._setting)

    def require_safe(self, verdicts: Sequence[Verdict]) -> None:
        """Refuse tables that are there and do not keep tenants apart.

        Raises:
            ConfigurationError: It names each table, what it lacks and what to run.
        """
        wrong = [verdict for verdict in verdicts if verdict.lacks]
        if not wrong:
            return
        remedies = [line for one in wrong for line in one.remedies]
        raise ConfigurationError(
            "Row-level security does not keep tenants apart in these tables:\n"
            + "\n".join(f"- {one.table.fullname}: {'; '.join(one.lacks)}." for one in wrong)
            + "\nNothing was changed. Put that right"
            + (", as the owner of the tables:\n" if remedies else ".")
            + "\n".join(f"{line};" for line in remedies)
        )

    async def require_no_strangers(
        self, connection: AsyncConnection, verdicts: Sequence[Verdict], role: str
    ) -> None:
        """Refuse tables that look like tenants', and that nobody declared or protected.

        Raises:
            ConfigurationError: It names them.
        """
        known = [number for verdict in verdicts for number in verdict.relations]
        if found := await strangers_of(connection, known, role):
            raise ConfigurationError(
                f"The role {role!r}, or one that it can take, has rights on tables with a column "
                f"{TENANT_COLUMN!r} that have no row-level security, or a policy without "
                f"{FLOOR}, and are not in metadata=: {', '.join(one.name for one in found)}. If "
                "they are the application's, import their modules before Tenancy is made, and have "
                "one MetaData for all; if all tenants share them, declare them there with "
                "info=GLOBAL; if they are somebody else's, take the rights away: "
                + " ".join(f"{one.remedy};" for one in found)
            )

    # -- making --------------------------------------------------------------------------------

    async def make(self, connection: AsyncConnection, role: str, admin: ServerFacts) -> None:
        """Make the tables that are missing, each with its policies in the same transaction.

        Args:
            connection: In a transaction of the role that makes tables.
            role: Of tenants' sessions.
            admin: What is known of the role that makes tables.

        Raises:
            ConfigurationError: A table is there and not safe, or this role may not make one.
        """
        await wait_for_others(connection, self._patience)
        verdicts = await self.judge(connection, role)
        self.require_safe(verdicts)
        missing = [verdict.table for verdict in verdicts if not verdict.is_there]
        if not missing:
            return
        try:
            await connection.run_sync(self._make_missing, missing, role)
        except DBAPIError as error:
            if not lacks_rights(error):
                raise
            raise may_not_make(missing, admin, role) from error
        # Default privileges, event triggers and the like had their say meanwhile.
        self.require_safe(await self.judge(connection, role))

    def _make_missing(self, connection: Connection, missing: Sequence[Table], role: str) -> None:
        schemas = make_missing_schemas(connection, missing)
        self._metadata.create_all(connection, tables=list(missing), checkfirst=True)
        for table in missing:
            if scope_column(table) is not None:
                _run(connection, protection_statements(table, [role], self._setting))
        if any(table.schema is None for table in missing):
            found = connection.exec_driver_sql("SELECT pg_catalog.current_schema()::text")
            schemas.add(found.scalar_one())
        for schema in sorted(schemas):
            if not connection.execute(_MAY_USE, {"role": role, "schema": schema}).scalar_one():
                quoted = quote_identifier(role)
                connection.exec_driver_sql(
                    f"GRANT USAGE ON SCHEMA {quote_identifier(schema)} TO {quoted}"
                )
        for table in missing:
            _run(connection, grant_statements(table, [role]))

    # -- a tenant's rows -----------------------------------------------------------------------

    async def empty(
        self, connection: AsyncConnection, tenant: Tenant, tables: Sequence[Table]
    ) -> None:
        """Delete a tenant's rows: of all tables at once, so that in no order a key is in the way.

        Args:
            connection: In a transaction of the tenant.
            tenant: Whose.
            tables: Those that are there.

        Raises:
            ConfigurationError: The role may not delete.
            IsolationError: Something is left; nothing was deleted.
        """
        scoped = [table for table in tables if scope_column(table) is not None]
        if not scoped:
            return
        # Whatever the tenant's plan says.
        for limit in (f"lock_timeout={round(self._patience * 1000)}", "statement_timeout=0"):
            await connection.exec_driver_sql(f"SET LOCAL {limit}")
        deletions = [
            _deletion(table, tenant).cte(f"tenancy_{number}") for number, table in enumerate(scoped)
        ]
        try:
            await connection.execute(select(literal(1)).add_cte(*deletions))
            rest = union_all(*(_rest(table, tenant) for table in scoped))
            left: set[str] = {*(await connection.execute(rest)).scalars()}
        except DBAPIError as error:
            if not lacks_rights(error):
                raise
            raise ConfigurationError(
                "The role of tenants' sessions may not delete a tenant's rows. Run, as the owner "
                "of the tables: GRANT SELECT, DELETE ON "
                f"{', '.join(map(quote_table, scoped))} TO it."
            ) from error
        if left:
            raise IsolationError(
                f"Rows of tenant {tenant.identifier} are still in {', '.join(sorted(left))} after "
                "they were deleted: a trigger or a rule keeps them. Nothing was removed."
            )


def _run(connection: Connection, statements: Sequence[str]) -> None:
    for statement in statements:
        connection.exec_driver_sql(statement)


def _is_tenants(table: Table, tenant: Tenant) -> Any:  # noqa: ANN401 - a condition
    column = scope_column(table)
    assert column is not None  # noqa: S101 - as its callers saw
    is_text = column.type.python_type is str
    return column == (str(tenant.id) if is_text else tenant.id)


def _deletion(table: Table, tenant: Tenant) -> Delete:
    return delete(table).where(_is_tenants(table, tenant))


def _rest(table: Table, tenant: Tenant) -> Select[str]:
    rows = select(literal(table.fullname)).select_from(table)
    return rows.where(_is_tenants(table, tenant)).limit(1)
