"""``tenancy.tenants`` as it is meant to be used, and cancelled, contradicted or hurried."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import pytest

from support.collision import FIRST_ID, FIRST_IDENTIFIER, SECOND_ID, SECOND_IDENTIFIER
from support.control import actions
from support.notes import Base, read, write
from tenancy_core import Tenancy, TenantNotFound, TenantStatus
from tenancy_core._cache.memory import MemoryCacheBackend
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.errors import (
    BackendUnavailable,
    IdentifierCollision,
    InvalidIdentifier,
    InvalidTransition,
    TenantExists,
    VersionConflict,
)
from tenancy_core.testing.suite import strike

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tenancy_core import TenancyConfig, Tenant
    from tenancy_core.contract import AuditEvent

pytestmark = pytest.mark.anyio

FULL = bool(os.environ.get("TENANCY_TEST_FULL"))


async def assert_whole(tenancy: Tenancy, folder: Path, tenant: Tenant) -> None:
    """One tenant, one file, both complete, and nothing else."""
    assert tenant.active
    assert [one.id async for one in tenancy.tenants.iterate()] == [tenant.id]
    assert len(list((folder / "tenants").glob("*.db"))) == 1
    assert await tenancy.parts.isolation.exists(tenant)
    assert await actions(tenancy, tenant.id) == ["tenant.created", "tenant.provisioned"]
    async with tenancy.parts.store.transaction() as transaction:
        steps = list(await transaction.journaled(tenant.id, "create"))
    assert steps == ["recorded", "provisioned"]
    async with tenancy.scope(tenant.id):
        await write(tenancy, "first")
        assert await read(tenancy) == ["first"]
    with pytest.raises(TenantExists):
        await tenancy.tenants.create("acme")


# -- used as it is meant --------------------------------------------------------------------------


async def test_a_created_tenant_is_active_and_has_a_place(tenancy: Tenancy) -> None:
    made = await tenancy.tenants.create(
        "gamma", name="Gamma", plan="pro", limits={"rate_limit_per_minute": 7}, metadata={"a": [1]}
    )
    assert (made.status, made.isolation, made.plan) == (TenantStatus.ACTIVE, "database", "pro")
    assert await tenancy.parts.isolation.exists(made)
    assert await tenancy.tenants.get("gamma") == made == await tenancy.tenants.get(made.id)
    assert await actions(tenancy, made.id) == ["tenant.created", "tenant.provisioned"]
    async with tenancy.scope("gamma"):
        await write(tenancy, "first")


async def test_an_identifier_has_one_tenant(tenancy: Tenancy) -> None:
    with pytest.raises(TenantExists):
        await tenancy.tenants.create("acme")
    with pytest.raises(TenantExists):
        await tenancy.tenants.create("acme", tenant_id=uuid4())


@pytest.mark.parametrize("hostile", ["Acme", "a_b", "../x", "a" * 49, "", "a--b", "acme\n"])
async def test_a_hostile_identifier_leaves_nothing_behind(tenancy: Tenancy, hostile: str) -> None:
    with pytest.raises(InvalidIdentifier):
        await tenancy.tenants.create(hostile)
    assert [tenant.identifier async for tenant in tenancy.tenants.iterate()] == ["acme", "beta"]


@pytest.mark.parametrize(
    "values",
    [
        {"limits": {"rate": 1}},
        {"limits": {"rate_limit_per_minute": 0}},
        {"limits": {"rate_limit_per_minute": True}},
        {"limits": {"rate_limit_per_minute": 5, "rate_limit_burst": 5}},
    ],
)
async def test_a_limit_that_cannot_be_kept_is_refused(
    tenancy: Tenancy, values: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"limit|burst"):
        await tenancy.tenants.create("gamma", **values)
    with pytest.raises(TenantNotFound):
        await tenancy.tenants.get("gamma")


async def test_a_plan_has_to_be_one_that_is_configured(
    make_config: Callable[..., TenancyConfig],
) -> None:
    plans = {"pro": {"rate_limit_per_minute": 10}}
    async with Tenancy(make_config(plans=plans), metadata=Base.metadata) as tenancy:
        with pytest.raises(ValueError, match="There is no plan 'por'; TENANCY_PLANS has pro"):
            await tenancy.tenants.create("gamma", plan="por")


async def test_the_list_is_complete_in_order_and_page_by_page(tenancy: Tenancy) -> None:
    for number in range(7):
        await tenancy.tenants.create(f"t{number}", plan="odd" if number % 2 else "even")
    names: list[str] = []
    after: str | None = None
    while True:
        page = await tenancy.tenants.list(limit=2, after=after)
        assert len(page.items) <= 2
        names += [tenant.identifier for tenant in page.items]
        after = page.next
        if after is None:
            break
    assert names == ["acme", "beta", *(f"t{number}" for number in range(7))]
    odd = await tenancy.tenants.list(plan="odd")
    assert [tenant.identifier for tenant in odd.items] == ["t1", "t3", "t5"]
    await tenancy.tenants.suspend("t1")
    suspended = await tenancy.tenants.list(status="suspended")
    assert [tenant.identifier for tenant in suspended.items] == ["t1"]
    for limit in (0, 1001):
        with pytest.raises(ValueError, match="limit is from 1 to 1000"):
            await tenancy.tenants.list(limit=limit)


async def test_suspending_and_resuming_are_audited_and_done_once(tenancy: Tenancy) -> None:
    before = await tenancy.tenants.get("acme")
    suspended = await tenancy.tenants.suspend("acme", reason="unpaid", actor="ops")
    assert (suspended.status, suspended.version) == (TenantStatus.SUSPENDED, before.version + 1)
    assert await tenancy.tenants.suspend("acme") == suspended
    resumed = await tenancy.tenants.resume(before.id)
    assert await tenancy.tenants.resume("acme") == resumed
    assert (await actions(tenancy, before.id))[2:] == ["tenant.suspended", "tenant.resumed"]
    event = (await tenancy.parts.store.audit(before.id, after=2, limit=1))[0]
    assert (event.reason, event.actor) == ("unpaid", "ops")


# -- C1: cancelled and failed ------------------------------------------------------------------


@pytest.mark.storm
async def test_C1_a_creation_cancelled_at_any_step_is_finished_by_the_next_call(
    make_config: Callable[..., TenancyConfig], tmp_path: Path
) -> None:
    after = 0
    seen: set[str] = set()
    done = False
    while not done:
        folder = tmp_path / f"cancelled-{after}"
        config = make_config(database_url=f"sqlite+aiosqlite:///{folder}/control.db")
        async with Tenancy(config, metadata=Base.metadata) as tenancy:
            done = not await strike(tenancy.tenants.create("acme"), after, insist=False)
            left = (await tenancy.tenants.list()).items
            seen.add(left[0].status if left else "nothing")
            with suppress(TenantExists):
                await tenancy.tenants.create("acme")
            await assert_whole(tenancy, folder, await tenancy.tenants.get("acme"))
            connections = tenancy.parts.connections
            assert connections.open == connections.idle
        after += 1 if FULL else 7
    assert seen == {"nothing", "provisioning", "active"}


class Provisioning:
    """The real strategy, behind a switch that makes ``provision`` fail."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.broken = True
        self.calls = 0
        self.name = "database"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def session(self, tenant: Tenant, /, *, read_only: bool = False) -> Any:
        """See the contract."""
        return self.inner.session(tenant, read_only=read_only)

    async def provision(self, tenant: Tenant, /) -> None:
        """Fail while broken."""
        self.calls += 1
        if self.broken:
            raise OSError("no space left on device")
        await self.inner.provision(tenant)


