"""Encryption of a tenant's secrets: a data key for each tenant, wrapped by the configured keys.

Whoever destroys a tenant's data key has destroyed everything that was encrypted with it, wherever
copies of it lie.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NoReturn

from tenancy_core.crypto.hkdf import KEY_BYTES
from tenancy_core.errors import ConfigurationError, DecryptionError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from pydantic import SecretStr

    from tenancy_core.crypto.aesgcm import Ring

__all__ = ["MOST_BYTES", "FieldCipher", "TenantCipher"]

MOST_BYTES: Final = 16 * 1024 * 1024
"""Longest value that is encrypted, in bytes."""

_OVERHEAD: Final = 33
"""What the encrypted value is longer than the value, in bytes."""


class TenantCipher:
    """Makes tenants' data keys and opens them with the setting ``encryption_keys``.

    Args:
        keys: At least one; the first wraps, all unwrap.

    Raises:
        ConfigurationError: There is no key, or the package ``cryptography`` is not installed.
    """

    __slots__ = ("_ring",)

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        if not keys:
            raise ConfigurationError(
                "TENANCY_ENCRYPTION_KEYS is missing: encryption needs at least one key."
            )
        try:
            from tenancy_core.crypto.aesgcm import Ring  # noqa: PLC0415 - an optional package
        except ImportError as error:
            raise ConfigurationError(
                "TENANCY_ENABLE_ENCRYPTION is true and needs the package 'cryptography', which "
                "is not installed or cannot be imported. Run: pip install 'tenancy-core[crypto]'"
            ) from error
        self._ring = Ring((key.get_secret_value().encode() for key in keys), b"data keys")

    def __reduce__(self) -> NoReturn:
        raise TypeError("A TenantCipher holds keys and is not pickled; each process makes its own.")

    def new_data_key(self, tenant_id: UUID) -> bytes:
        """Return a new random data key for a tenant, wrapped: what the store keeps of it."""
        return self._ring.encrypt(os.urandom(KEY_BYTES), tenant_id.bytes)

    def rewrap(self, tenant_id: UUID, wrapped: bytes) -> bytes | None:
        """Return the same data key wrapped by the first key; None if it is so already.

        Raises:
            DecryptionError: As :meth:`open`.
        """
        key, position = self._unwrap(tenant_id, wrapped)
        return None if position == 0 else self._ring.encrypt(key, tenant_id.bytes)

    def open(self, tenant_id: UUID, wrapped: bytes) -> FieldCipher:
        """Return what encrypts and decrypts for a tenant.

        Args:
            tenant_id: Whose data key it is.
            wrapped: As :meth:`new_data_key` or :meth:`rewrap` returned it.

        Raises:
            DecryptionError: None of the keys wrapped it for this tenant, or it was changed.
        """
        key, _ = self._unwrap(tenant_id, wrapped)
        return FieldCipher(tenant_id, type(self._ring)((key,), b"fields"))

    def _unwrap(self, tenant_id: UUID, wrapped: bytes) -> tuple[bytes, int]:
        found = self._ring.decrypt(wrapped, tenant_id.bytes)
        if isinstance(found, str):
            raise DecryptionError(
                f"The data key of tenant {tenant_id} cannot be unwrapped: {found}. "
                "TENANCY_ENCRYPTION_KEYS needs every key that a tenant's data key is wrapped by."
            )
        return found


class FieldCipher:
    """Encrypts and decrypts a tenant's values. Made by :meth:`TenantCipher.open`."""

    __slots__ = ("_ring", "_tenant_id")

    def __init__(self, tenant_id: UUID, ring: Ring) -> None:
        self._tenant_id = tenant_id
        self._ring = ring

    def __reduce__(self) -> NoReturn:
        raise TypeError("A FieldCipher holds a key and is not pickled; each process opens its own.")

    def encrypt(self, field: str, value: bytes) -> bytes:
        """Return the encrypted value: 33 bytes more than the value, different at every call.

        Args:
            field: What it is; the value is decrypted under this name only.
            value: At most 16 MiB.

        Raises:
            ValueError: It is longer.
        """
        if len(value) <= MOST_BYTES:
            return self._ring.encrypt(value, self._tenant_id.bytes, _name(field))
        # Error trackers print the local variables of every frame.
        del value
        raise ValueError(f"A value that is encrypted has at most {MOST_BYTES} bytes.")

    def decrypt(self, field: str, value: bytes) -> bytes:
        """Return the value that :meth:`encrypt` was given for this tenant and this field.

        Raises:
            DecryptionError: It was encrypted for another tenant or field, or was changed. Nothing
                of it is returned.
        """
        found = (
            self._ring.decrypt(value, self._tenant_id.bytes, _name(field))
            if len(value) <= MOST_BYTES + _OVERHEAD
            else "it is too long"
        )
        if isinstance(found, str):
            raise DecryptionError(
                f"A value of tenant {self._tenant_id} cannot be decrypted: {found}."
            )
        return found[0]


def _name(field: str) -> bytes:
    return field.encode("utf-8", "surrogatepass")
