"""What can be said about a database URL without its driver, and without ever printing it."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["dialect_of", "is_in_memory", "require_async_url"]

_SCHEME: Final = re.compile(r"([a-z][a-z0-9]*)(?:\+([a-z][a-z0-9_]*))?://")

_SERVER: Final = re.compile(
    r"(?:[^:/@]*(?::[^@]*)?@)?"  # user:password@
    r"(?:\[[0-9A-Fa-f:.]+\]|[^:/?@\[\]\s]+)?(?::[0-9]{1,5})?"  # host:port
    r"(?:/[^?@]*)?(?:\?[^@]*)?"  # /database?query
)
"""What may stand behind the scheme of a server's URL, with at most one ``@``. SQLAlchemy would take
an unescaped ``@`` or ``:`` of a password for the start of the host or the port, and then print what
it took for it in an error."""

_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
    "mysql": "mysql+aiomysql",
    "mariadb": "mysql+aiomysql",
}
"""What people write → the URL scheme of the async driver that tenancy uses."""

_EXAMPLES: Final = {
    "sqlite+aiosqlite": "sqlite+aiosqlite:///./data/control.db",
    "postgresql+asyncpg": "postgresql+asyncpg://user:password@host/name",
}

_ASYNC: Final = frozenset({"sqlite+aiosqlite", "postgresql+asyncpg", "mysql+aiomysql"})


def require_async_url(url: str, *, only: str | None = None) -> None:
    """Check the form of a database URL.

    Args:
        url: Any text.
        only: SQLAlchemy dialect of the one database that it may be of; None allows all.

    Raises:
        ValueError: It is no URL, is malformed, or its driver is not the async one of its database.
            The message never repeats the URL, which holds a password.
    """
    if url != url.strip():
        raise ValueError("starts or ends with a space or a line break; remove it")
    match = _SCHEME.match(url)
    allowed = _ASYNC if only is None else frozenset({_DRIVERS[only]})
    if match is None:
        examples = ", or ".join(
            _EXAMPLES[scheme] for scheme in sorted(allowed & _EXAMPLES.keys(), reverse=True)
        )
        raise ValueError(f"is no database URL (for instance {examples})")
    dialect, driver = match.groups()
    scheme = f"{dialect}+{driver}" if driver else dialect
    if scheme in allowed:
        _require_form(dialect, url[match.end() :])
        return
    wanted = _DRIVERS.get(dialect)
    if wanted not in allowed:
        verb = "are" if only is None else "is"
        raise ValueError(
            f"names the database {dialect!r}; there {verb} {', '.join(sorted(allowed))}"
        )
    named = f"names the driver {driver!r}" if driver else "names no driver"
    raise ValueError(f"{named}; tenancy uses async drivers: start it with {wanted}://")


def _require_form(dialect: str, rest: str) -> None:
    if dialect == "sqlite":
        if rest and not rest.startswith("/"):
            raise ValueError(
                "names a server, which SQLite does not have; three slashes stand before a "
                "relative path and four before an absolute one "
                "(sqlite+aiosqlite:///./data/control.db)"
            )
    elif _SERVER.fullmatch(rest) is None:
        raise ValueError(
            "is malformed; the form is driver://user:password@host:port/name, and special "
            "characters of the password are percent-encoded: @ is %40, : is %3A, / is %2F"
        )


def is_in_memory(url: str) -> bool:
    """Whether a URL that passed :func:`require_async_url` is SQLite without a file."""
    dialect, _, rest = url.partition("://")
    path = rest.partition("?")[0].removeprefix("/")
    return dialect.startswith("sqlite") and (path in {"", ":memory:"} or path.startswith("file:"))


def dialect_of(url: str) -> str:
    """Return the SQLAlchemy dialect name of a URL that passed :func:`require_async_url`."""
    return url.partition(":")[0].partition("+")[0]
