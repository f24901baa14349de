"""Names and values inside SQL text that no driver quotes: ``BEGIN; SET LOCAL …`` and DDL."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Table

__all__ = ["quote_identifier", "quote_literal", "quote_setting", "quote_table"]


def quote_identifier(name: str) -> str:
    """Return a name in double quotes, whatever is in it.

    Raises:
        ValueError: It is empty or holds a NUL, which PostgreSQL has no form for.
    """
    if not name or "\0" in name:
        raise ValueError("A PostgreSQL name is not empty and holds no NUL.")
    return '"' + name.replace('"', '""') + '"'


def quote_setting(name: str) -> str:
    """Return the name of a setting with a class, ``app.tenant_id``, each part in double quotes."""
    return ".".join(map(quote_identifier, name.split(".")))


def quote_table(table: Table) -> str:
    """Return the name of a table, with its schema if it names one."""
    name = quote_identifier(table.name)
    return name if table.schema is None else f"{quote_identifier(table.schema)}.{name}"


def quote_literal(value: str) -> str:
    """Return a text in single quotes; right under both values of standard_conforming_strings.

    Raises:
        ValueError: It holds a NUL, which PostgreSQL has no form for.
    """
    if "\0" in value:
        raise ValueError("A PostgreSQL text holds no NUL.")
    quoted = "'" + value.replace("'", "''") + "'"
    if "\\" not in value:
        return quoted
    # A backslash is a plain character in '…' or an escape, as a setting says; in E'…' it is one.
    return "E" + quoted.replace("\\", "\\\\")
