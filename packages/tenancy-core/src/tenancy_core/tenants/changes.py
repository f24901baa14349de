"""One change of a tenant: record, audit event and change entry together, then everybody is told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from tenancy_core.errors import TenantNotFound, VersionConflict
from tenancy_core.tenant import TenantStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from tenancy_core._directory import Directory
    from tenancy_core.audit import AuditLog
    from tenancy_core.contract import AuditEvent, StoreTransaction, TenantStore
    from tenancy_core.observe import Observers
    from tenancy_core.tenant import Tenant

__all__ = ["Also", "Author", "Changes"]

_TRIES: Final = 5
"""How often a change that somebody else overtook is tried again on the newer record."""


@dataclass(frozen=True, slots=True)
class Author:
    """Who changes a tenant, and why; both go into the audit log.

    Attributes:
        actor: As the application names people.
        reason: In their words.
        expected_version: The version that they have seen, or None if any will do.
    """

    actor: str | None = None
    reason: str | None = None
    expected_version: int | None = None


class Also(Protocol):
    """What else is written in the transaction of a change, behind everything else."""

    async def __call__(self, transaction: StoreTransaction, old: Tenant, new: Tenant, /) -> None:
        """Write it; whatever is raised undoes the change."""
        ...


class Changes:
    """Writes changes of tenants, and tells caches, sinks and observers."""

    def __init__(
        self, *, store: TenantStore, directory: Directory, audit: AuditLog, observers: Observers
    ) -> None:
        self.store = store
        self.audit = audit
        self._directory = directory
        self._observers = observers

    async def apply(
        self,
        tenant_id: UUID,
        action: str,
        edit: Callable[[Tenant], Tenant],
        author: Author,
        *,
        details: Mapping[str, Any] | None = None,
        personal: Callable[[Tenant, Tenant], Mapping[str, Any]] | None = None,
        also: Also | None = None,
    ) -> Tenant:
        """Change a tenant, on the newest record if somebody else changes it at the same time.

        Args:
            tenant_id: Whom.
            action: For the audit log.
            edit: Returns the record as it should be, apart from version and time; the very record
                it was given if there is nothing to change; or raises.
            author: Who, why, and the version they have seen.
            details: For the audit log, without personal data.
            personal: For the audit log: what of the old and the new record names somebody.
            also: What else is written.

        Raises:
            TenantNotFound: There is none.
            VersionConflict: It is at another version than the author has seen, or is changed by
                others faster than it can be changed here.
        """
        for left in reversed(range(_TRIES)):
            old = await self.store.get(tenant_id)
            if old is None:
                raise TenantNotFound(f"There is no tenant {tenant_id}.")
            expected = author.expected_version
            if expected is not None and old.version != expected:
                raise VersionConflict(
                    f"Tenant {old.identifier!r} is at version {old.version}, not {expected}."
                )
            edited = edit(old)
            if edited is old:
                # Forgotten all the same: the call may be the second try of one whose change was
                # committed and not told to everybody.
                await self._directory.announce(old.id, old.identifier)
                return old
            # From the time at which it was archived a tenant's retention counts, whatever key of
            # it is wrapped anew meanwhile.
            kept = old.status is edited.status is TenantStatus.ARCHIVED
            updated_at = old.updated_at if kept else datetime.now(UTC)
            new = replace(edited, version=old.version + 1, updated_at=updated_at)
            try:
                async with self.store.transaction() as transaction:
                    await transaction.update(new, expected_version=old.version)
                    event = await self.audit.append(
                        transaction,
                        tenant_id,
                        action,
                        actor=author.actor,
                        reason=author.reason,
                        details=details,
                        personal=None if personal is None else personal(old, new),
                    )
                    await transaction.enqueue(tenant_id)
                    if also is not None:
                        await also(transaction, old, new)
            except VersionConflict:
                if expected is not None or not left:
                    raise
                continue
            await self.tell(new, action, event, old.identifier)
            return new
        raise AssertionError("unreachable")  # pragma: no cover

    async def tell(
        self, tenant: Tenant, action: str, event: AuditEvent | None, *identifiers: str
    ) -> None:
        """Make all caches forget, and feed sinks and observers; the change is committed.

        Args:
            tenant: As it is now.
            action: What was done.
            event: As it was appended.
            *identifiers: Those that it had before, if they were others.
        """
        known = dict.fromkeys(name for name in (*identifiers, tenant.identifier) if name)
        try:
            await self._directory.announce(tenant.id, *known)
        finally:
            # Whatever the caches say.
            await self.audit.deliver(event)
            self._observers.changed(tenant, action)
