"""Many who write at once: no gap, no fork, and whoever is in somebody's way hears of it."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from support.postgres_store import store_on
from tenancy_core.contract import AuditEvent
from tenancy_core.errors import BackendUnavailable
from tenancy_core.testing import make_tenant

if TYPE_CHECKING:
    from uuid import UUID

    from support.services.databases import PostgresDatabase
    from tenancy_core._stores.sql import SqlTenantStore
    from tenancy_core.contract import StoreTransaction

pytestmark = pytest.mark.anyio

WRITERS, TURNS = 8, 10


def seal(before: bytes, action: str) -> bytes:
    return hashlib.sha256(before + action.encode()).digest()


async def append(transaction: StoreTransaction, tenant_id: UUID, action: str) -> None:
    head = await transaction.audit_head(tenant_id)
    event = AuditEvent(
        action=action,
        tenant_id=tenant_id,
        occurred_at=datetime.now(UTC),
        sequence=head.sequence + 1,
        salt=bytes(16),
        digest=bytes(32),
        seal=seal(head.seal, action),
    )
    await transaction.append_audit(event)


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
async def test_A2_eight_writers_with_rollbacks_leave_no_gap_and_no_fork(
    postgres_database: PostgresDatabase, level: str
) -> None:
    """Whatever isolation level the role has when nobody says another."""
    await postgres_database.admin(
        f"ALTER ROLE {postgres_database.control} SET default_transaction_isolation = '{level}'"
    )
    tenant = make_tenant("acme")
    async with AsyncExitStack() as stack:
        # Two processes.
        stores = [
            await stack.enter_async_context(store_on(postgres_database.control_url))
            for _ in range(2)
        ]
        async with stores[0].transaction() as transaction:
            await transaction.create(tenant)

        async def write(number: int) -> None:
            for turn in range(TURNS):
                with suppress(LookupError):
                    async with stores[number % 2].transaction() as transaction:
                        await append(transaction, tenant.id, f"writer.{number}")
                        await transaction.enqueue(tenant.id)
                        if (number + turn) % 3 == 0:
                            raise LookupError

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for number in range(WRITERS):
                group.create_task(write(number))
        left = sum((n + turn) % 3 != 0 for n in range(WRITERS) for turn in range(TURNS))
        events = await stores[1].audit(tenant.id, limit=1000)
        assert [event.sequence for event in events] == [*range(1, left + 1)]
        before = b""
        for event in events:
            before = seal(before, event.action)
            assert event.seal == before
        assert (await stores[0].audit_head(tenant.id)).seal == before
        changes = await stores[1].changes(after=0)
        assert [change.sequence for change in changes] == [*range(1, left + 1)]


async def test_of_two_that_wait_for_each_other_one_is_told_to_come_again(
    postgres_database: PostgresDatabase,
) -> None:
    """Nothing of it is kept; PostgreSQL notices within deadlock_timeout, a second."""
    acme, beta = make_tenant("acme"), make_tenant("beta")

    async def rename(store: SqlTenantStore, first: int, both: asyncio.Barrier) -> str:
        order = [acme, beta] if first == 0 else [beta, acme]
        try:
            async with store.transaction() as transaction:
                for number, tenant in enumerate(order):
                    if number:
                        await both.wait()
                    changed = replace(tenant, name=f"by {first}", version=2)
                    await transaction.update(changed, expected_version=1)
        except BackendUnavailable as error:
            return str(error)
        return "done"

    async with store_on(postgres_database.control_url) as store:
        async with store.transaction() as transaction:
            await transaction.create(acme)
            await transaction.create(beta)
        both = asyncio.Barrier(2)
        async with asyncio.timeout(60):
            said = await asyncio.gather(*(rename(store, first, both) for first in range(2)))
        winner = said.index("done")
        assert "40P01" in said[1 - winner]
        for tenant in (acme, beta):
            found = await store.get(tenant.id)
            assert found is not None
            assert found.name == f"by {winner}"
