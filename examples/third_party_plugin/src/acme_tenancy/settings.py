"""What can be set: the sections ``TENANCY_ACME_APIKEY_*`` and ``TENANCY_ACME_CACHE_*``."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, Json, SecretStr

from tenancy_core.tenant import IDENTIFIER_MAX_BYTES, IDENTIFIER_PATTERN

__all__ = ["ApiKey", "ApiKeySettings", "CacheSettings"]

# A section forbids what it does not know, and its errors do not repeat what was given.
STRICT = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ApiKey(BaseModel):
    """What is known of one key: not the key.

    Attributes:
        tenant: Identifier of its owner.
        digest: See :func:`acme_tenancy.resolver.key_digest`.
    """

    model_config = STRICT

    tenant: str = Field(max_length=IDENTIFIER_MAX_BYTES, pattern=IDENTIFIER_PATTERN)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class ApiKeySettings(BaseModel):
    """The section ``acme_apikey``.

    Attributes:
        pepper: Key of the digests, at least 32 characters. It is a ``SecretStr``, so that it may
            come from a file: ``TENANCY_ACME_APIKEY_PEPPER_FILE``.
        keys: JSON: the id of each key (what stands before its dot) and what is known of it.
        header: The header that carries the key.
    """

    model_config = STRICT

    pepper: SecretStr = Field(min_length=32)
    keys: Json[dict[str, ApiKey]] = Field(default_factory=dict[str, ApiKey])
    header: str = Field(default="X-API-Key", pattern=r"^[A-Za-z0-9-]+$")


class CacheSettings(BaseModel):
    """The section ``acme_cache``.

    Attributes:
        path: The file, on a local disk, in a folder that only this service can write to.
        poll_seconds: How often a subscriber looks for messages; what the bus is late at most.
    """

    model_config = STRICT

    path: Path
    poll_seconds: float = Field(default=0.1, gt=0, le=60)
