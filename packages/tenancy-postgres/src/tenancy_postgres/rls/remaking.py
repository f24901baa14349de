"""Keys and indexes as they would be with the tenant, as SQL text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from tenancy_postgres.quoting import quote_identifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Row

__all__ = ["remade_foreign_key", "remade_index"]

_LIST: Final = re.compile(r"USING \w+ \(")
_REFERENCES: Final = re.compile(r"FOREIGN KEY \((.*?)\) REFERENCES (.*?)\((.*?)\)(.*)", re.DOTALL)
_EMPTIES: Final = re.compile(r"ON DELETE SET (?:NULL|DEFAULT)(?! \()")


def remade_index(row: Row[Any], column: str) -> Sequence[str]:
    """Return what makes an index anew, or the constraint that it serves, led by the tenant.

    Args:
        row: Has ``name``, ``index`` and ``holder`` (with their schema, quoted), ``definition``,
            ``is_exclusion``, and ``body`` of the constraint, which is None where there is none.
        column: The tenant's.
    """
    tenant = quote_identifier(column)
    if row.body is None:
        bare = _without(row.definition, tenant)
        made = _LIST.sub(lambda found: f"{found.group()}{tenant}, ", bare, count=1)
        return [f"DROP INDEX {row.index}", made]
    before, _, columns = _without(row.body, tenant).partition("(")
    compared = " WITH =" if row.is_exclusion else ""
    # By itself gist does not know how to compare what is no range.
    needs = ["CREATE EXTENSION IF NOT EXISTS btree_gist"] if "USING gist" in before else []
    return [*needs, _replaced(row, f"{before}({tenant}{compared}, {columns}")]


def remade_foreign_key(row: Row[Any], column: str) -> Sequence[str]:
    """Return what makes a foreign key anew, with the tenant on both sides.

    Args:
        row: Has ``name``, ``holder``, ``body``, and ``referred``, the tenant's column there.
        column: The tenant's.
    """
    match = _REFERENCES.fullmatch(row.body)
    if match is None:
        return []
    own, target, others, rest = match.groups()
    # Without a list of columns the tenant would be emptied as well.
    rest = _EMPTIES.sub(lambda found: f"{found.group()} ({own})", rest)
    made = (
        f"FOREIGN KEY ({quote_identifier(column)}, {own}) "
        f"REFERENCES {target}({row.referred}, {others}){rest}"
    )
    return [_replaced(row, made)]


def _replaced(row: Row[Any], made: str) -> str:
    name = quote_identifier(row.name)
    return f"ALTER TABLE {row.holder} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} {made}"


def _without(text: str, tenant: str) -> str:
    """Return an index without the tenant in another place than the first."""
    names = "|".join(map(re.escape, (tenant, tenant[1:-1])))
    return re.sub(rf", (?:{names})(?=[,)])", "", text, count=1)
