"""Where keys of an application's tables reach across tenants, which no row policy prevents.

The database looks at all rows when it checks a unique key, a foreign key or an exclusion: one that
does not hold the tenant tells whether another tenant has a value, and a cascade can delete its row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ForeignKeyConstraint, PrimaryKeyConstraint, UniqueConstraint
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlalchemy.exc import NoReferenceError

from tenancy_core.sql.scoped import TENANT_COLUMN, is_global, scope_column

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Column, Index, MetaData, Table

__all__ = ["flaws_of"]


def flaws_of(metadata: MetaData) -> list[str]:
    """Return what would let tenants that share these tables meet, as sentences.

    Args:
        metadata: The application's.
    """
    return [
        flaw for name in sorted(metadata.tables) for flaw in _flaws_of_table(metadata.tables[name])
    ]


def _flaws_of_table(table: Table) -> Iterator[str]:
    scope = scope_column(table)
    if scope is None and not is_global(table):
        yield (
            f"Table {table.fullname!r} has no tenant. If its rows belong to tenants, use "
            "TenantScoped or tenant_column(); if all tenants share them, say "
            'info=GLOBAL (__table_args__ = {"info": GLOBAL}).'
        )
    if scope is not None:
        yield from _open_keys(table, scope)
    for constraint in _sorted(table.foreign_key_constraints):
        yield from _open_reference(table, scope, constraint)


def _open_keys(table: Table, scope: Column[Any]) -> Iterator[str]:
    if len(table.primary_key.columns) and scope not in {*table.primary_key.columns}:
        yield _open(table, "primary key", _names(table.primary_key), "Put the tenant first in it.")
    for constraint in _sorted(table.constraints):
        if isinstance(constraint, PrimaryKeyConstraint) or is_global(constraint):
            continue
        if isinstance(constraint, UniqueConstraint) and scope not in {*constraint.columns}:
            yield _open(table, "unique constraint", _names(constraint), _UNIQUE)
        if isinstance(constraint, ExcludeConstraint) and not _excludes(constraint, scope):
            yield _open(table, "exclusion", _names(constraint), _EXCLUDE)
    for index in sorted(table.indexes, key=lambda one: str(one.name)):
        if index.unique and not is_global(index) and not _holds(index, scope):
            names = ", ".join(map(str, index.expressions))
            yield _open(table, "unique index", names, _UNIQUE)


_UNIQUE = (
    f"Use tenant_unique(), or put {TENANT_COLUMN!r} first; if it is meant to hold across tenants, "
    "say so with info=GLOBAL."
)
_EXCLUDE = (
    f'Add ("{TENANT_COLUMN}", "="); if it is meant to hold across tenants, say so with info=GLOBAL.'
)


def _open(table: Table, what: str, names: str, remedy: str) -> str:
    return (
        f"The {what} ({names}) of table {table.fullname!r} does not hold the tenant, so one tenant "
        f"can find out what another has. {remedy}"
    )


def _open_reference(
    table: Table, scope: Column[Any] | None, constraint: ForeignKeyConstraint
) -> Iterator[str]:
    names = ", ".join(constraint.column_keys)
    try:
        referred = scope_column(constraint.referred_table)
        pairs = [(element.parent, element.column) for element in constraint.elements]
    except NoReferenceError:
        yield (
            f"The foreign key ({names}) of table {table.fullname!r} refers to something that is "
            "not among the tables. Import its module before Tenancy is made."
        )
        return
    if referred is None or (scope is not None and (scope, referred) in pairs):
        return
    target = constraint.referred_table.fullname
    yield (
        f"The foreign key ({names}) of table {table.fullname!r} refers to {target!r}, whose rows "
        "belong to tenants, and does not hold the tenant on both sides: what one tenant deletes "
        "could take another's rows along. "
        + (
            "Use tenant_foreign_key()."
            if scope is not None
            else "What all tenants share cannot refer to what is one tenant's."
        )
    )


def _holds(index: Index, scope: Column[Any]) -> bool:
    # The column itself: of lower(tenant_id) two tenants may have the same.
    return any(expression is scope for expression in index.expressions)


def _excludes(constraint: ExcludeConstraint, scope: Column[Any]) -> bool:
    operators: dict[str, str] = constraint.operators  # pyright: ignore[reportUnknownMemberType]
    return operators.get(scope.name) == "="


def _names(constraint: Any) -> str:  # noqa: ANN401 - of several kinds
    return ", ".join(column.name for column in constraint.columns)


def _sorted(constraints: Any) -> list[Any]:  # noqa: ANN401 - sets of several kinds
    return sorted(constraints, key=lambda one: (_names(one), str(one.name)))
