"""The control plane: what may be done to tenants."""

from tenancy_core.tenants.reconciliation import Outcome, Reconciled
from tenancy_core.tenants.service import TenantService

__all__ = ["Outcome", "Reconciled", "TenantService"]
