"""Parameters of a URL that are not about TLS: which there are, and what others write instead."""

from __future__ import annotations

import math
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.exc import ArgumentError

from tenancy_core.errors import ConfigurationError
from tenancy_core.sql.postgres.tls import TLS_PARAMETERS
from tenancy_core.sql.postgres.values import require_once, wrong_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import URL

__all__ = ["FLAGS", "require_known"]

_SESSION_ATTRIBUTES: Final = (
    *("any", "primary", "standby"),
    *("read-write", "read-only", "prefer-standby"),
)
FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}


def _is_time_out(value: str) -> bool:
    try:
        return 0 < float(value) < math.inf
    except ValueError:
        return False


_FORMS: Final[Mapping[str, tuple[Callable[[str], bool], str]]] = {
    "command_timeout": (_is_time_out, "a number of seconds above 0"),
    "direct_tls": (FLAGS.__contains__, "true or false"),
    "gsslib": (("gssapi", "sspi").__contains__, "gssapi or sspi"),
    "prepared_statement_cache_size": (str.isdecimal, "a whole number"),
    "target_session_attrs": (
        _SESSION_ATTRIBUTES.__contains__,
        f"one of {', '.join(_SESSION_ATTRIBUTES)}",
    ),
}
_REPEATED: Final = frozenset({"host", "port"})
_KNOWN: Final = frozenset(
    {
        *("database", "krbsrvname", "passfile", "password", "service", "servicefile", "user"),
        *_FORMS,
        *_REPEATED,
    }
)
"""Parameters besides those for TLS that the driver takes as text. Its other arguments are objects,
or set by tenancy."""

_ROLE_SETTING: Final = "have it set by the server: ALTER ROLE … IN DATABASE … SET …"
_INSTEAD: Final = {
    **dict.fromkeys(
        ("application_name", "fallback_application_name"),
        "set TENANCY_POSTGRES_APPLICATION_NAME",
    ),
    **dict.fromkeys(("connect_timeout", "timeout"), "set TENANCY_DATABASE_CONNECT_TIMEOUT"),
    **dict.fromkeys(
        ("options", "server_settings", "search_path", "statement_timeout"), _ROLE_SETTING
    ),
    "dbname": "write the database behind the slash",
    "max_overflow": "set TENANCY_DATABASE_MAX_OVERFLOW",
    "pool_pre_ping": "set TENANCY_DATABASE_POOL_PRE_PING",
    "pool_recycle": "set TENANCY_DATABASE_POOL_RECYCLE",
    "pool_timeout": "set TENANCY_DATABASE_POOL_TIMEOUT",
    "pool_size": "set TENANCY_DATABASE_POOL_SIZE",
    "sslnegotiation": "write direct_tls=true",
    "statement_cache_size": "set TENANCY_POSTGRES_PREPARED_STATEMENTS=off",
}
"""What people write who know libpq or SQLAlchemy → what does the same here."""


def require_known(url: URL, setting: str, *, secret: bool) -> None:
    """Refuse parameters that the driver would stumble over, or that mean nothing to it.

    Args:
        url: Without what is about TLS.
        setting: The variable it comes from.
        secret: Whether there was a password among the parameters that were taken away.

    Raises:
        ConfigurationError: There is such a parameter, or a value that it cannot have.
    """
    for name in url.query:
        if name not in _KNOWN:
            # An unescaped & makes a parameter of the end of a password.
            hidden = (secret or "password" in url.query) and name not in _INSTEAD
            raise _unknown(setting, None if hidden else name)
    require_once({k: v for k, v in url.query.items() if k not in _REPEATED}, setting)
    for name, (fits, allowed) in _FORMS.items():
        if name in url.query and not fits(str(url.query[name])):
            raise wrong_value(setting, name, allowed)
    _require_addresses(url, setting)


def _unknown(setting: str, name: str | None) -> ConfigurationError:
    which = "that" if name is None else f"{name}, which"
    way_out = _INSTEAD.get(name or "", "leave it out")
    known = ", ".join(sorted({"ssl", *TLS_PARAMETERS, *_KNOWN}))
    return ConfigurationError(
        f"The URL in {setting} has a parameter {which} asyncpg cannot be given in a URL. Remove it "
        f"and {way_out}. What it can be given: {known}."
    )


def _require_addresses(url: URL, setting: str) -> None:
    dialect: Any = url.get_dialect()()
    try:
        _, options = dialect.create_connect_args(url)
        host: Any = options.get("host")
        # SQLAlchemy leaves a single one as it is where no number is behind its colon.
        if isinstance(host, str) and ":" in host and not host.startswith("/"):
            ip_address(host.partition("%")[0])
    except (ArgumentError, ValueError):
        flaw = True
    else:
        flaw = False
    if flaw:
        raise ConfigurationError(
            f"The URL in {setting} names hosts and ports (?host=, ?port=) that do not fit "
            "together: write ?host=one:5432&host=two:5432, with a number behind each colon."
        )
