"""A tenant store in memory: for tests, and for services whose tenants are fixed in code."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self

import anyio

from tenancy_core.contract import AuditHead, Change, RefusalCount, TenantPage
from tenancy_core.errors import (
    IdentifierCollision,
    TenantExists,
    TenantNotFound,
    VersionConflict,
)
from tenancy_core.tenant import Tenant, TenantStatus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from types import TracebackType
    from uuid import UUID

    from tenancy_core.contract import AuditEvent, JournalStep, Reservation

__all__ = ["MemoryTenantStore"]

_CHANGES_KEPT: Final = 10_000
"""Older entries of the change sequence are dropped; a follower that far behind forgets all."""


class _State:
    """Everything the store holds; copied when a transaction begins, swapped in at its commit."""

    __slots__ = (
        "audit",
        "changes",
        "journal",
        "outbox",
        "refusals",
        "reservations",
        "secrets",
        "sequence",
        "tenants",
    )

    def __init__(self) -> None:
        self.tenants: dict[UUID, Tenant] = {}
        self.audit: dict[UUID, tuple[AuditEvent, ...]] = {}
        self.journal: dict[tuple[UUID, str], tuple[str, ...]] = {}
        self.secrets: dict[tuple[UUID, str], bytes] = {}
        self.reservations: dict[str, Reservation] = {}
        self.outbox: dict[tuple[UUID, int], AuditEvent] = {}
        self.refusals: dict[tuple[UUID | None, datetime, str], int] = {}
        self.changes: tuple[Change, ...] = ()
        self.sequence = 0

    def copy(self) -> _State:
        copied = _State()
        copied.tenants = dict(self.tenants)
        copied.audit = dict(self.audit)
        copied.journal = dict(self.journal)
        copied.secrets = dict(self.secrets)
        copied.reservations = dict(self.reservations)
        copied.outbox = dict(self.outbox)
        copied.refusals = dict(self.refusals)
        copied.changes = self.changes
        copied.sequence = self.sequence
        return copied

    def by_identifier(self, identifier: str) -> Tenant | None:
        return next(
            (
                tenant
                for tenant in self.tenants.values()
                if tenant.identifier == identifier and identifier
            ),
            None,
        )


class MemoryTenantStore:
    """Implements :class:`~tenancy_core.contract.TenantStore`; lost when the process ends.

    Attributes:
        in_process: Nobody else can change it, so its change sequence need not be followed.
    """

    in_process = True

    def __init__(self) -> None:
        self._state = _State()
        self._writing = anyio.Lock()
        self._key = secrets.token_bytes(32)

    async def get_by_identifier(self, identifier: str, /) -> Tenant | None:
        """See the contract."""
        return self._state.by_identifier(identifier)

    async def get(self, tenant_id: UUID, /) -> Tenant | None:
        """See the contract."""
        return self._state.tenants.get(tenant_id)

    async def list(
        self,
        *,
        status: TenantStatus | None = None,
        plan: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> TenantPage:
        """See the contract."""
        found = sorted(
            (
                tenant
                for tenant in self._state.tenants.values()
                if tenant.identifier
                and (status is None or tenant.status is status)
                and (plan is None or tenant.plan == plan)
                and (after is None or tenant.identifier > after)
            ),
            key=lambda tenant: tenant.identifier,
        )
        page = tuple(found[:limit])
        return TenantPage(page, page[-1].identifier if len(found) > limit else None)

    async def get_secret(self, tenant_id: UUID, name: str, /) -> bytes | None:
        """See the contract."""
        return self._state.secrets.get((tenant_id, name))

    async def secret_names(self, tenant_id: UUID, /) -> Sequence[str]:
        """See the contract."""
        return sorted(name for owner, name in self._state.secrets if owner == tenant_id)

    async def begun(self, operation: str, /) -> Sequence[UUID]:
        """See the contract."""
        return [owner for owner, noted in self._state.journal if noted == operation]

    async def instance_key(self) -> bytes:
        """See the contract."""
        return self._key

    async def audit(
        self, tenant_id: UUID, /, *, after: int = 0, limit: int = 100
    ) -> Sequence[AuditEvent]:
        """See the contract."""
        return self._state.audit.get(tenant_id, ())[after : after + limit]

    async def audit_head(self, tenant_id: UUID, /) -> AuditHead:
        """See the contract."""
        return _head(self._state.audit.get(tenant_id, ()))

    async def undelivered(self, *, before: datetime, limit: int = 100) -> Sequence[AuditEvent]:
        """See the contract."""
        waiting = [event for event in self._state.outbox.values() if event.occurred_at < before]
        waiting.sort(key=lambda event: (event.occurred_at, event.tenant_id, event.sequence))
        return waiting[:limit]

    async def refusals(
        self, tenant_id: UUID | None = None, /, *, since: datetime, limit: int = 1000
    ) -> Sequence[RefusalCount]:
        """See the contract."""
        found = [
            RefusalCount(tenant_id, code, minute, count)
            for (owner, minute, code), count in self._state.refusals.items()
            if owner == tenant_id and minute >= since
        ]
        found.sort(key=lambda one: (-one.minute.timestamp(), one.code))
        return found[:limit]

    async def changes(self, *, after: int, limit: int = 1000) -> Sequence[Change]:
        """See the contract."""
        return [change for change in self._state.changes if change.sequence > after][:limit]

    async def last_change(self) -> int:
        """See the contract."""
        return self._state.sequence

    def transaction(self) -> _Transaction:
        """See the contract."""
        return _Transaction(self, self._writing)

    def _swap(self, state: _State) -> None:
        self._state = state


class _Transaction:
    __slots__ = ("_lock", "_state", "_store")

    def __init__(self, store: MemoryTenantStore, lock: anyio.Lock) -> None:
        self._store = store
        self._lock = lock
        self._state = _State()

    async def __aenter__(self) -> Self:
        await self._lock.acquire()
        self._state = self._store._state.copy()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # one room
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._store._swap(self._state)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # one room
        self._lock.release()

    async def create(self, tenant: Tenant, /) -> None:
        """See the contract."""
        state = self._state
        if tenant.id in state.tenants or state.by_identifier(tenant.identifier) is not None:
            raise TenantExists(f"There is already a tenant {tenant.identifier!r}.")
        self._refuse_taken_place(tenant)
        state.tenants[tenant.id] = _stored(tenant)

    async def update(self, tenant: Tenant, /, *, expected_version: int) -> None:
        """See the contract."""
        state = self._state
        old = state.tenants.get(tenant.id)
        if old is None or old.version != expected_version:
            raise VersionConflict(
                f"Tenant {tenant.identifier!r} is no longer at version {expected_version}."
            )
        other = state.by_identifier(_stored(tenant).identifier)
        if other is not None and other.id != tenant.id:
            raise TenantExists(f"There is already a tenant {tenant.identifier!r}.")
        self._refuse_taken_place(tenant)
        state.tenants[tenant.id] = _stored(tenant)

    def _refuse_taken_place(self, tenant: Tenant) -> None:
        for other in self._state.tenants.values():
            if other.id != tenant.id and other.placement.name == tenant.placement.name:
                raise IdentifierCollision(
                    f"The name {tenant.placement.name!r} derived for {tenant.identifier!r} "
                    "is another tenant's."
                )

    async def delete(self, tenant_id: UUID, /) -> None:
        """See the contract."""
        self._state.tenants.pop(tenant_id, None)
        for kept in (self._state.secrets, self._state.journal):
            for key in [key for key in kept if key[0] == tenant_id]:
                del kept[key]

    async def get(self, tenant_id: UUID, /) -> Tenant | None:
        """See the contract."""
        return self._state.tenants.get(tenant_id)

    async def count(self) -> int:
        """See the contract."""
        tenants = self._state.tenants.values()
        return sum(tenant.status is not TenantStatus.ERASED for tenant in tenants)

    async def reserve(self, digest: str, reservation: Reservation, /) -> None:
        """See the contract."""
        self._state.reservations[digest] = reservation

    async def reserved(self, digest: str, /) -> Reservation | None:
        """See the contract."""
        return self._state.reservations.get(digest)

    async def release(self, digest: str, /) -> None:
        """See the contract."""
        self._state.reservations.pop(digest, None)

    async def get_secret(self, tenant_id: UUID, name: str, /) -> bytes | None:
        """See the contract."""
        return self._state.secrets.get((tenant_id, name))

    async def put_secret(self, tenant_id: UUID, name: str, value: bytes, /) -> None:
        """See the contract."""
        self._state.secrets[tenant_id, name] = value

    async def delete_secret(self, tenant_id: UUID, name: str, /) -> None:
        """See the contract."""
        self._state.secrets.pop((tenant_id, name), None)

    async def delete_secrets(self, tenant_id: UUID, /) -> None:
        """See the contract."""
        state = self._state
        state.secrets = {key: one for key, one in state.secrets.items() if key[0] != tenant_id}

    async def audit_head(self, tenant_id: UUID, /) -> AuditHead:
        """See the contract."""
        log = self._state.audit.get(tenant_id, ())
        if not log and tenant_id not in self._state.tenants:
            raise TenantNotFound("There is no tenant to write an audit event for.")
        return _head(log)

    async def append_audit(self, event: AuditEvent, /) -> None:
        """See the contract."""
        head = await self.audit_head(event.tenant_id)
        if event.sequence != head.sequence + 1:
            raise ValueError(
                f"The next event of this log has sequence {head.sequence + 1}, "
                f"not {event.sequence}."
            )
        log = self._state.audit.get(event.tenant_id, ())
        self._state.audit[event.tenant_id] = (*log, event)

    async def redact_audit(self, tenant_id: UUID, /) -> None:
        """See the contract."""
        state = self._state
        state.audit[tenant_id] = tuple(map(_redacted, state.audit.get(tenant_id, ())))
        for key, event in state.outbox.items():
            if key[0] == tenant_id:
                state.outbox[key] = _redacted(event)

    async def enqueue_delivery(self, event: AuditEvent, /) -> None:
        """See the contract."""
        self._state.outbox[event.tenant_id, event.sequence] = event

    async def delivered(self, tenant_id: UUID, sequence: int, /) -> None:
        """See the contract."""
        self._state.outbox.pop((tenant_id, sequence), None)

    async def count_refusals(self, counts: Sequence[RefusalCount], /) -> None:
        """See the contract."""
        kept = self._state.refusals
        for one in counts:
            key = (one.tenant_id, one.minute, one.code)
            kept[key] = kept.get(key, 0) + one.count

    async def journal(self, tenant_id: UUID, step: JournalStep, /) -> None:
        """See the contract."""
        key = (tenant_id, step.operation)
        steps = self._state.journal.get(key, ())
        if step.step not in steps:
            self._state.journal[key] = (*steps, step.step)

    async def journaled(self, tenant_id: UUID, operation: str, /) -> Sequence[str]:
        """See the contract."""
        return self._state.journal.get((tenant_id, operation), ())

    async def close_journal(self, tenant_id: UUID, operation: str, /) -> None:
        """See the contract."""
        self._state.journal.pop((tenant_id, operation), None)

    async def enqueue(self, tenant_id: UUID, /) -> int:
        """See the contract."""
        state = self._state
        state.sequence += 1
        state.changes = (*state.changes, Change(state.sequence, tenant_id))[-_CHANGES_KEPT:]
        return state.sequence


def _stored(tenant: Tenant) -> Tenant:
    """Return the record as it is kept: an erased tenant gives its identifier back."""
    return replace(tenant, identifier="") if tenant.status is TenantStatus.ERASED else tenant


def _head(log: Sequence[AuditEvent]) -> AuditHead:
    return AuditHead(log[-1].sequence, log[-1].seal) if log else AuditHead()


def _redacted(event: AuditEvent) -> AuditEvent:
    return replace(event, actor=None, reason=None, personal={}, salt=None)
