"""The host that a client asked for, parsed strictly; forwarded hosts only from trusted peers."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from tenancy_core.errors import InvalidIdentifier

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Network, IPv6Network

    from tenancy_core.contract import Connection

__all__ = ["is_trusted", "parse_host", "requested_host"]

_HOST: Final = re.compile(
    r"(?:(?P<name>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\.?|(?P<ipv6>\[[0-9A-Fa-f:.]+\]))"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_LONGEST: Final = 253 + 1 + 6
"""A DNS name (RFC 1035), its trailing dot, and a port."""


def parse_host(value: str) -> str:
    """Return the host in canonical form: lower case, without its port and one trailing dot.

    Raises:
        InvalidIdentifier: It is not ``host`` or ``host:port`` (RFC 9112, section 3.2): user
            information, paths, two trailing dots, non-ASCII, a port above 65535 …
    """
    match = _HOST.fullmatch(value) if len(value) <= _LONGEST else None
    if match is None or int(match["port"] or 0) > 65535:  # noqa: PLR2004 - 16 bits
        raise InvalidIdentifier("The host of the request is malformed.")
    return str(match["name"] or match["ipv6"]).lower()


def is_trusted(connection: Connection, proxies: Sequence[IPv4Network | IPv6Network]) -> bool:
    """Whether the peer itself is one of the proxies."""
    address = connection.client_address
    if address is None or not proxies:
        return False
    try:
        peer = ip_address(address)
    except ValueError:
        return False
    if peer.version == 6 and peer.ipv4_mapped is not None:  # noqa: PLR2004 - IPv6
        peer = peer.ipv4_mapped
    return any(peer in network for network in proxies)


def requested_host(connection: Connection, proxies: Sequence[IPv4Network | IPv6Network]) -> str:
    """Return the host that the client asked for.

    ``Host`` decides. From a trusted proxy, the value that this proxy appended last to
    ``X-Forwarded-Host`` decides. ``Forwarded`` is not read.

    Raises:
        InvalidIdentifier: There is none, more than one, or it is malformed.
    """
    if is_trusted(connection, proxies):
        forwarded = connection.headers(b"x-forwarded-host")
        if forwarded:
            last = forwarded[-1].rpartition(b",")[2].strip(b" \t")
            return parse_host(_ascii(last))
    host = connection.header(b"host")
    if not host:
        raise InvalidIdentifier("The request has no host.")
    return parse_host(host)


def _ascii(value: bytes) -> str:
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise InvalidIdentifier("The host of the request is malformed.") from None
