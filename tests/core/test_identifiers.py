"""An identifier that was given up is nobody else's until it is released."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tenancy_core import Tenancy
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.errors import InvalidIdentifier, TenantExists
from tenancy_core.tenants.identifiers import Identifiers

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.later import Later
    from tenancy_core import TenancyConfig

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, 60 + 5),
        ({"l1_cache_ttl_seconds": 10, "invalidation_poll_seconds": 1}, 11),
        ({"cache_enabled": True}, 3600 + 60 + 5),
        ({"cache_ttl": 7200}, 60 + 5),  # there is no shared cache
    ],
)
def test_it_cannot_be_released_while_a_cache_may_still_believe_it(
    make_config: Callable[..., TenancyConfig], settings: dict[str, Any], kept: float
) -> None:
    found = Identifiers(make_config(**settings), MemoryTenantStore()).kept
    assert found == timedelta(seconds=kept, minutes=5)


@pytest.mark.parametrize("how", ["rename", "erase"])
async def test_K1_J20_it_is_nobody_elses_until_then(
    make_config: Callable[..., TenancyConfig], later: type[Later], how: str
) -> None:
    async with Tenancy(make_config(enable_soft_delete=False)) as tenancy:
        service = tenancy.tenants
        acme = await service.create("acme")
        await service.create("beta")
        if how == "rename":
            await service.rename("acme", "acme-corp")
        else:
            await service.erase("acme")
        changes = await tenancy.parts.store.last_change()
        # Tokens and messages may name the old one for ever.
        for by in (timedelta(), timedelta(days=3650)):
            later.by = by
            with pytest.raises(TenantExists, match=r"release\('acme'\)"):
                await service.create("acme")
            with pytest.raises(TenantExists, match=r"release\('acme'\)"):
                await service.rename("beta", "acme")
        later.by = timedelta(seconds=364)
        with pytest.raises(TenantExists, match="It can be released at 20"):
            await service.release("acme")
        later.by = timedelta(seconds=366)
        assert await tenancy.parts.store.last_change() == changes
        await service.release("acme")
        await service.release("acme")
        assert (await service.create("acme")).id != acme.id


async def test_its_own_tenant_may_have_it_back_and_give_it_up_again(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with Tenancy(make_config()) as tenancy:
        acme = await tenancy.tenants.create("acme")
        for _ in range(2):
            await tenancy.tenants.rename(acme.id, "acme-corp")
            assert (await tenancy.tenants.rename(acme.id, "acme")).id == acme.id


async def test_whose_an_erased_one_was_cannot_be_found_out(
    make_config: Callable[..., TenancyConfig],
) -> None:
    store = MemoryTenantStore()
    async with Tenancy(make_config(enable_soft_delete=False), store=store) as tenancy:
        await tenancy.tenants.create("acme")
        await tenancy.tenants.rename("acme", "acme-corp")
        await tenancy.tenants.erase("acme-corp")
        reservations = store._state.reservations
        assert len(reservations) == 2
        assert [one.tenant_id for one in reservations.values()].count(None) == 1
        # Two stores hide one name differently.
        other = Identifiers(make_config(), MemoryTenantStore())
        await other.prepare()
        assert other._digest("acme-corp") not in reservations


async def test_what_is_no_identifier_is_not_released(tenancy: Tenancy) -> None:
    with pytest.raises(InvalidIdentifier):
        await tenancy.tenants.release("A_b")
    await tenancy.tenants.release("acme")  # a tenant's: nothing to do
    assert (await tenancy.tenants.get("acme")).active


async def test_a_release_is_in_the_log_of_the_tenant_that_had_it(
    make_config: Callable[..., TenancyConfig], later: type[Later]
) -> None:
    async with Tenancy(make_config(enable_soft_delete=False)) as tenancy:
        service = tenancy.tenants
        acme = await service.create("acme")
        await service.rename("acme", "acme-corp")
        with pytest.raises(TenantExists):
            await service.release("acme", reason="a customer asked", actor="ada")
        later.by = timedelta(days=1)
        for _ in range(2):
            await service.release("acme", reason="a customer asked", actor="ada")
        *_, renamed, released = await tenancy.audit.read(acme.id)
        assert (renamed.action, released.action) == (
            "tenant.renamed",
            "tenant.identifier_released",
        )
        assert (released.actor, released.reason) == ("ada", "a customer asked")
        assert released.personal == {"identifier": "acme"}
        # An erased one's log is closed.
        await service.rename(acme.id, "acme-inc")
        await service.erase(acme.id)
        later.by = timedelta(days=2)
        await service.release("acme-corp", actor="ada")
        await service.release("acme-inc", actor="ada")
        assert (await tenancy.audit.read(acme.id))[-1].action == "tenant.erased"
        assert (await tenancy.audit.verify(acme.id)).ok
        assert (await service.create("acme-corp")).id != acme.id
