"""The role that makes and removes tenants' places: which it is, and its failures in words."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import asyncpg
from sqlalchemy.exc import DBAPIError

from tenancy_core.sql.postgres import code_of
from tenancy_postgres.failures import unavailable

if TYPE_CHECKING:
    from collections.abc import Generator

    from tenancy_core.config import TenancyConfig
    from tenancy_postgres.settings import PostgresSettings

__all__ = ["LONGEST", "admin_place", "unavailable_in_words"]

LONGEST: Final = 3600.0
"""Seconds for what takes as long as there is much of it, such as a copy of a database. All else of
this role has the patience of the pool and of the connection. Whoever waits for longer waits for a
server that hangs."""


def admin_place(config: TenancyConfig, settings: PostgresSettings) -> tuple[str, str]:
    """Return the variable that names the role, and its URL, with the password."""
    if settings.admin_url is not None:
        return "TENANCY_POSTGRES_ADMIN_URL", settings.admin_url.get_secret_value()
    if config.control_dialect == "postgresql":
        return config.control_setting, config.control_url
    return "TENANCY_DATABASE_URL", config.database_url.get_secret_value()


@contextmanager
def unavailable_in_words() -> Generator[None, None, None]:
    """Say of a database that cannot be used now that it is so; all else goes through as it is.

    Raises:
        BackendUnavailable: The database cannot be used now.
        ConfigurationError: Nor later, with these settings.
    """
    try:
        yield
    except DBAPIError as error:
        cause = getattr(error.orig, "__cause__", None) or error
        if (
            code_of(cause) is None
            and not error.connection_invalidated
            and not isinstance(cause, asyncpg.ClientConfigurationError)
        ):
            raise
        raise unavailable(cause) from error
    except (asyncpg.InterfaceError, OSError) as error:
        raise unavailable(error) from error
    except asyncpg.PostgresError as error:
        if code_of(error) is None:
            raise
        raise unavailable(error) from error
