"""Tenants of two tiers in one service: who is where, for how long, and who decides."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError

from support.databases import KEY, database_isolation, template_url
from support.hybrid import hybrid, hybrid_database
from support.postgres import opened
from support.scoped import Base, Note, rls
from support.waiting import WITHIN
from tenancy_core import Tenancy, TenancyConfig
from tenancy_core.contract import Severity
from tenancy_core.errors import ConfigurationError, IsolationError, UnsafeRoleError
from tenancy_core.testing import make_tenant
from tenancy_fastapi import ReadOnlySession, TenantSession, install

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from support.services.databases import PostgresDatabase
    from support.services.pgbouncer import PgBouncer
    from support.services.postgres import Postgres
    from tenancy_core.tenant import Tenant

pytestmark = pytest.mark.anyio

TIERS = [("rls", "schema"), ("rls", "database"), ("schema", "database")]


@pytest.fixture
def database(postgres_server: Postgres) -> Iterator[PostgresDatabase]:
    with hybrid_database(postgres_server) as database:
        yield database


@pytest.fixture
def configured(database: PostgresDatabase) -> Callable[..., Tenancy]:
    """Make a service; values replace or add to what it needs, and None takes away."""

    def make(standard: str = "rls", premium: str = "schema", **values: Any) -> Tenancy:
        config: dict[str, Any] = {
            "database_url": database.app_url,
            "control_database_url": database.control_url,
            "isolation_strategy": "hybrid",
            "standard_isolation_strategy": standard,
            "premium_isolation_strategy": premium,
            "premium_plans": ("gold",),
            "enable_encryption": True,
            "encryption_keys": (KEY,),
            "database_pool_size": 2,
            "database_max_overflow": 0,
            "max_database_connections": 8,
            **values,
        }
        given = {name: value for name, value in config.items() if value is not None}
        return Tenancy(TenancyConfig(**given), metadata=Base.metadata)

    return make


def set_environment(
    monkeypatch: pytest.MonkeyPatch,
    database: PostgresDatabase,
    tiers: tuple[str, str],
    *,
    via: PgBouncer | None = None,
    **more: str,
) -> None:
    values = {
        "DATABASE_URL": database.url(database.app, via=via),
        "CONTROL_DATABASE_URL": database.control_url,
        "ISOLATION_STRATEGY": "hybrid",
        "STANDARD_ISOLATION_STRATEGY": tiers[0],
        "PREMIUM_ISOLATION_STRATEGY": tiers[1],
        "PREMIUM_PLANS": "gold",
        "STRICT_ENV": "true",
        **more,
    }
    if "database" in tiers:
        values["DATABASE_URL_TEMPLATE"] = template_url(database, via=via)
        values["ENABLE_ENCRYPTION"] = "true"
        values["ENCRYPTION_KEYS"] = KEY
    for name, value in values.items():
        monkeypatch.setenv(f"TENANCY_{name}", value)


async def write(tenancy: Tenancy, name: str, words: str) -> None:
    async with tenancy.scope(name), tenancy.session() as session:
        session.add(Note(id=1, text=words))


async def read(tenancy: Tenancy, name: str) -> list[str]:
    async with tenancy.scope(name), tenancy.session(read_only=True) as session:
        return list(await session.scalars(select(Note.text)))


async def places_of(database: PostgresDatabase) -> set[str]:
    """Return the names of the schemas and databases of tenants."""
    rows = await database.fetch(
        "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'tenant\\_%'"
        " UNION SELECT datname FROM pg_database WHERE datname LIKE 'tenant\\_%'"
        " AND pg_catalog.pg_get_userbyid(datdba) = $1",
        database.control,
    )
    return {row[0] for row in rows}


# -- who is where ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tiers", TIERS)
async def test_the_plan_or_the_identifier_decides_when_a_tenant_is_created(
    configured: Callable[..., Tenancy], database: PostgresDatabase, tiers: tuple[str, str]
) -> None:
    standard, premium = tiers
    plans = {"acme": "gold", "beta": "silver", "gamma": None, "vip": "silver"}
    where = {"acme": premium, "beta": standard, "gamma": standard, "vip": premium}
    async with configured(*tiers, premium_tenants=("vip", "nobody")) as tenancy:
        for name, plan in plans.items():
            made = await tenancy.tenants.create(name, plan=plan)
            assert (made.isolation, made.placement.server) == (where[name], "default")
            assert (await tenancy.tenants.get(name)).isolation == where[name]
            await write(tenancy, name, f"{name}'s")
        for name in plans:
            assert await read(tenancy, name) == [f"{name}'s"]
        tenants = [await tenancy.tenants.get(name) for name in plans]
        own = {one.placement.name for one in tenants if one.isolation != "rls"}
        assert await places_of(database) == own
        (event, *_) = await tenancy.audit.read("acme")
        assert event.details["isolation"] == premium


@pytest.mark.parametrize("tiers", TIERS)
async def test_a_later_change_of_what_decides_moves_nothing(
    configured: Callable[..., Tenancy], database: PostgresDatabase, tiers: tuple[str, str]
) -> None:
    async with configured(*tiers, premium_tenants=("vip",)) as tenancy:
        for name, plan in (("acme", "gold"), ("beta", "silver"), ("vip", None)):
            await tenancy.tenants.create(name, plan=plan)
            await write(tenancy, name, f"{name}'s")
        before = {name: await tenancy.tenants.get(name) for name in ("acme", "beta", "vip")}
        places = await places_of(database)
        await tenancy.tenants.set_plan("acme", "silver")
        await tenancy.tenants.set_plan("beta", "gold")
        await tenancy.tenants.rename("vip", "plain")
        names = {"acme": "acme", "beta": "beta", "vip": "plain"}
        for old, new in names.items():
            after = await tenancy.tenants.get(new)
            assert (after.isolation, after.placement) == (
                before[old].isolation,
                before[old].placement,
            )
            assert await read(tenancy, new) == [f"{old}'s"]
    # Nor does a service that is configured in another way.
    async with configured(*tiers, premium_plans=("bronze",)) as tenancy:
        for old, new in names.items():
            assert await read(tenancy, new) == [f"{old}'s"]
            await tenancy.parts.isolation.provision(await tenancy.tenants.get(new))
        assert await places_of(database) == places


@pytest.mark.parametrize("tiers", TIERS)
async def test_what_a_tenant_had_is_removed_where_it_is(
    configured: Callable[..., Tenancy], database: PostgresDatabase, tiers: tuple[str, str]
) -> None:
    async with configured(*tiers) as tenancy:
        for name, plan in (("acme", "gold"), ("beta", None)):
            await tenancy.tenants.create(name, plan=plan)
            await write(tenancy, name, f"{name}'s")
        # The tier that it would have now is not asked.
        await tenancy.tenants.set_plan("acme", None)
        await tenancy.tenants.archive("acme")
        await tenancy.tenants.erase("acme", reason="asked for")
        assert await read(tenancy, "beta") == ["beta's"]
        await tenancy.tenants.archive("beta")
        await tenancy.tenants.erase("beta", reason="asked for")
    assert await places_of(database) == set()
    if "rls" in tiers:
        assert await database.fetchval("SELECT count(*) FROM public.notes") == 0


async def test_a_server_is_for_those_whose_strategy_has_several(
    database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = {"eu2": {"url": template_url(database), "admin_url": database.control_url}}
    set_environment(
        monkeypatch,
        database,
        ("rls", "database"),
        POSTGRES_SERVERS=json.dumps(servers),
    )
    async with Tenancy(TenancyConfig.from_env(), metadata=Base.metadata) as tenancy:
        far = await tenancy.tenants.create("far", plan="gold", server="eu2")
        assert (far.isolation, far.placement.server) == ("database", "eu2")
        await write(tenancy, "far", "there")
        assert await read(tenancy, "far") == ["there"]
        with pytest.raises(ValueError, match=r"'near' is isolated by 'rls', which has one server"):
            await tenancy.tenants.create("near", server="eu2")
        with pytest.raises(ValueError, match="no database server 'eu3'"):
            await tenancy.tenants.create("near", plan="gold", server="eu3")
        near = await tenancy.tenants.create("near", server="default")
        assert (near.isolation, near.placement.server) == ("rls", "default")


async def test_P10_only_tenants_with_a_login_of_their_own_get_another(
    configured: Callable[..., Tenancy],
) -> None:
    async with configured("rls", "database") as tenancy:
        for name, plan in (("acme", "gold"), ("beta", None)):
            await tenancy.tenants.create(name, plan=plan)
        version = (await tenancy.tenants.get("acme")).version
        assert (await tenancy.tenants.rotate_credentials("acme")).version == version + 1
        with pytest.raises(ConfigurationError, match="'rls', where tenants have no credentials"):
            await tenancy.tenants.rotate_credentials("beta")
        await write(tenancy, "acme", "mine")
        assert await read(tenancy, "acme") == ["mine"]


# -- what is not its own ---------------------------------------------------------------------------


@asynccontextmanager
async def strategy(kind: str, database: PostgresDatabase) -> AsyncGenerator[Any]:
    match kind.split(" and "):
        case ["rls"]:
            context: Any = rls(database, section={"admin_url": database.control_url})
        case ["schema"]:
            context = opened(database, metadata=Base.metadata)
        case ["database"]:
            context = database_isolation(database, Base.metadata)
        case [standard, premium]:
            context = hybrid(database, Base.metadata, standard=standard, premium=premium)
        case _:
            raise ValueError(kind)
    async with context as isolation:
        yield isolation


@pytest.mark.parametrize("kind", ["rls", "schema", "database", *map(" and ".join, TIERS)])
async def test_every_strategy_refuses_a_tenant_that_is_not_its_own(
    database: PostgresDatabase, kind: str
) -> None:
    own = kind.split(" and ")
    async with strategy(kind, database) as isolation:
        served = [make_tenant(name, isolation=name) for name in own]
        for tenant in served:
            await isolation.provision(tenant)
            async with isolation.session(tenant) as session:
                session.add(Note(id=1, text="kept"))
        foreign = {"rls", "schema", "database", "hybrid", "", "RLS", "rls "} - set(own)
        for name in sorted(foreign):
            for tenant in served:
                other = replace(tenant, isolation=name)
                for how in ("session", "connection"):
                    for read_only in (False, True):
                        with pytest.raises(IsolationError):
                            async with getattr(isolation, how)(other, read_only=read_only):
                                raise AssertionError("It was opened.")
                for how in ("provision", "exists", "destroy", "rotate_credentials"):
                    if hasattr(isolation, how):
                        with pytest.raises(IsolationError):
                            await getattr(isolation, how)(other)
        for tenant in served:
            assert await isolation.exists(tenant)
            async with isolation.session(tenant) as session:
                assert list(await session.scalars(select(Note.text))) == ["kept"]


@pytest.mark.parametrize(
    ("premium", "section", "reached"),
    [
        ("schema", {}, True),
        ("schema", {"schema_roles": True}, False),
        ("database", {}, False),
    ],
)
async def test_L7_raw_sql_between_the_tiers(
    database: PostgresDatabase, premium: str, section: dict[str, Any], reached: bool
) -> None:
    async with hybrid(database, Base.metadata, premium=premium, section=section) as isolation:
        small, large = (
            make_tenant("small", isolation="rls"),
            make_tenant("large", isolation=premium),
        )
        for tenant in (small, large):
            await isolation.provision(tenant)
            async with isolation.session(tenant) as session:
                session.add(Note(id=1, text=f"{tenant.identifier}'s"))
        schema = large.placement.name if premium == "schema" else f"{large.placement.name}.public"
        query = f"SELECT text FROM {schema}.notes"  # noqa: S608 - ours
        assert await answer(isolation, small, query) == (["large's"] if reached else None)
        # The policies hold whoever comes from a schema, and nothing leads there from a database.
        own = ["large's"] if premium == "database" else [] if not section else None
        assert await answer(isolation, large, "SELECT text FROM public.notes") == own
        # With a role for each that role has no rights on what the standard tenants share.
        other = f"SELECT pg_catalog.set_config('app.tenant_id', '{small.id}', true)"
        injected = ["small's"] if premium == "schema" and not section else own
        assert await answer(isolation, large, other, "SELECT text FROM public.notes") == injected


async def answer(isolation: Any, tenant: Tenant, *statements: str) -> list[str] | None:
    """Return what the last of some statements gives a tenant; None if it is refused."""
    rows: list[str] = []
    try:
        async with isolation.session(tenant) as session:
            for statement in statements:
                rows = list(await session.scalars(text(statement)))
    except DBAPIError:
        return None
    return rows


def app_of(tenancy: Tenancy) -> FastAPI:
    app = FastAPI()
    install(app, tenancy)

    @app.post("/notes/{number}")
    async def add(number: int, session: TenantSession) -> None:
        await session.execute(insert(Note).values(id=number, text=f"line {number}"))

    @app.get("/notes")
    async def read(session: ReadOnlySession) -> list[str]:
        return list(await session.scalars(select(Note.text).order_by(Note.id)))

    return app


def client_of(tenancy: Tenancy) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app_of(tenancy))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def test_whoever_is_nowhere_in_this_service_is_503_and_a_finding(
    configured: Callable[..., Tenancy],
) -> None:
    async with configured("rls", "database") as tenancy:
        await tenancy.tenants.create("acme", plan="gold")
        await tenancy.tenants.create("beta")
    async with configured("rls", "schema") as tenancy, client_of(tenancy) as client:
        answers = {
            name: (await client.get("/notes", headers={"X-Tenant-ID": name})).status_code
            for name in ("acme", "beta")
        }
        assert answers == {"acme": 503, "beta": 200}
        (found,) = [one for one in await tenancy.check() if one.check == "postgres.tier"]
        assert found.severity is Severity.ERROR
        assert "'database' are refused" in found.message
        assert "1 (acme)" in found.message


# -- from the environment to the answer ------------------------------------------------------------


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("tiers", TIERS)
async def test_requests_of_two_tiers(
    database: PostgresDatabase,
    monkeypatch: pytest.MonkeyPatch,
    pgbouncer: Callable[..., PgBouncer],
    tiers: tuple[str, str],
    pooled: bool,
) -> None:
    bouncer = pgbouncer(default_pool_size=1, auth_database="postgres") if pooled else None
    set_environment(
        monkeypatch,
        database,
        tiers,
        via=bouncer,
        PREMIUM_PLANS="gold,silver",
        PREMIUM_TENANTS="vip",
        PLANS=json.dumps({"gold": {}, "silver": {}, "iron": {}}),
    )
    plans = {"acme": "gold", "beta": "iron", "gamma": "silver", "vip": "iron"}
    async with Tenancy(TenancyConfig.from_env(), metadata=Base.metadata) as tenancy:
        for tenant, plan in plans.items():
            made = await tenancy.tenants.create(tenant, plan=plan)
            assert made.isolation == tiers[tenant != "beta"]
        async with client_of(tenancy) as client:
            for number in range(16):
                header = {"X-Tenant-ID": [*plans][number % 4]}
                added = await client.post(f"/notes/{number}", headers=header)
                assert added.status_code == 200
            for first, tenant in enumerate(plans):
                found = await client.get("/notes", headers={"X-Tenant-ID": tenant})
                assert found.json() == [f"line {number}" for number in range(first, 16, 4)]


@pytest.mark.parametrize("tiers", TIERS)
async def test_it_can_be_closed_and_opened_again(
    configured: Callable[..., Tenancy], tiers: tuple[str, str]
) -> None:
    tenancy = configured(*tiers)
    async with tenancy:
        for name, plan in (("acme", "gold"), ("beta", None)):
            await tenancy.tenants.create(name, plan=plan)
            await write(tenancy, name, f"{name}'s")
    for number in range(2):
        async with tenancy:
            for name in ("acme", "beta"):
                assert await read(tenancy, name) == [f"{name}'s"]
            await tenancy.tenants.create(f"late-{number}", plan="gold")


# -- what does not open ----------------------------------------------------------------------------


@pytest.mark.parametrize("tiers", [("rls", "database"), ("schema", "rls"), ("database", "rls")])
async def test_L1_an_unsafe_role_is_refused_whichever_tier_has_row_policies(
    configured: Callable[..., Tenancy], database: PostgresDatabase, tiers: tuple[str, str]
) -> None:
    await database.admin(f'ALTER ROLE "{database.app}" BYPASSRLS')
    tenancy = configured(*tiers)
    with pytest.raises(UnsafeRoleError, match="BYPASSRLS"):
        async with tenancy:
            raise AssertionError("It was opened.")
    # The other half was opened, and nothing of it is left.
    await nobody_is_connected(database)
    await database.admin(f'ALTER ROLE "{database.app}" NOBYPASSRLS')
    async with tenancy:
        await tenancy.tenants.create("acme", plan="gold")
        await write(tenancy, "acme", "mine")
        # Somebody changes it behind our back: whoever is made next is refused.
        await database.admin(f'ALTER ROLE "{database.app}" BYPASSRLS')
        plan = "gold" if tiers[1] == "rls" else None
        with pytest.raises(UnsafeRoleError):
            await tenancy.tenants.create("beta", plan=plan)


async def nobody_is_connected(database: PostgresDatabase) -> None:
    """See that no connection of ours is left, once the server has seen what was closed."""
    async with database.connection() as connection, asyncio.timeout(WITHIN):
        while await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = ANY ($1)",
            [database.app, database.control],
        ):
            await asyncio.sleep(0.005)


async def test_a_service_without_row_policies_takes_any_role(
    configured: Callable[..., Tenancy], database: PostgresDatabase
) -> None:
    await database.admin(f'ALTER ROLE "{database.app}" BYPASSRLS')
    async with configured("schema", "database") as tenancy:
        await tenancy.tenants.create("acme")
        await write(tenancy, "acme", "mine")
        assert await read(tenancy, "acme") == ["mine"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"premium_plans": ()}, "nobody is premium: set TENANCY_PREMIUM_PLANS, TENANCY_PREMIUM_TE"),
        ({"premium_tenants": ("ACME",)}, "'ACME', which no tenant can be called. A tenant identif"),
        ({"plans": {"iron": {}}}, r"TENANCY_PREMIUM_PLANS names 'gold'; TENANCY_PLANS has iron"),
        (
            {"database_url_template": "postgresql+asyncpg://{user}:{password}@db/{database}"},
            "TENANCY_DATABASE_URL_TEMPLATE is set, and nothing reads it",
        ),
        ({"premium": "rls"}, "are both 'rls'. Set TENANCY_ISOLATION_STRATEGY=rls"),
        (
            {"premium": "hybrid"},
            "TENANCY_PREMIUM_ISOLATION_STRATEGY is 'hybrid'; there is database",
        ),
        ({"standard": "rows"}, "TENANCY_STANDARD_ISOLATION_STRATEGY is 'rows'; there is database"),
        (
            {
                "premium": "database",
                "enable_encryption": None,
                "encryption_keys": None,
            },
            "TENANCY_ENABLE_ENCRYPTION=true",
        ),
        (
            {
                "isolation_strategy": "schema",
                "standard_isolation_strategy": "rls",
            },
            "TENANCY_STANDARD_ISOLATION_STRATEGY is set, and TENANCY_ISOLATION_STRATEGY is 'sch",
        ),
    ],
)
async def test_settings_that_do_not_fit_together_are_told(
    configured: Callable[..., Tenancy], values: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        configured(**values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("standard_isolation_strategy", "rls"),
        ("premium_isolation_strategy", "schema"),
        ("premium_plans", ("gold",)),
        ("premium_tenants", ("acme",)),
        ("database_url_template", "postgresql+asyncpg://{user}:{password}@db/{database}"),
    ],
)
@pytest.mark.parametrize("chosen", ["rls", "schema"])
def test_a_setting_that_nothing_reads_is_told(name: str, value: Any, chosen: str) -> None:
    url = "postgresql+asyncpg://app:s3cr3t@db/shop"
    given: dict[str, Any] = {"database_url": url, "isolation_strategy": chosen, name: value}
    with pytest.raises(ConfigurationError, match=f"TENANCY_{name.upper()} is set, and") as caught:
        TenancyConfig(**given)
    assert "s3cr3t" not in str(caught.value)


# -- the checklist ---------------------------------------------------------------------------------


async def tier_findings(tenancy: Tenancy) -> list[tuple[Severity, str]]:
    return [
        (one.severity, one.message) for one in await tenancy.check() if one.check == "postgres.tier"
    ]


async def test_a_plan_that_now_asks_for_another_tier_is_a_finding(
    configured: Callable[..., Tenancy],
) -> None:
    async with configured("rls", "schema", premium_tenants=("vip",)) as tenancy:
        await tenancy.tenants.create("vip")
        await tenancy.tenants.create("acme", plan="gold")
        for number in range(12):
            await tenancy.tenants.create(f"small-{number:02}")
        assert await tier_findings(tenancy) == []
        await tenancy.tenants.set_plan("acme", None)
        for number in range(3):
            await tenancy.tenants.set_plan(f"small-{number:02}", "gold")
        grown, shrunk = await tier_findings(tenancy)
        assert grown == (
            Severity.WARNING,
            (
                "Tenants of 'rls' would be premium if they were created now, in 'schema': "
                "3 (small-00, small-01, small-02)."
            ),
        )
        assert shrunk == (
            Severity.INFO,
            "Tenants of 'schema' would be standard if they were created now, in 'rls': 1 (acme).",
        )
        for number in range(3, 12):
            await tenancy.tenants.set_plan(f"small-{number:02}", "gold")
        (_, message), _ = await tier_findings(tenancy)
        assert message.endswith("12 (" + ", ".join(f"small-{n:02}" for n in range(10)) + ", …).")
        for finding in await tenancy.check():
            if finding.check == "postgres.tier":
                assert "only moving its data changes it" in finding.remedy
        # Who is gone is nowhere.
        await tenancy.tenants.archive("acme")
        await tenancy.tenants.erase("acme", reason="asked for")
        assert [severity for severity, _ in await tier_findings(tenancy)] == [Severity.WARNING]


async def test_without_tiers_there_is_no_such_finding(
    database: PostgresDatabase,
) -> None:
    config = TenancyConfig(database_url=database.app_url, control_database_url=database.control_url)
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        await tenancy.tenants.create("acme", plan="gold")
        assert await tier_findings(tenancy) == []