async def test_C1_a_creation_that_failed_is_finished_by_the_next_call(tenancy: Tenancy) -> None:
    service = tenancy.tenants
    service._creation._isolation = strategy = Provisioning(tenancy.parts.isolation)
    with pytest.raises(OSError, match="no space"):
        await service.create("gamma", plan="pro")
    failed = await service.get("gamma")
    assert failed.status is TenantStatus.FAILED
    with pytest.raises(InvalidTransition):
        await service.suspend("gamma")
    strategy.broken = False
    # Somebody else's attempt is not finished for whoever asks for the same identifier.
    for other in ({}, {"plan": "pro", "name": "Mine"}, {"plan": "pro", "metadata": {"by": "me"}}):
        with pytest.raises(TenantExists):
            await service.create("gamma", **other)
    with pytest.raises(TenantExists):
        await service.create("gamma", plan="pro", tenant_id=uuid4())
    made = await service.create("gamma", plan="pro")
    assert (made.id, made.plan, made.status) == (failed.id, "pro", TenantStatus.ACTIVE)
    async with tenancy.scope("gamma"):
        assert await read(tenancy) == []
    assert await actions(tenancy, made.id) == [
        "tenant.created",
        "tenant.failed",
        "tenant.provisioned",
    ]


async def test_C1_a_creation_that_was_cancelled_is_finished_by_the_next_call(
    tenancy: Tenancy,
) -> None:
    service = tenancy.tenants
    started = anyio.Event()

    class Hanging(Provisioning):
        async def provision(self, tenant: Tenant, /) -> None:
            started.set()
            await anyio.sleep_forever()

    service._creation._isolation = Hanging(tenancy.parts.isolation)
    async with anyio.create_task_group() as group:
        group.start_soon(service.create, "gamma")
        await started.wait()
        group.cancel_scope.cancel()
    assert (await service.get("gamma")).status is TenantStatus.PROVISIONING
    service._creation._isolation = tenancy.parts.isolation
    assert (await service.create("gamma")).status is TenantStatus.ACTIVE


