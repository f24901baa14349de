"""How a tenant ends: archived, kept for a while, erased; killed anywhere, erasing can go on.

From its first step an erasure has no way back, and after its last one the store knows no more of
the tenant than its id: secrets are gone with the key that everything was encrypted with, and the
audit log has lost whatever names somebody, and still verifies.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tenancy_core.audit import ERASED
from tenancy_core.contract import JournalStep
from tenancy_core.errors import InvalidTransition, VersionConflict
from tenancy_core.tenant import Placement, Tenant, TenantStatus
from tenancy_core.tenants.changes import Author
from tenancy_core.tenants.rules import (
    ARCHIVE,
    ERASE,
    OPERATIONS,
    SERVED,
    UNFINISHED,
    require_status,
)

if TYPE_CHECKING:
    from uuid import UUID

    from tenancy_core.config import TenancyConfig
    from tenancy_core.contract import IsolationStrategy, StoreTransaction
    from tenancy_core.tenants.changes import Changes
    from tenancy_core.tenants.identifiers import Identifiers

__all__ = ["Erasure"]


class _AlreadyBegunError(Exception):
    """Somebody else began the erasure at the same time; it is begun once."""


class Erasure:
    """Archiving, restoring and erasing, one step at a time, each of them idempotent."""

    def __init__(
        self,
        *,
        config: TenancyConfig,
        isolation: IsolationStrategy,
        changes: Changes,
        identifiers: Identifiers,
    ) -> None:
        self._config = config
        self._isolation = isolation
        self._changes = changes
        self._identifiers = identifiers

    # -- the way there and back ----------------------------------------------------------------

    async def archive(self, tenant: Tenant, author: Author) -> Tenant:
        """Stop serving a tenant for good, and keep its data for now."""

        def edit(old: Tenant) -> Tenant:
            if old.status is TenantStatus.ARCHIVED:
                return old
            require_status(old, SERVED, "be archived")
            return replace(old, status=TenantStatus.ARCHIVED)

        async def note_status(transaction: StoreTransaction, old: Tenant, new: Tenant) -> None:
            await transaction.close_journal(new.id, ARCHIVE)
            await transaction.journal(new.id, JournalStep(ARCHIVE, old.status.value))

        return await self._changes.apply(
            tenant.id, "tenant.archived", edit, author, also=note_status
        )

    async def restore(self, tenant: Tenant, author: Author) -> Tenant:
        """Return an archived tenant to the status it was archived in."""
        async with self._changes.store.transaction() as transaction:
            before = await transaction.journaled(tenant.id, ARCHIVE)
        status = TenantStatus(before[0]) if before else TenantStatus.SUSPENDED

        def edit(old: Tenant) -> Tenant:
            if old.status in SERVED:
                return old
            require_status(old, {TenantStatus.ARCHIVED}, "be restored")
            return replace(old, status=status)

        async def close(transaction: StoreTransaction, _: Tenant, new: Tenant) -> None:
            if await transaction.journaled(new.id, ERASE):
                raise InvalidTransition(
                    f"Tenant {new.identifier!r} is being erased; that has no way back. Call "
                    "erase() again to finish it."
                )
            if await transaction.journaled(new.id, ARCHIVE) != before:
                raise VersionConflict(f"Tenant {new.identifier!r} was archived once more.")
            await transaction.close_journal(new.id, ARCHIVE)

        return await self._changes.apply(tenant.id, "tenant.restored", edit, author, also=close)

    # -- the end -------------------------------------------------------------------------------

    def retained_until(self, tenant: Tenant) -> datetime | None:
        """Return until when an archived tenant is kept; None if it may be erased any time."""
        days = self._config.archive_retention_days
        if days is None or tenant.status is not TenantStatus.ARCHIVED:
            return None
        # A change of an archived tenant leaves its time as it is; see Changes.apply.
        return tenant.updated_at + timedelta(days=days)

    async def erase(self, tenant: Tenant, author: Author, *, before_retention: bool) -> Tenant:
        """Erase a tenant, or finish erasing it."""
        if tenant.status is TenantStatus.ERASED:
            return tenant
        if not await self.is_begun(tenant.id):
            with suppress(_AlreadyBegunError):
                tenant = await self._begin(tenant, author, before_retention=before_retention)
            if tenant.status is TenantStatus.ERASED:
                return tenant
        await self._isolation.destroy(tenant)
        # Its version has moved on, and nobody is refused for having seen an older one by now.
        return await self._finish(tenant, Author(author.actor, author.reason))

    async def is_begun(self, tenant_id: UUID) -> bool:
        """Whether a tenant's erasure has begun."""
        return tenant_id in await self._changes.store.begun(ERASE)

    async def begun(self) -> list[Tenant]:
        """Return the tenants whose erasure has begun, and not ended."""
        store = self._changes.store
        found = [await store.get(tenant_id) for tenant_id in await store.begun(ERASE)]
        return [one for one in found if one is not None and one.status is TenantStatus.ARCHIVED]

    async def _begin(self, tenant: Tenant, author: Author, *, before_retention: bool) -> Tenant:
        allowed = {TenantStatus.ARCHIVED, *UNFINISHED}
        if not self._config.enable_soft_delete:
            allowed |= SERVED

        def edit(old: Tenant) -> Tenant:
            if old.status is TenantStatus.ERASED:  # by somebody else, meanwhile
                return old
            require_status(old, allowed, "be erased")
            kept = self.retained_until(old)
            if kept is not None and kept > datetime.now(UTC) and not before_retention:
                raise InvalidTransition(
                    f"Tenant {old.identifier!r} is archived and kept until "
                    f"{kept:%Y-%m-%d %H:%M} UTC (TENANCY_ARCHIVE_RETENTION_DAYS). To erase it "
                    "now, pass before_retention=True and a reason."
                )
            return replace(old, status=TenantStatus.ARCHIVED)

        async def note_begun(transaction: StoreTransaction, _: Tenant, new: Tenant) -> None:
            if await transaction.journaled(new.id, ERASE):
                raise _AlreadyBegunError
            await transaction.journal(new.id, JournalStep(ERASE, "begun"))

        return await self._changes.apply(
            tenant.id,
            "tenant.erasure_begun",
            edit,
            author,
            details={"before_retention": before_retention},
            also=note_begun,
        )

    async def _finish(self, tenant: Tenant, author: Author) -> Tenant:
        await self._identifiers.prepare()

        async def forget(transaction: StoreTransaction, old: Tenant, new: Tenant) -> None:
            await transaction.delete_secrets(new.id)
            await transaction.redact_audit(new.id)
            for operation in OPERATIONS:
                await transaction.close_journal(new.id, operation)
            await self._identifiers.give_up(transaction, old.identifier, None)

        return await self._changes.apply(tenant.id, ERASED, _tombstone, author, also=forget)


def _tombstone(old: Tenant) -> Tenant:
    if old.status is TenantStatus.ERASED:
        return old
    return replace(
        old,
        identifier="",
        name="",
        status=TenantStatus.ERASED,
        plan=None,
        limits={},
        metadata={},
        # The derived name holds the identifier.
        placement=Placement(name=f"erased_{old.id.hex}"),
    )
