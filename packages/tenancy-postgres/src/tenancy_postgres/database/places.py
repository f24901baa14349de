"""Tenants' databases on one server: made, completed, recognised, removed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import asyncpg
from sqlalchemy.exc import DBAPIError

from tenancy_core.errors import BackendUnavailable, ConfigurationError, IdentifierCollision
from tenancy_core.sql import close_engine
from tenancy_core.sql.postgres import LOCK_TENANT
from tenancy_postgres.database.copies import drop_database, make_copy, require_removable
from tenancy_postgres.database.credentials import Login, scram_verifier
from tenancy_postgres.database.server import without_database
from tenancy_postgres.database.templates import Template
from tenancy_postgres.making import lacks_rights
from tenancy_postgres.marks import mark_of
from tenancy_postgres.quoting import quote_identifier, quote_literal

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from sqlalchemy import Connection, MetaData

    from tenancy_core.config import TenancyConfig
    from tenancy_core.tenant import Tenant
    from tenancy_postgres.database.credentials import Credentials
    from tenancy_postgres.database.server import Server, Work
    from tenancy_postgres.settings import PostgresSettings

__all__ = ["TenantDatabases"]

_A = TypeVar("_A")
_B = TypeVar("_B")

_STATE: Final = """
    SELECT d.oid IS NOT NULL AS is_there,
           pg_catalog.shobj_description(d.oid, 'pg_database') AS mark,
           coalesce(d.datallowconn AND d.datconnlimit <> -2, false) AS is_open,
           coalesce(d.datconnlimit = -2, false) AS is_half_gone,
           d.datdba = a.oid AS is_own,
           r.oid IS NOT NULL AS has_role,
           pg_catalog.shobj_description(r.oid, 'pg_authid') AS role_mark
      FROM pg_catalog.pg_roles AS a
      LEFT JOIN pg_catalog.pg_database AS d ON d.datname = $1
      LEFT JOIN pg_catalog.pg_roles AS r ON r.rolname = $1
     WHERE a.rolname = current_user
"""
_ELSEWHERE: Final = """
    SELECT DISTINCT d.datname FROM pg_catalog.pg_shdepend AS s
      JOIN pg_catalog.pg_database AS d ON d.oid = CASE s.dbid WHEN 0 THEN s.objid ELSE s.dbid END
      JOIN pg_catalog.pg_roles AS r ON r.oid = s.refobjid
     WHERE s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND r.rolname = $1
     ORDER BY 1
"""
_MAY: Final = """
    SELECT rolsuper OR rolcreatedb, rolsuper OR rolcreaterole
      FROM pg_catalog.pg_roles WHERE rolname = current_user
