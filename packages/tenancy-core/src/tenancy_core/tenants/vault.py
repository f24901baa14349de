"""A tenant's secrets and the encrypted part of its metadata."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pydantic import SecretStr

from tenancy_core.crypto import reveal_metadata
from tenancy_core.crypto.secrets import DATA_KEY, RESERVED, secret_field
from tenancy_core.errors import (
    ConfigurationError,
    DecryptionError,
    InvalidTransition,
    TenantNotFound,
    VersionConflict,
)
from tenancy_core.tenant import TenantStatus
from tenancy_core.tenants.rules import check_secret_name, require_status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from uuid import UUID

    from tenancy_core.contract import StoreTransaction
    from tenancy_core.crypto import FieldCipher, TenantCipher
    from tenancy_core.tenant import Tenant
    from tenancy_core.tenants.changes import Author, Changes

__all__ = ["Vault"]

_TRIES: Final = 5
_HALF: Final = re.compile("[\ud800-\udfff]")
_OFF: Final = "encryption is off. Set TENANCY_ENABLE_ENCRYPTION=true and TENANCY_ENCRYPTION_KEYS."
_KEEPS_SECRETS: Final = frozenset(TenantStatus) - {TenantStatus.ERASED}


class Vault:
    """Encrypts with a data key of each tenant's own, which lies in the store, wrapped.

    Args:
        changes: Writes.
        cipher: None while encryption is off: then nothing is accepted, rather than kept in plain
            text.
    """

    def __init__(self, *, changes: Changes, cipher: TenantCipher | None) -> None:
        self._changes = changes
        self._cipher = cipher

    # -- data keys -----------------------------------------------------------------------------

    def new_cipher(self, tenant_id: UUID) -> tuple[bytes | None, FieldCipher | None]:
        """Return a new data key, wrapped, and what encrypts with it; nothing without encryption."""
        if self._cipher is None:
            return None, None
        wrapped = self._cipher.new_data_key(tenant_id)
        return wrapped, self._cipher.open(tenant_id, wrapped)

    async def keep_data_key(
        self, transaction: StoreTransaction, tenant_id: UUID, wrapped: bytes
    ) -> None:
        """Keep a wrapped data key."""
        await transaction.put_secret(tenant_id, DATA_KEY, wrapped)

    async def cipher(self, tenant: Tenant) -> FieldCipher | None:
        """Return what decrypts for a tenant; None without encryption, and without a data key."""
        if self._cipher is None:
            return None
        wrapped = await self._changes.store.get_secret(tenant.id, DATA_KEY)
        return None if wrapped is None else self._cipher.open(tenant.id, wrapped)

    async def apply(
        self,
        tenant_id: UUID,
        action: str,
        edit: Callable[[Tenant, FieldCipher | None], Tenant],
        author: Author,
        *,
        details: Mapping[str, Any],
        also: Callable[[StoreTransaction, FieldCipher | None], Awaitable[None]] | None = None,
    ) -> Tenant:
        """As ``Changes.apply``, for changes that encrypt something.

        A tenant that is older than the encryption gets its data key in the same change. The
        change is then tied to the version that was seen without a key: of two who make one at
        once, the second starts again and finds the first one's.
        """
        for left in reversed(range(_TRIES)):
            tenant = await self._changes.store.get(tenant_id)
            if tenant is None:
                raise TenantNotFound(f"There is no tenant {tenant_id}.")
            made, cipher = None, await self.cipher(tenant)
            if cipher is None:
                made, cipher = self.new_cipher(tenant_id)
            tied = author
            if made is not None and author.expected_version is None:
                tied = replace(author, expected_version=tenant.version)
            try:
                return await self._changes.apply(
                    tenant_id,
                    action,
                    partial(_swap, edit, cipher),
                    tied,
                    details=details,
                    also=partial(self._write, also, cipher, made),
                )
            except VersionConflict:
                if tied is author or not left:
                    raise
        raise AssertionError("unreachable")  # pragma: no cover

    async def _write(
        self,
        also: Callable[[StoreTransaction, FieldCipher | None], Awaitable[None]] | None,
        cipher: FieldCipher | None,
        made: bytes | None,
        transaction: StoreTransaction,
        _old: Tenant,
        new: Tenant,
    ) -> None:
        if made is not None:
            await self.keep_data_key(transaction, new.id, made)
        if also is not None:
            await also(transaction, cipher)

    async def rewrap(self, tenant: Tenant, author: Author) -> bool:
        """Wrap a tenant's data key with the first key; False if it is already, or has none."""
        if self._cipher is None:
            raise _off()
        wrapped = await self._changes.store.get_secret(tenant.id, DATA_KEY)
        if wrapped is None:
            return False
        renewed = self._cipher.rewrap(tenant.id, wrapped)
        if renewed is None:
            return False

        async def keep(transaction: StoreTransaction, _old: Tenant, new: Tenant) -> None:
            await self.keep_data_key(transaction, new.id, renewed)

        try:
            await self._changes.apply(tenant.id, "tenant.key_rewrapped", _touch, author, also=keep)
        except InvalidTransition:  # erased meanwhile, and its key with it
            return False
        return True

    # -- secrets -------------------------------------------------------------------------------

    async def put(
        self, tenant: Tenant, name: str, value: SecretStr | None, author: Author
    ) -> Tenant:
        """Keep a secret, or with None forget it."""
        check_secret_name(name)
        if name == DATA_KEY:
            raise ValueError(f"The name {DATA_KEY!r} is kept for the key of the others.")
        if name.startswith(RESERVED):
            raise ValueError(f"Names that begin with {RESERVED!r} are kept for tenancy itself.")
        if value is not None and self._cipher is None:
            raise _off()
        # The error that encoding would raise holds the whole text.
        if value is not None and _HALF.search(value.get_secret_value()) is not None:
            raise ValueError("A secret is text of Unicode characters, without halves of them.")

        async def write(transaction: StoreTransaction, cipher: FieldCipher | None) -> None:
            if value is None or cipher is None:
                await transaction.delete_secret(tenant.id, name)
            else:
                encrypted = cipher.encrypt(secret_field(name), value.get_secret_value().encode())
                await transaction.put_secret(tenant.id, name, encrypted)

        action = "tenant.secret_forgotten" if value is None else "tenant.secret_kept"
        return await self.apply(
            tenant.id, action, _touch_with, author, details={"secret": name}, also=write
        )

    async def get(self, tenant: Tenant, name: str) -> SecretStr | None:
        """Return a secret, or None."""
        check_secret_name(name)
        stored = await self._changes.store.get_secret(tenant.id, name)
        if stored is None or name == DATA_KEY or name.startswith(RESERVED):
            return None
        cipher = await self.cipher(tenant)
        if cipher is None:
            raise DecryptionError(
                f"Tenant {tenant.id} has a secret {name!r}, and "
                + ("no data key." if self._cipher is not None else _OFF)
            )
        return SecretStr(cipher.decrypt(secret_field(name), stored).decode())

    async def names(self, tenant: Tenant) -> Sequence[str]:
        """Return the names of a tenant's secrets, sorted."""
        names = await self._changes.store.secret_names(tenant.id)
        return [name for name in names if name != DATA_KEY and not name.startswith(RESERVED)]

    async def reveal(self, tenant: Tenant) -> dict[str, Any]:
        """Return a tenant's metadata, its encrypted values as ``Sensitive``."""
        return reveal_metadata(tenant.metadata, await self.cipher(tenant))


def _swap(
    edit: Callable[[Tenant, FieldCipher | None], Tenant], cipher: FieldCipher | None, old: Tenant
) -> Tenant:
    return edit(old, cipher)


def _touch_with(old: Tenant, _cipher: FieldCipher | None) -> Tenant:
    return _touch(old)


def _touch(old: Tenant) -> Tenant:
    require_status(old, _KEEPS_SECRETS, "have secrets")
    return replace(old)


def _off() -> ConfigurationError:
    return ConfigurationError(f"Secrets are not kept in plain text, and {_OFF}")
