"""Advisory locks under which tables and tenants' places are made."""

from __future__ import annotations

from typing import Final

__all__ = ["LOCK_LAYOUT", "LOCK_PROVISION", "LOCK_TENANT"]

_NAMESPACE: Final = 0x74656E61
LOCK_LAYOUT: Final = (_NAMESPACE, 1)
"""Advisory lock under which the control tables are made. All of tenancy's have one first key,
``tena``, so that they meet no lock of the application."""
LOCK_PROVISION: Final = (_NAMESPACE, 2)
"""Advisory lock under which what all tenants share is made."""
LOCK_TENANT: Final = _NAMESPACE + 1
"""First key of the advisory lock under which one tenant's place is made or removed; the second
one is derived from the tenant."""
