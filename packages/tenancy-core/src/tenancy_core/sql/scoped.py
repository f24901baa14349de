"""Tables whose rows belong to tenants: their column, their keys, and what is wrong with them.

One model serves every strategy. Under ``rls`` the policies of the database compare the column;
where a tenant has a schema or a file of its own it only repeats what is known there::

    class Note(TenantScoped, Base):
        __tablename__ = "notes"
        __table_args__ = (tenant_unique("title"),)

        id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
        title: Mapped[str]

The tenant is the first part of the key, ``(tenant_id, id)``: ask for a row with
``session.get(Note, {"tenant_id": tenant.id, "id": note_id})``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID  # noqa: TC003 - SQLAlchemy reads the annotation

from sqlalchemy import Column, ForeignKeyConstraint, String, Table, Text, UniqueConstraint, Uuid
from sqlalchemy.exc import DontWrapMixin
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.sql.expression import ColumnElement

from tenancy_core.errors import NoCurrentTenant
from tenancy_core.sql.session import TENANT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import MetaData
    from sqlalchemy.engine.default import DefaultExecutionContext
    from sqlalchemy.sql.compiler import SQLCompiler

    from tenancy_core.tenant import Tenant

__all__ = [
    "DEFAULT_SETTING",
    "GLOBAL",
    "SETTING",
    "TENANT_COLUMN",
    "TenantScoped",
    "has_scoped_tables",
    "is_global",
    "scope_column",
    "tenant_column",
    "tenant_foreign_key",
    "tenant_unique",
]

TENANT_COLUMN: Final = "tenant_id"
"""Name of the column that says whose a row is."""

SETTING: Final = "tenancy_rls_setting"
"""Attribute of a dialect: the name of the setting that a compiled server default reads."""

DEFAULT_SETTING: Final = "app.tenant_id"
"""Its name where the dialect says nothing, as the default of ``rls_setting``."""

_KEY: Final = "tenancy"
_SCOPE: Final = {_KEY: "tenant"}
_KINDS: Final = ("uuid", "text")

GLOBAL: Final[dict[Any, Any]] = {_KEY: "global"}
"""What all tenants share, as it is meant to be: for ``info=`` of a table, a unique constraint or an
index. In a class: ``__table_args__ = {"info": GLOBAL}``."""


class _NoTenantHere(NoCurrentTenant, DontWrapMixin):
    """As its base; SQLAlchemy hands it on as it is."""


class _TenantDefault(ColumnElement[Any]):
    """What the database fills in where a statement does not name the column.

    SQLAlchemy's own statements do name it. This is for SQL that the application writes by hand.
    """

    inherit_cache = True

    def __init__(self, kind: Uuid[UUID] | Text) -> None:
        self.type = kind


@compiles(_TenantDefault)
def _nothing(_element: _TenantDefault, _compiler: SQLCompiler, **_options: Any) -> str:
    return "NULL"


@compiles(_TenantDefault, "postgresql")
def _setting(element: _TenantDefault, compiler: SQLCompiler, **_options: Any) -> str:
    name = getattr(compiler.dialect, SETTING, DEFAULT_SETTING)
    literal = compiler.render_literal_value(name, String())
    # Empty after the first transaction of a connection, where it was unknown before.
    value = f"nullif(current_setting({literal}, true), '')"
    return value if isinstance(element.type, Text) else f"({value})::uuid"


def _tenant_of(context: DefaultExecutionContext) -> Tenant:
    tenant: Tenant | None = context.execution_options.get(TENANT)
    if tenant is None:
        raise _NoTenantHere(
            f"A row without {TENANT_COLUMN} was written outside of a tenant's session, so nobody "
            "knows whose it is. Write it in `async with tenancy.session():`, or give "
            f"{TENANT_COLUMN}."
        )
    return tenant


def _tenant_id(context: DefaultExecutionContext) -> UUID:
    return _tenant_of(context).id


def _tenant_id_text(context: DefaultExecutionContext) -> str:
    return str(_tenant_of(context).id)


class TenantScoped:
    """Mixin for a mapped class whose rows belong to tenants. Put it before the base.

    It adds ``tenant_id`` as the first part of the primary key. The session fills it in.

    The rest of the key is best made by the application, ``mapped_column(primary_key=True,
    default=uuid4)``, which works everywhere. PostgreSQL gives numbers where a column says
    ``mapped_column(Identity(), primary_key=True, insert_sentinel=True)``. SQLite cannot number the
    rows of a key that has several columns. Without ``insert_sentinel=True`` it takes such a table,
    with a number given for each row; but then SQLAlchemy sends PostgreSQL one statement for each
    row, where it would send one for a thousand. Not ``autoincrement=True``, which SQLite refuses,
    and which puts the number before the tenant in the key.

    Attributes:
        tenant_id: Whose the row is.
    """

    tenant_id: Mapped[UUID] = mapped_column(
        Uuid,
        primary_key=True,
        sort_order=-1000,
        default=_tenant_id,
        server_default=_TenantDefault(Uuid()),
        info=_SCOPE,
    )


def tenant_column(
    kind: Literal["uuid", "text"] = "uuid", *, primary_key: bool = True, **options: Any
) -> Column[Any]:
    """Return the tenant's column for a ``Table``, or for a class that cannot have the mixin.

    In a class, ``tenant_id = tenant_column("text")``, without an annotation: for a text key, for a
    mapped dataclass, for a class that inherits its other columns from another table.

    Args:
        kind: ``text`` is for tables that keep the id as text already.
        primary_key: Whether it is part of the primary key.
        **options: For ``Column``.

    Raises:
        ValueError: There is no such kind.
    """
    if kind not in _KINDS:
        raise ValueError(
            f"There is no tenant_column({kind!r}): tenants' ids are UUIDs, which a table keeps as "
            '"uuid" or, where it has text already, as "text".'
        )
    return Column(
        TENANT_COLUMN,
        Uuid() if kind == "uuid" else Text(),
        primary_key=primary_key,
        nullable=False,
        default=_tenant_id if kind == "uuid" else _tenant_id_text,
        server_default=_TenantDefault(Uuid() if kind == "uuid" else Text()),
        info={**_SCOPE},
        **options,
    )


def tenant_foreign_key(
    columns: Sequence[str],
    target: str | type[Any] | Table,
    target_columns: Sequence[str] | None = None,
    **options: Any,
) -> ForeignKeyConstraint:
    """Return a foreign key to a row of the same tenant.

    A foreign key does not look at row policies. Without the tenant in it, a row could point to
    another tenant's, learn that it is there, and be deleted along with it.

    ``ondelete="SET NULL"`` would take the tenant away as well: name the columns, which PostgreSQL
    15 can, ``ondelete="SET NULL (parent_id)"``. Of two such keys in one class, the relationships
    share ``tenant_id``; say so with ``relationship(overlaps="the_other")``.

    Args:
        columns: Those that refer, without the tenant's.
        target: Table that they refer to: its name (with its schema, if any), or its class.
        target_columns: Those that are referred to, without the tenant's. Default: the rest of the
            primary key; ``id`` where only the name is given.
        **options: For ``ForeignKeyConstraint``.
    """
    table = target if isinstance(target, (str, Table)) else _table_of(target)
    if target_columns is None:
        target_columns = (
            ["id"]
            if isinstance(table, str)
            else [one.name for one in table.primary_key if one.name != TENANT_COLUMN]
        )
    name = table if isinstance(table, str) else table.fullname
    return ForeignKeyConstraint(
        [TENANT_COLUMN, *columns],
        [f"{name}.{column}" for column in (TENANT_COLUMN, *target_columns)],
        **options,
    )


def _table_of(model: type[Any]) -> Table:
    table: Table = model.__table__
    return table


def tenant_unique(*columns: str, **options: Any) -> UniqueConstraint:
    """Return a constraint: unique among the rows of one tenant.

    Args:
        *columns: Without the tenant's.
        **options: For ``UniqueConstraint``.
    """
    return UniqueConstraint(TENANT_COLUMN, *columns, **options)


def scope_column(table: Table) -> Column[Any] | None:
    """Return the column that says whose a row is; None if the table has none."""
    for column in table.columns:
        if column.info.get(_KEY) == _SCOPE[_KEY]:
            return column
    return None


def has_scoped_tables(metadata: MetaData) -> bool:
    """Whether there is a table whose rows belong to tenants."""
    return any(scope_column(table) is not None for table in metadata.tables.values())


def is_global(item: Any) -> bool:  # noqa: ANN401 - tables, constraints and indexes have no common base that has `info`
    """Whether a table, constraint or index is declared to be what all tenants share."""
    return bool(item.info.get(_KEY) == GLOBAL[_KEY])
