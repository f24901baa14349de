"""What is the same for every new server is made once, and unpacked for each."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from support.services.identity import server_identity
from support.services.places import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def unpack(name: str, ingredients: str, target: Path, make: Callable[[Path], None]) -> None:
    """Make the folder ``target`` from the template of this name, which may have to be made first.

    A template is one file: whoever cleans a cache by age takes all of it or nothing.

    Args:
        name: What it is, for the file's name.
        ingredients: Everything that it depends on: versions and options.
        target: A folder to be, inside one that belongs to the servers' user.
        make: Makes the folder it is given the hard way, the first time.
    """
    digest = sha256(f"{server_identity()} {ingredients}".encode()).hexdigest()[:16]
    template = cache_folder() / f"{name}-{digest}.tar"
    with locked(template.with_suffix(".lock")):
        if not template.exists():
            make(target)
            _pack(target, template)
            return
    with template.open("rb") as packed:
        target.mkdir(mode=0o700)
        server_identity().own(target)
        _tar("-xpf", "-", "-C", target, stdin=packed)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that other processes of this user respect."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        yield


def _pack(folder: Path, template: Path) -> None:
    handle, name = tempfile.mkstemp(dir=template.parent, prefix=template.stem)
    try:
        with os.fdopen(handle, "wb") as packed:
            _tar("-cf", "-", "-C", folder, ".", stdout=packed)
        Path(name).rename(template)
    except BaseException:
        Path(name).unlink()
        raise


def _tar(*arguments: str | Path, **streams: IO[bytes]) -> None:
    # As the servers' user, who owns the files and need not see where the template lies.
    options: dict[str, Any] = {**streams, **server_identity().popen}
    command = [shutil.which("tar") or "/bin/tar", *arguments]
    subprocess.run(command, cwd="/", check=True, **options)
