"""Servers that the machine already has."""

from __future__ import annotations

import os
import re
from pathlib import Path

from support.services.binaries import Binaries


def installed() -> Binaries:
    """Programs on ``PATH`` and where distributions keep what is not on everybody's ``PATH``."""
    path = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    usual = ("/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/bin")
    folders = (*debian_postgres(Path("/")), *path, *map(Path, usual))
    return Binaries("what is installed", folders)


def debian_postgres(root: Path) -> list[Path]:
    """Folders of PostgreSQL as Debian lays them out below ``root``, the newest first."""
    found = root.glob("usr/lib/postgresql/*/bin")
    return sorted(found, key=lambda path: int(re.sub(r"\D", "", path.parent.name) or 0))[::-1]
