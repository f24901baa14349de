"""The token in the Authorization header (RFC 6750, section 2.1)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tenancy_core._resolvers.jwt.rejected import Rejected
from tenancy_core.errors import InvalidIdentifier

if TYPE_CHECKING:
    from tenancy_core.contract import Connection

__all__ = ["HEADER_MAX_BYTES", "bearer_token"]

HEADER_MAX_BYTES: Final = 16 * 1024
"""Longest ``Authorization: Bearer`` that is read. Tokens with hundreds of groups stay below it, and
most servers accept no header that is longer."""

_SCHEME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token of RFC 9110, section 5.6.2."""


def bearer_token(connection: Connection) -> bytes | None:
    """Return the token as it was sent, or None where there is none.

    Nothing around it is stripped: what a server leaves behind a token is no part of one.

    Raises:
        InvalidIdentifier: There are two headers, or it is too long to be read.
        Rejected: It is no Bearer token.
    """
    # Not Connection.headers(), which strips.
    values = [value for name, value in connection.scope["headers"] if name == b"authorization"]
    if not values:
        return None
    if len(values) > 1:
        raise InvalidIdentifier("There is more than one Authorization header.")
    value: bytes = values[0]
    scheme = _SCHEME.match(value)
    if scheme is None:
        raise Rejected("the Authorization header has no scheme")
    if scheme[0].lower() != b"bearer":
        return None
    if len(value) > HEADER_MAX_BYTES:
        raise InvalidIdentifier("The token is too long.")
    token: bytes = value[scheme.end() :].lstrip(b" ")
    if not token:
        raise Rejected("the scheme is Bearer, and no token follows")
    return token
