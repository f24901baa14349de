"""Names of schemas, databases and files: derived, injective, and short enough for every server."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from tenancy_core.errors import ConfigurationError
from tenancy_core.tenant import validate_identifier

if TYPE_CHECKING:
    from uuid import UUID

__all__ = ["NAME_MAX_BYTES", "derive_name"]

NAME_MAX_BYTES: Final = 63
"""Longest name: PostgreSQL's NAMEDATALEN less one, beyond which it truncates silently."""

_HASH_DIGITS: Final = 12
"""48 bits: among a million tenants two hashes are equal with probability 0.2 %, and then the
store's unique column refuses the second (``IdentifierCollision``)."""


def derive_name(prefix: str, identifier: str, tenant_id: UUID) -> str:
    """Derive the name of a tenant's schema, database or file.

    It is ``prefix``, a readable slug of the identifier and a hash of the immutable id. The slug is
    for people: two tenants are told apart by the hash, so neither hyphens mapped to underscores
    nor cutting at 63 bytes can let two tenants meet.

    Args:
        prefix: What all names start with; keeps reserved names (``pg_…``, ``public``, ``mysql``)
            out of reach.
        identifier: The tenant's identifier at creation.
        tenant_id: Its id.

    Returns:
        At most 63 bytes of ``[a-z0-9_]``.

    Raises:
        InvalidIdentifier: The identifier is not canonical.
        ConfigurationError: The prefix is not ``[a-z][a-z0-9_]*``, or too long.
    """
    validate_identifier(identifier)
    room = NAME_MAX_BYTES - len(prefix) - 1 - _HASH_DIGITS
    valid = (
        prefix[:1].isalpha() and prefix.isascii() and prefix.replace("_", "a").isalnum()
    ) and prefix == prefix.lower()
    if not valid or prefix.startswith("pg_") or room < 1:
        raise ConfigurationError(
            "The prefix of derived database names is a-z, 0-9 and underscores, starts with a "
            f"letter and not with pg_, and has at most {NAME_MAX_BYTES - 2 - _HASH_DIGITS} "
            "characters."
        )
    digest = hashlib.sha256(tenant_id.bytes).hexdigest()[:_HASH_DIGITS]
    slug = identifier.replace("-", "_")[:room]
    return f"{prefix}{slug}_{digest}"
