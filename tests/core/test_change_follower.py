"""A change made by another process is seen here within the poll."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import delete, update

from support.notes import Base
from tenancy_core import Tenancy
from tenancy_core.errors import BackendUnavailable, TenantInactive
from tenancy_core.sql import tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenancy_core import TenancyConfig

pytestmark = pytest.mark.anyio


async def test_K1_a_suspension_elsewhere_is_seen_by_the_next_poll(
    tenancy: Tenancy, make_config: Callable[..., TenancyConfig]
) -> None:
    async with tenancy.scope("acme"), tenancy.session(read_only=True):
        pass  # cached now
    async with Tenancy(make_config(), metadata=Base.metadata) as elsewhere:
        await elsewhere.tenants.suspend("acme")
    assert (await tenancy.find("acme")).tenant.active, "not told yet"
    await tenancy.parts.follower.poll()
    with pytest.raises(TenantInactive):
        await tenancy.scope("acme").__aenter__()


async def test_a_tenant_created_elsewhere_is_found_although_it_was_nobody(
    tenancy: Tenancy, make_config: Callable[..., TenancyConfig]
) -> None:
    directory = tenancy.parts.directory
    assert await directory.find("gamma") is None
    async with Tenancy(make_config(), metadata=Base.metadata) as elsewhere:
        await elsewhere.tenants.create("gamma")
    assert await directory.find("gamma") is None, "remembered as nobody"
    await tenancy.parts.follower.poll()
    assert await directory.find("gamma") is not None


async def test_a_follower_that_was_left_behind_forgets_everybody(
    tenancy: Tenancy, make_config: Callable[..., TenancyConfig]
) -> None:
    async with Tenancy(make_config(), metadata=Base.metadata) as elsewhere:
        await tenancy.find("acme")
        await elsewhere.tenants.suspend("acme")
        await elsewhere.tenants.suspend("beta")
        # What a busy store does with old entries: the change of acme is gone.
        engine = elsewhere.parts.store._database.engine
        async with engine.begin() as connection:
            newest = await elsewhere.parts.store.last_change()
            await connection.execute(
                delete(tables.changes).where(tables.changes.c.sequence < newest)
            )
    await tenancy.parts.follower.poll()
    assert not (await tenancy.find("acme")).tenant.active


async def test_the_numbers_of_changes_have_no_gaps_and_follow_the_commits(
    tenancy: Tenancy,
) -> None:
    store = tenancy.parts.store
    acme = await tenancy.tenants.get("acme")
    transaction = store.transaction()
    await (await transaction.__aenter__()).enqueue(acme.id)
    await transaction.__aexit__(RuntimeError, RuntimeError(), None)  # rolled back
    await tenancy.tenants.suspend("acme")
    numbers = [change.sequence for change in await store.changes(after=0)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert numbers[-1] == await store.last_change()


async def test_a_store_that_is_down_is_asked_again(
    tenancy: Tenancy, make_config: Callable[..., TenancyConfig]
) -> None:
    await tenancy.find("acme")
    engine = tenancy.parts.store._database.engine
    async with engine.begin() as connection:
        await connection.exec_driver_sql("ALTER TABLE tenancy_changes RENAME TO gone")
    with pytest.raises(BackendUnavailable):
        await tenancy.parts.follower.poll()
    async with engine.begin() as connection:
        await connection.exec_driver_sql("ALTER TABLE gone RENAME TO tenancy_changes")
    async with Tenancy(make_config(), metadata=Base.metadata) as elsewhere:
        await elsewhere.tenants.suspend("acme")
    await tenancy.parts.follower.poll()
    assert not (await tenancy.find("acme")).tenant.active


async def test_a_change_under_the_same_sequence_number_is_no_change(tenancy: Tenancy) -> None:
    """A record edited by hand is not announced: the time-to-live is the bound then."""
    await tenancy.parts.follower.poll()
    bound = await tenancy.find("acme")
    engine = tenancy.parts.store._database.engine
    async with engine.begin() as connection:
        await connection.execute(
            update(tables.tenants)
            .where(tables.tenants.c.identifier == "acme")
            .values(status="suspended")
        )
    await tenancy.parts.follower.poll()
    assert await tenancy.find("acme") is bound