"""
_GROUP: Final = (
    "SELECT pg_catalog.shobj_description(oid, 'pg_authid') AS mark FROM pg_roles WHERE rolname = $1"
)
_GROUP_MARK: Final = "tenancy tenants"
_THERE: Final = (asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError)
_MOST: Final = 63
"""Bytes of a name that PostgreSQL keeps."""
_DIGITS: Final = 16


class TenantDatabases:
    """Makes and removes databases, with the roles that may use them.

    Args:
        server: Where they are.
        config: Gives the patience, and what tables need to know.
        settings: Says what the databases begin as.
        metadata: The application's tables; None if it makes them itself.
        credentials: Tenants' logins; None where all tenants have one role.
    """

    def __init__(
        self,
        server: Server,
        config: TenancyConfig,
        settings: PostgresSettings,
        metadata: MetaData | None,
        credentials: Credentials | None,
    ) -> None:
        self._server = server
        self._credentials = credentials if server.address.own else None
        self._metadata = metadata
        self._patience = config.database_pool_timeout
        role = server.address.url.username or ""
        self._group = group_of(server.address.admin_url.username or "") if self._own else role
        self._template = Template(
            server,
            metadata,
            base=settings.database_template,
            grantee=self._group,
            setting=config.rls_setting,
            patience=self._patience,
        )
        self._has_group = not self._own

    @property
    def _own(self) -> bool:
        return self._server.address.own

    # -- making --------------------------------------------------------------------------------

    async def provision(self, tenant: Tenant) -> None:
        """Make the database and the role, or complete what is there.

        Raises:
            IdentifierCollision: One of the two is there, and is not this tenant's.
            ConfigurationError: The role of the server's ``admin_url`` may not make them.
            BackendUnavailable: The server cannot be used now.
        """
        await self._server.facts()
        try:
            await self._prepare_group()
            await self._template.prepare()
            async with self._server.locked(_key(tenant)) as work:
                # The store is asked for the login, and keeps a new one, while the server copies.
                has_made, verifier = await _both(
                    self._make_database(work.driver, tenant), self._verifier(tenant)
                )
                if has_made:
                    await self._open(work, tenant, verifier)
                else:
                    await self._make_role(work.driver, tenant, verifier)
                    await work.driver.execute(self._opening(tenant))
                    await self._complete(tenant)
        except (asyncpg.InsufficientPrivilegeError, DBAPIError) as error:
            if not lacks_rights(error):
                raise
            raise await self._lacks_rights() from error

    async def _prepare_group(self) -> None:
        if self._has_group:
            return
        async with self._server.administering() as connection:
            raw = await connection.get_raw_connection()
            driver: Any = raw.driver_connection
            found = await driver.fetchrow(_GROUP, self._group)
            if found is None:
                name = quote_identifier(self._group)
                try:
                    await driver.execute(
                        f"CREATE ROLE {name} NOLOGIN;"
                        f"COMMENT ON ROLE {name} IS {quote_literal(_GROUP_MARK)}"
                    )
                except _THERE:
                    found = await driver.fetchrow(_GROUP, self._group)
            if found is not None and found["mark"] != _GROUP_MARK:
                raise ConfigurationError(
                    f"There is a role {self._group!r} that was not made by tenancy, and tenants' "
                    "roles are to be its members. Rename it, or have another role in "
                    f"{self._server.address.admin_setting}."
                )
        self._has_group = True

    async def _verifier(self, tenant: Tenant) -> str | None:
        """Return what the server is told of the password that is kept; None without logins."""
        if self._credentials is None:
            return None
        login = await self._credentials.get(tenant.id)
        if login is None:
            login = await self._credentials.keep(tenant.id, Login.new(), instead_of=None)
        return scram_verifier(login.password)

    async def _open(self, work: Work, tenant: Tenant, verifier: str | None) -> None:
        """Let the tenant, with a new role, into a database that was just made: in one message.

        Raises:
            IdentifierCollision: There is a role of its name; the database is removed again.
        """
        if verifier is None:
            await work.end(self._opening(tenant))
            return
        try:
            await work.end(f"{self._role_creation(tenant, verifier)};{self._opening(tenant)}")
        except _THERE:
            driver = work.driver
            await driver.execute("ROLLBACK")
            try:
                self._require_own(await _state(driver, tenant), tenant)
            except IdentifierCollision:
                await self._drop(driver, tenant)
                raise
            await work.end(f"{_role_change(tenant, verifier)};{self._opening(tenant)}")

    async def _make_role(
        self, driver: asyncpg.Connection[Any], tenant: Tenant, verifier: str | None
    ) -> None:
        """Make the tenant's role, or give it the password that is kept."""
        if verifier is None:
            return
        try:
            await driver.execute(self._role_creation(tenant, verifier))
        except _THERE:
            self._require_own(await _state(driver, tenant), tenant)
            await driver.execute(_role_change(tenant, verifier))

    def _role_creation(self, tenant: Tenant, verifier: str) -> str:
        name = quote_identifier(tenant.placement.name)
        return (
            f"CREATE ROLE {name} LOGIN PASSWORD {quote_literal(verifier)}"
            f" IN ROLE {quote_identifier(self._group)};"
            f"COMMENT ON ROLE {name} IS {quote_literal(mark_of(tenant))}"
        )

    async def _make_database(self, driver: asyncpg.Connection[Any], tenant: Tenant) -> bool:
        """Make the tenant's database; whether it is new."""
        copy, original = tenant.placement.name, self._template.name
        try:
            try:
                await make_copy(driver, copy, of=original, patience=self._patience)
            except (asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):
                state = await _state(driver, tenant)
                self._require_own(state, tenant)
                if not state["is_half_gone"]:
                    return False
                # The server began to remove it: there is nothing else that it does with it.
                await self._drop(driver, tenant)
                await make_copy(driver, copy, of=original, patience=self._patience)
        except (
            asyncpg.InvalidCatalogNameError,
            asyncpg.ObjectNotInPrerequisiteStateError,
        ) as error:
            # Somebody removed the template since it was looked at, or began to.
            self._template.forget()
            raise BackendUnavailable(
                f"The database {original!r}, which tenants' databases are copies of, was removed. "
                "Try again."
            ) from error
        return True

    def _opening(self, tenant: Tenant) -> str:
        name = quote_identifier(tenant.placement.name)
        role = name if self._own else quote_identifier(self._group)
        return (
            f"REVOKE ALL ON DATABASE {name} FROM PUBLIC;"
            f"GRANT CONNECT, TEMPORARY ON DATABASE {name} TO {role};"
            f"COMMENT ON DATABASE {name} IS {quote_literal(mark_of(tenant))};"
            f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"
        )

    async def _complete(self, tenant: Tenant) -> None:
        """Add what is missing in a database that was there already."""
        engine = self._server.admin_engine(tenant.placement.name)
        try:
            async with engine.begin() as connection:
                # A tenant that may make functions or operators here would have them called by this
                # role, which may do more: SQLAlchemy names those that it uses without a schema.
                await connection.exec_driver_sql("SET LOCAL search_path=pg_catalog")
                if self._metadata is not None:
                    for schema in self._template.schemas:
                        await connection.exec_driver_sql(
                            f"CREATE SCHEMA IF NOT EXISTS {quote_identifier(schema)}"
                        )
                    await connection.run_sync(self._make_missing_tables)
                raw = await connection.get_raw_connection()
                driver: Any = raw.driver_connection
                await self._template.grant(driver)
        finally:
            await close_engine(engine)

    def _make_missing_tables(self, connection: Connection) -> None:
        if self._metadata is not None:
            named = connection.execution_options(schema_translate_map={None: "public"})
            self._metadata.create_all(named)

    # -- looking, removing -----------------------------------------------------------------------

    async def exists(self, tenant: Tenant) -> bool:
        """Whether the database is there, and the tenant can use it.

        Raises:
            IdentifierCollision: A database, or a role, of its name is not this tenant's.
        """
        async with self._server.administering() as connection:
            raw = await connection.get_raw_connection()
            driver: Any = raw.driver_connection
            state = await _state(driver, tenant)
        self._require_own(state, tenant)
        return bool(
            state["mark"] is not None
            and state["is_open"]
            and (state["has_role"] or self._credentials is None)
        )

    async def destroy(self, tenant: Tenant) -> None:
        """Remove the database, whoever is connected to it, and the role.

        Raises:
            IdentifierCollision: One of the two is not this tenant's; nothing was removed.
            ConfigurationError: The role has something in other databases; the tenant's is removed.
            BackendUnavailable: Somebody is connected who may not be sent away, or has a prepared
                transaction there.
        """
        name = quote_identifier(tenant.placement.name)
        async with self._server.locked(_key(tenant)) as work:
            driver = work.driver
            state = await _state(driver, tenant)
            self._require_own(state, tenant)
            if state["is_there"]:
                if not state["is_half_gone"]:
                    await require_removable(driver, tenant.placement.name)
                    # Nobody comes back while it is being removed.
                    await driver.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
                if state["has_role"] and self._credentials is not None:
                    # Only members may end its sessions. Not from the beginning: each role that one
                    # is a member of makes the next one dearer to make.
                    await driver.execute(f"GRANT {name} TO CURRENT_USER")
                await self._drop(driver, tenant)
            if state["has_role"] and self._credentials is not None:
                await self._drop_role(driver, tenant)

    async def _drop(self, driver: asyncpg.Connection[Any], tenant: Tenant) -> None:
        setting = self._server.address.admin_setting
        await drop_database(driver, tenant.placement.name, setting=setting)

    async def _drop_role(self, driver: asyncpg.Connection[Any], tenant: Tenant) -> None:
        name = quote_identifier(tenant.placement.name)
        try:
            await driver.execute(f"DROP ROLE {name}")
        except asyncpg.DependentObjectsStillExistError as error:
            where = [row[0] for row in await driver.fetch(_ELSEWHERE, tenant.placement.name)]
            raise ConfigurationError(
                f"The tenant's database is removed, and its role {name} is not: it has objects or "
                f"rights in {', '.join(where) or 'other databases'}. Run there, as a superuser: "
                f"DROP OWNED BY {name}; then try again."
            ) from error

    async def rotate(self, tenant: Tenant) -> None:
        """Give the tenant's role another password, and let the one before open nothing.

        Whoever connects meanwhile knows both. Killed anywhere, both are known until a second run.

        Raises:
            ConfigurationError: All tenants have one role; or the role of the server's ``admin_url``
                may not change it.
            IsolationError: The tenant has no role.
            IdentifierCollision: The role is not this tenant's.
            VersionConflict: Somebody else replaces it at the same time; a second run ends it.
        """
        if self._credentials is None:
            raise ConfigurationError(
                f"{self._server.address.setting} names one role for all tenants; its password is "
                "changed there."
            )
        try:
            await self._rotate(tenant)
        except asyncpg.InsufficientPrivilegeError as error:
            raise await self._lacks_rights() from error

    async def _rotate(self, tenant: Tenant) -> None:
        assert self._credentials is not None  # noqa: S101 - rotate has looked
        async with self._server.locked(_key(tenant)) as work:
            driver = work.driver
            state = await _state(driver, tenant)
            self._require_own(state, tenant)
            if not state["has_role"]:
                raise without_database()
            login = await self._server.login(tenant.id)
            if login.previous is not None:
                # Somebody was killed half-way: which of the two holds is not known.
                login = await self._tell(driver, tenant, login)
            # The lock goes when the link breaks, and what is on its way to the store arrives all
            # the same: whoever keeps something names what they have read.
            new = Login.new(login.password)
            login = await self._credentials.keep(tenant.id, new, instead_of=login)
            await self._tell(driver, tenant, login)

    async def _tell(self, driver: asyncpg.Connection[Any], tenant: Tenant, login: Login) -> Login:
        assert self._credentials is not None  # noqa: S101 - rotate has looked
        verifier = quote_literal(scram_verifier(login.password))
        name = quote_identifier(tenant.placement.name)
        await driver.execute(f"ALTER ROLE {name} PASSWORD {verifier}")
        return await self._credentials.keep(tenant.id, Login(login.password), instead_of=login)

    def _require_own(self, state: Any, tenant: Tenant) -> None:  # noqa: ANN401 - a row
        mark, name = mark_of(tenant), tenant.placement.name
        if state["has_role"] and self._credentials is not None and state["role_mark"] != mark:
            raise IdentifierCollision(
                f"There is a role {name!r} that was not made for tenant {tenant.identifier!r}; "
                "nothing was changed."
            )
        # One that is closed and has no mark yet was being made when somebody was killed.
        half_made = state["mark"] is None and state["is_own"] and not state["is_open"]
        if state["is_there"] and state["mark"] != mark and not half_made:
            raise IdentifierCollision(
                f"There is a database {name!r} that was not made for tenant "
                f"{tenant.identifier!r}; nothing was changed."
            )

    async def _lacks_rights(self) -> ConfigurationError:
        facts = await self._server.facts()
        role = quote_identifier(facts.role)
        more = " CREATEROLE" if self._own else ""
        async with self._server.administering() as connection:
            raw = await connection.get_raw_connection()
            driver: Any = raw.driver_connection
            makes_databases, makes_roles = await driver.fetchrow(_MAY)
        if makes_databases and (makes_roles or not self._own):
            base = self._template.base
            return ConfigurationError(
                f"The role {facts.role!r} of {self._server.address.admin_setting} may make "
                f"databases, and no copy of {base!r} (TENANCY_POSTGRES_DATABASE_TEMPLATE); or it "
                "does not own what it completes. Run, as the owner of that database: ALTER "
                f"DATABASE {quote_identifier(base)} WITH IS_TEMPLATE true."
            )
        return ConfigurationError(
            f"The role {facts.role!r} of {self._server.address.admin_setting} may not make a "
            f"tenant's database: it needs CREATEDB{' and' + more if more else ''}, and has to own "
            f"what it completes. Run, as a superuser: ALTER ROLE {role} CREATEDB{more}."
        )


