"""``tenancy.scope``, ``current_tenant`` and ``require_tenant``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.notes import read, write
from tenancy_core import NoCurrentTenant, TenantNotFound, current_tenant, require_tenant
from tenancy_core.errors import TenantContextLocked, TenantInactive

if TYPE_CHECKING:
    from tenancy_core import Tenancy

pytestmark = pytest.mark.anyio


async def test_a_scope_makes_its_tenant_current_and_its_data_reachable(tenancy: Tenancy) -> None:
    async with tenancy.scope("acme") as acme:
        assert current_tenant() is acme
        await write(tenancy, "of acme")
    async with tenancy.scope("beta"):
        assert await read(tenancy) == []
    async with tenancy.scope(acme.id):
        assert await read(tenancy) == ["of acme"]
    assert current_tenant() is None


async def test_without_a_scope_there_is_no_tenant(tenancy: Tenancy) -> None:
    with pytest.raises(NoCurrentTenant):
        require_tenant()
    with pytest.raises(NoCurrentTenant):
        tenancy.session()


async def test_another_tenants_scope_inside_a_scope_is_refused(tenancy: Tenancy) -> None:
    async with tenancy.scope("acme") as acme:
        with pytest.raises(TenantContextLocked):
            await tenancy.scope("beta").__aenter__()
        assert current_tenant() is acme


async def test_a_switch_needs_a_reason_and_is_audited(tenancy: Tenancy) -> None:
    with pytest.raises(ValueError, match="reason"):
        tenancy.scope("beta", switch=True)
    async with tenancy.scope("acme") as acme:
        async with tenancy.scope("beta", switch=True, reason="support case 7") as beta:
            assert current_tenant() is beta
        assert current_tenant() is acme
    log = await tenancy.parts.store.audit(beta.id)
    assert [(event.action, event.reason) for event in log][-1] == (
        "scope.switched",
        "support case 7",
    )
    assert [event.sequence for event in log] == list(range(1, len(log) + 1))


async def test_a_scope_serves_active_tenants_only(tenancy: Tenancy) -> None:
    await tenancy.tenants.suspend("acme")
    with pytest.raises(TenantInactive):
        await tenancy.scope("acme").__aenter__()
    async with tenancy.scope("acme", statuses={"suspended"}):
        assert await read(tenancy) == []
    with pytest.raises(TenantNotFound):
        await tenancy.scope("nobody").__aenter__()
