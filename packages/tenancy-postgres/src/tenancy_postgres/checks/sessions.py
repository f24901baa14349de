"""Connections as tenants' sessions have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenancy_core.tenant import TenantStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from sqlalchemy.ext.asyncio import AsyncConnection

    from tenancy_core.contract import IsolationStrategy
    from tenancy_core.tenant import Tenant
    from tenancy_postgres.checks.strategies import Strategies

    Opens = Callable[[], AbstractAsyncContextManager[AsyncConnection]]

__all__ = ["sessions_of"]


async def sessions_of(
    tenancy: Any,  # noqa: ANN401 - as Check says
    strategies: Strategies,
) -> AsyncIterator[tuple[str, Opens]]:
    """Yield the ways that tenants' sessions take, each with the setting that names it."""
    for isolation in strategies.shared:
        yield "TENANCY_DATABASE_URL", isolation.nobodys
    for database in strategies.database:
        for alias, server in database.servers.items():
            tenant = await _one_on(tenancy, alias)
            if tenant is not None:
                yield server.address.setting, _of_tenant(database, tenant)


def _of_tenant(isolation: IsolationStrategy, tenant: Tenant) -> Opens:
    return lambda: isolation.connection(tenant)


async def _one_on(tenancy: Any, alias: str) -> Tenant | None:  # noqa: ANN401 - as Check says
    tenant: Tenant
    async for tenant in tenancy.tenants.iterate(status=TenantStatus.ACTIVE):
        if tenant.isolation == "database" and tenant.placement.server == alias:
            return tenant
    return None
