"""Whether anybody on the way can read, or answer, what is sent to the server."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import text

from tenancy_core.contract import Finding, Severity
from tenancy_core.sql.postgres import is_pooled
from tenancy_postgres.checks.sessions import sessions_of
from tenancy_postgres.checks.store import listening_connection, store_connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection

    from tenancy_postgres.checks.sessions import Opens
    from tenancy_postgres.checks.strategies import Strategies

__all__ = ["is_near", "tls"]

_NAME: Final = "postgres.tls"

_BEHIND: Final = text(
    """
    SELECT s.ssl AS encrypted, pg_catalog.host(a.client_addr) AS address
      FROM pg_catalog.pg_stat_ssl AS s
      JOIN pg_catalog.pg_stat_activity AS a ON a.pid = s.pid
     WHERE s.pid = pg_catalog.pg_backend_pid()
    """
)
"""How the server's own end of the link is; behind a pooler, that of the pooler's link to it."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """One end of a link, and, behind a pooler, the other link."""

    near: bool
    encrypted: bool
    verified: bool
    pooled: bool
    far_encrypted: bool


async def tls(tenancy: Any, strategies: Strategies) -> AsyncIterator[Finding]:  # noqa: ANN401 - as Check says
    """Yield links that others can read, or where nobody asks who is at the other end."""
    seen: list[tuple[str, _Seen]] = []
    async for setting, opens in sessions_of(tenancy, strategies):
        async with opens() as connection:
            seen.append((setting, await _look(connection)))
    async for setting, opens in _places(strategies):
        async with opens() as connection:
            seen.append((setting, await _look(connection)))
    async with store_connection(tenancy) as connection:
        if connection is not None:
            seen.append((tenancy.config.control_setting, await _look(connection)))
    async with listening_connection(tenancy) as listening:
        if listening is not None:
            where, link = listening
            seen.append((where, await _look(link)))
    for setting, one in dict.fromkeys(seen):
        if finding := _judge(setting, one):
            yield finding


async def _places(strategies: Strategies) -> AsyncIterator[tuple[str, Opens]]:
    for isolation in strategies.shared:
        yield isolation.admin_setting, isolation.administering
    for database in strategies.database:
        for server in database.servers.values():
            yield server.address.admin_setting, server.administering


async def _look(connection: AsyncConnection) -> _Seen:
    raw = await connection.get_raw_connection()
    driver: Any = raw.driver_connection
    # asyncpg has no public way to its transport; what is asked of that one is asyncio's.
    transport = driver._transport  # noqa: SLF001
    channel: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    context = None if channel is None else channel.context
    row = (await connection.execute(_BEHIND)).one()
    return _Seen(
        near=is_near(transport.get_extra_info("peername")),
        encrypted=channel is not None,
        verified=(
            context is not None
            and context.verify_mode is ssl.CERT_REQUIRED
            and context.check_hostname
        ),
        pooled=await is_pooled(connection),
        far_encrypted=row.encrypted or is_near(row.address),
    )


def is_near(peer: object) -> bool:
    """Whether what is sent to a peer stays on this machine: a Unix socket, or the loopback.

    Args:
        peer: An address, or asyncio's ``peername``.
    """
    host: object = cast("tuple[object, ...]", peer)[0] if isinstance(peer, tuple) else peer
    if not isinstance(host, str) or not host or host.startswith(("/", "\0")):
        return True
    address = ip_address(host.partition("%")[0])
    # Before Python 3.13 such a one is no loopback.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _judge(setting: str, seen: _Seen) -> Finding | None:
    advice = (
        f"Write ?ssl=verify-full&sslrootcert=/path/to/authority.pem behind the URL in {setting}"
    )
    if not seen.near and not seen.encrypted:
        return Finding(
            _NAME,
            Severity.ERROR,
            f"Connections of {setting} are not encrypted: whoever is on the way reads passwords "
            "and rows.",
            f"{advice}, and set ssl = on in postgresql.conf (or client_tls_sslmode in "
            "pgbouncer.ini).",
        )
    if seen.pooled and not seen.far_encrypted:
        return Finding(
            _NAME,
            Severity.ERROR,
            f"The pooler of {setting} talks to the server without encryption.",
            "Set server_tls_sslmode = verify-full and server_tls_ca_file in pgbouncer.ini, and "
            "ssl = on in postgresql.conf.",
        )
    if not seen.near and not seen.verified:
        return Finding(
            _NAME,
            Severity.WARNING,
            f"Connections of {setting} are encrypted, and the certificate is not compared with the "
            "name: whoever gets in between is taken for the server.",
            f"{advice}.",
        )
    return None