async def test_C2_two_who_create_one_tenant_get_the_same_or_are_told(tenancy: Tenancy) -> None:
    made: list[Tenant] = []
    refused: list[str] = []

    async def create() -> None:
        try:
            made.append(await tenancy.tenants.create("gamma"))
        except TenantExists:
            refused.append("gamma")

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(create)
    assert made
    assert len({tenant.id for tenant in made}) == 1
    assert len(made) + len(refused) == 8
    assert await actions(tenancy, made[0].id) == ["tenant.created", "tenant.provisioned"]


# -- I1: collisions --------------------------------------------------------------------------------


async def test_I1_of_two_tenants_with_one_derived_name_the_second_is_refused_and_leaves_nothing(
    make_config: Callable[..., TenancyConfig], tmp_path: Path
) -> None:
    """The ids and identifiers are real: nothing is pretended here."""
    async with Tenancy(make_config(), metadata=Base.metadata) as tenancy:
        first = await tenancy.tenants.create(FIRST_IDENTIFIER, tenant_id=FIRST_ID)
        async with tenancy.scope(first.id):
            await write(tenancy, "the first one's")
        before = await tenancy.parts.store.last_change()
        for _ in range(2):
            with pytest.raises(IdentifierCollision):
                await tenancy.tenants.create(SECOND_IDENTIFIER, tenant_id=SECOND_ID)
        with pytest.raises(TenantNotFound):
            await tenancy.tenants.get(SECOND_ID)
        with pytest.raises(TenantNotFound):
            await tenancy.tenants.get(SECOND_IDENTIFIER)
        assert await tenancy.parts.store.last_change() == before
        assert not await tenancy.parts.store.audit(SECOND_ID)
        assert len(list(tmp_path.rglob("tenants/*.db"))) == 1
        # With an id of its own it is a tenant like any other.
        second = await tenancy.tenants.create(SECOND_IDENTIFIER)
        assert second.placement.name != first.placement.name
        async with tenancy.scope(second.id):
            assert await read(tenancy) == []


