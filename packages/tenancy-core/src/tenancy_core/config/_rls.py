"""The name of the setting that row policies compare with."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["check_rls_setting"]

_NAME: Final = re.compile(r"[a-z_][a-z0-9_]*\.[a-z_][a-z0-9_]*")
_PART_MAX: Final = 63

_RESERVED: Final = frozenset(
    {
        *("auth_delay", "auto_explain", "isn", "sepgsql"),
        *("plperl", "plpgsql", "plpython", "pltcl"),
        "tenancy",
    }
)
"""First parts that are somebody's own: of PostgreSQL's modules, which reserve them and then refuse
other names (``MarkGUCPrefixReserved`` in its sources), and of tenancy."""


def check_rls_setting(value: str) -> str:
    """Return a setting's name that PostgreSQL takes from anybody, and that nobody else has.

    Raises:
        ValueError: It is no such name.
    """
    if _NAME.fullmatch(value) is None or max(map(len, value.split("."))) > _PART_MAX:
        raise ValueError(
            "is no name for a setting of your own; write two parts of a-z, 0-9 and underscores "
            "with a dot between them, like app.tenant_id"
        )
    first = value.partition(".")[0]
    if first in _RESERVED or first.startswith("pg_"):
        raise ValueError(
            f"starts with {first!r}, which is reserved; start with a word of your own, like "
            "app.tenant_id"
        )
    return value
