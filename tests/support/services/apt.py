"""Servers out of Debian's packages, without installing anything: neither root nor dpkg's lock.

``apt-get download`` still checks signatures; ``dpkg-deb --extract`` unpacks into a cache that later
runs use without asking apt.

Packages of a newer release run as well if they bring everything along: all libraries, the C library
among them, and the loader that belongs to it.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from support.services.binaries import Binaries
from support.services.errors import ServiceUnavailableError
from support.services.installed import debian_postgres
from support.services.places import cache_folder
from support.services.sources import write_sources
from support.services.templates import locked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# The first that apt knows; names differ from release to release.
PACKAGES: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "postgres": tuple((f"postgresql-{version}",) for version in (18, 17, 16, 15, 14)),
    "mysql": (("mariadb-server-core", "mariadb-client-core"),),
    "redis": (("redis-server", "redis-tools"), ("valkey-server", "valkey-tools")),
    "pgbouncer": (("pgbouncer",),),
}
# Of what these need, shared libraries are what makes a program run; some are large and do not.
LIBRARY: Final = re.compile(r"(?!.*(?:perl|llvm|libz3|-l10n))z?lib")
WITHIN: Final = 90.0
"""Seconds for one command of apt; a test that waits for longer is ended anyway."""


def from_apt(service: str, newer: str | None = None) -> Binaries:
    """Return the programs of a service from its packages, fetched if that was not done before.

    Args:
        service: Whose programs.
        newer: Code name of a newer release to take the packages from, with all they need.

    Raises:
        ServiceUnavailableError: apt is not here, or fails; the sentence says how.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise ServiceUnavailableError("apt-get and dpkg-deb are not on this machine")
    cache = cache_folder() / "apt"
    cache.mkdir(exist_ok=True)
    source = "packages that apt-get downloaded"
    target = cache / f"{service}-{_release()}"
    if newer:
        source, target = f"{source} from {newer}", cache / f"{service}-{newer}-{_release()}"
    with locked(cache / ".lock"):
        if not _complete(found := _binaries(target, source, newer), service, newer):
            shutil.rmtree(target, ignore_errors=True)
            _fetch(service, _apt(cache, newer), target)
            found = _binaries(target, source, newer)
    if not _complete(found, service, newer):
        raise ServiceUnavailableError("the packages do not have the programs in them")
    return found


class _Apt:
    """apt-get with lists and archives of its own."""

    def __init__(self, cache: Path, *options: str) -> None:
        self.cache = cache
        lists, archives = cache / "lists", cache / "archives"
        for folder in (lists, archives):
            (folder / "partial").mkdir(parents=True, exist_ok=True)
        self._options = [
            f"-qoDir::State::Lists={lists}",
            f"-oDir::Cache={archives}",
            "-oAPT::Sandbox::User=",  # root's apt would become a user who cannot write here
            "-oDebug::NoLocking=1",
            *options,
        ]

    def run(self, *words: str, folder: Path | None = None) -> str:
        """Run one command; returns what it printed.

        Raises:
            ServiceUnavailableError: It failed.
        """
        command = ["apt-get", *self._options, *words]
        name = next(word for word in words if not word.startswith("-"))
        try:
            done = subprocess.run(
                command,
                cwd=folder or self.cache,
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=WITHIN,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ServiceUnavailableError(
                f"apt-get {name} took longer than {WITHIN:.0f} s"
            ) from None
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("E:")]
            raise ServiceUnavailableError(f"apt-get {name}: {' '.join(errors)[:300]}")
        return done.stdout


def _apt(cache: Path, newer: str | None) -> _Apt:
    if newer is None:
        return _Apt(cache)
    own = cache / newer
    shutil.rmtree(sources := own / "sources", ignore_errors=True)
    sources.mkdir(mode=0o700, parents=True)  # there may be passwords in them
    write_sources(sources, newer)
    return _Apt(
        own,
        "-oDir::Etc::sourcelist=/dev/null",
        f"-oDir::Etc::sourceparts={sources}",
        # Nothing is installed, so that everything is needed, and nothing is preferred.
        "-oDir::State::status=/dev/null",
        "-oDir::Etc::preferences=/dev/null",
        "-oDir::Etc::preferencesparts=/nonexistent",
        "-oAPT::Default-Release=",
        "-oAcquire::Languages=none",
        "-oAPT::Update::Error-Mode=any",
    )


def _fetch(service: str, apt: _Apt, target: Path) -> None:
    """Try with the lists of last time first: they are large, and packages stay for years."""
    failures: list[str] = []
    for update in (False, True):
        if update:
            failures.clear()
            try:
                apt.run("update")
            except ServiceUnavailableError as error:  # perhaps for a source that is not needed
                failures.append(str(error))
        for packages in PACKAGES[service]:
            try:
                with _folder_in(apt.cache) as folder:
                    _unpack(apt, packages, folder)
                    (folder / "root").rename(target)
                    return
            except ServiceUnavailableError as error:
                failures.append(str(error))
    raise ServiceUnavailableError("; ".join(failures))


def _unpack(apt: _Apt, packages: Sequence[str], folder: Path) -> None:
    planned = apt.run("-s", "--no-install-recommends", "install", *packages)
    installs = re.findall(r"^Inst (\S+)", planned, re.MULTILINE)
    libraries = filter(LIBRARY.match, installs)
    apt.run("download", *sorted({*packages, *libraries}), folder=folder)
    root = folder / "root"
    root.mkdir()
    for package in folder.glob("*.deb"):
        unpack: list[str | Path] = [
            shutil.which("dpkg-deb") or "dpkg-deb",
            "--extract",
            package,
            root,
        ]
        try:
            subprocess.run(unpack, check=True, timeout=WITHIN)
        except subprocess.SubprocessError as error:
            status = getattr(error, "returncode", "no")
            raise ServiceUnavailableError(
                f"dpkg-deb of {package.name} ended with status {status}"
            ) from error


@contextmanager
def _folder_in(cache: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=cache))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries(root: Path, source: str, newer: str | None) -> Binaries:
    libraries = {path.parent for path in root.glob("**/lib/*-linux-*/lib*.so*")}
    folders = (*debian_postgres(root), root / "usr" / "sbin", root / "usr" / "bin")
    loader = None
    if newer:
        loader = min(root.glob("**/lib/*-linux-*/ld-linux*.so*"), default=None)
    return Binaries(source, folders, root, tuple(sorted(libraries)), loader)


def _complete(found: Binaries, service: str, newer: str | None) -> bool:
    return found.complete(service) and (newer is None or found.loader is not None)


def _release() -> str:
    """Name the system that the packages are for: a home may be shared by machines."""
    try:
        system = platform.freedesktop_os_release()
    except OSError:
        system = {}
    version = system.get("VERSION_ID") or system.get("VERSION_CODENAME") or "unknown"
    return f"{system.get('ID', 'linux')}{version}-{platform.machine()}"
