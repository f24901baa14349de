"""URLs of servers, every part of which is quoted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping

DRIVERS: Final[Mapping[str, str]] = {
    "postgres": "postgresql+asyncpg",
    "pgbouncer": "postgresql+asyncpg",
    "mysql": "mysql+aiomysql",
    "redis": "redis",
}
"""What the tests speak to a service with, unless they say otherwise."""


def written(driver: str, login: tuple[str, str], address: tuple[str, int], database: str) -> str:
    """Write a URL from what stands in it.

    Args:
        driver: The scheme.
        login: User and password; without both, the URL has none.
        address: Host and port.
        database: The path.
    """
    name, secret = (quote(part, safe="") for part in login)
    begin = f"{name}:{secret}@" if name or secret else ""
    host, port = address
    if ":" in host:
        host = f"[{host}]"
    return f"{driver}://{begin}{host}:{port}/{quote(database, safe='')}"
