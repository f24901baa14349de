"""The application's tables as SQL text: rendered once, and sent in one message for each tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Enum, create_mock_engine
from sqlalchemy.dialects.postgresql import DOMAIN

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import MetaData, Table

__all__ = ["creation_script", "has_own_types", "shared_tables", "tenant_tables"]


def tenant_tables(metadata: MetaData) -> list[Table]:
    """Return the tables that each tenant has: those without a schema."""
    return [table for table in metadata.sorted_tables if table.schema is None]


def shared_tables(metadata: MetaData) -> list[Table]:
    """Return the tables that all tenants share: those that name a schema."""
    return [table for table in metadata.sorted_tables if table.schema is not None]


def has_own_types(metadata: MetaData | None) -> bool:
    """Whether each tenant has types of its own: a native ENUM or a DOMAIN without a schema.

    True where that is not known, because the application makes its tables itself.
    """
    if metadata is None:
        return True
    return any(
        (isinstance(kind, DOMAIN) or (isinstance(kind, Enum) and kind.native_enum))
        and getattr(kind, "schema", None) is None
        for table in metadata.tables.values()
        for column in table.columns
        for kind in _kinds(column.type)
    )


def _kinds(kind: Any) -> Iterator[Any]:  # noqa: ANN401 - TypeEngine, or what is inside of one
    """Return a type and those that it is made of."""
    yield kind
    for inner in (getattr(kind, "item_type", None), getattr(kind, "impl_instance", None)):
        if inner is not None and inner is not kind:
            yield from _kinds(inner)


def creation_script(metadata: MetaData, tables: Sequence[Table], **dialect: Any) -> str:
    """Return what ``metadata.create_all`` would send, as one text.

    Args:
        metadata: The application's.
        tables: Those of its tables that are to be made.
        **dialect: Attributes for the dialect that compiles it.
    """
    statements: list[str] = []

    def keep(statement: Any, *_args: Any, **_options: Any) -> None:  # noqa: ANN401 - any DDL
        statements.append(str(statement.compile(dialect=engine.dialect)).strip())

    engine = create_mock_engine("postgresql+asyncpg://", keep)
    for name, value in dialect.items():
        setattr(engine.dialect, name, value)
    metadata.create_all(engine, tables=list(tables), checkfirst=False)
    return ";\n".join(statements)
