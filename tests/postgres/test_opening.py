"""What is told on opening where a URL, a role or its rights are not what is needed.

Remedies that are SQL are run as they are told, and then it opens.
"""

from __future__ import annotations

import inspect
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy import make_url, select, text

from support.postgres import Base, Note, opened, provisioned
from support.postgres_store import store_on
from support.scoped import rls, settings_for
from support.services.databases import fresh_database
from tenancy_core import Tenancy, TenancyConfig
from tenancy_core.errors import BackendUnavailable, ConfigurationError, IsolationError, TenancyError
from tenancy_core.sql import ConnectionBudget
from tenancy_core.sql.postgres import connect_args
from tenancy_core.testing import make_tenant
from tenancy_postgres import PostgresSettings, RlsIsolation, SchemaIsolation

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres

pytestmark = pytest.mark.anyio

APP = "TENANCY_DATABASE_URL"
CONTROL = "TENANCY_CONTROL_DATABASE_URL"
ADMIN = "TENANCY_POSTGRES_ADMIN_URL"


def with_query(url: str, **query: str) -> str:
    return make_url(url).update_query_dict(query).render_as_string(hide_password=False)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Go through an error and what stands behind it, as a traceback shows them."""
    if error is not None:
        yield error
        yield from chain(error.__cause__)
        yield from chain(error.__context__)


def said_by(caught: pytest.ExceptionInfo[TenancyError], database: PostgresDatabase) -> str:
    """Return what an error says, and see that the password is nowhere in what stands behind it."""
    quoted = make_url(database.app_url).render_as_string(hide_password=False)
    secrets = {database.password, quoted.split(":")[2].split("@")[0]}
    for error in chain(caught.value):
        assert not any(secret in str(error) or secret in repr(error) for secret in secrets)
    return str(caught.value)


def urls_of(database: PostgresDatabase) -> dict[str, str]:
    """Return the three URLs by their settings, each with a role of its own."""
    return {APP: database.app_url, CONTROL: database.control_url, ADMIN: database.owner_url}


@asynccontextmanager
async def service(urls: dict[str, str]) -> AsyncGenerator[Tenancy]:
    """Open a whole ``Tenancy`` from variables."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in urls.items():
            patch.setenv(name, value)
        config = TenancyConfig.from_env()
        async with Tenancy(config, metadata=Base.metadata) as tenancy:
            yield tenancy


async def serves(tenancy: Tenancy) -> None:
    await tenancy.tenants.create("acme")
    async with tenancy.scope("acme"), tenancy.session() as session:
        session.add(Note(text="there"))
    await tenancy.tenants.suspend("acme", reason="enough")


# -- URLs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SchemaIsolation, RlsIsolation])
@pytest.mark.parametrize(
    ("scheme", "flaw"),
    [
        (
            "postgresql",
            "names no driver; tenancy uses async drivers: start it with postgresql+asyncpg://",
        ),
        ("mysql+aiomysql", "names the database 'mysql'; there is postgresql+asyncpg"),
        ("sqlite+aiosqlite", "names the database 'sqlite'; there is postgresql+asyncpg"),
        (None, "is no database URL (for instance postgresql+asyncpg://user:password@host/name)"),
    ],
)
async def test_the_admin_url_is_judged_as_the_others_are(
    postgres_database: PostgresDatabase,
    kind: type[SchemaIsolation | RlsIsolation],
    scheme: str | None,
    flaw: str,
) -> None:
    rest = postgres_database.control_url.partition("://")[2]
    url = rest if scheme is None else f"{scheme}://{rest}"
    config = settings_for(postgres_database)
    with pytest.raises(ConfigurationError) as caught:
        kind(
            config,
            ConnectionBudget(config.connection_ceiling),
            PostgresSettings(admin_url=SecretStr(url)),
        )
    assert said_by(caught, postgres_database) == f"{ADMIN} {flaw}."


async def test_the_admin_url_is_judged_before_anything_is_opened(
    postgres_database: PostgresDatabase,
) -> None:
    urls = urls_of(postgres_database)
    urls[ADMIN] = urls[ADMIN].replace("+asyncpg", "")
    with pytest.raises(ConfigurationError, match=f"{ADMIN} names no driver") as caught:
        async with service(urls):
            pass
    said_by(caught, postgres_database)
    namespaces = await postgres_database.fetch("SELECT nspname::text FROM pg_namespace")
    assert ("tenancy",) not in namespaces


