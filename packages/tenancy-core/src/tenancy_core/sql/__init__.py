"""The toolkit for packages that bring a database: engines, sessions, names, the control tables."""

from tenancy_core.sql.budget import ConnectionBudget
from tenancy_core.sql.engines import (
    EngineCache,
    EngineLease,
    SharedEngine,
    close_engine,
    make_engine,
)
from tenancy_core.sql.naming import NAME_MAX_BYTES, derive_name
from tenancy_core.sql.session import (
    TenantConnectionContext,
    TenantSessionContext,
    require_own,
)

__all__ = [
    "NAME_MAX_BYTES",
    "ConnectionBudget",
    "EngineCache",
    "EngineLease",
    "SharedEngine",
    "TenantConnectionContext",
    "TenantSessionContext",
    "close_engine",
    "derive_name",
    "make_engine",
    "require_own",
]
