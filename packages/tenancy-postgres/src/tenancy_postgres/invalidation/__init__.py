"""Telling other processes of changes by NOTIFY, and hearing of theirs by LISTEN.

The driver is imported where the bus is used, and not by the checklist beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenancy_postgres.invalidation.bus import PostgresBus

__all__ = ["PostgresBus"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    if name != "PostgresBus":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tenancy_postgres.invalidation.bus import PostgresBus

    return PostgresBus
