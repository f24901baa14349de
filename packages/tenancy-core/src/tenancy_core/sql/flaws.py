"""Where keys of an application's tables reach across tenants, which no row policy prevents.

The database looks at all rows when it checks a unique key, a foreign key or an exclusion: one that
does not hold the tenant tells whether another tenant has a value, and a cascade can delete its row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ForeignKeyConstraint,
    PrimaryKeyConstraint,
    UnaryExpression,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlalchemy.exc import CompileError, NoReferenceError
from sqlalchemy.sql.expression import ColumnClause
from sqlalchemy.sql.operators import asc_op, desc_op, nulls_first_op, nulls_last_op

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
        yield _without_tenant(table)
    if scope is not None:
        if is_global(table):
            yield (
                f"Table {table.fullname!r} is both: its rows belong to tenants, by its column "
                f"{scope.name!r}, and all tenants share them, by info=GLOBAL. Drop one of the two."
            )
        yield from _open_keys(table, scope)
    for constraint in _sorted(table.foreign_key_constraints):
        yield from _open_reference(table, scope, constraint)


def _without_tenant(table: Table) -> str:
    shared = 'info=GLOBAL (__table_args__ = {"info": GLOBAL}).'
    if any(column.name == TENANT_COLUMN for column in table.columns):
        return (
            f"Table {table.fullname!r} has a column {TENANT_COLUMN!r} which is not tenancy's, so "
            "it has no tenant. If it says whose a row is, leave it to TenantScoped, without a "
            "column of that name in the class, or make it with tenant_column(); if all tenants "
            f"share the table, say {shared}"
        )
    return (
        f"Table {table.fullname!r} has no tenant. If its rows belong to tenants, use "
        f"TenantScoped or tenant_column(); if all tenants share them, say {shared}"
    )


def _open_keys(table: Table, scope: Column[Any]) -> Iterator[str]:
    if len(table.primary_key.columns) and scope not in {*table.primary_key.columns}:
        yield _open(table, "primary key", _names(table.primary_key), "Put the tenant first in it.")
    for constraint in _sorted(table.constraints):
        if isinstance(constraint, PrimaryKeyConstraint) or is_global(constraint):
            continue
        if isinstance(constraint, UniqueConstraint) and scope not in {*constraint.columns}:
            yield _open(table, "unique constraint", _names(constraint), _UNIQUE)
        if isinstance(constraint, ExcludeConstraint) and not _excludes(constraint, scope):
            yield _open(table, "exclusion", _excluded(constraint), _EXCLUDE)
    for index in sorted(table.indexes, key=lambda one: str(one.name)):
        if index.unique and not is_global(index) and not _holds(index, scope):
            names = ", ".join(map(_written, index.expressions))
            yield _open(table, "unique index", names, _UNIQUE)


_ORDERS = (asc_op, desc_op, nulls_first_op, nulls_last_op)
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
        "could take another's rows along. " + _closed_reference(table, scope)
    )


def _closed_reference(table: Table, scope: Column[Any] | None) -> str:
    if scope is not None:
        return "Use tenant_foreign_key()."
    if is_global(table):
        return "What all tenants share cannot refer to what is one tenant's."
    return (
        "Give this table the tenant too, with tenant_column(), or with TenantScoped in a class "
        "that inherits from no other table's, and use tenant_foreign_key()."
    )


def _holds(index: Index, scope: Column[Any]) -> bool:
    return any(_is_column(expression, scope) for expression in index.expressions)


def _excludes(constraint: ExcludeConstraint, scope: Column[Any]) -> bool:
    return any(
        operator == "=" and _is_column(expression, scope)
        for expression, operator in _elements(constraint)
    )


def _is_column(expression: Any, scope: Column[Any]) -> bool:  # noqa: ANN401 - of many kinds
    """Whether an expression is the column itself: of lower(tenant_id) two may have the same."""
    plain = _unordered(expression)
    if isinstance(plain, ColumnClause):
        # As it is written: column("tenant_id") is it, too.
        return _written(plain) in {scope.name, str(scope)}
    # desc("tenant_id") has the name as a string, and a class cannot name the mixin's column else.
    name = getattr(plain, "element", None)
    return isinstance(name, str) and name == scope.name


def _unordered(expression: Any) -> Any:  # noqa: ANN401 - of many kinds
    while isinstance(expression, UnaryExpression) and expression.modifier in _ORDERS:
        expression = expression.element
    return expression  # pyright: ignore[reportUnknownVariableType]


def _elements(constraint: ExcludeConstraint) -> list[tuple[Any, str]]:
    # Nothing public has the expressions: `operators` calls left(tenant_id, 1) `tenant_id`.
    private: Any = constraint
    return [(expression, operator) for expression, _name, operator in private._render_exprs]  # noqa: SLF001


def _excluded(constraint: ExcludeConstraint) -> str:
    return ", ".join(
        expression.name if isinstance(expression, ColumnClause) else _written(expression)
        for expression, _operator in _elements(constraint)
    )


def _written(expression: Any) -> str:  # noqa: ANN401 - of many kinds
    try:
        return str(expression)
    except CompileError:  # an application's own, which it taught PostgreSQL only
        return type(expression).__name__


def _names(constraint: Any) -> str:  # noqa: ANN401 - of several kinds
    return ", ".join(column.name for column in constraint.columns)


def _sorted(constraints: Any) -> list[Any]:  # noqa: ANN401 - sets of several kinds
    return sorted(constraints, key=lambda one: (_names(one), str(one.name)))
