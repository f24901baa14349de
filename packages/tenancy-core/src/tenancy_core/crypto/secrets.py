"""What a tenant's secrets are called in the store, and their reading and keeping by plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tenancy_core.errors import ConfigurationError, DecryptionError

if TYPE_CHECKING:
    from uuid import UUID

    from pydantic import SecretStr

    from tenancy_core.contract import TenantStore
    from tenancy_core.crypto.encryption import FieldCipher, TenantCipher

__all__ = ["DATA_KEY", "RESERVED", "TenantSecrets", "secret_field"]

DATA_KEY: Final = "data-key"
"""The secret that opens the others."""

RESERVED: Final = "tenancy."
"""What names begin with that plugins keep for themselves."""


def secret_field(name: str) -> str:
    """Return the field under which a secret is encrypted."""
    return f"secret:{name}"


class TenantSecrets:
    """A tenant's secrets, for a plugin that keeps credentials of its own.

    Nothing here is audited and no version changes: whoever needs that makes the change through the
    control plane.

    Args:
        store: Where they lie, encrypted.
        cipher: Opens tenants' data keys.
    """

    __slots__ = ("_cipher", "_store")

    def __init__(self, store: TenantStore, cipher: TenantCipher) -> None:
        self._store = store
        self._cipher = cipher

    async def get(self, tenant_id: UUID, name: str) -> SecretStr | None:
        """Return a secret, or None.

        Raises:
            DecryptionError: It was encrypted with a key that is not among ``encryption_keys``.
        """
        from pydantic import SecretStr  # noqa: PLC0415 - this room loads the standard library only

        stored = await self._store.get_secret(tenant_id, name)
        if stored is None:
            return None
        fields = await self._fields(tenant_id)
        if fields is None:
            raise DecryptionError(f"Tenant {tenant_id} has a secret {name!r}, and no data key.")
        return SecretStr(fields.decrypt(secret_field(name), stored).decode())

    async def keep(self, tenant_id: UUID, name: str, value: SecretStr) -> None:
        """Keep a secret; replaces the one of this name.

        Raises:
            ConfigurationError: The tenant is older than the encryption and has no data key yet.
        """
        fields = await self._fields(tenant_id)
        if fields is None:
            raise ConfigurationError(
                f"Tenant {tenant_id} has no data key: it is older than the encryption of this "
                "service. Keep any secret of it first, which makes one: "
                "await tenancy.tenants.put_secret(tenant, name, value)."
            )
        encrypted = fields.encrypt(secret_field(name), value.get_secret_value().encode())
        async with self._store.transaction() as transaction:
            await transaction.put_secret(tenant_id, name, encrypted)

    async def _fields(self, tenant_id: UUID) -> FieldCipher | None:
        wrapped = await self._store.get_secret(tenant_id, DATA_KEY)
        return None if wrapped is None else self._cipher.open(tenant_id, wrapped)