async def test_I1_while_a_tenant_is_refused_the_one_in_its_place_is_not_touched(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with Tenancy(make_config(), store=MemoryTenantStore(), metadata=Base.metadata) as tenancy:
        await tenancy.tenants.create(FIRST_IDENTIFIER, tenant_id=FIRST_ID)
        with pytest.raises(IdentifierCollision):
            await tenancy.tenants.create(SECOND_IDENTIFIER, tenant_id=SECOND_ID)
        assert [one.id async for one in tenancy.tenants.iterate()] == [FIRST_ID]


# -- suspending and resuming -----------------------------------------------------------------------


async def test_suspending_many_times_at_once_is_one_change(tenancy: Tenancy) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(tenancy.tenants.suspend("acme")) for _ in range(10)]
    assert {task.result().status for task in tasks} == {TenantStatus.SUSPENDED}
    assert {task.result().version for task in tasks} == {3}
    acme = await tenancy.tenants.get("acme")
    assert await actions(tenancy, acme.id) == [
        "tenant.created",
        "tenant.provisioned",
        "tenant.suspended",
    ]


async def test_suspending_and_resuming_at_once_ends_in_one_of_the_two(tenancy: Tenancy) -> None:
    async def change(number: int) -> None:
        service = tenancy.tenants
        with suppress(VersionConflict):
            await (service.suspend, service.resume)[number % 2]("acme")

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(change(number))
    acme = await tenancy.tenants.get("acme")
    done = (await actions(tenancy, acme.id))[2:]
    # Each change follows from the one before it, and the log says what the record says.
    assert done == ["tenant.suspended", "tenant.resumed"] * (len(done) // 2) + (
        ["tenant.suspended"] if len(done) % 2 else []
    )
    assert acme.status == ("suspended" if len(done) % 2 else "active")
    assert acme.version == 2 + len(done)


async def test_nobody_can_be_suspended_or_resumed(tenancy: Tenancy) -> None:
    for action in (tenancy.tenants.suspend, tenancy.tenants.resume):
        with pytest.raises(TenantNotFound):
            await action("nobody")


# -- what follows a commit -------------------------------------------------------------------------


class Listener:
    """An observer and an audit sink that write down what they are told."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def refused(self, *_: object) -> None: ...

    def changed(self, tenant: Tenant, action: str) -> None:
        self.heard.append((tenant.identifier, action))

    async def write(self, event: AuditEvent) -> None:
        self.heard.append(event.action)


class DownCache(MemoryCacheBackend):
    """Answers nothing."""

    async def get(self, key: str, /) -> bytes | None:
        raise OSError

    async def generation(self, *, bump: bool = False) -> int:
        raise OSError


async def test_A3_a_committed_change_is_told_although_the_shared_cache_is_down(
    make_config: Callable[..., TenancyConfig],
) -> None:
    listener = Listener()
    async with Tenancy(
        make_config(cache_enabled=True),
        metadata=Base.metadata,
        cache_backend=DownCache(),
        observers=[listener],
        audit_sinks=[listener],
    ) as tenancy:
        with pytest.raises(BackendUnavailable, match="committed"):
            await tenancy.tenants.create("acme")
        with pytest.raises(BackendUnavailable, match="committed"):
            await tenancy.tenants.create("acme")
        assert listener.heard == [
            "tenant.created",
            ("acme", "tenant.created"),
            "tenant.provisioned",
            ("acme", "tenant.provisioned"),
        ]
        with pytest.raises(BackendUnavailable, match="committed"):
            await tenancy.tenants.suspend("acme")
        assert listener.heard[4:] == ["tenant.suspended", ("acme", "tenant.suspended")]
        # Whoever asks again is told that it was done, and nothing is done twice.
        with pytest.raises(BackendUnavailable):
            await tenancy.tenants.suspend("acme")
        assert len(listener.heard) == 6
        assert (await tenancy.tenants.get("acme")).status is TenantStatus.SUSPENDED
