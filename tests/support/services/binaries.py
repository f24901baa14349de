"""The programs of one service, wherever they were found."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from support.services.identity import server_identity
from support.services.places import temporary_root

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    loader: Path | None = None
    """What loads them, if they came with a C library of their own."""

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

    def command(self, *names: str) -> list[str | Path]:
        """Start of a command that runs the first of these programs that is there.

        Raises:
            FileNotFoundError: None is.
        """
        program = self.path(*names)
        if self.loader is None:
            return [program]
        return [self.loader, "--library-path", self._library_path, program]

    def version(self, service: str) -> tuple[int, int]:
        """Major and minor version, as the service's first program says it.

        Raises:
            RuntimeError: It says none.
        """
        program = self.path(*NEEDED[service][0]).name
        said = self.run(program, "--version", folder=Path("/"))
        if (found := re.search(r"(\d+)\.(\d+)", said)) is None:
            raise RuntimeError(f"{program} does not say its version: {said[-300:]}")
        return int(found[1]), int(found[2])

    def complete(self, service: str) -> bool:
        """Whether everything is there that the service needs."""
        return all(self.find(*names) for names in NEEDED[service])

    @property
    def environment(self) -> dict[str, str]:
        """Environment for the programs: little, so that every machine's servers are alike."""
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        found = {**kept, "LC_ALL": "C", "TZ": "UTC", "HOME": str(temporary_root())}
        if self.libraries and self.loader is None:
            found["LD_LIBRARY_PATH"] = self._library_path
        return found

    @property
    def _library_path(self) -> str:
        return os.pathsep.join(map(str, self.libraries))

    def run(self, name: str, *arguments: str | Path, folder: Path) -> str:
        """Run a program to its end as the user that servers run as.

        Raises:
            RuntimeError: It failed; the error has the end of its output.
        """
        done = subprocess.run(
            [*self.command(name), *arguments],
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
