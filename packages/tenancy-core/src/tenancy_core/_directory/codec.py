"""A tenant as the bytes that a shared cache keeps. JSON, never pickle, and believed if signed."""

from __future__ import annotations

import json
import logging
from base64 import b64decode, b64encode
from datetime import datetime
from time import time
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from tenancy_core.tenant import Placement, Tenant, TenantStatus, thaw

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenancy_core.crypto import SigningKeys

__all__ = ["TenantCodec"]

_log = logging.getLogger("tenancy")

_FORMAT: Final = 2


class TenantCodec:
    """Writes tenants for the shared cache, and reads back what this deployment wrote.

    Whoever can write to the cache can put an old value back for as long as it would have lived,
    and nothing else: a value that was changed, made up, or moved from another key or another
    deployment is a miss.

    Args:
        signing: Has the keys, and the name that tells this tenant store from others.
        clock: Seconds since the epoch.
    """

    __slots__ = ("_clock", "_failed", "_signer", "_signing")

    def __init__(self, signing: SigningKeys, clock: Callable[[], float] = time) -> None:
        self._signing = signing
        self._signer = signing.signer("cache")
        self._clock = clock
        self._failed = 0

    def key(self, generation: int, identifier: str) -> str:
        """Return where the shared cache keeps a tenant."""
        return f"tenant:{self._signing.namespace}:{generation}:{identifier}"

    def encode(self, key: str, tenant: Tenant, *, ttl: float) -> bytes:
        """Return the bytes.

        Args:
            key: Where they will be.
            tenant: Whose record it is.
            ttl: Seconds for which they are believed.
        """
        tenant_id, version = str(tenant.id), tenant.version
        until = int(self._clock() + ttl)
        payload = json.dumps(
            {
                "identifier": tenant.identifier,
                "name": tenant.name,
                "status": tenant.status.value,
                "plan": tenant.plan,
                "limits": thaw(tenant.limits),
                "isolation": tenant.isolation,
                "placement": [tenant.placement.server, tenant.placement.name],
                "metadata": thaw(tenant.metadata),
                "created_at": tenant.created_at.isoformat(),
                "updated_at": tenant.updated_at.isoformat(),
            },
            separators=(",", ":"),
        )
        mac = self._signer.sign(*self._signed(key, tenant_id, version, until, payload))
        return json.dumps(
            {
                "format": _FORMAT,
                "id": tenant_id,
                "version": version,
                "until": until,
                "tenant": payload,
                "mac": b64encode(mac).decode(),
            },
            separators=(",", ":"),
        ).encode()

    def decode(self, key: str, data: bytes) -> Tenant | None:
        """Return the tenant, or None (a miss) for what was not written here under this key."""
        values = self._verified(key, data)
        if values is None:
            self._report()
            return None
        try:
            return _tenant(values) if self._clock() < values["until"] else None
        except (KeyError, TypeError, ValueError):
            # Another version of tenancy wrote it, which knows other statuses or fields.
            return None

    def _verified(self, key: str, data: bytes) -> dict[str, Any] | None:
        try:
            values: Any = json.loads(data)
            match values:
                case {
                    "format": int() as version_of_format,
                    "id": str() as tenant_id,
                    "version": int() as version,
                    "until": int() as until,
                    "tenant": str() as payload,
                    "mac": str() as mac,
                } if version_of_format == _FORMAT and not (
                    isinstance(version, bool) or isinstance(until, bool)
                ):
                    signed = self._signed(key, tenant_id, version, until, payload)
                    genuine = self._signer.verify(b64decode(mac, validate=True), *signed)
                    return values if genuine else None
                case _:
                    return None
        except (RecursionError, ValueError):
            return None

    def _signed(
        self, key: str, tenant_id: str, version: int, until: int, payload: str
    ) -> tuple[bytes, ...]:
        return (
            b"%d" % _FORMAT,
            self._signing.namespace.encode(),
            key.encode(),
            tenant_id.encode(),
            b"%d" % version,
            b"%d" % until,
            payload.encode(),
        )

    def _report(self) -> None:
        # At 1, 10, 100 …: whoever floods the cache does not flood the log as well.
        self._failed += 1
        if str(self._failed).strip("0") == "1":
            _log.warning(
                "a value in the shared cache was not written by this deployment with one of its "
                "signing keys, and the store answered instead (%d so far)",
                self._failed,
            )


def _tenant(values: dict[str, Any]) -> Tenant:
    tenant: dict[str, Any] = json.loads(values["tenant"])
    server, name = tenant["placement"]
    return Tenant(
        id=UUID(values["id"]),
        identifier=tenant["identifier"],
        name=tenant["name"],
        status=TenantStatus(tenant["status"]),
        plan=tenant["plan"],
        limits=tenant["limits"],
        isolation=tenant["isolation"],
        placement=Placement(server, name),
        metadata=tenant["metadata"],
        version=values["version"],
        created_at=datetime.fromisoformat(tenant["created_at"]),
        updated_at=datetime.fromisoformat(tenant["updated_at"]),
    )
