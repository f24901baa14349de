"""An invalidation bus in the tenant store's own database, for services without Redis.

NOTIFY (https://www.postgresql.org/docs/current/sql-notify.html) needs no table and no right but to
connect. It goes over the connections of the tenant store, a pooler's too. Hearing it takes a
connection that stays this process's own, which no pooler gives.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from sqlalchemy import text

from tenancy_core.errors import BackendUnavailable, ConfigurationError
from tenancy_core.sql import close_engine, make_engine
from tenancy_core.sql.postgres import WITHOUT_PREPARED, connect_args, tell_flaws, url_of
from tenancy_postgres.invalidation.subscription import Subscription
from tenancy_postgres.server import facts_of

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tenancy_core.config import TenancyConfig
    from tenancy_core.contract import TenantStore
    from tenancy_core.providers import BuildContext
    from tenancy_core.sql import ConnectionBudget
    from tenancy_postgres.server import ServerFacts
    from tenancy_postgres.settings import PostgresSettings

__all__ = ["Flaw", "PostgresBus"]

_NOTIFY: Final = text("SELECT pg_catalog.pg_notify(:channel, :message)")

_LEAST: Final = 3
"""Connections: one that listens, one for the store, one for tenants."""

_PATIENCE: Final = 5.0
"""Seconds that a server may take to answer; beyond it the link is taken for dead."""

LISTEN_URL: Final = "TENANCY_POSTGRES_LISTEN_URL"


@dataclass(frozen=True, slots=True)
class Flaw:
    """Why nothing is heard, in two sentences.

    Attributes:
        what: Is wrong.
        remedy: Against it.
    """

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}"


class PostgresBus:
    """Implements :class:`~tenancy_core.contract.InvalidationBus`.

    The channel has a name that only those can know who can read the tenant store: a tenant's
    session with SQL of its own could listen to, or flood, one that it could guess.

    Args:
        config: Gives the URL of the store, and how often the link is tried.
        connections: The ceiling. One of its connections is for listening, and tenants have one
            fewer.
        settings: Gives the URL to listen on.
        store: Whose database it is in.

    Attributes:
        flaw: Why nothing is heard at the moment, if that is known.
    """

    def __init__(
        self,
        config: TenancyConfig,
        connections: ConnectionBudget,
        settings: PostgresSettings,
        store: TenantStore | None,
    ) -> None:
        engine: AsyncEngine | None = getattr(store, "engine", None)
        if store is None or engine is None or engine.dialect.name != "postgresql":
            raise ConfigurationError(
                "TENANCY_INVALIDATION_BUS is 'postgres', and the tenant store is not on "
                "PostgreSQL. Remove the setting, or set it to 'none'."
            )
        self.flaw: Flaw | None = None
        self._config = config
        self._connections = connections
        self._store: Any = store
        self._name: str | None = None
        self._given = settings.listen_url
        self._setting, text = self.place
        self._url, self._arguments = connect_args(
            url_of(text, self._setting), self._setting, timeout=config.connect_timeout
        )
        self._engine: AsyncEngine | None = None
        self.interval = config.invalidation_poll_seconds
        self.patience = min(_PATIENCE, config.connect_timeout)
        self._deaf = self._require_room()
        if self._deaf is None:
            connections.set_apart(1)

    @classmethod
    def from_context(cls, context: BuildContext, settings: PostgresSettings) -> Self:
        """Make the bus from the settings.

        Raises:
            ConfigurationError: They do not fit together.
        """
        return cls(context.config, context.connections, settings, context.store)

    def _require_room(self) -> Flaw | None:
        if self._connections.ceiling >= _LEAST:
            return None
        flaw = Flaw(
            f"Of the {self._connections.ceiling} database connections of this process none can be "
            "spared for listening.",
            f"Set TENANCY_MAX_DATABASE_CONNECTIONS to {_LEAST} or more, or "
            "TENANCY_INVALIDATION_BUS=none.",
        )
        # Where nobody asked for it, a small process is served as it was before.
        if self._config.invalidation_bus is not None:
            raise ConfigurationError(str(flaw))
        return flaw

    async def __aenter__(self) -> Self:
        """Nothing is opened: a bus that is down keeps no service from starting."""
        self._engine = make_engine(
            self._url,
            self._config,
            self._connections,
            control=True,
            connect_args={**WITHOUT_PREPARED, **self._arguments},
            # LISTEN holds from the end of its transaction.
            isolation_level="AUTOCOMMIT",
            pool_pre_ping=False,
        )
        tell_flaws(self._engine, self._setting)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await close_engine(engine)

    # -- telling -------------------------------------------------------------------------------

    async def publish(self, message: str, /) -> None:
        """See the contract. One round trip; behind a pooler four."""
        channel = await self.channel()
        async with self._store.engine.begin() as connection:
            await connection.execute(_NOTIFY, {"channel": channel, "message": message})

    async def channel(self) -> str:
        """Return the name of the channel: the store's own, so that two stores have two."""
        if self._name is None:
            key: bytes = await self._store.instance_key()
            self._name = f"tenancy_{hmac.digest(key, b'invalidation', 'sha256').hex()[:32]}"
        return self._name

    # -- hearing -------------------------------------------------------------------------------

    def subscribe(self) -> Subscription:
        """See the contract."""
        return Subscription(self)

    @property
    def place(self) -> tuple[str, str]:
        """The variable that says where it listens, and its URL, with the password."""
        if self._given is not None:
            return LISTEN_URL, self._given.get_secret_value()
        return self._config.control_setting, self._config.control_url

    @property
    def deaf(self) -> bool:
        """Whether it is known that nothing can be heard with these settings."""
        return self._deaf is not None

    def listening(self) -> AsyncEngine:
        """Return the engine for a connection that listens.

        Raises:
            ConfigurationError: It cannot be had.
            BackendUnavailable: The bus is not open.
        """
        if self._deaf is not None:
            self.flaw = self._deaf
            raise ConfigurationError(str(self._deaf))
        if self._engine is None:
            raise BackendUnavailable("The invalidation bus is closed.")
        return self._engine

    async def judge(self, found: ServerFacts) -> None:
        """Refuse a connection on which nothing would be heard.

        Raises:
            ConfigurationError: A pooler is between.
            BackendUnavailable: It leads elsewhere than the store's. That may pass: one of the two
                may have come to a server that is about to be replaced.
        """
        if found.pooled:
            raise self._give_up(
                Flaw(
                    f"{self._setting} leads through a pooler, where nobody can listen.",
                    f"Set {LISTEN_URL} to a URL that leads past it, or "
                    "TENANCY_INVALIDATION_BUS=none.",
                )
            )
        async with self._store.engine.begin() as connection:
            own = await facts_of(connection)
        if found.place != own.place:
            raise BackendUnavailable(
                f"{self._setting} and the tenant store's URL lead to different databases "
                f"({found.database!r} and {own.database!r})"
            )

    def _give_up(self, flaw: Flaw) -> ConfigurationError:
        if self._deaf is None:
            # Tenants may have what will not be used.
            self._connections.set_apart(-1)
        self.flaw = self._deaf = flaw
        return ConfigurationError(str(flaw))

    def note(self, why: str) -> BackendUnavailable:
        """Take note of why nothing is heard now; returns the error that says so."""
        self.flaw = Flaw(
            f"Nothing is heard over {self._setting}: {why}.",
            f"Set {LISTEN_URL} to a URL that leads straight to the server, into the tenant store's "
            "database, with any role that may connect.",
        )
        return BackendUnavailable(f"{self._setting}: {why}")
