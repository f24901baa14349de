"""The comment in the database that says whose a place is, whatever the place is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tenancy_core.tenant import Tenant

__all__ = ["MARK", "mark_of"]

MARK: Final = "tenancy "
"""What the comment on every tenant's place begins with."""


def mark_of(tenant: Tenant) -> str:
    """Return the comment on the place of one tenant."""
    return f"{MARK}{tenant.id}"
