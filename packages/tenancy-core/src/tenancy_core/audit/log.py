"""Audit events: made here, stored in the transaction of the change, told to sinks afterwards."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tenancy_core.audit.chain import sealed
from tenancy_core.audit.outbox import Outbox
from tenancy_core.audit.text import check_action, clean_json, clean_text
from tenancy_core.audit.verification import ERASED
from tenancy_core.contract import AuditEvent, AuditHead
from tenancy_core.errors import BackendUnavailable, CommitUnknown, TenantNotFound
from tenancy_core.tenant import TenantStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from tenancy_core.contract import AuditSink, StoreTransaction, TenantStore
    from tenancy_core.crypto import Signer

__all__ = ["AuditLog"]


class AuditLog:
    """Writes events where the change is written: both are there or neither is.

    Args:
        enabled: The setting ``enable_audit_logging``.
        sinks: Secondary places; they get each event at least once, after the commit.
        store: The tenant store.
        signer: Seals the events.

    Attributes:
        enabled: Whether events are written.
        outbox: What feeds the sinks.
    """

    __slots__ = ("_signer", "_store", "enabled", "outbox")

    def __init__(
        self, *, enabled: bool, sinks: Sequence[AuditSink], store: TenantStore, signer: Signer
    ) -> None:
        self.enabled = enabled
        self.outbox = Outbox(store, sinks)
        self._store = store
        self._signer = signer

    async def append(
        self,
        transaction: StoreTransaction,
        tenant_id: UUID,
        action: str,
        *,
        actor: str | None = None,
        reason: str | None = None,
        details: Mapping[str, Any] | None = None,
        personal: Mapping[str, Any] | None = None,
    ) -> AuditEvent | None:
        """Append an event to the tenant's log; None while audit logging is off.

        Nobody else appends to this log until the transaction ends. A log that there is gets its
        last event, the erasure, also while audit logging is off: without it, what was erased would
        look tampered with.

        Args:
            transaction: Of the change that the event tells of.
            tenant_id: Whose log.
            action: Dotted name.
            actor: Who did it.
            reason: Why.
            details: JSON values that name nobody.
            personal: JSON values that name somebody; removed when the tenant is erased.

        Raises:
            ValueError: ``action``, ``details`` or ``personal`` cannot be stored; nothing was.
            TypeError: ``actor`` or ``reason`` is no text.
            TenantNotFound: The tenant was never created.
            BackendUnavailable: The store cannot be reached.
        """
        if not self.enabled and action != ERASED:
            return None
        check_action(action)
        actor = None if actor is None else clean_text(actor)
        reason = None if reason is None else clean_text(reason)
        kept = clean_json(details or {}, "details")
        erasable = clean_json(personal or {}, "personal")
        head = await transaction.audit_head(tenant_id)
        if not self.enabled and head == AuditHead():
            return None
        event = sealed(
            AuditEvent(
                action=action,
                tenant_id=tenant_id,
                occurred_at=datetime.now(UTC),
                actor=actor,
                reason=reason,
                details=kept,
                personal=erasable,
            ),
            head,
            self._signer,
        )
        await transaction.append_audit(event)
        if self.outbox.sinks:
            await transaction.enqueue_delivery(event)
        return event

    async def record(
        self,
        tenant_id: UUID,
        action: str,
        *,
        actor: str | None = None,
        reason: str | None = None,
        details: Mapping[str, Any] | None = None,
        personal: Mapping[str, Any] | None = None,
    ) -> AuditEvent | None:
        """Append an event in a transaction of its own, and feed the sinks. As :meth:`append`.

        Raises:
            TenantNotFound: The tenant is erased: its log is closed.
            CommitUnknown: The connection was lost in the commit, and the store cannot say what
                became of it.
        """
        if not self.enabled:
            return None
        event: AuditEvent | None = None
        try:
            async with self._store.transaction() as transaction:
                # Whoever still has a tenant that is erased must not write names behind its erasure.
                if not await self.is_open(transaction, tenant_id):
                    raise TenantNotFound("This tenant was erased; its log is closed.")
                event = await self.append(
                    transaction,
                    tenant_id,
                    action,
                    actor=actor,
                    reason=reason,
                    details=details,
                    personal=personal,
                )
        except CommitUnknown as error:
            if event is None or not await self._is_stored(event):
                raise BackendUnavailable(
                    "The commit of an audit event was lost; nothing was stored."
                ) from error
        await self.deliver(event)
        return event

    async def _is_stored(self, event: AuditEvent) -> bool:
        """Whether a commit whose answer was lost took place.

        The head is locked first: the lost transaction held it, and is over once we have it.

        Raises:
            CommitUnknown: The store cannot say.
        """
        try:
            async with self._store.transaction() as transaction:
                await transaction.audit_head(event.tenant_id)
            found = await self._store.audit(event.tenant_id, after=event.sequence - 1, limit=1)
        except BackendUnavailable as error:
            raise CommitUnknown(
                "The answer to a COMMIT was lost, and the tenant store cannot say what became of "
                "it. Read the log before you record the event again."
            ) from error
        return bool(found) and found[0].seal == event.seal

    async def is_open(self, transaction: StoreTransaction, tenant_id: UUID) -> bool:
        """Whether events of a tenant may be appended: it exists, and is not erased.

        Nobody erases it until the transaction ends: an erasure appends to the log.

        Raises:
            TenantNotFound: The tenant was never created.
        """
        await transaction.audit_head(tenant_id)
        tenant = await transaction.get(tenant_id)
        return tenant is not None and tenant.status is not TenantStatus.ERASED

    async def deliver(self, event: AuditEvent | None) -> None:
        """Feed a committed event to the sinks. Never raises: what fails is tried again later."""
        if event is not None:
            await self.outbox.deliver(event)
