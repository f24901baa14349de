"""The variables by which a machine says where its servers are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

SERVICES: Final = ("postgres", "mysql", "redis", "pgbouncer")
SKIP: Final = "TENANCY_TEST_SKIP"
CACHE: Final = "TENANCY_TEST_CACHE"


def url_variable(service: str) -> str:
    """Name of the variable with the URL of a server that somebody else runs."""
    return f"TENANCY_TEST_{service.upper()}_URL"


def folder_variable(service: str) -> str:
    """Name of the variable with the folder in which the binaries are."""
    return f"TENANCY_TEST_{service.upper()}_BIN"


def url_of(service: str) -> str | None:
    """URL of a server that somebody else runs, or None."""
    return os.environ.get(url_variable(service)) or None


def folder_of(service: str) -> Path | None:
    """Folder that is said to hold the binaries, or None."""
    value = os.environ.get(folder_variable(service))
    return Path(value) if value else None


def skipped() -> frozenset[str]:
    """Read which services this run does without.

    Raises:
        ValueError: A name is none of a service. To skip nothing because of a slip would be loud
            anyway; to skip the wrong thing would not.
    """
    names = frozenset(filter(None, map(str.strip, os.environ.get(SKIP, "").split(","))))
    if unknown := sorted(names - set(SERVICES)):
        raise ValueError(
            f"{SKIP} names {', '.join(map(repr, unknown))}, which is no service. It takes a "
            f"comma-separated list of {', '.join(SERVICES)}. Correct the name, or unset {SKIP}."
        )
    return names
