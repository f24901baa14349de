"""Finds what was begun and not finished, in any process, and ends it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from tenancy_core.tenant import Tenant, TenantStatus
from tenancy_core.tenants.failures import log_failure
from tenancy_core.tenants.rules import UNFINISHED

if TYPE_CHECKING:
    from tenancy_core.tenants.changes import Author
    from tenancy_core.tenants.creation import Creation
    from tenancy_core.tenants.erasure import Erasure

__all__ = ["Outcome", "Reconciled", "Reconciliation"]

Outcome = Literal["provisioned", "erased", "failed"]
Tenants = Callable[[TenantStatus], AsyncIterator[Tenant]]


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What became of a tenant that was half-way.

    Attributes:
        tenant: As it is now; as it was, where the outcome is ``failed``.
        outcome: ``provisioned``, ``erased``, or ``failed``: then the next run tries again.
        error: Class of the exception where it failed; its traceback is in the log.
    """

    tenant: Tenant
    outcome: Outcome
    error: str | None = None


class Reconciliation:
    """Ends creations and erasures that were killed or failed."""

    def __init__(self, *, creation: Creation, erasure: Erasure, tenants: Tenants) -> None:
        self._creation = creation
        self._erasure = erasure
        self._tenants = tenants

    async def unfinished(
        self, *, older_than: timedelta, remove: bool, author: Author
    ) -> list[Reconciled]:
        """End what was begun and not finished; see ``TenantService.reconcile``."""
        done: list[Reconciled] = []
        async for tenant in self.half_way(older_than=older_than):
            if tenant.status in UNFINISHED and not remove:
                finish = self._creation.finish(tenant, author)
                done.append(await self._try(tenant, "provisioned", finish))
            else:
                done.append(await self._try(tenant, "erased", self._erase(tenant, author)))
        return done

    async def half_way(self, *, older_than: timedelta) -> AsyncIterator[Tenant]:
        """Iterate over what was begun and not finished; see ``TenantService.unfinished``."""
        before = datetime.now(UTC) - older_than
        for status in (TenantStatus.PROVISIONING, TenantStatus.FAILED):
            async for tenant in self._tenants(status):
                if tenant.updated_at <= before:
                    yield tenant
        for tenant in await self._erasure.begun():
            yield tenant

    async def expired(self, *, author: Author) -> list[Reconciled]:
        """Erase archived tenants whose retention is over."""
        now = datetime.now(UTC)
        done: list[Reconciled] = []
        async for tenant in self._tenants(TenantStatus.ARCHIVED):
            until = self._erasure.retained_until(tenant)
            if until is not None and until <= now:
                done.append(await self._try(tenant, "erased", self._erase(tenant, author)))
        return done

    async def _erase(self, tenant: Tenant, author: Author) -> Tenant:
        # As it was found: somebody may have finished or restored it since.
        found = replace(author, expected_version=tenant.version)
        return await self._erasure.erase(tenant, found, before_retention=False)

    async def _try(self, tenant: Tenant, outcome: Outcome, work: Awaitable[Tenant]) -> Reconciled:
        try:
            return Reconciled(await work, outcome)
        except Exception as error:  # noqa: BLE001 - it is told and logged
            # One that cannot be ended now does not keep the others from it.
            log_failure(error, "tenant %s could not be reconciled", tenant.id)
            return Reconciled(tenant, "failed", type(error).__name__)
