"""What a URL may say, and what the driver is given of it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, make_url

from tenancy_core.config._urls import require_async_url
from tenancy_core.errors import ConfigurationError
from tenancy_core.sql.postgres.parameters import FLAGS, require_known
from tenancy_core.sql.postgres.tls import names_system, system_context, take_tls

__all__ = ["connect_args", "url_of"]


def url_of(text: str, setting: str) -> URL:
    """Return the URL of a PostgreSQL that is reached through asyncpg.

    Args:
        text: As it was set. No message repeats it: it holds a password.
        setting: The variable it comes from, for the message.

    Raises:
        ConfigurationError: It is none, or one of another database or driver.
    """
    try:
        require_async_url(text, only="postgresql")
    except ValueError as error:
        flaw = str(error)
    else:
        return _in_their_places(make_url(text))
    raise ConfigurationError(f"{setting} {flaw}.")


def _in_their_places(url: URL) -> URL:
    """Move what may be written in two places to where it is looked for, and replaced."""
    query = dict(url.query)
    # The driver believes the parameter.
    user, database = (
        str(query.pop(name)) if isinstance(query.get(name), str) else None
        for name in ("user", "database")
    )
    return url.set(
        query=query,
        username=url.username if user is None else user,
        database=url.database if database is None else database,
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
        ConfigurationError: A parameter is not known, or its value is none; or a file for TLS
            cannot be used.
    """
    query = dict(url.query)
    tls = take_tls(query, setting)
    require_known(url.set(query=query), setting, secret="sslpassword" in tls)
    arguments: dict[str, Any] = {"timeout": timeout}
    if "direct_tls" in query:
        arguments["direct_tls"] = FLAGS[str(query.pop("direct_tls"))]
    url = url.set(query=query)
    if names_system(tls):
        return url, {**arguments, "ssl": system_context(tls, setting)}
    if tls:
        # Nothing but these: the driver takes all else, the password too, from the URL.
        dsn = URL.create("postgresql", query=tls)
        arguments["dsn"] = dsn.render_as_string(hide_password=False)
    return url, arguments
