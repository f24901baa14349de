"""The tenant is the one that an API key belongs to."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from tenancy_core.contract import OpenAPISource, TenantClaim
from tenancy_core.errors import InvalidCredentials

if TYPE_CHECKING:
    from acme_tenancy.settings import ApiKeySettings
    from tenancy_core.contract import Connection

__all__ = ["ApiKeyResolver"]


class ApiKeyResolver:
    """Looks a key up; what it finds is proven, because the key is a secret.

    Attributes:
        openapi: The key as a security scheme.
        missing: A request without a key is answered with 401.
    """

    missing = InvalidCredentials

    def __init__(self, settings: ApiKeySettings) -> None:
        keys: dict[str, str] = json.loads(settings.keys.get_secret_value())
        # By digest, so that neither this table nor the time of a look-up tells a key.
        self._tenants = {_digest(key): tenant for key, tenant in keys.items()}
        self._header = settings.header.lower().encode("ascii")
        self.openapi = OpenAPISource(
            security=("ApiKey", {"type": "apiKey", "in": "header", "name": settings.header})
        )

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        """See the contract."""
        key = connection.header(self._header)
        if key is None:
            return None
        tenant = self._tenants.get(_digest(key))
        if tenant is None:
            raise InvalidCredentials
        return TenantClaim(tenant, "api-key", verified=True)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