@pytest.mark.parametrize("setting", [APP, CONTROL, ADMIN])
@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("connect_timeout", "set TENANCY_DATABASE_CONNECT_TIMEOUT"),
        ("application_name", "set TENANCY_POSTGRES_APPLICATION_NAME"),
        ("options", "have it set by the server: ALTER ROLE … IN DATABASE … SET …"),
        ("pool_size", "set TENANCY_DATABASE_POOL_SIZE"),
    ],
)
async def test_a_parameter_that_the_driver_does_not_take_is_told(
    postgres_database: PostgresDatabase, setting: str, name: str, instead: str
) -> None:
    urls = urls_of(postgres_database)
    urls[setting] = with_query(urls[setting], **{name: "10"})
    with pytest.raises(ConfigurationError) as caught:
        async with service(urls):
            pass
    assert said_by(caught, postgres_database).startswith(
        f"The URL in {setting} has a parameter {name}, which asyncpg cannot be given in a URL. "
        f"Remove it and {instead}. What it can be given: "
    )


@pytest.mark.parametrize("setting", [APP, CONTROL, ADMIN])
async def test_a_value_that_the_driver_does_not_take_is_told(
    postgres_database: PostgresDatabase, setting: str
) -> None:
    urls = urls_of(postgres_database)
    urls[setting] = with_query(urls[setting], command_timeout="abc")
    with pytest.raises(ConfigurationError) as caught:
        async with service(urls):
            pass
    assert said_by(caught, postgres_database) == (
        f"The parameter command_timeout of the URL in {setting} has a value that it cannot have; "
        "it is a number of seconds above 0."
    )


async def test_the_settings_that_are_named_instead_exist(
    postgres_database: PostgresDatabase,
) -> None:
    names = (
        *("connect_timeout", "application_name", "pool_size", "max_overflow", "pool_pre_ping"),
        *("pool_recycle", "statement_cache_size"),
    )
    known = {f"TENANCY_{name.upper()}" for name in TenancyConfig.model_fields} | {
        f"TENANCY_POSTGRES_{name.upper()}" for name in PostgresSettings.model_fields
    }
    for name in names:
        url = make_url(postgres_database.app_url).update_query_dict({name: "1"})
        with pytest.raises(ConfigurationError) as caught:
            connect_args(url, APP, timeout=1)
        (told,) = re.findall(r"Remove it and set (TENANCY_\w+)", str(caught.value))
        assert told in known


async def test_every_parameter_that_is_said_to_be_taken_is_one_of_the_driver(
    postgres_database: PostgresDatabase,
) -> None:
    plain = make_url(postgres_database.app_url)
    with pytest.raises(ConfigurationError) as caught:
        connect_args(plain.update_query_dict({"unknown": "1"}), APP, timeout=1)
    (listed,) = re.findall(r"What it can be given: (.*)\.$", str(caught.value))
    values = {
        "ssl": "require",
        "sslmode": "require",
        "command_timeout": "5",
        "direct_tls": "true",
        "gsslib": "gssapi",
        "port": "5432",
        "prepared_statement_cache_size": "5",
        "ssl_max_protocol_version": "TLSv1.3",
        "ssl_min_protocol_version": "TLSv1.2",
        "target_session_attrs": "any",
    }
    # SQLAlchemy's own.
    taken = {*inspect.signature(asyncpg.connect).parameters, "prepared_statement_cache_size"}
    for name in listed.split(", "):
        url = plain.update_query_dict({name: values.get(name, "x")})
        url, arguments = connect_args(url, APP, timeout=1)
        dialect: Any = url.get_dialect()()
        _, options = dialect.create_connect_args(url)
        assert {*options, *arguments} <= taken


async def test_with_parameters_that_the_driver_takes_it_opens(
    postgres_database: PostgresDatabase,
) -> None:
    query = {
        "command_timeout": "20",
        "prepared_statement_cache_size": "5",
        "target_session_attrs": "primary",
    }
    urls = {name: with_query(url, **query) for name, url in urls_of(postgres_database).items()}
    # The owner of the database may not make the schemas that the control role owns, nor need it.
    del urls[ADMIN]
    async with service(urls) as tenancy:
        await serves(tenancy)


