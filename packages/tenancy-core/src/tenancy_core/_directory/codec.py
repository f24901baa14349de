"""A tenant as the bytes that a shared cache keeps. JSON, never pickle: a cache is not trusted."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from tenancy_core.tenant import Placement, Tenant, TenantStatus, thaw

__all__ = ["decode", "encode"]

_FORMAT: Final = 1


def encode(tenant: Tenant) -> bytes:
    """Return the bytes."""
    return json.dumps(
        {
            "format": _FORMAT,
            "id": str(tenant.id),
            "identifier": tenant.identifier,
            "name": tenant.name,
            "status": tenant.status.value,
            "plan": tenant.plan,
            "limits": thaw(tenant.limits),
            "isolation": tenant.isolation,
            "placement": [tenant.placement.server, tenant.placement.name],
            "metadata": thaw(tenant.metadata),
            "version": tenant.version,
            "created_at": tenant.created_at.isoformat(),
            "updated_at": tenant.updated_at.isoformat(),
        },
        separators=(",", ":"),
    ).encode()


def decode(data: bytes, *, identifier: str) -> Tenant | None:
    """Return the tenant, or None (a miss) for bytes that are not this tenant in this format."""
    try:
        values: dict[str, Any] = json.loads(data)
        if values["format"] != _FORMAT or values["identifier"] != identifier:
            return None
        server, name = values["placement"]
        return Tenant(
            id=UUID(values["id"]),
            identifier=values["identifier"],
            name=values["name"],
            status=TenantStatus(values["status"]),
            plan=values["plan"],
            limits=values["limits"],
            isolation=values["isolation"],
            placement=Placement(server, name),
            metadata=values["metadata"],
            version=values["version"],
            created_at=datetime.fromisoformat(values["created_at"]),
            updated_at=datetime.fromisoformat(values["updated_at"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
