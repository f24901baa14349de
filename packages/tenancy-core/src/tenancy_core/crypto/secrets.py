"""What a tenant's secrets are called in the store, and their reading and keeping by plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tenancy_core.errors import (
    ConfigurationError,
    DecryptionError,
    InvalidTransition,
    TenantNotFound,
    VersionConflict,
)
from tenancy_core.tenant import TenantStatus, not_found

if TYPE_CHECKING:
    from uuid import UUID

    from pydantic import SecretStr

    from tenancy_core.contract import TenantStore
    from tenancy_core.crypto.encryption import FieldCipher, TenantCipher
    from tenancy_core.tenant import Tenant

__all__ = ["DATA_KEY", "RESERVED", "TenantSecrets", "secret_field"]

DATA_KEY: Final = "data-key"
"""The secret that opens the others."""

RESERVED: Final = "tenancy."
"""What names begin with that plugins keep for themselves."""

_TRIES: Final = 5
"""How often a secret is kept again of a tenant that somebody else changed at the same time."""


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
        stored = await self._store.get_secret(tenant_id, name)
        if stored is None:
            return None
        fields = await self._fields(tenant_id)
        if fields is None:
            raise DecryptionError(f"Tenant {tenant_id} has a secret {name!r}, and no data key.")
        return _opened(fields, name, stored)

    async def keep(
        self, tenant_id: UUID, name: str, value: SecretStr, *, expected: SecretStr | None
    ) -> None:
        """Keep a secret, in place of the one that the caller has read.

        Args:
            tenant_id: Whose.
            name: As plugins call it.
            value: What to keep.
            expected: What is kept now, as far as the caller knows; None if nothing is.

        Raises:
            TenantNotFound: There is no such tenant.
            InvalidTransition: It is erased.
            ConfigurationError: The tenant is older than the encryption and has no data key yet.
            VersionConflict: Something else is kept than ``expected``, which stays; or the tenant
                is changed by others faster than its secret can be kept.
        """
        fields = await self._fields(tenant_id)
        tenant = await self._tenant(tenant_id)
        if fields is None:
            raise ConfigurationError(
                f"Tenant {tenant_id} has no data key: it is older than the encryption of this "
                "service. Keep any secret of it first, which makes one: "
                "await tenancy.tenants.put_secret(tenant, name, value)."
            )
        encrypted = fields.encrypt(secret_field(name), value.get_secret_value().encode())
        for left in reversed(range(_TRIES)):
            try:
                async with self._store.transaction() as transaction:
                    # As it is: whoever erases the tenant, or keeps a secret of it, waits for this
                    # one, or has been faster. An erasure took the data key away, and nobody comes
                    # to take away what is kept behind it.
                    await transaction.update(tenant, expected_version=tenant.version)
                    stored = await transaction.get_secret(tenant_id, name)
                    present = None if stored is None else _opened(fields, name, stored)
                    if present == expected:
                        await transaction.put_secret(tenant_id, name, encrypted)
                        return
                break
            except VersionConflict:
                if not left:
                    raise
                tenant = await self._tenant(tenant_id)
        raise VersionConflict(
            f"Somebody else replaced the secret {name!r} of tenant {tenant_id} meanwhile, and "
            "theirs stays. Try again."
        )

    async def _tenant(self, tenant_id: UUID) -> Tenant:
        tenant = await self._store.get(tenant_id)
        if tenant is None:
            raise TenantNotFound(not_found(tenant_id))
        if tenant.status is TenantStatus.ERASED:
            raise InvalidTransition(f"Tenant {tenant_id} is erased; it cannot have secrets.")
        return tenant

    async def _fields(self, tenant_id: UUID) -> FieldCipher | None:
        wrapped = await self._store.get_secret(tenant_id, DATA_KEY)
        return None if wrapped is None else self._cipher.open(tenant_id, wrapped)


def _opened(fields: FieldCipher, name: str, stored: bytes) -> SecretStr:
    from pydantic import SecretStr  # noqa: PLC0415 - this room loads the standard library only

    return SecretStr(fields.decrypt(secret_field(name), stored).decode())
