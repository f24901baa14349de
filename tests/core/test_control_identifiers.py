"""Identifiers that were given up, and how soon other workers know (threats K1 and T10)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from support.control import ACME, Places, control_config, control_tenancy, prepare
from support.scopes import WhoAmI, ask, http_scope
from support.waiting import until
from tenancy_core import Tenancy, TenancyMiddleware, TenantStatus
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.crypto import Sensitive
from tenancy_core.errors import TenantExists

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from support.later import Later
    from tenancy_core import TenancyConfig
    from tenancy_core.tenants import TenantService

pytestmark = pytest.mark.anyio


SETTINGS = {"l1_cache_ttl_seconds": 60, "invalidation_poll_seconds": 5}


@pytest.mark.parametrize("how", ["rename", "erase"])
@pytest.mark.parametrize(("shared", "kept"), [(False, 365), (True, 965)])
async def test_nobody_else_gets_an_identifier_while_a_cache_may_believe_in_its_old_owner(
    make_config: Callable[..., TenancyConfig],
    later: type[Later],
    how: str,
    shared: bool,
    kept: int,
) -> None:
    config = make_config(**SETTINGS, cache_enabled=shared, cache_ttl=600)
    async with Tenancy(config, store=MemoryTenantStore(), isolation=Places()) as tenancy:
        service = tenancy.tenants
        acme, beta = await service.create("acme"), await service.create("beta")
        assert await served(tenancy, "acme") == acme  # cached
        if how == "rename":
            await service.rename("acme", "acme-two")
        else:
            await service.archive("acme")
            await service.erase("acme")
        # At once it is nobody's here.
        assert await tenancy.parts.directory.find("acme") is None
        before = await tenancy.parts.store.last_change()
        for past in (0, kept - 1):
            later.by = timedelta(seconds=past)
            with pytest.raises(TenantExists, match="was another tenant's"):
                await service.create("acme")
            with pytest.raises(TenantExists, match="was another tenant's"):
                await service.rename("beta", "acme")
        assert await tenancy.parts.store.last_change() == before
        assert (await service.get("beta")).version == beta.version
        later.by = timedelta(seconds=kept + 1)
        await service.release("acme")
        other = await service.create("acme")
        assert other.id != acme.id


async def test_whoever_gave_an_identifier_up_may_take_it_back_at_once(
    make_config: Callable[..., TenancyConfig], later: type[Later]
) -> None:
    config = make_config(**SETTINGS)
    async with Tenancy(config, store=MemoryTenantStore(), isolation=Places()) as tenancy:
        service = tenancy.tenants
        acme = await service.create("acme")
        await service.create("beta")
        await service.rename("acme", "acme-two")
        assert (await service.rename("acme-two", "acme")).id == acme.id
        assert later.by == timedelta()
        # Both of its names are still its own.
        for name in ("acme", "acme-two"):
            with pytest.raises(TenantExists):
                await service.rename("beta", name)


async def test_a_name_that_is_given_up_while_somebody_creates_it_is_refused_in_the_transaction(
    make_config: Callable[..., TenancyConfig],
) -> None:
    """The look-up before the transaction found nobody, and so does the unique column."""

    class Passing(MemoryTenantStore):
        armed = False

        async def get_by_identifier(self, identifier: str, /) -> Any:
            found = await super().get_by_identifier(identifier)
            if self.armed and identifier == "wanted" and found is None:
                self.armed = False
                await tenancy.tenants.rename("acme", "wanted")
                await tenancy.tenants.rename("wanted", "elsewhere")
            return found

    store = Passing()
    places = Places()
    async with Tenancy(make_config(), store=store, isolation=places) as tenancy:
        await tenancy.tenants.create("acme")
        store.armed = True
        with pytest.raises(TenantExists, match="was another tenant's"):
            await tenancy.tenants.create("wanted")
        assert len(places.there) == 1
        assert [one.identifier async for one in tenancy.tenants.iterate()] == ["elsewhere"]


# -- two workers -----------------------------------------------------------------------------------


async def served(tenancy: Tenancy, name: str) -> Any:
    """As whom, and how, a worker serves an identifier."""
    binding = await tenancy.parts.directory.find(name)
    return None if binding is None else binding.tenant


async def test_K1_a_worker_that_has_not_polled_never_takes_one_tenant_for_another(
    tmp_path: Path,
) -> None:
    await prepare(tmp_path, "rename")
    async with control_tenancy(tmp_path) as first, control_tenancy(tmp_path) as second:
        assert (await served(second, "acme")).id == ACME
        await first.tenants.rename(ACME, "acme-two")
        assert await served(first, "acme") is None
        with pytest.raises(TenantExists):
            await first.tenants.create("acme")
        # The second one has not asked yet, and what it still believes is true of the data.
        assert (await served(second, "acme")).id == ACME
        await second.parts.follower.poll()
        assert await served(second, "acme") is None
        assert (await served(second, "acme-two")).id == ACME


CHANGES: dict[str, Callable[[TenantService], Awaitable[object]]] = {
    "suspend": lambda service: service.suspend(ACME),
    "archive": lambda service: service.archive(ACME),
    "rename": lambda service: service.rename(ACME, "acme-two"),
    "set_plan": lambda service: service.set_plan(ACME, "pro", limits={"rate_limit_per_minute": 3}),
    "set_metadata": lambda service: service.set_metadata(ACME, {"vat": Sensitive("other")}),
    "put_secret": lambda service: service.put_secret(ACME, "password", "re-keyed"),
    "rewrap": lambda service: service.rewrap_keys(),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_K1_another_worker_knows_of_each_change_within_the_poll(
    change: str, tmp_path: Path
) -> None:
    await prepare(tmp_path, change)
    async with (
        control_tenancy(tmp_path) as first,
        control_tenancy(tmp_path, invalidation_poll_seconds=0.05) as second,
    ):
        before = await served(second, "acme")
        assert await served(first, "acme") == before
        await CHANGES[change](first.tenants)
        after = await first.tenants.get(ACME)
        assert after.version == before.version + 1
        assert await served(first, after.identifier) == after  # here at once
        # Nobody asks for it meanwhile: it is the poll that forgets.
        await until(lambda: second.parts.directory.l1.get_by_id(ACME) is None)
        now = await served(second, after.identifier)
        assert now == after
        if change == "put_secret":
            secret = await second.tenants.get_secret(ACME, "password")
            assert secret is not None
            assert secret.get_secret_value() == "re-keyed"
        if change == "rename":
            assert await served(second, "acme") is None


async def test_K1_an_erased_tenant_is_nobody_in_another_worker_within_the_poll(
    tmp_path: Path,
) -> None:
    await prepare(tmp_path, "archive")
    async with control_tenancy(tmp_path) as first, control_tenancy(tmp_path) as second:
        assert (await served(second, "acme")).active
        await first.tenants.archive(ACME)
        await second.parts.follower.poll()
        assert (await served(second, "acme")).status is TenantStatus.ARCHIVED
        await first.tenants.erase(ACME)
        await second.parts.follower.poll()
        assert await served(second, "acme") is None


async def test_T10_a_lowered_limit_is_effective_in_another_worker_within_the_poll(
    tmp_path: Path,
) -> None:
    await prepare(tmp_path, "set_plan")
    config = control_config(tmp_path, enable_rate_limiting=True, rate_limit_per_minute=1000)
    async with control_tenancy(tmp_path) as first, Tenancy(config) as second:
        app = TenancyMiddleware(WhoAmI(), second)

        async def status() -> Any:
            return await ask(app, http_scope(b"/", (b"x-tenant-id", b"acme")))

        assert [(await status()).status for _ in range(20)] == [200] * 20
        limits = {"rate_limit_per_minute": 3, "rate_limit_burst": 2}
        await first.tenants.set_plan(ACME, None, limits=limits)
        await second.parts.follower.poll()
        answers = [await status() for _ in range(5)]
        assert [answer.status for answer in answers][2:] == [429] * 3
        assert 1 <= int(answers[-1].header(b"retry-after")) <= 60
