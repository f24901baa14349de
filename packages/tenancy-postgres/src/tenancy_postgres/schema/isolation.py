"""Isolation ``schema``: sessions that reach one schema."""

from __future__ import annotations

import logging
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from tenancy_core.sql import SharedEngine, require_own
from tenancy_core.sql.scoped import SETTING, has_scoped_tables
from tenancy_postgres.ddl import has_own_types
from tenancy_postgres.engine import tag_statements
from tenancy_postgres.isolation import PostgresIsolation
from tenancy_postgres.quoting import quote_identifier, quote_literal, quote_setting
from tenancy_postgres.schema.places import SchemaPlaces
from tenancy_postgres.schema.reading import make_reading_engine
from tenancy_postgres.scope import SCOPE, Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tenancy_core.tenant import Tenant

__all__ = ["SchemaIsolation"]


_log = logging.getLogger("tenancy")


class SchemaIsolation(PostgresIsolation):
    """Implements :class:`~tenancy_core.contract.IsolationStrategy`.

    The tenant's schema alone is the search path of each of its transactions, so that a table which
    is not there is an error and never another schema's. In ``qualified`` mode the search path is
    empty, and SQLAlchemy writes the schema in front of each table. With one role for all tenants
    either separates names, not rights: ``schema_roles`` adds the rights.

    Attributes:
        name: ``schema``.
    """

    name = "schema"
    # A transaction that is nobody's finds nothing.
    _search_path = ""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._roles = self._settings.schema_roles
        self._sets_tenant = self._metadata is not None and has_scoped_tables(self._metadata)
        self._places = SchemaPlaces(
            self._administering,
            self._metadata,
            roles=self._roles,
            admin_setting=self._admin_setting,
            patience=self._config.database_pool_timeout,
            dialect={SETTING: self._config.rls_setting},
        )

    def _make_engines(self) -> None:
        self._qualified = self._settings.schema_mode == "qualified"
        # The server plans a prepared statement anew whenever the search path is another one.
        self._is_affine = not self._qualified
        super()._make_engines()
        choice = self._settings.statement_tag
        self._tags_all = not self._qualified and (
            choice == "always" or (choice == "auto" and has_own_types(self._metadata))
        )
        self._differing: set[str] = set()
        if self._tags_all:
            tag_statements(self._engine)
        self._reading = SharedEngine(make_reading_engine(self._target))

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._places.know(self.tenants, self.admin)
        return self

    async def _verify(self) -> None:
        if self.admin.role == self.tenants.role:
            _log.warning(
                "tenants' sessions have the role %r, which makes their schemas and may read the "
                "tenant store: name another role in %s",
                self.tenants.role,
                "TENANCY_CONTROL_DATABASE_URL",
            )

    async def _close(self) -> None:
        await super()._close()
        await self._let_go(self._reading.engine)

    async def _is_missing(self, place: str) -> bool:
        return not await self._places.is_there(place)

    def _differs(self, place: str) -> None:
        # Qualified statements name the tenant already.
        if self._settings.statement_tag == "auto" and not self._qualified:
            if not self._differing and not self._tags_all:
                tag_statements(self._engine)
            self._differing.add(place)

    # -- sessions ------------------------------------------------------------------------------

    def _source(self, tenant: Tenant, *, read_only: bool) -> SharedEngine:
        return self._reading if read_only and self._reads_alone(tenant) else self._shared

    def _reads_alone(self, tenant: Tenant) -> bool:
        """Whether declared reads of a tenant need no transaction.

        What lasts for a transaction needs one: a role, and the plan's time-outs. A pooler would
        give the statements of one session to several servers.
        """
        return (
            self._qualified
            and not self._roles
            and not self._link.pooled
            and not self._plan_settings(tenant)
        )

    def _options(self, tenant: Tenant, *, read_only: bool) -> Mapping[str, Any]:
        place = tenant.placement.name
        quoted = quote_identifier(place)
        settings = "SET LOCAL search_path=" + ("''" if self._qualified else quoted)
        settings += self._ride_along(tenant)
        if self._sets_tenant:
            value = quote_literal(str(tenant.id))
            settings += f";SET LOCAL {quote_setting(self._config.rls_setting)}={value}"
        if self._roles:
            settings += f";SET LOCAL ROLE {quoted}"
        tagged = self._tags_all or place in self._differing
        tag = f" /* {place} */" if tagged else ""
        scope = Scope(settings, read_only, tag, place)
        if self._qualified:
            return MappingProxyType({SCOPE: scope, "schema_translate_map": {None: place}})
        return MappingProxyType({SCOPE: scope})

    # -- the place -----------------------------------------------------------------------------

    async def provision(self, tenant: Tenant, /) -> None:
        """See the contract. What is new is made in one message, which is one transaction.

        Raises:
            IdentifierCollision: The schema is there, and is not this tenant's.
            ConfigurationError: The role may not create it.
        """
        require_own(tenant, self.name)
        await self._places.provision(tenant)

    async def exists(self, tenant: Tenant, /) -> bool:
        """See the contract."""
        require_own(tenant, self.name)
        return await self._places.exists(tenant)

    async def destroy(self, tenant: Tenant, /) -> None:
        """See the contract.

        Raises:
            BackendUnavailable: A session of the tenant was open for longer than the pool's
                time-out; nothing was removed.
        """
        require_own(tenant, self.name)
        await self._places.destroy(tenant)
