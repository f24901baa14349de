"""The checklist on what is between: poolers, TLS, room for connections, open databases."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy import make_url

from support.checks import ERROR, INFO, WARNING, found, lines_of, mend, shop, the_one
from support.databases import KEY, template_url
from support.hybrid import hybrid_database
from support.invalidation import connected
from support.services.databases import fresh_database
from tenancy_core import Tenancy, TenancyConfig
from tenancy_core.errors import BackendUnavailable
from tenancy_postgres.checks import tls as tls_room
from tenancy_postgres.checks.tls import is_near

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.services.databases import PostgresDatabase
    from support.services.pgbouncer import PgBouncer
    from support.services.postgres import Postgres

pytestmark = pytest.mark.anyio


def with_query(url: str, **query: str) -> str:
    return make_url(url).update_query_dict(query).render_as_string(hide_password=False)


# -- pooler ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["rls", "schema"])
async def test_P4_without_a_pooler_there_is_no_finding(
    postgres_database: PostgresDatabase, strategy: str
) -> None:
    async with shop(postgres_database, strategy) as tenancy:
        assert await found(tenancy, "pooler") == []


async def test_P4_statements_that_could_be_kept_and_are_not_are_told(
    postgres_database: PostgresDatabase,
) -> None:
    async with shop(postgres_database, section={"prepared_statements": "off"}) as tenancy:
        await the_one(tenancy, "pooler", INFO, "no statement is kept prepared")


@pytest.mark.parametrize(
    ("mode", "choice", "tracks", "severity", "words"),
    [
        ("transaction", "auto", False, INFO, "Prepared statements are not kept, as it can carry"),
        ("transaction", "auto", True, INFO, "It tracks prepared statements, and none is kept"),
        ("transaction", "on", True, INFO, "Prepared statements are kept, as it can carry"),
        ("transaction", "on", False, WARNING, "does not track prepared statements, and they are"),
        ("session", "auto", False, INFO, "Prepared statements are not kept, as it can carry"),
        ("session", "on", False, WARNING, "in session mode that is well"),
    ],
)
async def test_P4_a_pooler_is_told_and_whether_statements_fit_it(
    postgres_database: PostgresDatabase,
    pgbouncer: Callable[..., PgBouncer],
    mode: str,
    choice: str,
    tracks: bool,
    severity: Any,
    words: str,
) -> None:
    pooler = pgbouncer(pool_mode=mode, max_prepared_statements=20 if tracks else 0)
    database = postgres_database
    url = database.url(database.app, via=pooler)
    section = {"prepared_statements": choice}
    async with shop(database, database_url=url, section=section) as tenancy:
        for _ in range(2):
            await the_one(tenancy, "pooler", severity, "TENANCY_DATABASE_URL", words)


async def test_P4_a_pooler_that_was_set_to_statement_mode_is_found(
    postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
) -> None:
    pooler = pgbouncer(pool_mode="transaction")
    database = postgres_database
    url = database.url(database.app, via=pooler)
    async with shop(database, database_url=url) as tenancy:
        await the_one(tenancy, "pooler", INFO)
        pooler._options["pool_mode"] = "statement"
        await asyncio.to_thread(pooler.restart)
        await the_one(tenancy, "pooler", ERROR, "is in statement mode")


async def test_P4_a_pooler_that_is_gone_is_told_as_it_is(
    postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
) -> None:
    pooler = pgbouncer(pool_mode="transaction")
    database = postgres_database
    url = database.url(database.app, via=pooler)
    async with shop(database, database_url=url) as tenancy:
        pooler.stop()
        finding = await the_one(tenancy, "pooler", ERROR, "could not be looked at")
        assert database.password not in repr(finding)


async def test_P4_a_pooler_before_tenants_databases_is_told(
    postgres_server: Postgres, pgbouncer: Callable[..., PgBouncer]
) -> None:
    pooler = pgbouncer(auth_database="postgres")
    with hybrid_database(postgres_server) as database:
        async with shop(
            database,
            "database",
            database_url_template=template_url(database, via=pooler),
            enable_encryption=True,
            encryption_keys=(KEY,),
        ) as tenancy:
            assert await found(tenancy, "pooler") == []
            acme = await tenancy.tenants.create("acme")
            await the_one(tenancy, "pooler", INFO, "TENANCY_DATABASE_URL_TEMPLATE")
            await the_one(tenancy, "connections", INFO, "TENANCY_DATABASE_URL_TEMPLATE")
            await tenancy.tenants.archive("acme")
            await tenancy.tenants.erase("acme")
            assert acme.isolation == "database"


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture
def tls_database(postgres_tls_server: Postgres) -> Iterator[PostgresDatabase]:
    with fresh_database(postgres_tls_server) as database:
        yield database


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every server for one on another machine."""
    monkeypatch.setattr(tls_room, "is_near", lambda peer: peer is None)


