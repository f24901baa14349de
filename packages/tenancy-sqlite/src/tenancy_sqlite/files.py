"""Tenants' files: where they are, and a connection that can leave its own in no direction."""

from __future__ import annotations

import re
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from tenancy_core.errors import BackendUnavailable, IsolationError
from tenancy_core.sql.sqlite import TransactionalConnection, make_file, make_folder

__all__ = ["APPLICATION_ID", "TenantFiles"]

APPLICATION_ID: Final = 0x74656E61
"""``tena``: written into the file's header when provisioning is complete. A file without it is
half-made, or was never made by this package."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_SIDE_FILES: Final = ("-wal", "-shm", "-journal")


class TenantFiles:
    """The folder of the tenants' files. All methods block; call them in a thread.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def prepare(self) -> None:
        """Make the folder, readable by this user only if it is new, and fix where it really is.

        Raises:
            ConfigurationError: It cannot be made.
        """
        make_folder(self._root, "TENANCY_SQLITE_ROOT", mode=0o700)
        self._root = self._root.resolve(strict=True)

    def path(self, name: str) -> Path:
        """Return the path for a derived name.

        Raises:
            IsolationError: The name is none that this project derives.
        """
        if _NAME.fullmatch(name) is None:
            raise IsolationError("That is no derived name of a tenant's database.")
        return self._root / f"{name}.db"

    def check_inside(self, path: Path) -> None:
        """Refuse a path that is a link, or that does not stay in the folder.

        Raises:
            IsolationError: It leads elsewhere; another tenant's file may be there.
            BackendUnavailable: This user may not look.
        """
        try:
            outside = path.is_symlink() or path.resolve().parent != self._root
        except OSError as error:
            raise _unreadable(path, error) from error
        if outside:
            raise IsolationError(f"{path.name} is a link or lies outside of the tenants' folder.")

    def create(self, name: str) -> None:
        """Make an empty file if there is none.

        Raises:
            IsolationError: Something else is in its place.
        """
        path = self.path(name)
        make_file(path)
        self.check_inside(path)

    def is_there(self, name: str) -> bool:
        """Whether there is a file, complete or not.

        Raises:
            IsolationError: Something else is in its place.
        """
        path = self.path(name)
        self.check_inside(path)
        return path.is_file()

    def remove(self, name: str, *, patience: float) -> None:
        """Remove the file and what SQLite keeps beside it. No error if it is gone.

        Other processes may know the tenant for a moment longer. So the file is first made one that
        nobody serves; then it goes, before what is beside it: a connection that was opened between
        the two would begin a new log, in plain text, which nobody looks for any more.

        Args:
            name: Derived for the tenant.
            patience: Seconds to wait for another process's write.

        Raises:
            BackendUnavailable: Another process wrote for longer than that; nothing is removed.
            IsolationError: Something else is in its place.
        """
        path = self.path(name)
        self.check_inside(path)
        if _identity(path) is not None:
            _disown(path, patience)
        path.unlink(missing_ok=True)
        for suffix in _SIDE_FILES:
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    def connection_class(self, *, synchronous: str, complete: bool) -> type[sqlite3.Connection]:
        """Return a connection class that guards what it opens.

        ``sqlite3.connect`` runs in the driver's worker thread and builds it there, so the checks
        cost the event loop nothing.

        Args:
            synchronous: ``full`` or ``normal``.
            complete: Whether the file must have been provisioned; false while provisioning.
        """
        files = self

        class TenantConnection(TransactionalConnection):
            """Opens one tenant's existing file; attaches nothing."""

            def __init__(self, database: str, **options: Any) -> None:
                path = files.path(Path(database).name.removesuffix(".db"))
                files.check_inside(path)
                self._path = path
                self._file = _identity(path)
                if self._file is None:
                    # sqlite3 would make an empty database: a tenant without data, silently.
                    raise IsolationError(f"The database {path.name} of the tenant is missing.")
                super().__init__(str(path), **options)
                try:
                    # ATTACH (and VACUUM INTO, which attaches) would reach any file of the process.
                    self.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
                    if complete:
                        self._require_complete(path.name)
                    self.write_ahead()
                    self.execute(f"PRAGMA synchronous = {synchronous}")
                    self.execute("PRAGMA foreign_keys = ON")
                except BaseException:
                    self.close()
                    raise

            def cursor(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - as sqlite3
                # A file that was removed or restored from a backup under a pooled connection
                # would go on taking writes, and lose them. The words make SQLAlchemy replace the
                # connection; before a transaction, nothing is lost by that.
                if not self.in_transaction and _identity(self._path) != self._file:
                    raise sqlite3.OperationalError("connection closed: its file was replaced")
                return super().cursor(*args, **options)

            def _require_complete(self, name: str) -> None:
                (application_id,) = self.execute("PRAGMA application_id").fetchone()
                if application_id != APPLICATION_ID:
                    raise IsolationError(f"The database {name} of the tenant is not complete.")

        return TenantConnection


def _disown(path: Path, patience: float) -> None:
    """Take the mark of a complete database from a file."""
    opened = TransactionalConnection(str(path), timeout=patience, isolation_level=None)
    with closing(opened) as connection:
        try:
            connection.execute("PRAGMA application_id = 0")
        except sqlite3.Error as error:
            # What is damaged, or cannot be written to, is served by nobody and can be removed.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                return
            raise BackendUnavailable(
                f"The database {path.name} is still being written to by another process."
            ) from error


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _unreadable(path: Path, error: OSError) -> BackendUnavailable:
    return BackendUnavailable(f"The file {path.name} cannot be used now ({type(error).__name__}).")
