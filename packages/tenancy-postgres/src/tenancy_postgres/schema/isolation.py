"""Isolation ``schema``: sessions that reach one schema."""

from __future__ import annotations

import logging
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

from sqlalchemy import text

from tenancy_core.sql import SharedEngine, require_own
from tenancy_core.sql.scoped import SETTING, has_scoped_tables
from tenancy_core.sql.tables import NAMESPACE, tenants
from tenancy_postgres.ddl import has_own_types
from tenancy_postgres.engine import tag_statements
from tenancy_postgres.isolation import PostgresIsolation
from tenancy_postgres.quoting import quote_identifier, quote_literal, quote_setting
from tenancy_postgres.schema.places import SchemaPlaces
from tenancy_postgres.schema.reading import make_reading_engine
from tenancy_postgres.scope import SCOPE, Scope

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tenancy_core.tenant import Tenant

__all__ = ["SchemaIsolation"]


_log = logging.getLogger("tenancy")

# Every membership counts, inherited or not: SET ROLE makes use of it.
_REACH: Final = text(
    """
    WITH RECURSIVE reach AS (
      SELECT oid FROM pg_catalog.pg_roles WHERE rolname = ANY (CAST(:roles AS text[]))
      UNION
      SELECT m.roleid FROM reach AS r JOIN pg_catalog.pg_auth_members AS m ON m.member = r.oid
    ), found AS (
      SELECT r.rolname::text AS role, r.rolsuper AS superuser,
             EXISTS (
               SELECT FROM pg_catalog.pg_class AS c
                 JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
                WHERE n.nspname = CAST(:schema AS text) AND c.relname = CAST(:name AS text)
                  AND pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE')
                  AND pg_catalog.has_any_column_privilege(r.oid, c.oid, 'SELECT')
             ) AS reads_store
        FROM reach JOIN pg_catalog.pg_roles AS r ON r.oid = reach.oid
    )
    SELECT role, superuser, reads_store FROM found WHERE superuser OR reads_store ORDER BY role
    """
)
"""Which roles that sessions have, or can take, may do what no role of sessions should."""

_READS: Final = "may read the tenant store"


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
        """Tell what one role for all tenants, or for more than them, does not separate."""
        role = self.tenants.role
        if does := self._does_besides():
            _log.warning(
                "tenants' sessions have the role %r, which %s: name another role in %s",
                role,
                " and ".join(does),
                " and in ".join(dict.fromkeys(does.values())),
            )
        async with self._administering() as connection:
            roles = {"roles": [role, self.tenants.login], "name": tenants.name, "schema": NAMESPACE}
            reach = (await connection.execute(_REACH, roles)).all()
        superusers = [row.role for row in reach if row.superuser]
        if superusers:
            _log.warning(
                "tenants' sessions have the role %r, which %s: no right holds it, and it reads "
                "every tenant and all that is on the server; name a plain role in "
                "TENANCY_DATABASE_URL",
                role,
                _being(role, superusers, "is a superuser"),
            )
        # Of a store elsewhere nothing is known here; and what was told is not told again.
        if self._config.control_dialect != "postgresql" or superusers or _READS in does:
            return
        if readers := [row.role for row in reach if row.reads_store]:
            _log.warning(
                "tenants' sessions have the role %r, which %s: let it have no rights in the schema "
                "%r, be a member of no role that has, and name another one in "
                "TENANCY_CONTROL_DATABASE_URL",
                role,
                _being(role, readers, "may read the tenant store of its database"),
                NAMESPACE,
            )

    def _does_besides(self) -> dict[str, str]:
        """Return what the role of sessions is for besides, and the setting that parts the two."""
        config, same = self._config, self.admin.role == self.tenants.role
        given = self._settings.admin_url is not None
        # The tables of the store need not be there yet, for which it would have the right.
        stores = config.control_dialect == "postgresql" and (
            config.control_database_url is None or (same and not given)
        )
        does: dict[str, str] = {}
        if same:
            # Without a URL of its own, what makes schemas is the role of the store.
            apart = "CONTROL_DATABASE_URL" if stores and not given else "POSTGRES_ADMIN_URL"
            does["makes their schemas"] = f"TENANCY_{apart}"
        if stores:
            does[_READS] = "TENANCY_CONTROL_DATABASE_URL"
        return does

    async def _close(self) -> None:
        await super()._close()
        await self._let_go(self._reading.engine)

    async def _is_missing(self, place: str) -> bool:
        return not await self._places.is_there(place)

    async def _lacks_role(self, place: str) -> bool:
        return self._roles and not await self._places.has_role(place)

    def _differs(self, place: str) -> None:
        # Qualified statements name the tenant already.
        if self._settings.statement_tag == "auto" and not self._qualified:
            if not self._differing and not self._tags_all:
                tag_statements(self._engine)
            self._differing.add(place)

    @property
    def has_roles(self) -> bool:
        """Whether each tenant has a role of its own."""
        return self._roles

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
            and not self._riding.of_plan(tenant)
        )

    def _options(self, tenant: Tenant, *, read_only: bool) -> Mapping[str, Any]:
        place = tenant.placement.name
        quoted = quote_identifier(place)
        settings = "SET LOCAL search_path=" + ("''" if self._qualified else quoted)
        settings += self._riding.of(tenant)
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


def _being(role: str, found: Sequence[str], what: str) -> str:
    return what if role in found else f"can become {found[0]!r}, which {what}"
