"""``tenancy.tenants``: create, get, list, suspend, resume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import anyio
import pytest

from support.notes import Base, read, write
from tenancy_core import Tenancy, TenantNotFound, TenantStatus
from tenancy_core.errors import (
    IdentifierCollision,
    InvalidIdentifier,
    InvalidTransition,
    TenantExists,
    VersionConflict,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenancy_core import TenancyConfig, Tenant

pytestmark = pytest.mark.anyio


async def actions(tenancy: Tenancy, tenant: Tenant) -> list[str]:
    """Return what the audit log says was done to a tenant."""
    log = await tenancy.parts.store.audit(tenant.id)
    assert [event.sequence for event in log] == list(range(1, len(log) + 1))
    return [event.action for event in log]


async def test_a_created_tenant_is_active_and_has_a_place(tenancy: Tenancy) -> None:
    made = await tenancy.tenants.create(
        "gamma", name="Gamma", plan="pro", limits={"rate_limit_per_minute": 7}, metadata={"a": [1]}
    )
    assert (made.status, made.isolation, made.plan) == (TenantStatus.ACTIVE, "database", "pro")
    assert await tenancy.parts.isolation.exists(made)
    assert await tenancy.tenants.get("gamma") == made == await tenancy.tenants.get(made.id)
    assert await actions(tenancy, made) == ["tenant.created", "tenant.provisioned"]
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
    assert (await actions(tenancy, before))[2:] == ["tenant.suspended", "tenant.resumed"]
    event = (await tenancy.parts.store.audit(before.id, after=2, limit=1))[0]
    assert (event.reason, event.actor) == ("unpaid", "ops")


async def test_an_expected_version_guards_against_a_change_in_between(tenancy: Tenancy) -> None:
    seen = await tenancy.tenants.get("acme")
    await tenancy.tenants.suspend("acme", expected_version=seen.version)
    with pytest.raises(VersionConflict):
        await tenancy.tenants.resume("acme", expected_version=seen.version)
    assert (await tenancy.tenants.get("acme")).status is TenantStatus.SUSPENDED


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
    service._isolation = strategy = Provisioning(tenancy.parts.isolation)  # type: ignore[assignment]
    with pytest.raises(OSError, match="no space"):
        await service.create("gamma", plan="pro")
    failed = await service.get("gamma")
    assert failed.status is TenantStatus.FAILED
    with pytest.raises(InvalidTransition):
        await service.suspend("gamma")
    strategy.broken = False
    made = await service.create("gamma")
    # What the first call recorded counts.
    assert (made.id, made.plan, made.status) == (failed.id, "pro", TenantStatus.ACTIVE)
    async with tenancy.scope("gamma"):
        assert await read(tenancy) == []
    assert await actions(tenancy, made) == [
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

    service._isolation = Hanging(tenancy.parts.isolation)  # type: ignore[assignment]
    async with anyio.create_task_group() as group:
        group.start_soon(service.create, "gamma")
        await started.wait()
        group.cancel_scope.cancel()
    assert (await service.get("gamma")).status is TenantStatus.PROVISIONING
    service._isolation = tenancy.parts.isolation
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
    assert await actions(tenancy, made[0]) == ["tenant.created", "tenant.provisioned"]


async def test_I1_a_derived_name_that_is_taken_creates_nothing(
    tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme = await tenancy.tenants.get("acme")

    def collide(prefix: str, identifier: str, tenant_id: UUID) -> str:
        return acme.placement.name

    monkeypatch.setattr("tenancy_core.tenants.service.derive_name", collide)
    before = await tenancy.parts.store.last_change()
    with pytest.raises(IdentifierCollision):
        await tenancy.tenants.create("gamma")
    with pytest.raises(TenantNotFound):
        await tenancy.tenants.get("gamma")
    assert await tenancy.parts.store.last_change() == before
