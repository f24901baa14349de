"""Row policies as SQL text: what makes a table show each tenant its own rows, and nobody else any.

Nothing here talks to a database. ``roles`` are those of tenants' sessions; everybody else, the
owner of a table included, sees no rows, because no policy is for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import Sequence as DatabaseSequence
from sqlalchemy import Uuid

from tenancy_core.sql.scoped import scope_column
from tenancy_postgres.quoting import quote_identifier, quote_literal, quote_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Table

__all__ = [
    "ACCESS",
    "FLOOR",
    "access_statements",
    "grant_statements",
    "policy_expression",
    "protection_statements",
    "removal_statements",
]

ACCESS: Final = "tenancy_access"
"""Name of the policy that lets a tenant reach its rows."""

FLOOR: Final = "tenancy_floor"
"""Name of the restrictive policy: whatever others a table has, they do not reach below it."""

_SERIALS: Final = """DO $tenancy$
DECLARE found record;
BEGIN
  FOR found IN
    SELECT n.nspname, c.relname
      FROM pg_catalog.pg_depend AS d
      JOIN pg_catalog.pg_class AS c ON c.oid = d.objid AND c.relkind = 'S'
      JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
     WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
       AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
       AND d.refobjid = {table}::pg_catalog.regclass
       AND d.deptype = 'a'
  LOOP
    EXECUTE pg_catalog.format('GRANT USAGE ON SEQUENCE %I.%I TO ', found.nspname, found.relname)
      || {roles};
  END LOOP;
END
$tenancy$"""
"""Rights on the sequences of SERIAL columns, whose names the server chose. IDENTITY needs none."""


def policy_expression(table: Table, setting: str) -> str:
    """Return the condition for the rows of the tenant in a setting.

    The setting is read once for each statement, in a subquery without a reference to the table, and
    it is what is cast: a cast or a function on the column would make every index useless. Unset and
    empty both match nothing.

    Args:
        table: One that has a tenant.
        setting: The configuration's ``rls_setting``.

    Raises:
        ValueError: All tenants share the table.
    """
    column = scope_column(table)
    if column is None:
        raise ValueError(f"Table {table.fullname!r} has no tenant.")
    name = quote_identifier(column.name)
    value = f"current_setting({quote_literal(setting)}, true)"
    if isinstance(column.type, Uuid):
        return f"{name} = (select nullif({value}, '')::uuid)"
    return f"{name} = (select {value}) AND {name} <> ''"


def protection_statements(table: Table, roles: Sequence[str], setting: str) -> list[str]:
    """Return what switches row-level security on, also for the owner, and makes both policies.

    Args:
        table: One that has a tenant.
        roles: Of tenants' sessions.
        setting: The configuration's ``rls_setting``.
    """
    name = quote_table(table)
    return [
        f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY",
        *access_statements(table, roles, setting),
    ]


def access_statements(table: Table, roles: Sequence[str], setting: str) -> list[str]:
    """Return what makes the two policies of a table.

    Args:
        table: One that has a tenant.
        roles: Of tenants' sessions.
        setting: The configuration's ``rls_setting``.
    """
    expression = policy_expression(table, setting)
    return [
        f"CREATE POLICY {policy} ON {quote_table(table)} AS {kind} FOR ALL TO {_list(roles)} "
        f"USING ({expression}) WITH CHECK ({expression})"
        for policy, kind in ((ACCESS, "PERMISSIVE"), (FLOOR, "RESTRICTIVE"))
    ]


def removal_statements(table: Table) -> list[str]:
    """Return what removes the two policies of a table. Row-level security stays on."""
    return [f"DROP POLICY IF EXISTS {policy} ON {quote_table(table)}" for policy in (ACCESS, FLOOR)]


def grant_statements(table: Table, roles: Sequence[str]) -> list[str]:
    """Return the rights that tenants' sessions need on a table. They can be run again.

    Not TRUNCATE, which no policy restrains; nor REFERENCES and TRIGGER, which reach around them.
    What all tenants share they read: writing to it is for the application to grant.

    Args:
        table: Any.
        roles: Of tenants' sessions.
    """
    scoped = scope_column(table) is not None
    rights = "SELECT, INSERT, UPDATE, DELETE" if scoped else "SELECT"
    name = quote_table(table)
    statements = [f"GRANT {rights} ON TABLE {name} TO {_list(roles)}"]
    if scoped:
        statements.append(
            _SERIALS.format(table=quote_literal(name), roles=quote_literal(_list(roles)))
        )
        statements += [
            f"GRANT USAGE ON SEQUENCE {_sequence_name(column.default, table)} TO {_list(roles)}"
            for column in table.columns
            if isinstance(column.default, DatabaseSequence)
        ]
    return statements


def _sequence_name(sequence: DatabaseSequence, table: Table) -> str:
    name, schema = quote_identifier(sequence.name), sequence.schema or table.schema
    return name if schema is None else f"{quote_identifier(schema)}.{name}"


def _list(roles: Sequence[str]) -> str:
    return ", ".join(map(quote_identifier, roles))
