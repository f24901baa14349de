"""Multi-tenancy for FastAPI: one call to install it, annotated types to use it."""

from tenancy_fastapi.dependencies import (
    CurrentTenant,
    OptionalTenant,
    ReadOnlySession,
    TenantSession,
    get_current_tenant,
    get_optional_tenant,
    get_read_only_session,
    get_tenant_session,
)
from tenancy_fastapi.installation import install

__all__ = [
    "CurrentTenant",
    "OptionalTenant",
    "ReadOnlySession",
    "TenantSession",
    "get_current_tenant",
    "get_optional_tenant",
    "get_read_only_session",
    "get_tenant_session",
    "install",
]