def over_tls(database: PostgresDatabase, server: Postgres, mode: str, **section: Any) -> Tenancy:
    query = {"ssl": mode}
    if mode.startswith("verify"):
        query["sslrootcert"] = str(server.certificates.authority)
    return shop(
        database,
        database_url=with_query(database.app_url, **query),
        control_database_url=with_query(database.control_url, **query),
        section={"admin_url": with_query(database.owner_url, **query), **section},
    )


async def test_on_one_machine_nothing_has_to_be_encrypted(
    postgres_database: PostgresDatabase,
) -> None:
    async with shop(postgres_database) as tenancy:
        assert await found(tenancy, "tls") == []


@pytest.mark.usefixtures("far")
async def test_links_without_TLS_are_found(postgres_database: PostgresDatabase) -> None:
    async with shop(postgres_database) as tenancy:
        findings = await found(tenancy, "tls")
        assert {one.severity for one in findings} == {ERROR}
        assert [one.message.split()[2] for one in findings] == [
            "TENANCY_DATABASE_URL",
            "TENANCY_POSTGRES_ADMIN_URL",
            "TENANCY_CONTROL_DATABASE_URL",
        ]
        assert "?ssl=verify-full" in findings[0].remedy


@pytest.mark.usefixtures("far")
async def test_links_that_are_verified_have_no_finding(
    tls_database: PostgresDatabase, postgres_tls_server: Postgres
) -> None:
    async with over_tls(tls_database, postgres_tls_server, "verify-full") as tenancy:
        assert await found(tenancy, "tls") == []


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("mode", ["prefer", "require", "verify-ca"])
async def test_links_that_ask_nobody_for_a_name_are_a_warning(
    tls_database: PostgresDatabase, postgres_tls_server: Postgres, mode: str
) -> None:
    async with over_tls(tls_database, postgres_tls_server, mode) as tenancy:
        findings = await found(tenancy, "tls")
        assert [one.severity for one in findings] == [WARNING] * 3
        assert "the certificate is not compared with the name" in findings[0].message


@pytest.mark.usefixtures("far")
async def test_a_link_over_which_changes_are_heard_is_looked_at(
    tls_database: PostgresDatabase, postgres_tls_server: Postgres
) -> None:
    listen_url = with_query(tls_database.control_url, ssl="require")
    async with over_tls(
        tls_database, postgres_tls_server, "verify-full", listen_url=listen_url
    ) as tenancy:
        await the_one(tenancy, "tls", WARNING, "of TENANCY_POSTGRES_LISTEN_URL are encrypted, and")


