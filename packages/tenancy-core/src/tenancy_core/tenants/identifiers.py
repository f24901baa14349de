"""Identifiers that were given up: nobody else gets one before it is released.

A process that has not yet heard of a change knows the old identifier as the tenant that had it.
Were it another's by then, that one's members would be shown the first tenant's data. And a token,
a message in a queue or an identity provider names its tenant for longer than anybody here knows: it
would open the second tenant's data to the first one's members. So it takes a decision.
"""

from __future__ import annotations

import hmac
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from tenancy_core.contract import Reservation
from tenancy_core.errors import TenantExists

if TYPE_CHECKING:
    from uuid import UUID

    from tenancy_core.config import TenancyConfig
    from tenancy_core.contract import StoreTransaction, TenantStore

__all__ = ["Identifiers"]

_CLOCKS: Final = timedelta(minutes=5)
"""How far the clocks of two processes may be apart."""


class Identifiers:
    """Reserves identifiers that are given up, and refuses those that are reserved.

    Attributes:
        kept: How long one cannot be released: as long as a tenant can lie in caches that miss
            every message. It goes from the shared cache to a process's own at the end of its time
            there.
    """

    def __init__(self, config: TenancyConfig, store: TenantStore) -> None:
        self._store = store
        self._key = b""
        shared = config.cache_ttl if config.cache_enabled else 0.0
        cached = shared + config.l1_cache_ttl_seconds + config.invalidation_poll_seconds
        self.kept = timedelta(seconds=cached) + _CLOCKS

    async def prepare(self) -> None:
        """Read the key that identifiers are hidden with. Call it before the transaction.

        An erased tenant's identifier is not written down anywhere, and a plain hash of a name can
        be found by trying names.
        """
        if not self._key:
            self._key = await self._store.instance_key()

    def _digest(self, identifier: str) -> str:
        if not self._key:
            raise RuntimeError("prepare() was not called")
        return hmac.digest(self._key, b"identifier:" + identifier.encode(), "sha256").hex()

    async def give_up(
        self, transaction: StoreTransaction, identifier: str, tenant_id: UUID | None
    ) -> None:
        """Reserve an identifier.

        Args:
            transaction: In which the tenant gives it up.
            identifier: What is given up.
            tenant_id: Who may take it back, or None.
        """
        reservation = Reservation(tenant_id, datetime.now(UTC))
        await transaction.reserve(self._digest(identifier), reservation)

    async def require_free(
        self, transaction: StoreTransaction, identifier: str, tenant_id: UUID
    ) -> None:
        """Refuse an identifier that is reserved for another tenant.

        Call it last in a transaction: behind the change sequence, nobody can give up an identifier
        that this one would not see.

        Raises:
            TenantExists: It is.
        """
        found = await transaction.reserved(self._digest(identifier))
        if found is not None and found.tenant_id != tenant_id:
            raise TenantExists(
                f"The identifier {identifier!r} was another tenant's, and caches, tokens or "
                "messages may still name that one by it. Choose another, or release it: "
                f"tenancy.tenants.release({identifier!r})."
            )

    async def owner(self, transaction: StoreTransaction, identifier: str) -> UUID | None:
        """Return who gave up an identifier; None for one that was erased, and where nobody did."""
        found = await transaction.reserved(self._digest(identifier))
        return None if found is None else found.tenant_id

    async def release(self, transaction: StoreTransaction, identifier: str) -> None:
        """Let anybody have an identifier that was given up. No error if it is free.

        Call it while the owner's log is held: then nobody gives it up anew meanwhile.

        Raises:
            TenantExists: It was given up so recently that other processes may not know of it.
        """
        digest = self._digest(identifier)
        found = await transaction.reserved(digest)
        if found is None:
            return
        free = found.since + self.kept
        if free > datetime.now(UTC):
            raise TenantExists(
                f"The identifier {identifier!r} was another tenant's until a moment ago, and other "
                "processes may still know it as that. It can be released at "
                f"{free:%Y-%m-%d %H:%M:%S} UTC."
            )
        await transaction.release(digest)
