"""Which tenant is current: one context variable, read by everything else.

The value is bound by the ASGI middleware or by ``tenancy.scope`` and inherited by tasks, by
threads that copy the context (``asyncio.to_thread``, sync handlers) and by nothing else.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from tenancy_core._fork import lineage
from tenancy_core.errors import NoCurrentTenant

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from tenancy_core.tenant import Tenant

__all__ = ["Binding", "binding", "current_tenant", "require_tenant", "tenant_cached"]

P = ParamSpec("P")
T = TypeVar("T")


class Binding:
    """A tenant together with the ``Tenancy`` that vouches for it.

    It is made once per cached tenant and shared by its requests, so that binding a request
    allocates nothing. A scope makes one of its own.

    Attributes:
        tenant: The current tenant.
        owner: The ``Tenancy`` that bound it; another one refuses to open sessions for it.
        scope: The scope that made it, or None.
        outer: What was current when that scope was entered.
        generation: Of the process that made it. In a forked child it does not count: who opened
            it for the tenant is the parent.
    """

    __slots__ = ("generation", "outer", "owner", "scope", "tenant")

    def __init__(
        self,
        tenant: Tenant,
        owner: Any,  # noqa: ANN401 - Tenancy is above
        *,
        scope: object = None,
        outer: Binding | None = None,
    ) -> None:
        self.tenant = tenant
        self.owner = owner
        self.scope = scope
        self.outer = outer
        self.generation = lineage.generation

    def without(self, scope: object) -> Binding | None:
        """Return what is current once a scope is left, be it this binding's or one around it.

        Scopes in one context are not always left in the order in which they were entered: a
        generator opens them in the context of whoever iterates it, and two generators are closed
        in any order. Going back to what was current on entering would bring back the tenant of a
        scope that is over.
        """
        if self.scope is scope:
            return self.outer
        outer = None if self.outer is None else self.outer.without(scope)
        if outer is self.outer:
            return self
        kept = Binding(self.tenant, self.owner, scope=self.scope, outer=outer)
        kept.generation = self.generation
        return kept


binding: Final[ContextVar[Binding | None]] = ContextVar("tenancy_binding", default=None)
"""The current binding. Only the middleware and ``tenancy.scope`` set it."""


def current_tenant() -> Tenant | None:
    """Return the tenant of the running request, job or scope; None outside of any."""
    bound = binding.get()
    if bound is None or bound.generation != lineage.generation:
        return None
    return bound.tenant


def require_binding() -> Binding:
    """Return the current tenant together with the ``Tenancy`` that bound it.

    Raises:
        NoCurrentTenant: There is none. There is never a default tenant.
    """
    bound = binding.get()
    if bound is None or bound.generation != lineage.generation:
        raise NoCurrentTenant
    return bound


def require_tenant() -> Tenant:
    """Return the current tenant.

    Raises:
        NoCurrentTenant: There is none. There is never a default tenant.
    """
    return require_binding().tenant


def tenant_cached(maxsize: int = 128) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """As ``functools.lru_cache``, for a function whose answer depends on the current tenant.

    A plain ``lru_cache`` gives every tenant the answer that was made for the first. Here the
    tenant is part of the key, at the version of its record: a change of the tenant asks anew.

    Args:
        maxsize: Most answers to keep, of all tenants together.

    Raises:
        TypeError: On decorating: the function is asynchronous; its coroutine can be awaited once.
        NoCurrentTenant: On calling: there is no tenant here.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError("tenant_cached is for plain functions; cache what they return instead.")

        @lru_cache(maxsize)
        def answer(_id: UUID, _version: int, /, *args: P.args, **kwargs: P.kwargs) -> T:
            return function(*args, **kwargs)

        @wraps(function)
        def ask(*args: P.args, **kwargs: P.kwargs) -> T:
            tenant = require_tenant()
            # As with lru_cache, what is not hashable is refused when it is passed.
            return answer(tenant.id, tenant.version, *args, **kwargs)  # type: ignore[arg-type]

        return ask

    return decorate
