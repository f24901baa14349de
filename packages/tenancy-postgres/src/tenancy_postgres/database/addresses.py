"""Where tenants' databases are: servers by alias, and how a tenant logs in there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tenancy_core.errors import ConfigurationError
from tenancy_core.sql.postgres import url_of
from tenancy_postgres.administering import admin_place

if TYPE_CHECKING:
    from sqlalchemy import URL

    from tenancy_core.config import TenancyConfig
    from tenancy_postgres.settings import PostgresSettings

__all__ = ["DEFAULT", "Address", "addresses_of"]

DEFAULT: Final = "default"
"""Alias of the server that the flat settings lead to."""

_WORDS: Final = re.compile(r"\{([^{}]*)\}")
_ALLOWED: Final = frozenset({"database", "password", "user"})


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """One server.

    Attributes:
        alias: What ``placement.server`` calls it.
        url: Of a tenant's database; the database's name, and with ``own`` the credential, are put
            in for each tenant.
        setting: The variable that it comes from.
        own: Whether each tenant has a role of its own; else all have the one of the URL.
        admin_url: Of any database there, with the role that makes databases.
        admin_setting: The variable that it comes from.
    """

    alias: str
    url: URL
    setting: str
    own: bool
    admin_url: URL
    admin_setting: str


def addresses_of(config: TenancyConfig, settings: PostgresSettings) -> dict[str, Address]:
    """Return the servers by alias.

    Raises:
        ConfigurationError: A URL is none, or a template lacks what is different for each tenant.
    """
    found = {DEFAULT: _default(config, settings)}
    for alias, server in settings.servers.items():
        setting = f"TENANCY_POSTGRES_SERVERS[{alias}].url"
        admin_setting = f"TENANCY_POSTGRES_SERVERS[{alias}].admin_url"
        url, own = _template(server.url.get_secret_value(), setting)
        admin = url_of(server.admin_url.get_secret_value(), admin_setting)
        found[alias] = Address(alias, url, setting, own, admin, admin_setting)
    return found


def _default(config: TenancyConfig, settings: PostgresSettings) -> Address:
    if config.database_url_template is not None:
        setting = "TENANCY_DATABASE_URL_TEMPLATE"
        url, own = _template(config.database_url_template.get_secret_value(), setting)
    else:
        setting, own = "TENANCY_DATABASE_URL", True
        url = url_of(config.database_url.get_secret_value(), setting)
    admin_setting, admin = admin_place(config, settings)
    return Address(DEFAULT, url, setting, own, url_of(admin, admin_setting), admin_setting)


def _template(text: str, setting: str) -> tuple[URL, bool]:
    words = _WORDS.findall(text)
    for word in words:
        if word not in _ALLOWED:
            # What is in braces by mistake may well be a part of the password.
            raise ConfigurationError(
                f"{setting} has something in braces that is not filled in. There is {{database}}, "
                "and for a role of each tenant's own {user} and {password}; write other braces as "
                "%7B and %7D."
            )
    url = url_of(text, setting)
    if url.database != "{database}" or words.count("database") != 1:
        raise ConfigurationError(
            f"{setting} has to name the database as {{database}}, behind the slash: "
            "postgresql+asyncpg://{user}:{password}@host/{database}."
        )
    own = url.username == "{user}" and url.password == "{password}"  # noqa: S105 - a placeholder
    if (own and len(words) != len(_ALLOWED)) or (not own and len(words) != 1):
        raise ConfigurationError(
            f"{setting} has to hold both {{user}} and {{password}}, in their places, for a role of "
            "each tenant's own; or neither, and the one role of all tenants instead."
        )
    if not own and not url.username:
        raise ConfigurationError(
            f"{setting} names no role. Write {{user}}:{{password}}@ for a role of each tenant's "
            "own, or the role of all tenants."
        )
    return url, own
