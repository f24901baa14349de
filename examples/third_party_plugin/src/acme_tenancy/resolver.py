"""The tenant is the owner of an API key."""

from __future__ import annotations

import hmac
import secrets
from typing import TYPE_CHECKING

from acme_tenancy.settings import ApiKey
from tenancy_core.contract import OpenAPISource, TenantClaim
from tenancy_core.errors import InvalidCredentials

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tenancy_core.contract import Connection

__all__ = ["ApiKeyResolver", "key_digest"]

# What a key with an unknown id is compared with, so that it takes as long as any other.
NOBODY = ApiKey(tenant="nobody", digest=secrets.token_hex(32))


def key_digest(pepper: bytes, key: str) -> str:
    """Return the digest by which a key is known: HMAC-SHA256, in hexadecimal.

    Whoever reads the settings without the pepper can neither use a key nor try out guesses.
    """
    return hmac.digest(pepper, key.encode(), "sha256").hex()


class ApiKeyResolver:
    """Implements :class:`tenancy_core.Resolver`.

    A key is ``<id>.<secret>``. The id finds what is known of the key, and may be logged.

    Args:
        header: The header that carries the key.
        pepper: Key of the digests.
        keys: What is known of each key, by its id.

    Attributes:
        missing: How a request without a key is refused, where no other resolver finds a tenant.
        openapi: How the key looks in the OpenAPI document of the application.
    """

    missing = InvalidCredentials

    def __init__(self, *, header: str, pepper: bytes, keys: Mapping[str, ApiKey]) -> None:
        self.openapi = OpenAPISource(
            security=("apiKey", {"type": "apiKey", "in": "header", "name": header})
        )
        self._header = header.lower().encode("ascii")
        self._pepper = pepper
        self._keys = keys

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        """Return the owner of the key, or None where there is no key.

        Raises:
            InvalidCredentials: Nobody has this key (401).
            InvalidIdentifier: The header is there twice, or is not ASCII (400).
        """
        key = connection.header(self._header)
        if key is None:
            return None
        known = self._keys.get(key.partition(".")[0], NOBODY)
        if not hmac.compare_digest(known.digest, key_digest(self._pepper, key)):
            raise InvalidCredentials
        return TenantClaim(known.tenant, source="api-key", verified=True)
