"""Signing keys without a ``Tenancy``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import SecretStr

from tenancy_core.crypto import SigningKeys

if TYPE_CHECKING:
    from tenancy_core._stores.memory import MemoryTenantStore


def opened(store: MemoryTenantStore, *configured: str) -> SigningKeys:
    """Return the keys as in an open ``Tenancy``, also outside of any event loop.

    A store in memory never waits, so its answer is there after one step.
    """
    keys = SigningKeys([SecretStr(key) for key in configured], store)
    try:
        keys.__aenter__().send(None)
    except StopIteration:
        return keys
    raise AssertionError("the store waited")
