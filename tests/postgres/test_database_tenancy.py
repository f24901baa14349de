"""A service with a database for each tenant, from its settings to the end of a tenant."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url, select, text
from sqlalchemy.ext.asyncio import create_async_engine

from support.databases import KEY, template_url
from support.postgres import Base, Note
from support.services.databases import fresh_database
from tenancy_core import Tenancy, TenancyConfig
from tenancy_core.errors import ConfigurationError, IsolationError, TenantExists

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres

pytestmark = pytest.mark.anyio

LOGIN = "tenancy.postgres-login"


@pytest.fixture
def configured(database: PostgresDatabase) -> Callable[..., Tenancy]:
    """Make a service; values replace or add to what it needs."""

    def make(*, encrypted: bool = True, **values: Any) -> Tenancy:
        config = {
            "database_url": database.app_url,
            "control_database_url": database.control_url,
            "isolation_strategy": "database",
            **({"enable_encryption": True, "encryption_keys": (KEY,)} if encrypted else {}),
            "database_pool_size": 2,
            "database_max_overflow": 0,
            "max_database_connections": 8,
            **values,
        }
        return Tenancy(TenancyConfig(**config), metadata=Base.metadata)

    return make


@pytest.fixture
async def tenancy(configured: Callable[..., Tenancy]) -> AsyncIterator[Tenancy]:
    async with configured() as opened:
        yield opened


async def write(tenancy: Tenancy, name: str, words: str) -> None:
    async with tenancy.scope(name), tenancy.session() as session:
        session.add(Note(id=1, text=words))


async def read(tenancy: Tenancy, name: str) -> list[str]:
    async with tenancy.scope(name), tenancy.session(read_only=True) as session:
        return list(await session.scalars(select(Note.text)))


async def left_over(database: PostgresDatabase) -> list[str]:
    """Databases and roles of tenants."""
    rows = await database.fetch(
        "SELECT datname FROM pg_database WHERE datname LIKE 'tenant\\_%'"
        " AND pg_catalog.pg_get_userbyid(datdba) = $1"
        " UNION ALL SELECT DISTINCT r.rolname"
        " FROM pg_roles r JOIN pg_auth_members m ON m.member = r.oid WHERE"
        " r.rolname LIKE 'tenant\\_%' AND pg_catalog.pg_get_userbyid(m.roleid) = $1 || '_tenants'",
        database.control,
    )
    return sorted(row[0] for row in rows)


async def test_the_life_of_a_tenant(tenancy: Tenancy, database: PostgresDatabase) -> None:
    for name in ("acme", "beta"):
        tenant = await tenancy.tenants.create(name, name=name.title())
        assert (tenant.isolation, tenant.placement.server) == ("database", "default")
        await write(tenancy, name, f"{name}'s")
    for name in ("acme", "beta"):
        assert await read(tenancy, name) == [f"{name}'s"]
        async with tenancy.scope(name), tenancy.connection() as connection:
            who = (await connection.execute(text("SELECT current_user, current_database()"))).one()
        placed = (await tenancy.tenants.get(name)).placement.name
        assert tuple(who) == (placed, placed)
    await tenancy.tenants.archive("acme")
    await tenancy.tenants.erase("acme", reason="asked for")
    beta = (await tenancy.tenants.get("beta")).placement.name
    assert await left_over(database) == [beta, beta]
    assert await read(tenancy, "beta") == ["beta's"]


async def test_the_environment_is_all_that_names_it(
    database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "DATABASE_URL": database.app_url,
        "CONTROL_DATABASE_URL": database.control_url,
        "DATABASE_URL_TEMPLATE": template_url(database),
        "ISOLATION_STRATEGY": "database",
        "ENABLE_ENCRYPTION": "true",
        "ENCRYPTION_KEYS": KEY,
        "STRICT_ENV": "true",
        "POSTGRES_SERVERS": json.dumps(
            {"eu2": {"url": template_url(database), "admin_url": database.control_url}}
        ),
    }
    for name, value in values.items():
        monkeypatch.setenv(f"TENANCY_{name}", value)
    async with Tenancy(TenancyConfig.from_env(), metadata=Base.metadata) as tenancy:
        acme = await tenancy.tenants.create("acme", server="eu2")
        assert acme.placement.server == "eu2"
        await write(tenancy, "acme", "there")
        assert await read(tenancy, "acme") == ["there"]
        with pytest.raises(ValueError, match=r"no database server 'eu3'; there is default, eu2"):
            await tenancy.tenants.create("beta", server="eu3")
        with pytest.raises(TenantExists):
            await tenancy.tenants.create("acme", server="default")
    monkeypatch.delenv("TENANCY_POSTGRES_SERVERS")
    async with Tenancy(TenancyConfig.from_env(), metadata=Base.metadata) as tenancy:
        with pytest.raises(IsolationError, match=r"'eu2', which is not among TENANCY_POSTGRES_S"):
            await read(tenancy, "acme")


async def test_a_strategy_with_one_server_says_so(
    configured: Callable[..., Tenancy],
) -> None:
    async with configured(isolation_strategy="schema") as tenancy:
        with pytest.raises(ValueError, match=r"no server 'eu2'.*'schema' has one.*'default'"):
            await tenancy.tenants.create("acme", server="eu2")
        acme = await tenancy.tenants.create("acme", server="default")
        assert acme.placement.server == "default"
        with pytest.raises(ConfigurationError, match="no credentials of their own"):
            await tenancy.tenants.rotate_credentials("acme")


async def test_P10_credentials_are_rotated_by_the_control_plane(tenancy: Tenancy) -> None:
    before = await tenancy.tenants.create("acme")
    await write(tenancy, "acme", "mine")
    after = await tenancy.tenants.rotate_credentials("acme", reason="leaked", actor="ops")
    assert after.version == before.version + 1
    assert await read(tenancy, "acme") == ["mine"]
    (*_, event) = await tenancy.audit.read("acme")
    assert (event.action, event.actor) == ("tenant.credentials_rotated", "ops")


async def test_the_login_is_no_secret_of_the_application(
    tenancy: Tenancy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    acme = await tenancy.tenants.create("acme")
    await write(tenancy, "acme", "mine")
    assert await tenancy.tenants.secret_names("acme") == []
    assert await tenancy.tenants.get_secret("acme", LOGIN) is None
    with pytest.raises(ValueError, match="kept for tenancy itself"):
        await tenancy.tenants.put_secret("acme", LOGIN, "taken")
    stored = await tenancy.parts.store.get_secret(acme.id, LOGIN)
    assert stored is not None
    assert b"password" not in stored
    assert LOGIN not in caplog.text


async def test_without_encryption_it_does_not_open(configured: Callable[..., Tenancy]) -> None:
    with pytest.raises(ConfigurationError, match="TENANCY_ENABLE_ENCRYPTION=true"):
        configured(encrypted=False)


async def test_one_role_for_all_needs_no_encryption(
    configured: Callable[..., Tenancy], database: PostgresDatabase
) -> None:
    template = template_url(database, one_role=True)
    async with configured(encrypted=False, database_url_template=template) as tenancy:
        await tenancy.tenants.create("acme")
        await write(tenancy, "acme", "mine")
        assert await read(tenancy, "acme") == ["mine"]
        with pytest.raises(ConfigurationError, match="one role for all tenants"):
            await tenancy.tenants.rotate_credentials("acme")
        await tenancy.tenants.archive("acme")
        await tenancy.tenants.erase("acme", reason="asked for")
    assert await left_over(database) == []


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("postgresql+asyncpg://{user}:{password}@host/shop", r"as \{database\}"),
        ("postgresql+asyncpg://{user}:{password}@host/{database}_x", r"as \{database\}"),
        ("postgresql+asyncpg://{user}:{password}@host/{db}", "in braces that is not filled in"),
        ("postgresql+asyncpg://{user}:s3cr3t@host/{database}", r"both \{user\} and \{password\}"),
        ("postgresql+asyncpg://app:{password}@host/{database}", r"both \{user\} and \{password\}"),
        ("postgresql+asyncpg://{user}:s3{c}t@host/{database}", "in braces that is not filled in"),
        ("postgresql+asyncpg://host/{database}", "names no role"),
        ("mysql+aiomysql://{user}:{password}@host/{database}", "mysql"),
        ("postgresql://{user}:{password}@host/{database}", "postgresql\\+asyncpg"),
        ("nonsense", "is no database URL"),
    ],
)
async def test_a_template_that_is_none_is_told(
    configured: Callable[..., Tenancy], template: str, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        configured(database_url_template=template)
    assert "TENANCY_DATABASE_URL_TEMPLATE" in str(caught.value)
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize(
    ("servers", "says"),
    [
        ("{", "no JSON object"),
        ('{"default": {"url": "u", "admin_url": "a"}}', "the alias 'default'"),
        ('{"EU": {"url": "u", "admin_url": "a"}}', "lower-case"),
        ('{"eu2": {"url": "u"}}', "admin_url"),
        ('{"eu2": {"url": "u", "admin_url": "a"}}', r"TENANCY_POSTGRES_SERVERS\[eu2\].url"),
    ],
)
async def test_servers_that_are_none_are_told(
    configured: Callable[..., Tenancy],
    monkeypatch: pytest.MonkeyPatch,
    database: PostgresDatabase,
    servers: str,
    says: str,
) -> None:
    monkeypatch.setenv("TENANCY_DATABASE_URL", database.app_url)
    monkeypatch.setenv("TENANCY_CONTROL_DATABASE_URL", database.control_url)
    monkeypatch.setenv("TENANCY_ISOLATION_STRATEGY", "database")
    monkeypatch.setenv("TENANCY_ENABLE_ENCRYPTION", "true")
    monkeypatch.setenv("TENANCY_ENCRYPTION_KEYS", KEY)
    monkeypatch.setenv("TENANCY_POSTGRES_SERVERS", servers)
    with pytest.raises(ConfigurationError, match=says):
        Tenancy(TenancyConfig.from_env(), metadata=Base.metadata)


async def test_a_role_that_may_not_make_databases_is_told(
    postgres_server: Postgres,
) -> None:
    with fresh_database(postgres_server) as database:
        config = TenancyConfig(
            database_url=database.app_url,
            control_database_url=database.control_url,
            isolation_strategy="database",
            enable_encryption=True,
            encryption_keys=(KEY,),
        )
        async with Tenancy(config, metadata=Base.metadata) as tenancy:
            with pytest.raises(ConfigurationError, match="CREATEDB CREATEROLE") as caught:
                await tenancy.tenants.create("acme")
            (line,) = [part for part in str(caught.value).split(": ") if part.startswith("ALTER")]
            await database.admin(line.removesuffix("."))
            await tenancy.tenants.create("acme")
            assert await read(tenancy, "acme") == []


async def test_a_pooler_in_front_of_whoever_makes_databases_is_told(
    configured: Callable[..., Tenancy], database: PostgresDatabase, pgbouncer: Callable[..., Any]
) -> None:
    bouncer = pgbouncer()
    url = database.url(database.control, via=bouncer)
    with pytest.raises(ConfigurationError, match="TENANCY_CONTROL_DATABASE_URL leads to a pooler"):
        async with configured(control_database_url=url):
            raise AssertionError("It was opened.")


async def test_tables_that_are_new_are_added_when_a_tenant_is_provisioned_again(
    tenancy: Tenancy, configured: Callable[..., Tenancy], database: PostgresDatabase
) -> None:
    acme = await tenancy.tenants.create("acme")
    name = acme.placement.name
    async with tenancy.scope("acme"), tenancy.connection() as connection:
        assert (await connection.execute(text("SELECT to_regclass('notes')"))).scalar() == "notes"
    url = make_url(database.superuser_url).set(database=name)
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE notes"))
    await engine.dispose()
    await tenancy.parts.isolation.provision(acme)
    await write(tenancy, "acme", "again")
    assert await read(tenancy, "acme") == ["again"]


@pytest.mark.parametrize("ceiling", [4, 9])
async def test_many_databases_at_once_do_not_wait_for_one_another_for_ever(
    configured: Callable[..., Tenancy], ceiling: int
) -> None:
    # Far fewer seconds than a ring of waiters would take to give up.
    patience = {"database_pool_timeout": 60, "max_database_connections": ceiling}
    async with configured(**patience) as tenancy, asyncio.timeout(45):
        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(tenancy.tenants.create(f"tenant-{number}"))
        assert len((await tenancy.tenants.list()).items) == 8


async def test_P7_whoever_makes_a_database_and_whoever_logs_in_do_not_wait_for_one_another(
    configured: Callable[..., Tenancy],
) -> None:
    """All connections of tenants are being opened, and each of them asks the store for a login."""
    many = 16
    async with configured(max_database_connections=20) as tenancy:
        for number in range(many):
            await tenancy.tenants.create(f"tenant-{number}")
    patience = {"database_pool_timeout": 60, "max_database_connections": 8}
    async with configured(**patience) as tenancy, asyncio.timeout(45):
        tenants = [await tenancy.tenants.get(f"tenant-{number}") for number in range(many)]
        async with asyncio.TaskGroup() as group:
            for number in range(2):
                group.create_task(tenancy.tenants.create(f"another-{number}"))
            group.create_task(tenancy.tenants.rotate_credentials("tenant-0"))
            for tenant in tenants:
                group.create_task(read(tenancy, tenant.identifier))


@pytest.mark.parametrize("ceiling", [2, 3])
async def test_too_few_connections_for_a_database_to_be_made_are_told(
    configured: Callable[..., Tenancy], ceiling: int
) -> None:
    with pytest.raises(ConfigurationError, match="TENANCY_MAX_DATABASE_CONNECTIONS to 4 or more"):
        configured(max_database_connections=ceiling)
