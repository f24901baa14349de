"""Which tenant is current: one context variable, read by everything else.

The value is bound by the ASGI middleware or by ``tenancy.scope`` and inherited by tasks, by
threads that copy the context (``asyncio.to_thread``, sync handlers) and by nothing else.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from tenancy_core.errors import NoCurrentTenant

if TYPE_CHECKING:
    from tenancy_core.tenant import Tenant

__all__ = ["Binding", "binding", "current_tenant", "require_tenant"]


class Binding:
    """A tenant together with the ``Tenancy`` that vouches for it.

    It is made once per cached tenant and shared by its requests, so that binding a request
    allocates nothing.

    Attributes:
        tenant: The current tenant.
        owner: The ``Tenancy`` that bound it; another one refuses to open sessions for it.
    """

    __slots__ = ("owner", "tenant")

    def __init__(self, tenant: Tenant, owner: Any) -> None:  # noqa: ANN401 - Tenancy is above
        self.tenant = tenant
        self.owner = owner


binding: Final[ContextVar[Binding | None]] = ContextVar("tenancy_binding", default=None)
"""The current binding. Only the middleware and ``tenancy.scope`` set it."""


def current_tenant() -> Tenant | None:
    """Return the tenant of the running request, job or scope; None outside of any."""
    bound = binding.get()
    return None if bound is None else bound.tenant


def require_tenant() -> Tenant:
    """Return the current tenant.

    Raises:
        NoCurrentTenant: There is none. There is never a default tenant.
    """
    bound = binding.get()
    if bound is None:
        raise NoCurrentTenant
    return bound.tenant
