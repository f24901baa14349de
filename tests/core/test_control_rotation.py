"""Credentials that are rotated while something else is done to their tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.control import ACME, NEW_KEY, Places, actions
from tenancy_core import Tenancy, TenantStatus
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.errors import InvalidTransition
from tenancy_core.tenants import TenantService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tenancy_core import TenancyConfig, Tenant

pytestmark = pytest.mark.anyio

NAMED = "jane@example.com"


class Rotating(Places):
    """A strategy with credentials, behind whose replacement something else happens."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def rotate_credentials(self, _tenant: Tenant, /) -> None:
        """See the contract."""
        if self.meanwhile is not None:
            await self.meanwhile()


@pytest.fixture
def rotating() -> Rotating:
    return Rotating()


@pytest.fixture(params=["memory", "sql"])
async def tenancy(
    request: pytest.FixtureRequest, make_config: Callable[..., TenancyConfig], rotating: Rotating
) -> AsyncIterator[Tenancy]:
    store = MemoryTenantStore() if request.param == "memory" else None
    config = make_config(enable_encryption=True, encryption_keys=[NEW_KEY])
    async with Tenancy(config, store=store, isolation=rotating) as opened:
        await opened.tenants.create("acme", tenant_id=ACME)
        yield opened


async def test_C5_nobody_is_named_behind_the_erasure_of_whose_credentials_were_rotated(
    tenancy: Tenancy, rotating: Rotating
) -> None:
    service = tenancy.tenants

    async def erase() -> None:
        await service.archive(ACME)
        await service.erase(ACME)

    rotating.meanwhile = erase
    with pytest.raises(InvalidTransition, match="is erased; it cannot get other credentials"):
        await service.rotate_credentials(ACME, actor=NAMED, reason=f"{NAMED} asked for it")
    erased = await service.get(ACME)
    assert (erased.status, erased.version) == (TenantStatus.ERASED, 5)
    assert (await actions(tenancy, ACME))[-1] == "tenant.erased"
    log = await tenancy.audit.read(ACME)
    assert {(event.actor, event.reason, len(event.personal)) for event in log} == {(None, None, 0)}
    assert (await tenancy.audit.verify(ACME)).ok


@pytest.mark.parametrize("change", [TenantService.suspend, TenantService.archive])
async def test_a_rotation_of_a_tenant_that_still_has_its_place_is_recorded(
    tenancy: Tenancy, rotating: Rotating, change: Callable[[Any, Any], Awaitable[Tenant]]
) -> None:
    async def meanwhile() -> None:
        await change(tenancy.tenants, ACME)

    rotating.meanwhile = meanwhile
    after = await tenancy.tenants.rotate_credentials(ACME, actor=NAMED)
    assert after.version == 4
    (*_, event) = await tenancy.audit.read(ACME)
    assert (event.action, event.actor) == ("tenant.credentials_rotated", NAMED)
