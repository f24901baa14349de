"""HKDF with SHA-256 (RFC 5869): many independent keys from one."""

from __future__ import annotations

import hmac
from typing import Final

from tenancy_core.crypto.encoding import join

__all__ = ["KEY_BYTES", "KEY_ID_BYTES", "derive", "expand", "extract"]

HASH_BYTES: Final = 32
KEY_BYTES: Final = 32
KEY_ID_BYTES: Final = 4
_MOST_BLOCKS: Final = 255


def extract(salt: bytes, material: bytes) -> bytes:
    """Return the pseudorandom key of RFC 5869, section 2.2; 32 bytes."""
    return hmac.digest(salt or bytes(HASH_BYTES), material, "sha256")


def expand(key: bytes, info: bytes, length: int) -> bytes:
    """Return ``length`` bytes of output keying material: RFC 5869, section 2.3.

    Args:
        key: What :func:`extract` returned.
        info: What the bytes are for; other bytes for everything else.
        length: At most 255 · 32.

    Raises:
        ValueError: That is too much for one key.
    """
    if length > _MOST_BLOCKS * HASH_BYTES:
        raise ValueError(f"HKDF-SHA256 gives at most {_MOST_BLOCKS * HASH_BYTES} bytes.")
    block, output = b"", b""
    for counter in range(1, -(-length // HASH_BYTES) + 1):
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        output += block
    return output[:length]


def derive(material: bytes, *label: bytes) -> tuple[bytes, bytes]:
    """Return the id (4 bytes) and the key (32 bytes) that a secret has for one use.

    The two are derived apart: the id is written down next to what is made with the key. Two keys
    may have the same id, so whoever looks one up by its id tries all that have it.

    Args:
        material: The secret.
        label: What the key is for.
    """
    root = extract(b"tenancy-core", material)
    return (
        expand(root, join(b"id", *label), KEY_ID_BYTES),
        expand(root, join(b"key", *label), KEY_BYTES),
    )
