"""Who the servers run as: PostgreSQL and PgBouncer refuse to run as root."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

CANDIDATES: Final = ("postgres", "nobody")
NOBODY: Final = 65534
"""What Linux gives to whom it does not know; for images without either name."""


@dataclass(frozen=True)
class Identity:
    """A user and a group, or nothing if we stay who we are."""

    uid: int | None = None
    gid: int | None = None

    @property
    def popen(self) -> dict[str, Any]:
        """Arguments for ``subprocess`` that run a command as this user."""
        if self.uid is None:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        """Give a file or folder to this user."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


@cache
def server_identity() -> Identity:
    """Say who the servers run as: another user if we are root, else ourselves."""
    if os.geteuid() != 0:
        return Identity()
    for name in CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Identity(entry.pw_uid, entry.pw_gid)
    return Identity(NOBODY, NOBODY)
