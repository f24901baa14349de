"""The toolkit for databases: tenants' tables, engines, sessions, names, the control tables."""

from tenancy_core.sql.breaker import Breaker
from tenancy_core.sql.budget import ConnectionBudget
from tenancy_core.sql.engines import (
    EngineCache,
    EngineLease,
    SharedEngine,
    close_engine,
    make_engine,
)
from tenancy_core.sql.naming import NAME_MAX_BYTES, derive_name
from tenancy_core.sql.scoped import (
    GLOBAL,
    TenantScoped,
    tenant_column,
    tenant_foreign_key,
    tenant_unique,
)
from tenancy_core.sql.session import (
    TENANT,
    TenantConnectionContext,
    TenantSessionContext,
    expect,
    require_own,
)

__all__ = [
    "GLOBAL",
    "NAME_MAX_BYTES",
    "TENANT",
    "Breaker",
    "ConnectionBudget",
    "EngineCache",
    "EngineLease",
    "SharedEngine",
    "TenantConnectionContext",
    "TenantScoped",
    "TenantSessionContext",
    "close_engine",
    "derive_name",
    "expect",
    "make_engine",
    "require_own",
    "tenant_column",
    "tenant_foreign_key",
    "tenant_unique",
]
