"""What a path operation declares: the tenant, and its database session.

The callables are public so that tests can replace them: ``app.dependency_overrides[...]``.
"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession

from tenancy_core import NoCurrentTenant, Tenancy, Tenant, current_tenant, require_tenant
from tenancy_core.context import binding

__all__ = [
    "CurrentTenant",
    "OptionalTenant",
    "ReadOnlySession",
    "TenantSession",
    "get_current_tenant",
    "get_optional_tenant",
    "get_read_only_session",
    "get_tenant_session",
]


async def get_current_tenant() -> Tenant:
    """Return the tenant of the request.

    Raises:
        NoCurrentTenant: The path is excluded.
    """
    return require_tenant()


async def get_optional_tenant() -> Tenant | None:
    """Return the tenant of the request, or None on an excluded path."""
    return current_tenant()


async def get_tenant_session() -> AsyncIterator[AsyncSession]:
    """Open a session of the request's tenant.

    It commits before the response leaves, so that a commit that fails is a 5xx and never a 200;
    it rolls back if the path operation raises, and is closed before a streamed body, an event
    stream or a background task runs: those open ``tenancy.session()`` themselves.
    """
    async with _tenancy().session() as session:
        yield session


async def get_read_only_session() -> AsyncIterator[AsyncSession]:
    """As :func:`get_tenant_session`; the database refuses writes, and nobody waits for it."""
    async with _tenancy().session(read_only=True) as session:
        yield session


def _tenancy() -> Tenancy:
    # Whose tenant it is, and not what request.app has: that is the sub-application in a mount.
    bound = binding.get()
    if bound is None:
        raise NoCurrentTenant(
            "This request has no tenant: its path is excluded, or tenancy is not installed in "
            "this application, install(app, tenancy)."
        )
    tenancy: Tenancy = bound.owner
    return tenancy


CurrentTenant = Annotated[Tenant, Depends(get_current_tenant)]
"""The tenant of the request."""

OptionalTenant = Annotated[Tenant | None, Depends(get_optional_tenant)]
"""The tenant of the request; None on an excluded path."""

TenantSession = Annotated[AsyncSession, Depends(get_tenant_session, scope="function")]
"""A session of the request's tenant; see :func:`get_tenant_session`.

A dependency of your own that uses it and yields needs the same scope:
``Depends(your_dependency, scope="function")``."""

ReadOnlySession = Annotated[AsyncSession, Depends(get_read_only_session, scope="function")]
"""A session of the request's tenant in which the database refuses writes."""
