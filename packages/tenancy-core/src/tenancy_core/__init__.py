"""Multi-tenancy for Python services: no request, job or migration reaches another tenant's data.

Names are loaded when they are first used: importing this module loads neither SQLAlchemy nor a
driver nor any plugin.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenancy_core._tenancy import Tenancy
    from tenancy_core.asgi import TenancyMiddleware
    from tenancy_core.config import TenancyConfig
    from tenancy_core.context import current_tenant, require_tenant, tenant_cached
    from tenancy_core.contract import (
        CacheBackend,
        Connection,
        IsolationStrategy,
        RateLimit,
        RateLimiter,
        Resolver,
        TenantClaim,
        TenantStore,
    )
    from tenancy_core.crypto import Sensitive
    from tenancy_core.errors import (
        ConfigurationError,
        NoCurrentTenant,
        RequestRefused,
        TenancyError,
        TenantNotFound,
    )
    from tenancy_core.tenant import Tenant, TenantStatus

__all__ = [
    "CacheBackend",
    "ConfigurationError",
    "Connection",
    "IsolationStrategy",
    "NoCurrentTenant",
    "RateLimit",
    "RateLimiter",
    "RequestRefused",
    "Resolver",
    "Sensitive",
    "Tenancy",
    "TenancyConfig",
    "TenancyError",
    "TenancyMiddleware",
    "Tenant",
    "TenantClaim",
    "TenantNotFound",
    "TenantStatus",
    "TenantStore",
    "current_tenant",
    "require_tenant",
    "tenant_cached",
]

_ROOMS = {
    "Tenancy": "_tenancy",
    "TenancyMiddleware": "asgi",
    "TenancyConfig": "config",
    "current_tenant": "context",
    "require_tenant": "context",
    "tenant_cached": "context",
    "CacheBackend": "contract",
    "Connection": "contract",
    "IsolationStrategy": "contract",
    "RateLimit": "contract",
    "RateLimiter": "contract",
    "Resolver": "contract",
    "TenantClaim": "contract",
    "TenantStore": "contract",
    "Sensitive": "crypto",
    "ConfigurationError": "errors",
    "NoCurrentTenant": "errors",
    "RequestRefused": "errors",
    "TenancyError": "errors",
    "TenantNotFound": "errors",
    "Tenant": "tenant",
    "TenantStatus": "tenant",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
