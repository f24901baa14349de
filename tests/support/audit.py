"""A tenant's audit log to look at, and what somebody with a database client can do to it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tenancy_core.tenant import TenantStatus
from tenancy_core.testing import RecordingAuditSink

if TYPE_CHECKING:
    from uuid import UUID

    from tenancy_core import Tenancy
    from tenancy_core.contract import AuditEvent


class Sink(RecordingAuditSink):
    """Keeps what it gets, and says what was done."""

    @property
    def actions(self) -> list[str]:
        """What was done, in the order in which it was told."""
        return [event.action for event in self.events]


class Down:
    """A sink that is down until it is repaired."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.asked = 0
        self.down = True

    async def write(self, event: AuditEvent, /) -> None:
        self.asked += 1
        if self.down:
            raise ConnectionError("amqp://app:canary@queue")
        self.events.append(event)


async def write_events(tenancy: Tenancy, name: str, count: int) -> UUID:
    """Let a tenant's log grow to ``count`` events; returns the tenant's id."""
    async with tenancy.scope(name) as tenant:
        there = len(await tenancy.audit.read(limit=1000))
        for number in range(there + 1, count + 1):
            await tenancy.audit.record(
                "note.written",
                actor=f"{name}-{number}@example.com",
                reason=f"reason {number}",
                details={"number": number, "words": ["ein", {"zwei": True}]},
                personal={"name": f"Ada {number}"},
            )
    return tenant.id


async def erase(tenancy: Tenancy, tenant_id: UUID) -> None:
    """Do to a tenant's record and log what erasing it does."""
    store = tenancy.parts.store
    tenant = await store.get(tenant_id)
    assert tenant is not None
    erased = replace(tenant, status=TenantStatus.ERASED, version=tenant.version + 1)
    async with store.transaction() as transaction:
        await transaction.update(erased, expected_version=tenant.version)
        await tenancy.parts.audit.append(transaction, tenant_id, "tenant.erased")
        await transaction.redact_audit(tenant_id)


class Intruder:
    """Somebody who can write to the control database, and has no key."""

    def __init__(self, database_url: str) -> None:
        self._path = database_url.removeprefix("sqlite+aiosqlite:///")

    def run(self, *statements: str, **values: Any) -> None:
        """Run statements in one transaction; ``:acme`` and the like are ids as SQLite has them."""
        bound = {
            name: value.hex if hasattr(value, "hex") and hasattr(value, "int") else value
            for name, value in values.items()
        }
        with closing(sqlite3.connect(self._path)) as connection, connection:
            for statement in statements:
                connection.execute(statement, bound)

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with closing(sqlite3.connect(self._path)) as connection:
            return connection.execute(query).fetchall()