# -- the right to connect --------------------------------------------------------------------------


async def test_a_role_without_the_right_to_connect_is_told_what_to_run(
    postgres_database: PostgresDatabase,
) -> None:
    database = postgres_database
    # One that has to be quoted, and holds no rights by any other way.
    role = f"{database.name}-It's"
    await database.admin(f"CREATE ROLE \"{role}\" LOGIN PASSWORD '{database.password}'")
    try:
        ways: dict[str, dict[str, Any]] = {
            APP: {"url": database.url(role)},
            ADMIN: {"settings": {"admin_url": database.url(role)}},
        }
        for setting, given in ways.items():
            with pytest.raises(ConfigurationError) as caught:
                async with opened(database, **given):
                    pass
            said = said_by(caught, database)
            line = f'GRANT CONNECT ON DATABASE "{database.name}" TO "{role}"'
            assert said == (
                f"The role of {setting} may not connect to its database. Run, as the owner of the "
                f"database: {line}."
            )
            async with database.connection(database.owner) as owner:
                await owner.execute(line)
            async with opened(database, **given):
                pass
            await database.admin(f'REVOKE CONNECT ON DATABASE "{database.name}" FROM "{role}"')
    finally:
        await database.admin(f'DROP OWNED BY "{role}"', f'DROP ROLE "{role}"')


async def test_with_row_level_security_the_right_to_connect_is_told_as_well(
    postgres_database: PostgresDatabase,
) -> None:
    database = postgres_database
    line = f'GRANT CONNECT ON DATABASE "{database.name}" TO "{database.app}"'
    await database.admin(line.replace("GRANT", "REVOKE").replace(" TO ", " FROM "))
    with pytest.raises(ConfigurationError, match=f"The role of {APP} may not") as caught:
        async with rls(database):
            pass
    assert line in said_by(caught, database)
    async with database.connection(database.owner) as owner:
        await owner.execute(line)
    async with rls(database):
        pass


