"""Servers that somebody else runs, named by URL: used, and never stopped."""

from __future__ import annotations

import socket
from typing import ClassVar, Final
from urllib.parse import unquote, urlsplit

from support.services.errors import ServiceUnavailableError
from support.services.settings import url_of, url_variable
from support.services.urls import DRIVERS, written

ANSWERS_WITHIN: Final = 10.0


class External:
    """A server of which only the URL is known; it has no ``kill``, ``pause`` or ``restart``."""

    managed: ClassVar[bool] = False

    def __init__(self, service: str, url: str) -> None:
        self.service = service
        parts = urlsplit(url)
        # The standard ports are never tried: whoever means one says so.
        if not parts.hostname or not parts.port:
            raise ServiceUnavailableError(
                f"{url_variable(service)} is set, and names no host or no port. It takes "
                "scheme://user:password@host:port/database."
            )
        self.host, self.port = parts.hostname, parts.port
        self.user = unquote(parts.username or "")
        self.password = unquote(parts.password or "")
        self.database = unquote(parts.path.removeprefix("/"))

    def url(
        self,
        *,
        user: str | None = None,
        password: str | None = None,
        database: str | int | None = None,
        driver: str | None = None,
    ) -> str:
        """Return the URL, for another user or database if these are named."""
        login = (user, password or "") if user else (self.user, self.password)
        place = str(self.database if database is None else database)
        return written(driver or DRIVERS[self.service], login, (self.host, self.port), place)

    def check(self) -> None:
        """See whether anybody listens.

        Raises:
            ServiceUnavailableError: Nobody does. The sentence has no part of the URL: the password
                is one, and where it ends is a guess in a URL that is wrong.
        """
        try:
            socket.create_connection((self.host, self.port), ANSWERS_WITHIN).close()
        except OSError as error:
            raise ServiceUnavailableError(
                f"{url_variable(self.service)} is set, and nobody answers there "
                f"({type(error).__name__}). Start that server, correct the URL, or unset the "
                "variable and the tests bring a server of their own."
            ) from None


def external(service: str) -> External | None:
    """Return the server that the machine's variable names, or None if there is no such variable.

    Raises:
        ServiceUnavailableError: The variable is set, and the server does not answer.
    """
    url = url_of(service)
    if url is None:
        return None
    try:
        found = External(service, url)
    except ValueError:  # its text would hold a part of the URL
        raise ServiceUnavailableError(
            f"{url_variable(service)} is set, and is no URL. It takes "
            "scheme://user:password@host:port/database."
        ) from None
    found.check()
    return found
