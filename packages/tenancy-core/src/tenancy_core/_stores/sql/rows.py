"""Tenants and audit events as rows of the control tables, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenancy_core.contract import AuditEvent
from tenancy_core.tenant import Placement, Tenant, TenantStatus, thaw

if TYPE_CHECKING:
    from sqlalchemy import Row

__all__ = ["event_columns", "event_of", "tenant_columns", "tenant_of"]


def tenant_columns(tenant: Tenant) -> dict[str, Any]:
    """Return what is stored of a tenant, its id aside."""
    return {
        "identifier": None if tenant.status is TenantStatus.ERASED else tenant.identifier,
        "name": tenant.name,
        "status": tenant.status.value,
        "plan": tenant.plan,
        "limits": thaw(tenant.limits),
        "isolation": tenant.isolation,
        "placement_server": tenant.placement.server,
        "placement_name": tenant.placement.name,
        "metadata": thaw(tenant.metadata),
        "version": tenant.version,
        "created_at": tenant.created_at,
        "updated_at": tenant.updated_at,
    }


def tenant_of(row: Row[Any]) -> Tenant:
    """Return the tenant of a row."""
    values = row._mapping  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # public, says SQLAlchemy
    return Tenant(
        id=values["id"],
        identifier=values["identifier"] or "",
        name=values["name"],
        status=TenantStatus(values["status"]),
        plan=values["plan"],
        limits=values["limits"],
        isolation=values["isolation"],
        placement=Placement(values["placement_server"], values["placement_name"]),
        metadata=values["metadata"],
        version=values["version"],
        created_at=values["created_at"],
        updated_at=values["updated_at"],
    )


def event_columns(event: AuditEvent) -> dict[str, Any]:
    """Return what is stored of an audit event."""
    return {
        "tenant_id": event.tenant_id,
        "sequence": event.sequence,
        "action": event.action,
        "actor": event.actor,
        "reason": event.reason,
        "details": thaw(event.details),
        "personal": thaw(event.personal) or None,
        "occurred_at": event.occurred_at,
        "salt": event.salt,
        "digest": event.digest,
        "seal": event.seal,
    }


def event_of(row: Row[Any]) -> AuditEvent:
    """Return the audit event of a row."""
    return AuditEvent(
        action=row.action,
        tenant_id=row.tenant_id,
        occurred_at=row.occurred_at,
        actor=row.actor,
        reason=row.reason,
        details=row.details,
        personal=row.personal or {},
        sequence=row.sequence,
        salt=row.salt,
        digest=row.digest,
        seal=row.seal,
    )