async def _both(making: Awaitable[_A], asking: Awaitable[_B]) -> tuple[_A, _B]:
    """Await two at once, and the end of both also where one fails.

    What is being made is not broken off in the middle, as long as nobody cancels this.
    """
    asked: list[_B] = []
    made: list[_A] = []
    failures: list[Exception] = []

    async def ask() -> None:
        try:
            asked.append(await asking)
        except Exception as error:  # noqa: BLE001 - raised below
            failures.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        try:
            made.append(await making)
        except Exception as error:  # noqa: BLE001 - raised below
            failures.insert(0, error)
    if failures:
        raise failures[0]
    return made[0], asked[0]


def _role_change(tenant: Tenant, verifier: str) -> str:
    name = quote_identifier(tenant.placement.name)
    return f"ALTER ROLE {name} LOGIN PASSWORD {quote_literal(verifier)}"


def group_of(admin: str) -> str:
    """Return the name of the role whose rights all tenants' roles have, each in its database."""
    name = f"{admin}_tenants"
    if len(name.encode()) <= _MOST:
        return name
    return f"tenancy_{hashlib.sha256(admin.encode()).hexdigest()[:_DIGITS]}_tenants"


def _key(tenant: Tenant) -> tuple[int, int]:
    return LOCK_TENANT, int.from_bytes(tenant.id.bytes[:4], "big", signed=True)


async def _state(driver: asyncpg.Connection[Any], tenant: Tenant) -> Any:  # noqa: ANN401 - a row
    return await driver.fetchrow(_STATE, tenant.placement.name)