async def test_a_right_that_is_taken_away_while_it_is_open_is_told_in_a_session(
    postgres_database: PostgresDatabase,
) -> None:
    database = postgres_database
    async with opened(database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        await database.admin(f'REVOKE CONNECT ON DATABASE "{database.name}" FROM "{database.app}"')
        with pytest.raises(ConfigurationError, match=f"The role of {APP} may not") as caught:
            async with isolation.session(acme) as session:
                await session.execute(select(Note))
        line = f'GRANT CONNECT ON DATABASE "{database.name}" TO "{database.app}"'
        assert line in said_by(caught, database)
        await database.admin(line)
        async with isolation.session(acme) as session:
            assert (await session.scalars(select(Note))).all() == []


async def test_the_store_says_that_its_role_may_not_connect(
    postgres_database: PostgresDatabase,
) -> None:
    database = postgres_database
    role = f'"{database.control}"'
    await database.admin(f'REVOKE CONNECT ON DATABASE "{database.name}" FROM {role}')
    with pytest.raises(ConfigurationError, match="GRANT CONNECT ON DATABASE") as caught:
        async with service({APP: database.app_url, CONTROL: database.control_url}):
            pass
    said_by(caught, database)


async def test_the_store_names_its_setting_and_the_line_to_run(
    postgres_database: PostgresDatabase,
) -> None:
    database = postgres_database
    line = f'GRANT CONNECT ON DATABASE "{database.name}" TO "{database.control}"'
    await database.admin(line.replace("GRANT", "REVOKE").replace(" TO ", " FROM "))
    with pytest.raises(ConfigurationError) as caught:
        async with service({APP: database.app_url, CONTROL: database.control_url}):
            pass
    assert said_by(caught, database) == (
        f"The role of {CONTROL} may not connect to its database. Run, as the owner of the "
        f"database: {line}."
    )
    await database.admin(line)
    async with service({APP: database.app_url, CONTROL: database.control_url}) as tenancy:
        await serves(tenancy)


# -- TLS -------------------------------------------------------------------------------------------

VERSION = text("SELECT version FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()")


@pytest.fixture
def tls_database(postgres_tls_server: Postgres) -> Iterator[PostgresDatabase]:
    with fresh_database(postgres_tls_server) as database:
        yield database


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_with_the_authorities_of_the_machine_the_version_is_the_one_that_is_asked_for(
    tls_database: PostgresDatabase,
    postgres_tls_server: Postgres,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
) -> None:
    certificates = postgres_tls_server.certificates
    assert certificates is not None
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    query = {
        "ssl": "verify-full",
        "sslrootcert": "system",
        "sslcert": str(certificates.certificate),
        "sslkey": str(certificates.key),
        "ssl_min_protocol_version": version,
        "ssl_max_protocol_version": version,
    }
    async with opened(
        tls_database,
        url=with_query(tls_database.app_url, **query),
        control_database_url=with_query(tls_database.control_url, **query),
    ) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        async with isolation.session(acme) as session:
            assert await session.scalar(VERSION) == version


async def test_with_the_authorities_of_the_machine_a_list_without_this_one_is_not_enough(
    tls_database: PostgresDatabase,
    postgres_tls_server: Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    certificates = postgres_tls_server.certificates
    assert certificates is not None
    authority = str(certificates.authority)
    monkeypatch.setenv("SSL_CERT_FILE", authority)
    # A file that has certificates and no list: who asks for one has none.
    query = {"ssl": "verify-full", "sslrootcert": "system", "sslcrl": authority}
    with pytest.raises(BackendUnavailable, match="SSLCertVerificationError"):
        async with opened(tls_database, url=with_query(tls_database.app_url, **query)):
            pass


@pytest.mark.parametrize("setting", [APP, ADMIN])
async def test_what_the_driver_cannot_do_is_told_with_the_setting(
    tls_database: PostgresDatabase, setting: str
) -> None:
    urls = {APP: tls_database.app_url, ADMIN: tls_database.control_url}
    urls[setting] = with_query(urls[setting], ssl="verify-full")
    with pytest.raises(ConfigurationError) as caught:
        async with opened(tls_database, url=urls[APP], settings={"admin_url": urls[ADMIN]}):
            pass
    said = said_by(caught, tls_database)
    assert said.startswith(f"A connection cannot be made with {setting} as it is: ")
    assert "&sslrootcert=system for the authorities of this machine" in said


async def test_what_the_driver_cannot_do_is_told_with_the_setting_by_the_store(
    tls_database: PostgresDatabase,
) -> None:
    url = with_query(tls_database.control_url, ssl="verify-full")
    with pytest.raises(ConfigurationError, match=f"cannot be made with {CONTROL} as it is"):
        async with service({APP: tls_database.app_url, CONTROL: url}):
            pass


# -- a role for each tenant ------------------------------------------------------------------------


async def test_a_tenant_from_before_there_were_roles_is_given_one_by_what_is_told(
    postgres_server: Postgres,
) -> None:
    with fresh_database(postgres_server, createrole=True) as database:
        urls = {APP: database.app_url, CONTROL: database.control_url}
        async with service(urls) as tenancy:
            await tenancy.tenants.create("acme")
            async with tenancy.scope("acme"), tenancy.session() as session:
                session.add(Note(text="from before"))
        async with service({**urls, "TENANCY_POSTGRES_SCHEMA_ROLES": "true"}) as tenancy:
            await tenancy.tenants.create("beta")
            with pytest.raises(IsolationError) as caught:
                async with tenancy.scope("acme"), tenancy.session() as session:
                    await session.execute(select(Note))
            assert said_by(caught, database) == (
                "The tenant has no role of its own: it was made before "
                "TENANCY_POSTGRES_SCHEMA_ROLES was switched on, or somebody removed the role. "
                "Provision the tenant again, which makes the role "
                "(await tenancy.parts.isolation.provision(tenant)), or switch the setting off."
            )
            async with tenancy.scope("acme") as tenant:
                await tenancy.parts.isolation.provision(tenant)
            async with tenancy.scope("acme"), tenancy.session() as session:
                assert (await session.scalars(select(Note.text))).all() == ["from before"]
                assert await session.scalar(text("SELECT current_user")) == tenant.placement.name


async def test_with_roles_a_tenant_without_anything_is_told_to_have_no_schema(
    postgres_server: Postgres,
) -> None:
    with fresh_database(postgres_server, createrole=True) as database:
        async with opened(database, settings={"schema_roles": True}) as isolation:
            with pytest.raises(IsolationError, match="has no schema in this database"):
                async with isolation.session(make_tenant("ghost", isolation="schema")) as session:
                    await session.execute(select(Note))


@pytest.mark.parametrize("roles", [True, False])
async def test_a_role_that_may_make_nothing_is_told_every_line_to_run(
    postgres_database: PostgresDatabase, *, roles: bool
) -> None:
    database = postgres_database
    control, name = f'"{database.control}"', f'"{database.name}"'
    await database.admin(f"REVOKE CREATE ON DATABASE {name} FROM {control}")
    async with opened(database, settings={"schema_roles": roles}) as isolation:
        with pytest.raises(ConfigurationError) as caught:
            await isolation.provision(make_tenant("acme", isolation="schema"))
    needs = " and, as TENANCY_POSTGRES_SCHEMA_ROLES is on, CREATEROLE" if roles else ""
    more = f"; and, as a superuser: ALTER ROLE {control} CREATEROLE" if roles else ""
    said = said_by(caught, database)
    assert said == (
        f"The role '{database.control}' of {CONTROL} may not make a tenant's schema: it needs "
        f"CREATE on the database '{database.name}'{needs}. Run, as its owner: GRANT CREATE ON "
        f"DATABASE {name} TO {control}{more}; or name another role in {ADMIN}."
    )
    await database.admin(*re.findall(r"GRANT CREATE .*?(?=;)|ALTER ROLE .*?(?=;)", said))
    async with opened(database, settings={"schema_roles": roles}) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        async with isolation.session(acme) as session:
            session.add(Note(text="there"))
        await isolation.destroy(acme)


# -- what one role does not separate ---------------------------------------------------------------


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def one_role(role: str, does: str, settings: str) -> str:
    return (
        f"tenants' sessions have the role '{role}', which {does}: name another role in {settings}"
    )


def superuser(role: str, how: str) -> str:
    return (
        f"tenants' sessions have the role '{role}', which {how}: no right holds it, and it reads "
        f"every tenant and all that is on the server; name a plain role in {APP}"
    )


def reader(role: str, how: str) -> str:
    return (
        f"tenants' sessions have the role '{role}', which {how}: let it have no rights in the "
        "schema 'tenancy', be a member of no role that has, and name another one in "
        f"{CONTROL}"
    )


async def test_roles_that_are_apart_are_nothing_to_tell(
    postgres_database: PostgresDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    async with store_on(postgres_database.control_url):
        pass
    async with opened(postgres_database):
        pass
    assert warned(caplog) == []


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("admin", ["none", "same", "other"])
async def test_the_role_of_the_store_without_a_url_of_its_own_is_told_once(
    postgres_database: PostgresDatabase,
    caplog: pytest.LogCaptureFixture,
    admin: str,
    *,
    there: bool,
) -> None:
    """Whether the tables of the store are there already or not."""
    database = postgres_database
    if there:
        async with store_on(database.owner_url):
            pass
    given = {"none": None, "same": database.owner_url, "other": database.control_url}[admin]
    async with opened(
        database,
        url=database.owner_url,
        control_database_url=None,
        settings={"admin_url": given},
    ):
        pass
    makes, reads = "makes their schemas", "may read the tenant store"
    does, settings = {
        "none": (f"{makes} and {reads}", CONTROL),
        "same": (f"{makes} and {reads}", f"{ADMIN} and in {CONTROL}"),
        "other": (reads, CONTROL),
    }[admin]
    assert warned(caplog) == [one_role(database.owner, does, settings)]


async def test_what_is_told_of_one_role_helps(
    postgres_database: PostgresDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    database = postgres_database
    # Both settings that are named, each with another role.
    async with opened(
        database,
        url=database.app_url,
        control_database_url=database.control_url,
        settings={"admin_url": database.owner_url},
    ):
        pass
    assert warned(caplog) == []


@pytest.mark.parametrize("given", [False, True])
async def test_with_a_store_elsewhere_its_setting_is_not_advised(
    postgres_database: PostgresDatabase,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Any,
    *,
    given: bool,
) -> None:
    """Not even where tables of a store are left in the database of the tenants."""
    database = postgres_database
    async with store_on(database.owner_url):
        pass
    async with opened(
        database,
        url=database.owner_url,
        control_database_url=f"sqlite+aiosqlite:///{tmp_path}/control.db",
        settings={"admin_url": database.owner_url if given else None},
    ):
        pass
    assert warned(caplog) == [one_role(database.owner, "makes their schemas", ADMIN)]


@pytest.mark.parametrize("how", ["grant", "column", "member", "noinherit", "owner"])
async def test_a_role_of_sessions_that_reads_the_store_is_told(
    postgres_database: PostgresDatabase, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    database = postgres_database
    app, control = f'"{database.app}"', f'"{database.control}"'
    async with store_on(database.control_url):
        pass
    url, role, said = database.app_url, database.app, "may read the tenant store of its database"
    usage = f"GRANT USAGE ON SCHEMA tenancy TO {app}"
    if how == "grant":
        await database.admin(usage, f"GRANT SELECT ON ALL TABLES IN SCHEMA tenancy TO {app}")
    elif how == "column":
        await database.admin(
            usage, f"GRANT SELECT (identifier) ON tenancy.tenancy_tenants TO {app}"
        )
    elif how == "owner":
        url, role = database.control_url, database.control
    else:
        await database.admin(f"GRANT {control} TO {app}")
        if how == "noinherit":
            await database.admin(f"ALTER ROLE {app} NOINHERIT")
            if (
                await database.fetchval("SELECT current_setting('server_version_num')::int")
                > 160000
            ):
                await database.admin(f"GRANT {control} TO {app} WITH INHERIT FALSE")
            said = f"can become '{database.control}', which {said}"
    async with opened(database, url=url, settings={"admin_url": database.owner_url}):
        pass
    assert warned(caplog) == [reader(role, said)]


async def test_a_right_on_the_tables_alone_reads_nothing(
    postgres_database: PostgresDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    database = postgres_database
    async with store_on(database.control_url):
        pass
    await database.admin(f'GRANT SELECT ON ALL TABLES IN SCHEMA tenancy TO "{database.app}"')
    async with opened(database):
        pass
    assert warned(caplog) == []


async def test_a_superuser_is_told_and_what_follows_from_it_is_not(
    postgres_database: PostgresDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    database = postgres_database
    async with store_on(database.control_url):
        pass
    await database.admin(f'ALTER ROLE "{database.app}" SUPERUSER')
    async with opened(database):
        pass
    assert warned(caplog) == [superuser(database.app, "is a superuser")]


async def test_a_role_that_can_become_a_superuser_is_told(
    postgres_database: PostgresDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    database = postgres_database
    between, root = f"{database.name}_between", f"{database.name}_root"
    await database.admin(
        f"CREATE ROLE {root} SUPERUSER",
        f"CREATE ROLE {between}",
        f"GRANT {root} TO {between}",
        f'GRANT {between} TO "{database.app}"',
    )
    try:
        async with opened(database):
            pass
    finally:
        await database.admin(f"DROP ROLE {between}", f"DROP ROLE {root}")
    said = f"can become '{root}', which is a superuser"
    assert warned(caplog) == [superuser(database.app, said)]


# -- the tables of the store -----------------------------------------------------------------------


async def test_with_one_url_for_everything_the_other_setting_is_told_first(
    postgres_database: PostgresDatabase,
) -> None:
    database = postgres_database
    with pytest.raises(ConfigurationError) as caught:
        async with service({APP: database.app_url}):
            pass
    said = said_by(caught, database)
    assert said.startswith(
        f"The role '{database.app}' of {APP} may not make the tables of the tenant store, or may "
        f"not use those that are there. Set {CONTROL} with a role of its own that may create in "
        f"its database; sessions keep that of {APP}. Or have one role for both. Where there is no "
        "schema tenancy yet, run as the owner of the database: CREATE SCHEMA "
    )
    async with service({APP: database.app_url, CONTROL: database.control_url}) as tenancy:
        await serves(tenancy)


async def test_a_control_url_is_not_told_to_be_set_where_it_is(
    postgres_database: PostgresDatabase,
) -> None:
    database = postgres_database
    with pytest.raises(ConfigurationError) as caught:
        async with service({APP: database.control_url, CONTROL: database.app_url}):
            pass
    assert said_by(caught, database).startswith(
        f"The role '{database.app}' of {CONTROL} may not make the tables of the tenant store, or "
        "may not use those that are there. Where there is no schema tenancy yet, run as "
    )
