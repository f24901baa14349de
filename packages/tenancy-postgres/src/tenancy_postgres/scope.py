"""What a transaction of one tenant begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["SCOPE", "Scope", "scope_of"]

SCOPE: Final = "tenancy_postgres_scope"
"""Execution option: the :class:`Scope` of everything that runs on a connection."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which tenant a session is, in PostgreSQL's words.

    Attributes:
        settings: ``SET LOCAL …;SET LOCAL …``: what makes the transaction the tenant's.
        read_only: Whether it only reads.
        tag: A comment for the text of each statement, or nothing. The driver keeps a prepared
            statement by its text; tenants whose types differ must not share one.
        place: The tenant's schema, for errors; None where there is none of its own.
    """

    settings: str
    read_only: bool = False
    tag: str = ""
    place: str | None = None


def scope_of(connection: Connection) -> Scope | None:
    """Return the scope that a connection was given."""
    scope: Scope | None = connection.get_execution_options().get(SCOPE)
    return scope
