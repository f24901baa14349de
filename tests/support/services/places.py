"""Where files go: what lasts, what this process needs, and what must have a short path."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from support.services.errors import ServiceUnavailableError
from support.services.identity import server_identity
from support.services.settings import CACHE

NAME: Final = "tenancy-tests"
MEMORY: Final = Path("/dev/shm")  # noqa: S108 - only for mkdtemp
ENOUGH: Final = 4 << 30
"""Bytes that have to be free for files in memory; a container usually has 64 MB of it."""

_numbers = itertools.count(1)


def temporary_root() -> Path:
    """Folder for what is temporary, with a path as short as can be.

    The path of a Unix socket ends at 107 bytes, and ``TMPDIR`` may be long, or in root's home.
    """
    short = Path("/tmp")  # noqa: S108 - only for mkdtemp, and for a folder whose owner is checked
    return short if os.access(short, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def data_root() -> Path:
    """Folder for what servers write: in memory, if there is plenty of room.

    A server is made of a thousand files, and a new database of three hundred. On a disc that is
    fast or very slow, depending on where there is room on it: 10 to 100 ms were seen, and more.
    """
    try:
        state = os.statvfs(MEMORY)
    except OSError:
        return temporary_root()
    fits = state.f_bavail * state.f_frsize >= ENOUGH and os.access(MEMORY, os.W_OK | os.X_OK)
    return MEMORY if fits else temporary_root()


def cache_folder() -> Path:
    """Folder for what later runs use again; made if it is missing.

    Raises:
        ServiceUnavailableError: The folder belongs to somebody else, who could put programs into
            it that we would run.
    """
    if said := os.environ.get(CACHE):
        return _made(Path(said))
    base = os.environ.get("XDG_CACHE_HOME")
    for folder in (Path(base) if base else None, _home_cache()):
        if folder is not None:
            try:
                return _made(folder / NAME)
            except (OSError, ServiceUnavailableError):  # a home that is not there, or not ours
                continue
    return _made(temporary_root() / f"{NAME}-{os.geteuid()}")


def new_folder(name: str) -> Path:
    """Make a folder for one server. It belongs to the user that servers run as."""
    folder = run_folder(data_root()) / f"{name}{next(_numbers)}"
    folder.mkdir(mode=0o700)
    server_identity().own(folder)
    return folder


def run_folder(root: Path) -> Path:
    """Folder of this process below a root; it goes when the process goes, also on SIGKILL."""
    return _run_folder(root, os.getpid())  # a forked child is a process of its own


@cache
def _run_folder(root: Path, process: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tn-", dir=root))
    folder.chmod(0o755)  # the servers' user has to get to its folders inside
    janitor = subprocess.Popen(
        [
            *(sys.executable, "-I", "-S"),
            *(Path(__file__).with_name("janitor.py"), folder, str(process)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # ^C is for the tests
    )

    def clean() -> None:
        if os.getpid() == process:
            shutil.rmtree(folder, ignore_errors=True)
            assert janitor.stdin is not None
            janitor.stdin.close()
            janitor.wait()

    atexit.register(clean)
    return folder


def _home_cache() -> Path | None:
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # no HOME, and no entry for this user
        return None


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    found = folder.lstat()
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & stat.S_IWOTH:
        raise ServiceUnavailableError(
            f"the cache folder {folder} belongs to somebody else or can be written by anybody, "
            f"and the tests would run programs from it. Set {CACHE} to a folder of your own."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(folder)
    return folder
