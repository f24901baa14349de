"""Several byte strings as one, so that no two lists give the same bytes."""

from __future__ import annotations

__all__ = ["join"]

_LENGTH_BYTES = 8


def join(*parts: bytes) -> bytes:
    """Return the parts one after another, each behind its length (8 bytes, big-endian).

    Without the lengths ``("ab", "c")`` and ``("a", "bc")`` would be one message, and a signature
    for the first would hold for the second.
    """
    return b"".join(len(part).to_bytes(_LENGTH_BYTES, "big") + part for part in parts)
