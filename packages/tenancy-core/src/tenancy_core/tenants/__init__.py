"""The control plane: what may be done to a tenant."""

from tenancy_core.tenants.service import TenantService

__all__ = ["TenantService"]
