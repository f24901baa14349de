"""Signatures (HMAC-SHA256) with a key of its own for each purpose.

What is signed lies where others can write: a shared cache, a queue, a table. The master keys are
those of ``signing_keys``; without any, it is the one that the tenant store made at first boot.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, NoReturn, Self

from tenancy_core.config import INSTANCE_KEY
from tenancy_core.crypto.encoding import join
from tenancy_core.crypto.hkdf import KEY_BYTES, KEY_ID_BYTES, derive
from tenancy_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from pydantic import SecretStr

    from tenancy_core.contract import TenantStore

__all__ = ["Signer", "SigningKeys"]


class SigningKeys:
    """The master keys of a ``Tenancy``: there while it is open, forgotten when it is closed.

    An async context manager, entered after the store.

    Args:
        configured: The setting ``signing_keys``: the first signs, all verify. The word
            ``instance`` stands for the key in the store, and so does an empty list.
        store: Has that key.
    """

    __slots__ = ("_configured", "_masters", "_namespace", "_rings", "_store")

    def __init__(self, configured: Sequence[SecretStr], store: TenantStore) -> None:
        self._configured = tuple(configured)
        self._store = store
        self._masters: tuple[bytes, ...] = ()
        self._rings: dict[str, tuple[tuple[bytes, bytes], ...]] = {}
        self._namespace = ""

    async def __aenter__(self) -> Self:
        """Read the store's key.

        Raises:
            ConfigurationError: The store has none of 32 bytes.
        """
        if not self._take(await self._store.instance_key()):
            raise ConfigurationError(
                f"The tenant store {type(self._store).__name__} has no instance key of "
                f"{KEY_BYTES} bytes. Report it to its authors."
            )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._masters = ()
        self._rings.clear()
        self._namespace = ""

    def __reduce__(self) -> NoReturn:
        raise TypeError("Signing keys are secrets and are not pickled; each process has its own.")

    def _take(self, instance: bytes) -> bool:
        # A function of its own that raises nothing: error trackers print local variables.
        if len(instance) != KEY_BYTES:
            return False
        words = [key.get_secret_value() for key in self._configured] or [INSTANCE_KEY]
        self._masters = tuple(instance if word == INSTANCE_KEY else word.encode() for word in words)
        self._namespace = derive(instance, b"namespace")[1][:8].hex()
        return True

    @property
    def namespace(self) -> str:
        """What tells this tenant store from others: 16 hexadecimal digits, no secret.

        Two deployments that share a cache, and even their signing keys, are kept apart by it.

        Raises:
            RuntimeError: The ``Tenancy`` is not open.
        """
        self._require_open()
        return self._namespace

    def signer(self, purpose: str) -> Signer:
        """Return what signs and verifies for one purpose; also before the keys are there.

        Args:
            purpose: Such as ``cache``. A signature for one purpose never holds for another.
        """
        return Signer(self, purpose)

    def ring(self, purpose: str) -> tuple[tuple[bytes, bytes], ...]:
        """Return the id and the key of each master key for a purpose, the one that signs first.

        Raises:
            RuntimeError: The ``Tenancy`` is not open.
        """
        ring = self._rings.get(purpose)
        if ring is None:
            self._require_open()
            ring = self._rings[purpose] = tuple(
                derive(key, b"signing", purpose.encode()) for key in self._masters
            )
        return ring

    def _require_open(self) -> None:
        if not self._masters:
            raise RuntimeError(
                "The signing keys are there while the Tenancy is open: use `async with tenancy:`."
            )


class Signer:
    """Signs and verifies for one purpose. Made by :meth:`SigningKeys.signer`."""

    __slots__ = ("_keys", "_purpose")

    def __init__(self, keys: SigningKeys, purpose: str) -> None:
        self._keys = keys
        self._purpose = purpose

    def __reduce__(self) -> NoReturn:
        raise TypeError("A Signer holds secrets and is not pickled; each process has its own.")

    def sign(self, *parts: bytes) -> bytes:
        """Return the tag of a list of byte strings.

        Returns:
            36 bytes: the id of the key (4) and HMAC-SHA256 (32) over the parts, each behind its
            length, so that no other list has this tag.

        Raises:
            RuntimeError: The ``Tenancy`` is not open.
        """
        message = join(*parts)
        key_id, key = self._keys.ring(self._purpose)[0]
        return key_id + hmac.digest(key, message, "sha256")

    def verify(self, tag: bytes, *parts: bytes) -> bool:
        """Whether one of the keys made this tag for exactly these parts; in constant time.

        Raises:
            RuntimeError: The ``Tenancy`` is not open.
        """
        message = join(*parts)
        ring = self._keys.ring(self._purpose)
        key_id, mac = tag[:KEY_ID_BYTES], tag[KEY_ID_BYTES:]
        return any(
            known == key_id and hmac.compare_digest(hmac.digest(key, message, "sha256"), mac)
            for known, key in ring
        )
