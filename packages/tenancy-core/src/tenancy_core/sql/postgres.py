"""PostgreSQL through asyncpg, for the tenant store and for tenants alike."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError

from tenancy_core.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import URL, PoolProxiedConnection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

__all__ = [
    "LOCK_LAYOUT",
    "LOCK_PROVISION",
    "LOCK_TENANT",
    "TLS_MODES",
    "WITHOUT_PREPARED",
    "code_of",
    "connect_args",
    "flaw_of",
    "is_pooled",
    "replace_closed",
]

TLS_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
"""Values of ``?ssl=``, as libpq's ``sslmode``
(https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-PROTECTION)."""

_NAMESPACE: Final = 0x74656E61
LOCK_LAYOUT: Final = (_NAMESPACE, 1)
"""Advisory lock under which the control tables are made. All of tenancy's have one first key,
``tena``, so that they meet no lock of the application."""
LOCK_PROVISION: Final = (_NAMESPACE, 2)
"""Advisory lock under which what all tenants share is made."""
LOCK_TENANT: Final = _NAMESPACE + 1
"""First key of the advisory lock under which one tenant's place is made or removed; the second
one is derived from the tenant."""

WITHOUT_PREPARED: Final[dict[str, Any]] = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": str,
}
"""Arguments for connections that leave no prepared statement behind: every one is the unnamed one
(``str()`` is ``""``). A pooler that does not track prepared statements gives a server connection to
somebody else after each transaction, who would meet the names there."""

_SYSTEM: Final = "system"
_FILES: Final = ("sslcert", "sslcrl", "sslkey", "sslrootcert")
_TLS: Final = frozenset(
    {"sslmode", "sslpassword", "ssl_min_protocol_version", "ssl_max_protocol_version", *_FILES}
)

_UNAVAILABLE: Final = frozenset(
    {
        "25P03",  # idle_in_transaction_session_timeout
        "25P04",  # transaction_timeout
        "55P03",  # lock_not_available: lock_timeout
        "57014",  # query_canceled: statement_timeout
        "3D000",  # invalid_catalog_name: the database is gone
    }
)
_UNAVAILABLE_CLASSES: Final = frozenset(
    {
        "08",  # connection exceptions
        "28",  # invalid authorization: a password that was changed
        "53",  # insufficient resources: disk, memory, connections
        "57",  # operator intervention: shutting down, starting, cancelled
        "58",  # system errors
    }
)


def connect_args(url: URL, setting: str, *, timeout: float) -> tuple[URL, dict[str, Any]]:
    """Return the URL to give to SQLAlchemy, and arguments for asyncpg's ``connect``.

    asyncpg knows libpq's ``ssl…`` parameters only where they come in its own ``dsn``, and not
    ``sslrootcert=system``: the authorities that this machine believes.

    Args:
        url: As it was set; ``?ssl=`` and ``?sslmode=`` mean the same.
        setting: The variable it comes from, for the message.
        timeout: Seconds that making a connection may take.

    Raises:
        ConfigurationError: There is no such TLS mode, or two of them.
    """
    query = dict(url.query)
    given = [query.pop(name) for name in ("ssl", "sslmode") if name in query]
    if any(mode not in TLS_MODES for mode in given) or len(set(given)) > 1:
        raise ConfigurationError(
            f"The URL in {setting} has a TLS mode (?ssl=) that does not exist, or two. There is "
            f"{', '.join(TLS_MODES)}; in production use verify-full."
        )
    tls = {name: value for name in _TLS if isinstance(value := query.pop(name, None), str)}
    if given:
        tls["sslmode"] = str(given[0])
    arguments: dict[str, Any] = {"timeout": timeout}
    if not tls:
        return url, arguments
    if tls.get("sslrootcert") == _SYSTEM and (mode := tls.get("sslmode", "")).startswith("verify"):
        context = ssl.create_default_context()
        context.check_hostname = mode == "verify-full"
        return url.set(query=query), {**arguments, "ssl": context}
    dsn = url.set(drivername="postgresql", username=None, password=None, host=None, port=None)
    dsn = dsn.set(database=None, query=tls)
    arguments["dsn"] = dsn.render_as_string(hide_password=False)
    return url.set(query=query), arguments


def code_of(error: BaseException | None) -> str | None:
    """Return the SQLSTATE where an error means that the database cannot be used now.

    Source of the codes: https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    code = getattr(error, "sqlstate", None)
    if isinstance(code, str) and (code in _UNAVAILABLE or code[:2] in _UNAVAILABLE_CLASSES):
        return code
    return None


def flaw_of(error: BaseException | None) -> ConfigurationError | None:
    """Return the error of settings with which the driver cannot even try, or None."""
    cause = getattr(error, "__cause__", None) or error
    # By its name: the driver is imported where it is used.
    if type(cause).__name__ != "ClientConfigurationError":
        return None
    return ConfigurationError(
        "The database URL cannot be used as it is: with ?ssl=verify-ca and verify-full there has "
        "to be &sslrootcert=/path/to/authority.pem, or &sslrootcert=system for the authorities of "
        "this machine, and the files that it names have to be readable."
    )


def replace_closed(engine: AsyncEngine) -> None:
    """Replace a connection that is known to be closed when it is taken from the pool.

    SQLAlchemy's own ping finds more, a link whose other end is gone without a word, and costs
    three round trips each time (measured: ``docs/explanation/performance.md``).
    """

    @event.listens_for(engine.sync_engine, "checkout")
    def _check(_connection: object, _record: object, fairy: PoolProxiedConnection) -> None:
        driver: Any = fairy.driver_connection
        if driver.is_closed():
            raise DisconnectionError("The connection was closed while it was idle.")


async def is_pooled(connection: AsyncConnection) -> bool:
    """Whether a pooler such as PgBouncer stands between this process and the server.

    The process id that the server announced when the connection was made is then the pooler's own
    invention, and no backend's.
    """
    raw = await connection.get_raw_connection()
    driver: Any = raw.driver_connection
    backend = (await connection.exec_driver_sql("SELECT pg_catalog.pg_backend_pid()")).scalar_one()
    return bool(driver.get_server_pid() != backend)
