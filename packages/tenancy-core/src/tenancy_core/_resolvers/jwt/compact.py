"""A signed token in its compact form, taken apart (RFC 7515, section 7.1). Nothing is verified."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import Any, Final

from tenancy_core._resolvers.jwt.rejected import Rejected
from tenancy_core._resolvers.jwt.strict_json import read_object

__all__ = ["KID_MAX_LENGTH", "Compact", "take_apart"]

KID_MAX_LENGTH: Final = 256
"""Longest name of a key. It is looked up in a dictionary and goes nowhere else; names in use are
thumbprints, URIs and UUIDs, below 128."""

_COMPACT: Final = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
"""Three parts, none empty: encrypted tokens have five, and detached ones no second."""


@dataclass(frozen=True, slots=True)
class Compact:
    """The parts of a token. Believe nothing of it until its signature is verified.

    Attributes:
        algorithm: What it says it is signed with.
        kid: What it calls the key, or None.
        type: Its media type in lower case without ``application/``, or None.
        claims: The object that it carries.
        message: The bytes that are signed.
        signature: Bytes.
    """

    algorithm: str
    kid: str | None
    type: str | None
    claims: dict[str, Any]
    message: bytes
    signature: bytes


def take_apart(token: bytes) -> Compact:
    """Decode a token, strictly.

    The parts ``jku``, ``jwk``, ``x5u`` and ``x5c`` of its header are not read: keys come from the
    settings alone.

    Raises:
        Rejected: It is malformed, or asks for an extension that is not supported.
    """
    match = _COMPACT.fullmatch(token)
    if match is None:
        raise Rejected("it does not have three parts in base64url")
    head, body, signature = map(_decode, match.groups())
    header = _object(head, "header")
    # RFC 7515, section 4.1.11: who does not know an extension refuses the token. None is known
    # here, not even b64 (RFC 7797), which changes what is signed.
    if "crit" in header or "b64" in header:
        raise Rejected("its header asks for an extension (crit, b64)")
    algorithm: object = header.get("alg")
    kid: object = header.get("kid", "")
    if not isinstance(algorithm, str):
        raise Rejected("its header has no alg")
    if not isinstance(kid, str) or len(kid) > KID_MAX_LENGTH:
        raise Rejected("its kid is no text, or too long")
    return Compact(
        algorithm=algorithm,
        kid=kid if "kid" in header else None,
        type=_media_type(header["typ"]) if "typ" in header else None,
        claims=_object(body, "payload"),
        message=token[: match.end(2)],
        signature=signature,
    )


def _decode(part: bytes) -> bytes:
    try:
        decoded = urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except ValueError:
        raise Rejected("a part of it is no base64url") from None
    # The last character may have bits to spare: two texts would be one token.
    if urlsafe_b64encode(decoded).rstrip(b"=") != part:
        raise Rejected("a part of it is not canonical base64url")
    return decoded


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        return read_object(data)
    except ValueError:
        raise Rejected(f"its {what} is not one strict JSON object") from None


def _media_type(value: object) -> str:
    if not isinstance(value, str):
        raise Rejected("its typ is no text")
    # RFC 7515, section 4.1.9: compared as media types, and "application/" may be left out.
    return value.lower().removeprefix("application/")
