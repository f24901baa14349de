"""What the server and the driver refuse, by its code, in words that say what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import event

from tenancy_core.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import URL
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["code_of", "flaw_of", "in_words", "tell_flaws"]

_DENIED: Final = "42501"
_ON_CONNECTING: Final = "CheckMyDatabase"
"""The function of the server that asks for the right to connect. The SQLSTATE is that of every
missing right, and texts are translated; this is not
(https://www.postgresql.org/docs/current/protocol-error-fields.html)."""
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
_REFUSALS: Final = {
    "28000": "the server refuses this role from here",
    "28P01": "the server refuses this user or password",
    "3D000": "there is no database of that name",
    "53300": "the server has no connection left for this role",
}
"""What is wrong where nobody is let in. Most of it does not pass by itself, as an outage does."""


def code_of(error: BaseException | None) -> str | None:
    """Return the SQLSTATE where an error means that the database cannot be used now.

    Source of the codes: https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    code = getattr(error, "sqlstate", None)
    if isinstance(code, str) and (code in _UNAVAILABLE or code[:2] in _UNAVAILABLE_CLASSES):
        return code
    return None


def in_words(code: str) -> str:
    """Return a SQLSTATE with what it means, where it is about being let in; else as it is.

    The server's own words name the user, and are translated.
    """
    words = _REFUSALS.get(code)
    return code if words is None else f"{code}: {words}"


def flaw_of(
    error: BaseException | None, setting: str | None = None, url: URL | None = None
) -> ConfigurationError | None:
    """Return the error of settings with which no connection can be made, or None.

    Args:
        error: The driver's, or SQLAlchemy's.
        setting: The variable that the URL comes from, where it is known.
        url: The same for the URL; its role and its database are told, and no more of it.
    """
    cause = getattr(error, "__cause__", None) or error
    which = "the database URL" if setting is None else setting
    if getattr(cause, "server_source_function", None) == _ON_CONNECTING:
        return _may_not_connect(cause, which, url)
    # By its name: the driver is imported where it is used.
    if type(cause).__name__ != "ClientConfigurationError":
        return None
    return ConfigurationError(
        f"A connection cannot be made with {which} as it is: with ?ssl=verify-ca and verify-full "
        "there has to be &sslrootcert=/path/to/authority.pem, or &sslrootcert=system for the "
        "authorities of this machine, and direct_tls=true needs ?ssl=require at least. Where this "
        "is in order, the traceback has the driver's own words."
    )


def _may_not_connect(
    cause: BaseException | None, which: str, url: URL | None
) -> ConfigurationError | None:
    if getattr(cause, "sqlstate", None) != _DENIED:
        return None
    # A URL that leaves them out has those of the environment, or of the machine's user.
    role = (url and url.username) or "its_role"
    database = (url and url.database) or "its_database"
    return ConfigurationError(
        f"The role of {which} may not connect to its database. Run, as the owner of the database: "
        f"GRANT CONNECT ON DATABASE {_quoted(database)} TO {_quoted(role)}."
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def tell_flaws(engine: AsyncEngine, setting: str) -> None:
    """Say what is wrong with the settings where no connection can be made.

    Args:
        engine: Any on PostgreSQL.
        setting: The variable that its URL comes from.
    """

    @event.listens_for(engine.sync_engine, "handle_error")
    def _tell(context: ExceptionContext) -> None:
        error = context.original_exception
        if (flaw := flaw_of(error, setting, engine.url)) is not None:
            raise flaw from error
