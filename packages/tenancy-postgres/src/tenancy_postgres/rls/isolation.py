"""Isolation ``rls``: all tenants in the same tables, each sees its own rows."""

from __future__ import annotations

import logging
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import make_url, text

from tenancy_core.errors import ConfigurationError, UnsafeRoleError
from tenancy_core.sql import require_own
from tenancy_core.sql.flaws import flaws_of
from tenancy_postgres.isolation import PostgresIsolation
from tenancy_postgres.quoting import quote_identifier, quote_literal, quote_setting
from tenancy_postgres.rls.roles import dangers_of
from tenancy_postgres.rls.tables import SharedTables
from tenancy_postgres.scope import SCOPE, Scope

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncConnection

    from tenancy_core.tenant import Tenant
    from tenancy_postgres.rls.verification import Verdict

__all__ = ["RlsIsolation"]

_log = logging.getLogger("tenancy")

_SEARCH_PATH: Final = text("SELECT pg_catalog.current_schemas(false)::text[]")


class RlsIsolation(PostgresIsolation):
    """Implements :class:`~tenancy_core.contract.IsolationStrategy`.

    Each transaction of a tenant has its id in a setting, and the policies of the tables compare
    with that. It opens only where they hold: the role of the sessions cannot step around them, and
    every table that is there has them.

    Whoever can send SQL of their own can change the setting: this is no barrier against injection.

    Attributes:
        name: ``rls``.
    """

    name = "rls"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._tables = SharedTables(
            self._required_metadata(),
            self._config.rls_setting,
            self._config.database_pool_timeout,
        )
        self._begin = ""

    def _required_metadata(self) -> MetaData:
        metadata = self._metadata
        if metadata is None:
            raise ConfigurationError(
                "Isolation 'rls' makes its policies from the application's tables: pass them, "
                "Tenancy(config, metadata=Base.metadata)."
            )
        if flaws := flaws_of(metadata):
            raise ConfigurationError(
                "Under isolation 'rls' tenants would meet in these tables:\n"
                + "\n".join(f"- {flaw}" for flaw in flaws)
            )
        return metadata

    # -- opening -------------------------------------------------------------------------------

    async def _verify(self) -> None:
        """Refuse roles and tables that do not keep tenants apart.

        Raises:
            ConfigurationError: Tenants' sessions would have the role that makes tables or keeps
                the tenant store, or a table lacks something.
            UnsafeRoleError: The role of the sessions can step around the policies.
        """
        self._require_two_roles()
        async with self._administering() as connection:
            await self._require_apart(connection)
            schemas: Sequence[str] = (await connection.execute(_SEARCH_PATH)).scalar_one()
        self._begin = self._beginning(schemas)

    async def _require_apart(self, connection: AsyncConnection) -> Sequence[Verdict]:
        """Look at everything that keeps tenants apart, as it is now."""
        # Tables may have been declared after this object was made.
        if not self._required_metadata().tables:
            raise ConfigurationError(
                "Isolation 'rls' found no table in metadata=. Import the modules of your models "
                "before Tenancy is opened."
            )
        verdicts = await self._tables.judge(connection, self.tenants.role)
        await self._require_held(connection, verdicts)
        self._tables.require_safe(verdicts)
        await self._tables.require_no_strangers(connection, verdicts, self.tenants.role)
        return verdicts

    def _require_two_roles(self) -> None:
        role = self.tenants.role
        if self._settings.allow_unsafe_role:
            return
        if self.admin.role == role:
            raise ConfigurationError(
                f"Tenants' sessions have the role {role!r} of {self._admin_setting}, which makes "
                "the tables and so could switch row-level security off. Give "
                "TENANCY_DATABASE_URL a role of its own: CREATE ROLE app LOGIN; GRANT CONNECT ON "
                f"DATABASE {quote_identifier(self.tenants.database)} TO app."
            )
        if self._config.control_dialect != "postgresql":
            return
        store, own = make_url(self._config.control_url), self._url
        if (store.username, store.database) == (own.username, own.database):
            raise ConfigurationError(
                f"{self._config.control_setting} gives the tenant store the role {role!r} of "
                "tenants' sessions, which could read it. Set TENANCY_CONTROL_DATABASE_URL with "
                "another role."
            )

    async def judge(self, connection: AsyncConnection) -> Sequence[Verdict]:
        """Look at all tables as they are now, and refuse nothing: for the production checklist.

        Args:
            connection: As from :meth:`administering`.
        """
        return await self._tables.judge(connection, self.tenants.role)

    def owners(self, verdicts: Sequence[Verdict]) -> frozenset[str]:
        """Return the roles that can switch off what keeps tenants apart."""
        return frozenset({self.admin.role}.union(*(verdict.owners for verdict in verdicts)))

    async def _require_held(self, connection: AsyncConnection, verdicts: Sequence[Verdict]) -> None:
        roles = frozenset({self.tenants.role, self.tenants.login})
        dangers = await dangers_of(
            connection,
            roles,
            self.owners(verdicts),
            self.tenants.version,
            self._config.rls_setting,
        )
        if not dangers:
            return
        what = (
            f"Row policies do not hold the role {self.tenants.role!r} of TENANCY_DATABASE_URL: "
            f"{'; '.join(danger.sentence for danger in dangers)}."
        )
        if not self._settings.allow_unsafe_role:
            raise UnsafeRoleError(
                f"{what} Give tenants' sessions a plain role: CREATE ROLE app LOGIN NOSUPERUSER "
                "NOBYPASSRLS, which owns nothing and is a member of nothing."
            )
        _log.warning(
            "%s It is used because TENANCY_POSTGRES_ALLOW_UNSAFE_ROLE is set: tenants are not kept "
            "apart.",
            what,
        )

    def _beginning(self, schemas: Sequence[str]) -> str:
        # Both roles mean the same tables: in another schema there may be some without policies.
        path = ", ".join(map(quote_identifier, schemas)) or "''"
        setting = quote_setting(self._config.rls_setting)
        return f"SET LOCAL search_path={path};SET LOCAL {setting}="

    # -- sessions ------------------------------------------------------------------------------

    def _options(self, tenant: Tenant, *, read_only: bool) -> Mapping[str, Any]:
        settings = self._begin + quote_literal(str(tenant.id)) + self._riding.of(tenant)
        return MappingProxyType({SCOPE: Scope(settings, read_only)})

    # -- the place -----------------------------------------------------------------------------

    async def provision(self, tenant: Tenant, /) -> None:
        """See the contract. Nothing is made for one tenant; the tables are, once for all.

        What was seen when this opened is looked at again: somebody may have changed it since.

        Raises:
            ConfigurationError: A table is there and lacks something, or it may not be made.
            UnsafeRoleError: The role of the sessions can step around the policies.
        """
        require_own(tenant, self.name)
        async with self._administering() as connection:
            verdicts = await self._require_apart(connection)
            if not all(verdict.is_there for verdict in verdicts):
                await self._tables.make(connection, self.tenants.role, self.admin)

    async def exists(self, tenant: Tenant, /) -> bool:
        """See the contract: whether all tables are there, and keep tenants apart."""
        require_own(tenant, self.name)
        async with self._administering() as connection:
            verdicts = await self._tables.judge(connection, self.tenants.role)
        return all(verdict.is_there and not verdict.lacks for verdict in verdicts)

    async def destroy(self, tenant: Tenant, /) -> None:
        """See the contract: deletes the tenant's rows, as the tenant.

        Raises:
            BackendUnavailable: A session of the tenant was open for longer than the pool's
                time-out; nothing was removed.
            ConfigurationError: The role may not delete.
            IsolationError: Something would be left.
        """
        require_own(tenant, self.name)
        async with self._administering() as connection:
            verdicts = await self._tables.judge(connection, self.tenants.role)
        there = [verdict.table for verdict in verdicts if verdict.is_there]
        async with self.connection(tenant) as connection:
            await self._tables.empty(connection, tenant, there)
