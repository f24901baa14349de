"""Making what all tenants of a database share: by one process at a time, as a role that may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import inspect

from tenancy_core.errors import ConfigurationError
from tenancy_core.sql.postgres import LOCK_PROVISION
from tenancy_postgres.quoting import quote_identifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import asyncpg
    from sqlalchemy import Connection, Table
    from sqlalchemy.ext.asyncio import AsyncConnection

    from tenancy_postgres.server import ServerFacts

__all__ = [
    "lacks_rights",
    "make_missing_schemas",
    "may_not_make",
    "rights_on_coming",
    "rights_on_existing",
    "rights_on_own",
    "wait_for_others",
]

_RIGHTS: Final = {"TABLES": "SELECT, INSERT, UPDATE, DELETE", "SEQUENCES": "USAGE, SELECT, UPDATE"}

_OWN: Final = """
    SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCES' ELSE 'TABLES' END AS kind,
           pg_catalog.format('%I.%I', n.nspname, c.relname) AS name
      FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
     WHERE n.nspname OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.text[])
       AND c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p,v,m,f,S}'::"char"[])
       AND pg_catalog.pg_has_role(c.relowner, 'USAGE')
     ORDER BY 1, 2
"""

_LACKS: Final = frozenset({"42501", "3F000"})
"""insufficient_privilege, and invalid_schema_name: no schema of the search path may be used."""


async def wait_for_others(connection: AsyncConnection, patience: float) -> None:
    """Wait for other processes, and keep them waiting until the transaction ends.

    Args:
        connection: In a transaction of the role that makes tables.
        patience: Seconds to wait for this lock, and for each later one of the transaction. What
            takes longer is refused by the server: ``55P03``.
    """
    await connection.exec_driver_sql(f"SET LOCAL lock_timeout={round(patience * 1000)}")
    await connection.exec_driver_sql(
        f"SELECT pg_catalog.pg_advisory_xact_lock({LOCK_PROVISION[0]},{LOCK_PROVISION[1]})"
    )


def make_missing_schemas(connection: Connection, tables: Iterable[Table]) -> set[str]:
    """Make the schemas that tables name and that are not there.

    Args:
        connection: As in :func:`wait_for_others`.
        tables: Any.

    Returns:
        All schemas that they name.
    """
    named = {table.schema for table in tables if table.schema is not None}
    for schema in sorted(named.difference(inspect(connection).get_schema_names())):
        connection.exec_driver_sql(f"CREATE SCHEMA {quote_identifier(schema)}")
    return named


def lacks_rights(error: BaseException) -> bool:
    """Whether the server refused something for want of a right; SQLAlchemy's error or asyncpg's."""
    return getattr(getattr(error, "orig", error), "sqlstate", None) in _LACKS


def may_not_make(tables: Iterable[Table], admin: ServerFacts, role: str) -> ConfigurationError:
    """Return the error for tables that all tenants share, and that cannot be made.

    Args:
        tables: Those that are missing.
        admin: What is known of the role that makes tables.
        role: Of tenants' sessions.
    """
    names = ", ".join(sorted(table.fullname for table in tables))
    maker, database = quote_identifier(admin.role), quote_identifier(admin.database)
    return ConfigurationError(
        f"The role {admin.role!r}, which makes tables, may not make {names} and give the role "
        f"{role!r} its rights on them. Where their schema is not there, run as the owner of the "
        f"database: GRANT CREATE ON DATABASE {database} TO {maker}; where it is there, let that "
        "role own it. Or make the tables with a migration, or name another role in "
        "TENANCY_POSTGRES_ADMIN_URL."
    )


def rights_on_coming(schema: str, role: str) -> list[str]:
    """Return the statements that let a role use what will be made in a schema.

    Run before anything is made, they replace :func:`rights_on_existing`, for which the server reads
    through the tables of all schemas.
    """
    place, grantee = quote_identifier(schema), quote_identifier(role)
    lines = [f"GRANT USAGE ON SCHEMA {place} TO {grantee}"]
    lines += (
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {place} GRANT {rights} ON {kind} TO {grantee}"
        for kind, rights in _RIGHTS.items()
    )
    return lines


def rights_on_existing(schema: str, role: str) -> list[str]:
    """Return the statements that let a role use what is in a schema already."""
    place, grantee = quote_identifier(schema), quote_identifier(role)
    return [
        f"GRANT {rights} ON ALL {kind} IN SCHEMA {place} TO {grantee}"
        for kind, rights in _RIGHTS.items()
    ]


async def rights_on_own(
    driver: asyncpg.Connection[Any], schemas: Sequence[str], role: str
) -> list[str]:
    """Return the statements that let a role use what is in schemas, and is the maker's to give.

    Others' tables there, such as those of an extension, are theirs.

    Args:
        driver: Connected as the role that makes tables.
        schemas: Where they are.
        role: Who is to use them.
    """
    found: dict[str, list[str]] = {}
    for kind, name in await driver.fetch(_OWN, schemas):
        found.setdefault(kind, []).append(name)
    return [
        f"GRANT {_RIGHTS[kind]} ON {kind.removesuffix('S')} {', '.join(names)} TO "
        f"{quote_identifier(role)}"
        for kind, names in found.items()
    ]
