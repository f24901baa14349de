"""Programs where the servers' user can reach them: as root, the venv may lie in root's home."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

from support.services.binaries import NEEDED
from support.services.errors import ServiceUnavailableError
from support.services.identity import server_identity
from support.services.places import run_folder, temporary_root

if TYPE_CHECKING:
    from pathlib import Path

    from support.services.binaries import Binaries

_copied: dict[tuple[int, Path, bool], Path] = {}


def reachable(binaries: Binaries, service: str) -> Binaries:
    """Return the programs as the servers' user can run them, copied if it cannot get there.

    Raises:
        ServiceUnavailableError: They do not run as that user, there or elsewhere.
    """
    if server_identity().uid is None:
        return binaries
    original, ran = binaries, _runs(binaries, service)
    # Hard links take no time and no room. They do not reach from one file system to another, and
    # the files keep their modes: these belong to the originals as well.
    for link in (True, False):
        # What is reached and fails would fail elsewhere, too; a copy may lack rights below it.
        if ran is None or (not ran and binaries is not original):
            binaries = _copied_binaries(original, service, link=link)
            ran = _runs(binaries, service)
    if not ran:
        raise ServiceUnavailableError(
            f"{service} from {binaries.source} does not run as user {server_identity().uid}, who "
            "runs the servers because root must not."
        )
    return binaries


def _copied_binaries(binaries: Binaries, service: str, *, link: bool) -> Binaries:
    source = binaries.root or binaries.path(*NEEDED[service][0]).parent
    target = _copy_of(source, link=link)

    def moved(paths: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(
            target / path.relative_to(source) for path in paths if path.is_relative_to(source)
        )

    return replace(
        binaries,
        source=f"{binaries.source} (a copy)",
        folders=moved(binaries.folders),
        libraries=moved(binaries.libraries),
        loader=binaries.loader and target / binaries.loader.relative_to(source),
        root=target,
    )


def _copy_of(source: Path, *, link: bool) -> Path:
    """Copy a folder to where everybody can read it, once in the life of this process."""
    key = (os.getpid(), source, link)
    if key not in _copied:
        target = run_folder(temporary_root()) / f"programs{len(_copied)}"
        # Not shutil.copytree: it cannot copy symbolic links while BlockBuster is active.
        _run("cp", "--archive", *(["--link"] if link else []), source, target)
        if link and target.exists():
            target.chmod(0o755)
        elif not link:
            _run("chmod", "--recursive", "a+rX", target)
        _copied[key] = target
    return _copied[key]


def _run(name: str, *arguments: str | Path) -> None:
    # A failure shows in what cannot be run afterwards.
    command = [shutil.which(name) or f"/bin/{name}", *arguments]
    subprocess.run(command, stderr=subprocess.DEVNULL, check=False)


def _runs(binaries: Binaries, service: str) -> bool | None:
    """Whether the servers' user can run them, or None if it does not get there."""
    try:
        done = subprocess.run(
            [*binaries.command(*NEEDED[service][0]), "--version"],
            env=binaries.environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=False,
            **server_identity().popen,
        )
    except OSError:
        return None
    return done.returncode == 0
