"""The database of the store: how each kind is opened, read and closed."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread
from sqlalchemy import event, make_url

from tenancy_core._background import settle
from tenancy_core._stores.sql.layout import make_tables
from tenancy_core._stores.sql.reach import reach
from tenancy_core.errors import BackendUnavailable
from tenancy_core.sql import postgres, sqlite, tables
from tenancy_core.sql.engines import close_engine, make_engine

if TYPE_CHECKING:
    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tenancy_core.config import TenancyConfig
    from tenancy_core.sql.budget import ConnectionBudget

__all__ = ["Database", "database_of"]

_log = logging.getLogger("tenancy")


def database_of(config: TenancyConfig, budget: ConnectionBudget) -> Database:
    """Return the database that the settings name, not open yet. No I/O."""
    kind = _KINDS.get(config.control_dialect, Database)
    return kind(config, budget)


class Database:
    """The store's database, and its engine; of this one nothing particular is known.

    Attributes:
        engine: For transactions that write.
        reading: For single statements that only read; a view of the same engine.
        pooled: Whether a pooler stands between.
    """

    engine: AsyncEngine
    reading: AsyncEngine
    pooled = False

    def __init__(self, config: TenancyConfig, budget: ConnectionBudget) -> None:
        self._config = config
        self._budget = budget
        self._url = make_url(config.control_url)
        self._closed = False
        self._make_engine()

    def _make_engine(self) -> None:
        self.engine = self.reading = self._engine(self._url)

    async def open(self) -> None:
        """Make the tables that are missing.

        Raises:
            BackendUnavailable: The database cannot be reached.
            ConfigurationError: It is none, or has another layout, or the role may not make them.
        """
        if self._closed:
            self._closed = False
            self._make_engine()
        try:
            async with reach:
                await self._look()
                await make_tables(self.engine, self._config.control_setting)
        except BaseException:
            await self.close()
            raise

    async def _look(self) -> None:
        """Learn what has to be known of the place before it is used."""

    async def close(self) -> None:
        """Close every connection."""
        self._closed = True
        try:
            await settle(close_engine(self.engine))
        except BackendUnavailable:
            _log.warning("a connection to the tenant store was not closed in time")

    async def scrub(self) -> None:
        """Take away what a committed erasure left readable in places of the database's own."""

    def _engine(self, url: URL, **options: Any) -> AsyncEngine:
        return make_engine(url, self._config, self._budget, control=True, **options)


class _Sqlite(Database):
    """A file."""

    def _make_engine(self) -> None:
        patience = self._config.database_pool_timeout
        self.engine = self._engine(self._url, connect_args=sqlite.connect_args(patience))
        # Reads must not wait for, nor hold up, the one writer that SQLite allows.
        self.reading = self.engine.execution_options(**{sqlite.READ_ONLY: True})
        sqlite.begin_transactions(self.engine)

    async def _look(self) -> None:
        if self._url.database:
            await anyio.to_thread.run_sync(self._make_place, Path(self._url.database))

    def _make_place(self, path: Path) -> None:
        sqlite.make_folder(path.parent, self._config.control_setting)
        with suppress(OSError):  # which the first connection tells better
            sqlite.make_file(path)

    async def scrub(self) -> None:
        """The log's frames still hold, as text, what the transaction overwrote."""
        try:
            if await sqlite.empty_wal(self.engine):
                return
        except Exception as failure:  # noqa: BLE001 - what is committed must not look as if it failed
            _log.debug("the write-ahead log could not be emptied (%s)", type(failure).__name__)
        _log.warning(
            "what was erased is still in the write-ahead log of the tenant store, until the log is "
            "written over or the last process closes the store"
        )


class _Postgres(Database):
    """A schema of its own, which no tenant's session reaches."""

    def _make_engine(self) -> None:
        url, arguments = postgres.connect_args(
            self._url,
            self._config.control_setting,
            timeout=self._config.connect_timeout,
        )
        self.pooled = True
        self.engine = self._engine(
            url,
            connect_args=arguments,
            execution_options={"schema_translate_map": {None: tables.NAMESPACE}},
            # The counters are right under this one, whatever the role's own default is.
            isolation_level="READ COMMITTED",
            pool_pre_ping=False,
        )
        self.reading = self.engine
        if self._config.database_pool_pre_ping:
            postgres.replace_closed(self.engine)

        @event.listens_for(self.engine.sync_engine, "do_connect")
        def _arguments(_dialect: object, _record: object, _args: Any, options: Any) -> None:  # noqa: ANN401 - DBAPI
            if self.pooled:
                options.update(postgres.WITHOUT_PREPARED)

        postgres.end_silent(self.engine)
        postgres.tell_flaws(self.engine, self._config.control_setting)

    async def _look(self) -> None:
        async with self.engine.connect() as connection:
            self.pooled = await postgres.is_pooled(connection)
            if self.pooled:
                return
            # It was opened for a pooler, before it was known that there is none.
            await connection.invalidate()
        # One round trip instead of three. A pooler could give the two messages of a statement to
        # two servers.
        self.reading = self.engine.execution_options(isolation_level="AUTOCOMMIT")


_KINDS: Final[dict[str, type[Database]]] = {"postgresql": _Postgres, "sqlite": _Sqlite}