async def test_a_pooler_that_talks_in_the_clear_is_found(
    postgres_database: PostgresDatabase,
    pgbouncer: Callable[..., PgBouncer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first link stays on this machine, as with a pooler beside each process."""
    database = postgres_database
    url = database.url(database.app, via=pgbouncer(pool_mode="transaction"))
    async with shop(database, database_url=url) as tenancy:
        assert await found(tenancy, "tls") == []
        monkeypatch.setattr(tls_room, "is_near", lambda peer: not isinstance(peer, str))
        finding = await the_one(tenancy, "tls", ERROR, "The pooler of TENANCY_DATABASE_URL talks")
        assert "server_tls_sslmode = verify-full" in finding.remedy


@pytest.mark.parametrize(
    ("peer", "near"),
    [
        (("127.0.0.1", 5432), True),
        (("127.8.9.1", 5432), True),
        (("::1", 5432, 0, 0), True),
        (("::ffff:127.0.0.1", 5432, 0, 0), True),
        (("fe80::1%eth0", 5432, 0, 2), False),
        (("10.0.0.1", 5432), False),
        (("2001:db8::1", 5432, 0, 0), False),
        ("/run/postgresql/.s.PGSQL.5432", True),
        ("\0abstract", True),
        ("", True),
        (None, True),
        ("10.0.0.1", False),
    ],
)
def test_what_stays_on_this_machine(peer: object, near: bool) -> None:
    assert is_near(peer) is near


# -- connections -----------------------------------------------------------------------------------


async def test_connections_that_fit_have_no_finding(postgres_database: PostgresDatabase) -> None:
    async with shop(postgres_database, section={"workers": 2}) as tenancy:
        assert await found(tenancy, "connections") == []


async def room(database: PostgresDatabase) -> int:
    return int(
        await database.fetchval(
            "SELECT current_setting('max_connections')::int"
            " - current_setting('superuser_reserved_connections')::int"
        )
    )


@pytest.mark.parametrize("strategy", ["rls", "schema"])
async def test_more_connections_than_the_server_has_are_found(
    postgres_database: PostgresDatabase, strategy: str
) -> None:
    most = await room(postgres_database)
    fits = most // 2
    async with shop(postgres_database, strategy, max_database_connections=most) as tenancy:
        assert await found(tenancy, "connections") == []
    for ceiling in (fits + 1, fits):
        async with shop(
            postgres_database, strategy, section={"workers": 2}, max_database_connections=ceiling
        ) as tenancy:
            if ceiling == fits:
                assert await found(tenancy, "connections") == []
                continue
            finding = await the_one(
                tenancy,
                "connections",
                WARNING,
                f"2 processes open up to {2 * ceiling} connections",
                f"this server has {most}",
                "Processes on other machines, of other services",
            )
            assert f"TENANCY_MAX_DATABASE_CONNECTIONS={fits}" in finding.remedy


async def test_how_many_workers_there_are_is_read_where_servers_read_it(
    postgres_database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = await room(postgres_database)
    section = {"workers": None}
    ceiling = most // 2 + 1
    async with shop(
        postgres_database, section=section, max_database_connections=ceiling
    ) as tenancy:
        finding = await the_one(tenancy, "connections", INFO, "How many there are is not known")
        assert "TENANCY_POSTGRES_WORKERS" in finding.remedy
        for said in ("", "0", "many"):
            monkeypatch.setenv("WEB_CONCURRENCY", said)
            assert await found(tenancy, "connections") == [finding]
        monkeypatch.setenv("WEB_CONCURRENCY", "1")
        assert await found(tenancy, "connections") == []
        monkeypatch.setenv("WEB_CONCURRENCY", "3")
        await the_one(tenancy, "connections", WARNING, f"3 processes open up to {3 * ceiling}")


async def test_the_setting_is_read_from_the_environment(
    postgres_database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = postgres_database
    for name, value in {
        "DATABASE_URL": database.app_url,
        "CONTROL_DATABASE_URL": database.control_url,
        "POSTGRES_WORKERS": "50",
        "MAX_DATABASE_CONNECTIONS": "20",
        "STRICT_ENV": "true",
    }.items():
        monkeypatch.setenv(f"TENANCY_{name}", value)
    monkeypatch.setenv("WEB_CONCURRENCY", "1")
    async with Tenancy(TenancyConfig.from_env()) as tenancy:
        await the_one(tenancy, "connections", WARNING, "50 processes open up to 1000 connections")


@pytest.mark.parametrize(
    ("limited", "words"), [("DATABASE {name}", "the database"), ("ROLE {app}", "the role")]
)
async def test_a_connection_limit_that_is_too_low_is_found(
    postgres_database: PostgresDatabase, limited: str, words: str
) -> None:
    database = postgres_database
    async with shop(database) as tenancy:
        what = limited.format(name=database.name, app=database.app)
        await database.admin(f"ALTER {what} CONNECTION LIMIT 5")
        finding = await the_one(tenancy, "connections", WARNING, words, "is limited to 5")
        await mend(database, finding)
        assert await found(tenancy, "connections") == []


async def test_a_limit_of_the_role_of_the_tenant_store_is_found(
    postgres_database: PostgresDatabase,
) -> None:
    database = postgres_database
    async with shop(database, section={"workers": 4}) as tenancy:
        await connected(tenancy)
        # The store has one, and whoever listens the other.
        await database.admin(f"ALTER ROLE {database.control} CONNECTION LIMIT 2")
        with pytest.raises(BackendUnavailable):
            async with shop(database, section={"workers": 4}):
                pass
        (finding,) = await found(tenancy, "connections")
        assert finding.severity is WARNING
        # A pool of four each, and the one that listens.
        assert "4 processes open up to 20 connections" in finding.message
        role = f"the role {database.control!r} of TENANCY_CONTROL_DATABASE_URL is limited to 2"
        assert role in finding.message
        await mend(database, finding)
        assert await found(tenancy, "connections") == []


async def test_a_limit_of_the_role_that_makes_places_is_found(
    postgres_database: PostgresDatabase,
) -> None:
    database = postgres_database
    async with shop(database) as tenancy:
        await database.admin(f"ALTER ROLE {database.owner} CONNECTION LIMIT 1")
        words = f"{database.owner!r} of TENANCY_POSTGRES_ADMIN_URL is limited to 1"
        finding = await the_one(tenancy, "connections", WARNING, words)
        await mend(database, finding)
        assert await found(tenancy, "connections") == []


async def test_a_role_that_only_listens_needs_a_connection_for_each_process(
    postgres_database: PostgresDatabase,
) -> None:
    database = postgres_database
    listens = f"{database.name}_listens"
    await database.admin(
        f"CREATE ROLE {listens} LOGIN PASSWORD '{database.password}' CONNECTION LIMIT 3",
        f"GRANT CONNECT ON DATABASE {database.name} TO {listens}",
    )
    try:
        listen_url = database.url(listens)
        async with shop(database, section={"workers": 3, "listen_url": listen_url}) as tenancy:
            await connected(tenancy)
            assert await found(tenancy, "connections") == []
            await database.admin(f"ALTER ROLE {listens} CONNECTION LIMIT 2")
            words = f"{listens!r} of TENANCY_POSTGRES_LISTEN_URL is limited to 2"
            finding = await the_one(tenancy, "connections", WARNING, "up to 3 connections", words)
            await mend(database, finding)
            assert await found(tenancy, "connections") == []
    finally:
        await database.admin(f"DROP OWNED BY {listens}; DROP ROLE {listens}")


async def test_a_tenant_store_on_a_server_of_its_own_is_looked_at(
    postgres_database: PostgresDatabase, postgres_victim: Postgres
) -> None:
    with fresh_database(postgres_victim) as store:
        most = await room(store)
        section = {"workers": most, "admin_url": postgres_database.owner_url}
        settings: Any = {"control_database_url": store.control_url, "section": section}
        async with shop(postgres_database, **settings) as tenancy:
            tenants, own = await found(tenancy, "connections")
            assert f"{most * 6} connections, and this server has" in tenants.message
            words = f"{most * 5} connections, and the server of TENANCY_CONTROL_DATABASE_URL has"
            assert words in own.message
        section["workers"] = 2
        async with shop(postgres_database, **settings) as tenancy:
            assert await found(tenancy, "connections") == []
            await store.admin(f"ALTER DATABASE {store.name} CONNECTION LIMIT 5")
            words = f"the database {store.name!r} is limited to 5"
            finding = await the_one(tenancy, "connections", WARNING, words)
            await mend(store, finding)
            assert await found(tenancy, "connections") == []


async def test_what_a_pooler_takes_is_not_known(
    postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
) -> None:
    database = postgres_database
    url = database.url(database.app, via=pgbouncer())
    async with shop(database, database_url=url, section={"workers": 100}) as tenancy:
        finding = await the_one(tenancy, "connections", INFO, "TENANCY_DATABASE_URL")
        assert "max_client_conn in pgbouncer.ini has to be at least 600" in finding.remedy


async def test_tenants_databases_count_by_server(postgres_server: Postgres) -> None:
    with hybrid_database(postgres_server) as database:
        async with shop(
            database,
            "database",
            section={"workers": 1000},
            enable_encryption=True,
            encryption_keys=(KEY,),
        ) as tenancy:
            await the_one(tenancy, "connections", WARNING, "the server 'default' has")


# -- open databases --------------------------------------------------------------------------------


async def test_databases_that_let_everybody_in_are_found(postgres_victim: Postgres) -> None:
    with hybrid_database(postgres_victim) as database:
        guest = asyncpg.connect(
            host=postgres_victim.host,
            port=postgres_victim.port,
            user=database.owner,
            password=database.password,
            database="postgres",
        )
        connection = await guest
        async with shop(
            database, "database", enable_encryption=True, encryption_keys=(KEY,)
        ) as tenancy:
            acme = await tenancy.tenants.create("acme")
            finding = await the_one(
                tenancy, "connect", WARNING, "the server 'default': postgres, template1."
            )
            assert lines_of(finding) == [
                f'GRANT CONNECT ON DATABASE "postgres" TO "{database.owner}";',
                'REVOKE CONNECT ON DATABASE "postgres" FROM PUBLIC;',
                'REVOKE CONNECT ON DATABASE "template1" FROM PUBLIC;',
            ]
            await mend(database, finding)
            assert await found(tenancy, "connect") == []
            name = acme.placement.name
            await database.admin(f'GRANT CONNECT ON DATABASE "{database.name}" TO "{name}"')
            finding = await the_one(tenancy, "connect", ERROR, repr(name), repr(database.name))
            await mend(database, finding)
            assert await found(tenancy, "connect") == []
            await tenancy.tenants.archive("acme")
            await tenancy.tenants.erase("acme")
        await connection.close()
        await database.admin(f'REVOKE ALL ON DATABASE postgres FROM "{database.owner}"')


@pytest.mark.parametrize("strategy", ["rls", "schema"])
async def test_open_databases_are_nothing_where_tenants_have_no_logins(
    postgres_database: PostgresDatabase, strategy: str
) -> None:
    async with shop(postgres_database, strategy) as tenancy:
        assert await found(tenancy, "connect") == []
