"""What can be said about a database URL without its driver, and without ever printing it."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["dialect_of", "require_async_url"]

_SCHEME: Final = re.compile(r"([a-z][a-z0-9]*)(?:\+([a-z][a-z0-9_]*))?://")

_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
    "mysql": "mysql+aiomysql",
    "mariadb": "mysql+aiomysql",
}
"""What people write → the URL scheme of the async driver that tenancy uses."""

_ASYNC: Final = frozenset({"sqlite+aiosqlite", "postgresql+asyncpg", "mysql+aiomysql"})


def require_async_url(url: str) -> None:
    """Check the form of a database URL.

    Raises:
        ValueError: It is no URL, or its driver is not the async one of its database. The message
            never repeats the URL, which holds a password.
    """
    match = _SCHEME.match(url)
    if match is None:
        raise ValueError(
            "is no database URL; write for instance sqlite+aiosqlite:///./data/control.db "
            "or postgresql+asyncpg://user:password@host/name"
        )
    dialect, driver = match.groups()
    scheme = f"{dialect}+{driver}" if driver else dialect
    if scheme in _ASYNC:
        return
    wanted = _DRIVERS.get(dialect)
    if wanted is None:
        raise ValueError(
            f"names the database {dialect!r}; there are {', '.join(sorted(_ASYNC))}"
        )
    named = f"names the driver {driver!r}" if driver else "names no driver"
    raise ValueError(f"{named}; tenancy uses async drivers: start it with {wanted}://")


def dialect_of(url: str) -> str:
    """Return the SQLAlchemy dialect name of a URL that passed :func:`require_async_url`."""
    return url.partition(":")[0].partition("+")[0]
