"""Audit events: made here, stored in the transaction of the change, told to sinks afterwards."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tenancy_core.contract import AuditEvent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from tenancy_core.contract import AuditSink, StoreTransaction

__all__ = ["AuditLog"]

_log = logging.getLogger("tenancy")


class AuditLog:
    """Writes events where the change is written: both are there or neither is.

    Args:
        enabled: The setting ``enable_audit_logging``.
        sinks: Secondary places; they get each event once, after the commit.
    """

    __slots__ = ("_enabled", "_sinks")

    def __init__(self, *, enabled: bool, sinks: Sequence[AuditSink]) -> None:
        self._enabled = enabled
        self._sinks = tuple(sinks)

    async def append(
        self,
        transaction: StoreTransaction,
        tenant_id: UUID,
        action: str,
        *,
        actor: str | None = None,
        reason: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> AuditEvent | None:
        """Append an event to the tenant's log; None while audit logging is off."""
        if not self._enabled:
            return None
        return await transaction.append_audit(
            AuditEvent(
                action=action,
                tenant_id=tenant_id,
                occurred_at=datetime.now(UTC),
                actor=actor,
                reason=reason,
                details=details or {},
            )
        )

    async def deliver(self, event: AuditEvent | None) -> None:
        """Feed a committed event to the sinks; a sink that fails is logged."""
        if event is None:
            return
        for sink in self._sinks:
            try:
                await sink.write(event)
            except Exception:  # noqa: BLE001 - the change is committed, and the store has the event
                _log.exception(
                    "the audit sink %s did not take event %d of tenant %s; the store has it",
                    type(sink).__name__,
                    event.sequence,
                    event.tenant_id,
                )
