"""The programs of one service, wherever they were found."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from support.services.identity import server_identity
from support.services.places import temporary_root

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Any one of a group is enough: MariaDB and Valkey have the names of their forerunners as well.
NEEDED: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "postgres": (("postgres",), ("initdb",)),
    "mysql": (("mariadbd",), ("mariadb-install-db",)),
    "redis": (("redis-server", "valkey-server"),),
    "pgbouncer": (("pgbouncer",),),
}

# What the machine says about the network, and nothing that changes how a server behaves.
_KEPT: Final = ("PATH", "LANG", "TMPDIR")


@dataclass(frozen=True)
class Binaries:
    """Folders with programs, and what these need to run."""

    source: str
    """Where they come from, as an error says it."""
    folders: tuple[Path, ...]
    root: Path | None = None
    """The folder that has to be taken along when they are copied; None if they belong to the
    system, which everybody can read."""
    libraries: tuple[Path, ...] = field(default=())
    """Folders with shared libraries that came with them."""

    def find(self, *names: str) -> Path | None:
        """Path of the first of these programs that is there."""
        for name in names:
            for folder in self.folders:
                if os.access(path := folder / name, os.X_OK) and path.is_file():
                    return path
        return None

    def path(self, *names: str) -> Path:
        """Path of the first of these programs that is there.

        Raises:
            FileNotFoundError: None is.
        """
        if (found := self.find(*names)) is None:
            raise FileNotFoundError(
                f"{' or '.join(names)} is not among the programs from {self.source}."
            )
        return found

    def complete(self, service: str) -> bool:
        """Whether everything is there that the service needs."""
        return all(self.find(*names) for names in NEEDED[service])

    @property
    def environment(self) -> dict[str, str]:
        """Environment for the programs: little, so that every machine's servers are alike."""
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        found = {**kept, "LC_ALL": "C", "TZ": "UTC", "HOME": str(temporary_root())}
        if self.libraries:
            found["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, self.libraries))
        return found

    def run(self, name: str, *arguments: str | Path, folder: Path) -> str:
        """Run a program to its end as the user that servers run as.

        Raises:
            RuntimeError: It failed; the error has the end of its output.
        """
        done = subprocess.run(
            [self.path(name), *arguments],
            env=self.environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
            check=False,
            **server_identity().popen,
        )
        said = str(done.stdout, errors="replace")
        if done.returncode:
            raise RuntimeError(f"{name} failed with status {done.returncode}:\n{said[-2000:]}")
        return said
