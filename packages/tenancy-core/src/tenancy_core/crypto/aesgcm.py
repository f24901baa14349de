"""AES-256-GCM (NIST SP 800-38D) with several keys. Only this module of the room needs a package."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tenancy_core.crypto.encoding import join
from tenancy_core.crypto.hkdf import KEY_ID_BYTES, derive

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Ring"]

_VERSION: Final = b"\x01"
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_HEAD_BYTES: Final = len(_VERSION) + KEY_ID_BYTES + _NONCE_BYTES


class Ring:
    """Keys of which the first encrypts and all decrypt.

    A message is: version (1 byte), id of the key (4), nonce (12), ciphertext, tag (16). Version
    and key id are authenticated with the context that the message belongs to. The nonces are
    random: at most 2**32 messages for each key (SP 800-38D, section 8.3).

    Args:
        secrets: What the keys are derived from.
        use: What for; a key for one use is never one for another.
    """

    __slots__ = ("_keys",)

    def __init__(self, secrets: Iterable[bytes], use: bytes) -> None:
        derived = (derive(secret, b"encryption", use) for secret in secrets)
        self._keys = tuple((key_id, AESGCM(key)) for key_id, key in derived)

    def encrypt(self, plaintext: bytes, *context: bytes) -> bytes:
        """Return the message, which :meth:`decrypt` opens with the same context only."""
        key_id, key = self._keys[0]
        nonce = os.urandom(_NONCE_BYTES)
        bound_to = join(_VERSION, key_id, *context)
        return _VERSION + key_id + nonce + key.encrypt(nonce, plaintext, bound_to)

    def decrypt(self, message: bytes, *context: bytes) -> tuple[bytes, int] | str:
        """Return the plaintext and the position of its key, or why there is none."""
        if message[: len(_VERSION)] != _VERSION:
            return "it has no format that this version knows"
        if len(message) < _HEAD_BYTES + _TAG_BYTES:
            return "it is cut off"
        key_id = message[len(_VERSION) : len(_VERSION) + KEY_ID_BYTES]
        nonce = message[len(_VERSION) + KEY_ID_BYTES : _HEAD_BYTES]
        bound_to = join(_VERSION, key_id, *context)
        why = "its key is none of those that are configured"
        for position, (known, key) in enumerate(self._keys):
            if known == key_id:
                why = "it was changed, or belongs to another tenant or another field"
                try:
                    return key.decrypt(nonce, message[_HEAD_BYTES:], bound_to), position
                except InvalidTag:
                    continue
        return why
