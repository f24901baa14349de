"""A setting does what it says: each is read from its variable and seen in what happens."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import make_url, text

from support.notes import Base, Note, read, write
from tenancy_core import Tenancy, TenancyConfig, TenancyMiddleware, current_tenant
from tenancy_core._cache.memory import MemoryCacheBackend
from tenancy_core.errors import BackendUnavailable
from tenancy_core.sql import ConnectionBudget, make_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    FromEnv = Callable[..., TenancyConfig]

pytestmark = pytest.mark.anyio


@pytest.fixture
def from_env(monkeypatch: pytest.MonkeyPatch, database_url: str) -> FromEnv:
    """Set variables and read them, as a deployment does."""

    def read_settings(**settings: str) -> TenancyConfig:
        for name, value in {"database_url": database_url, **settings}.items():
            monkeypatch.setenv(f"TENANCY_{name.upper()}", value)
        return TenancyConfig.from_env()

    return read_settings


async def echo(scope: Any, _receive: Any, send: Any) -> None:
    """Answer with the current tenant."""
    tenant = current_tenant()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    body = b"nobody" if tenant is None else tenant.identifier.encode()
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(
    config: TenancyConfig, *tenants: str, client: tuple[str, int] = ("127.0.0.1", 1), **given: Any
) -> AsyncIterator[tuple[Tenancy, httpx.AsyncClient]]:
    """An open ``Tenancy`` with tenants and the middleware in front of ``echo``."""
    async with Tenancy(config, metadata=Base.metadata, **given) as tenancy:
        for tenant in tenants:
            await tenancy.tenants.create(tenant)
        transport = httpx.ASGITransport(TenancyMiddleware(echo, tenancy), client=client)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield tenancy, http


def header(tenant: str, name: str = "X-Tenant-ID") -> dict[str, str]:
    return {name: tenant}


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# -- core --------------------------------------------------------------------------------------


async def test_control_database_url_says_where_the_tenants_are_kept(
    from_env: FromEnv, tmp_path: Path
) -> None:
    control = tmp_path / "elsewhere" / "control.db"
    config = from_env(control_database_url=f"sqlite+aiosqlite:///{control}")
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        tenant = await tenancy.tenants.create("acme")
    assert control.is_file()
    assert not (tmp_path / "data" / "control.db").exists()
    assert (tmp_path / "data" / "tenants" / f"{tenant.placement.name}.db").is_file()


async def test_resolution_strategy_and_path_prefix_say_where_a_request_names_its_tenant(
    from_env: FromEnv,
) -> None:
    config = from_env(resolution_strategy="path", path_prefix="/org")
    async with serving(config, "acme") as (_, http):
        assert (await http.get("/org/acme/notes")).text == "acme"
        assert (await http.get("/tenants/acme/notes")).status_code == 404
        assert (await http.get("/", headers=header("acme"))).status_code == 404


async def test_excluded_paths_are_served_without_a_tenant(from_env: FromEnv) -> None:
    async with serving(from_env(excluded_paths='["/health", "/metrics"]')) as (_, http):
        assert (await http.get("/health/live")).text == "nobody"
        assert (await http.get("/metrics")).text == "nobody"
        assert (await http.get("/healthcare")).status_code == 400


# -- resolution --------------------------------------------------------------------------------


async def test_tenant_header_name_is_the_header_that_is_read(from_env: FromEnv) -> None:
    async with serving(from_env(tenant_header_name="X-Customer"), "acme") as (_, http):
        assert (await http.get("/", headers=header("acme", "x-customer"))).text == "acme"
        assert (await http.get("/", headers=header("acme"))).status_code == 400


async def test_domain_suffix_is_the_base_of_the_subdomains(from_env: FromEnv) -> None:
    config = from_env(resolution_strategy="subdomain", domain_suffix="example.com")
    async with serving(config, "acme") as (_, http):
        assert (await http.get("http://acme.example.com/")).text == "acme"
        assert (await http.get("http://acme.example.org/")).status_code == 404


@pytest.mark.parametrize(("peer", "tenant"), [("10.1.2.3", "acme"), ("10.9.2.3", "beta")])
async def test_R1_trusted_proxies_are_the_peers_whose_forwarded_host_counts(
    from_env: FromEnv, peer: str, tenant: str
) -> None:
    config = from_env(
        resolution_strategy="subdomain",
        domain_suffix="example.com",
        trusted_proxies="10.1.0.0/16,::1",
    )
    async with serving(config, "acme", "beta", client=(peer, 1)) as (_, http):
        forwarded = {"X-Forwarded-Host": "acme.example.com"}
        answer = await http.get("http://beta.example.com/", headers=forwarded)
        assert answer.text == tenant


async def test_require_verified_tenant_refuses_what_is_only_named(from_env: FromEnv) -> None:
    async with serving(from_env(require_verified_tenant="yes"), "acme") as (_, http):
        assert (await http.get("/", headers=header("acme"))).status_code == 401


@pytest.mark.parametrize(("rule", "status"), [("reject", 403), ("first", 200)])
async def test_R19_on_resolver_conflict_decides_between_two_sources(
    from_env: FromEnv, rule: str, status: int
) -> None:
    config = from_env(resolution_strategy="path,header", on_resolver_conflict=rule)
    async with serving(config, "acme", "beta") as (_, http):
        answer = await http.get("/tenants/acme", headers=header("beta"))
        assert answer.status_code == status
        if status == 200:
            assert answer.text == "acme"


# -- pool --------------------------------------------------------------------------------------


@pytest.fixture
async def engine_of(
    tmp_path: Path,
) -> AsyncIterator[Callable[[TenancyConfig], AsyncEngine]]:
    """Make engines for a file of this test, as the packages do."""
    made: list[AsyncEngine] = []

    def make(config: TenancyConfig) -> AsyncEngine:
        budget = ConnectionBudget(config.connection_ceiling)
        made.append(make_engine(f"sqlite+aiosqlite:///{tmp_path}/pool.db", config, budget))
        return made[-1]

    yield make
    for engine in made:
        await engine.dispose()


async def test_database_pool_size_is_how_many_stay_open_and_overflow_how_many_more_there_may_be(
    from_env: FromEnv, engine_of: Callable[[TenancyConfig], AsyncEngine]
) -> None:
    engine = engine_of(
        from_env(
            database_pool_size="1",
            database_max_overflow="1",
            database_pool_timeout="0.05",
            max_database_connections="10",
        )
    )
    async with engine.connect(), engine.connect():
        with pytest.raises(BackendUnavailable, match=r"within 0\.05 seconds"):
            await engine.connect()
        assert engine.pool.status() == "open: 2, idle: 0, at most: 2"
    assert engine.pool.status() == "open: 1, idle: 1, at most: 2"


async def test_max_database_connections_counts_everything_that_the_process_opens(
    from_env: FromEnv,
) -> None:
    config = from_env(max_database_connections="2", database_pool_timeout="0.2")
    async with serving(config, "acme", "beta") as (tenancy, _):
        assert tenancy.parts.connections.ceiling == 2
        async with tenancy.scope("acme"), tenancy.session() as session:
            await session.execute(text("select 1"))
            # One is the store's, so another tenant has to wait until this one is done.
            with pytest.raises(BackendUnavailable):
                async with (
                    tenancy.scope("beta", switch=True, reason="test"),
                    tenancy.session() as other,
                ):
                    await other.execute(text("select 1"))
            assert tenancy.parts.connections.open <= 2


async def test_without_a_ceiling_of_its_own_a_process_opens_pool_size_and_overflow(
    from_env: FromEnv,
) -> None:
    assert from_env().connection_ceiling == 60
    assert from_env(database_pool_size="3", database_max_overflow="4").connection_ceiling == 7
    # The store and one tenant at least.
    assert from_env(database_pool_size="1", database_max_overflow="0").connection_ceiling == 2


@pytest.mark.parametrize(("seconds", "same"), [("0", False), ("-1", True), ("3600", True)])
async def test_database_pool_recycle_replaces_old_connections(
    from_env: FromEnv,
    engine_of: Callable[[TenancyConfig], AsyncEngine],
    seconds: str,
    same: bool,
) -> None:
    engine = engine_of(from_env(database_pool_recycle=seconds))
    drivers: list[object] = []
    for _ in range(2):
        async with engine.connect() as connection:
            raw = await connection.get_raw_connection()
            drivers.append(raw.driver_connection)
    assert (drivers[0] is drivers[1]) is same


@pytest.mark.parametrize(("setting", "pings"), [("true", 1), ("false", 0)])
async def test_database_pool_pre_ping_asks_a_connection_whether_it_lives(
    from_env: FromEnv,
    engine_of: Callable[[TenancyConfig], AsyncEngine],
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    pings: int,
) -> None:
    engine = engine_of(from_env(database_pool_pre_ping=setting))
    dialect = engine.sync_engine.dialect
    asked: list[object] = []
    ping = dialect.do_ping

    def count(connection: Any) -> bool:
        asked.append(connection)
        return ping(connection)

    monkeypatch.setattr(dialect, "do_ping", count)
    for _ in range(2):
        async with engine.connect():
            pass
    assert len(asked) == pings


@pytest.mark.parametrize("setting", ["true", "false"])
async def test_S1_database_echo_logs_statements_and_never_their_values(
    from_env: FromEnv, caplog: pytest.LogCaptureFixture, setting: str
) -> None:
    caplog.set_level(logging.NOTSET, logger="tenancy")
    async with (
        serving(from_env(database_echo=setting), "acme") as (tenancy, _),
        tenancy.scope("acme"),
    ):
        await write(tenancy, "canary")
    assert ("INSERT INTO notes" in caplog.text) is (setting == "true")
    assert "canary" not in caplog.text


async def test_max_cached_engines_is_how_many_idle_tenants_keep_theirs(from_env: FromEnv) -> None:
    async with serving(from_env(max_cached_engines="1"), "acme", "beta") as (tenancy, _):
        engines = tenancy.parts.isolation._engines
        for tenant in ("acme", "beta"):
            async with tenancy.scope(tenant):
                assert await read(tenancy) == []
            assert len(engines) == 1


# -- cache -------------------------------------------------------------------------------------


async def test_l1_cache_max_size_is_how_many_tenants_a_process_keeps(from_env: FromEnv) -> None:
    async with serving(from_env(l1_cache_max_size="1"), "acme", "beta") as (tenancy, http):
        for tenant in ("acme", "beta", "acme"):
            assert (await http.get("/", headers=header(tenant))).text == tenant
            assert len(tenancy.parts.directory.l1) == 1


async def test_l1_cache_ttl_seconds_is_how_long_a_process_believes_what_it_read(
    from_env: FromEnv,
) -> None:
    clock = Clock()
    asked: list[str] = []
    async with serving(from_env(l1_cache_ttl_seconds="6"), "acme", clock=clock) as (tenancy, http):
        store = tenancy.parts.store
        look_up = store.get_by_identifier

        async def count(identifier: str, /) -> Any:
            asked.append(identifier)
            return await look_up(identifier)

        store.get_by_identifier = count
        for passed, times in ((0, 1), (5.9, 1), (0.2, 2)):
            clock.now += passed
            assert (await http.get("/", headers=header("acme"))).text == "acme"
            assert len(asked) == times


async def test_cache_enabled_and_cache_ttl_are_for_the_cache_between_processes(
    from_env: FromEnv,
) -> None:
    kept: list[float] = []

    class Watched(MemoryCacheBackend):
        async def set(self, key: str, value: bytes, /, *, ttl: float) -> None:
            kept.append(ttl)
            await super().set(key, value, ttl=ttl)

    config = from_env(cache_enabled="on", cache_ttl="77")
    async with serving(config, "acme", cache_backend=Watched()) as (_, http):
        assert (await http.get("/", headers=header("acme"))).text == "acme"
    assert kept == [77.0]


async def test_cache_backend_names_the_cache(from_env: FromEnv) -> None:
    tenancy = Tenancy(from_env(cache_enabled="true", cache_backend="memory"))
    assert type(tenancy._built.directory._shared) is MemoryCacheBackend
    assert Tenancy(from_env(cache_enabled="true"))._built.directory._shared is not None


async def test_K1_invalidation_poll_seconds_bounds_how_long_another_process_serves_a_suspended_one(
    from_env: FromEnv,
) -> None:
    config = from_env(invalidation_poll_seconds="0.05", l1_cache_ttl_seconds="3600")
    async with (
        serving(config, "acme") as (_, http),
        Tenancy(config) as elsewhere,
    ):
        assert (await http.get("/", headers=header("acme"))).status_code == 200
        await elsewhere.tenants.suspend("acme")
        await eventually(lambda: refused(http))


async def refused(http: httpx.AsyncClient) -> bool:
    return (await http.get("/", headers=header("acme"))).status_code == 404


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it holds. Far longer than it takes, so that a slow machine is no failure."""
    async with asyncio.timeout(60):
        while not await holds():
            await asyncio.sleep(0.02)


# -- limits ------------------------------------------------------------------------------------


async def accepted(http: httpx.AsyncClient, tenant: str, tries: int) -> int:
    answers = [await http.get("/", headers=header(tenant)) for _ in range(tries)]
    assert {answer.status_code for answer in answers} <= {200, 429}
    return sum(answer.status_code == 200 for answer in answers)


# So long that nothing is given back while a test runs.
WINDOW = "100000000"


async def test_without_enable_rate_limiting_nothing_is_limited(from_env: FromEnv) -> None:
    async with serving(from_env(rate_limit_per_minute="2"), "acme") as (_, http):
        assert await accepted(http, "acme", 9) == 9


async def test_rate_limits_are_per_tenant_with_a_burst_of_a_fifth(from_env: FromEnv) -> None:
    config = from_env(
        enable_rate_limiting="true",
        rate_limit_per_minute="15",
        rate_limit_window_seconds=WINDOW,
        rate_limiter="memory",
    )
    async with serving(config, "acme", "beta") as (_, http):
        assert await accepted(http, "acme", 9) == 3
        assert await accepted(http, "beta", 9) == 3
        answer = await http.get("/", headers=header("acme"))
        assert answer.headers["ratelimit-policy"] == f'"tenant";q=15;w={WINDOW}'


async def test_rate_limit_burst_is_how_many_may_come_at_once(from_env: FromEnv) -> None:
    config = from_env(
        enable_rate_limiting="true", rate_limit_burst="5", rate_limit_window_seconds=WINDOW
    )
    async with serving(config, "acme") as (_, http):
        assert await accepted(http, "acme", 9) == 5


async def test_plans_have_limits_of_their_own_and_tenants_override_them(from_env: FromEnv) -> None:
    config = from_env(
        enable_rate_limiting="true",
        rate_limit_per_minute="100",
        rate_limit_burst="1",
        rate_limit_window_seconds=WINDOW,
        plans=json.dumps({"pro": {"rate_limit_per_minute": 20}, "max": {"rate_limit_burst": 7}}),
    )
    async with serving(config, "flat") as (tenancy, http):
        await tenancy.tenants.create("pro", plan="pro")
        await tenancy.tenants.create("max", plan="max")
        await tenancy.tenants.create("own", plan="pro", limits={"rate_limit_burst": 2})
        assert await accepted(http, "flat", 9) == 1
        assert await accepted(http, "pro", 9) == 4
        assert await accepted(http, "max", 9) == 7
        assert await accepted(http, "own", 9) == 2


async def test_T10_a_limit_that_no_longer_fits_its_plan_is_narrowed_and_never_an_error(
    from_env: FromEnv,
) -> None:
    first = from_env(plans='{"pro": {"rate_limit_per_minute": 100}}')
    async with serving(first) as (tenancy, _):
        await tenancy.tenants.create("acme", plan="pro", limits={"rate_limit_burst": 50})
    lowered = from_env(
        enable_rate_limiting="true",
        rate_limit_window_seconds=WINDOW,
        plans='{"pro": {"rate_limit_per_minute": 4}}',
    )
    async with serving(lowered) as (_, http):
        assert await accepted(http, "acme", 9) == 3


async def test_a_tenant_s_own_limit_is_measured_by_its_plan(from_env: FromEnv) -> None:
    config = from_env(plans='{"big": {"rate_limit_per_minute": 1000}}')
    async with serving(config) as (tenancy, _):
        await tenancy.tenants.create("acme", plan="big", limits={"rate_limit_burst": 500})
        with pytest.raises(ValueError, match="burst"):
            await tenancy.tenants.create("beta", limits={"rate_limit_burst": 500})


@pytest.mark.parametrize(("setting", "status"), [("true", 503), ("false", 200)])
async def test_T2_rate_limit_fail_closed_decides_while_the_limiter_is_down(
    from_env: FromEnv, setting: str, status: int
) -> None:
    class Down:
        async def hit(self, key: str, limit: object, /, *, cost: int = 1) -> Any:
            raise OSError("down")

    config = from_env(enable_rate_limiting="true", rate_limit_fail_closed=setting)
    async with serving(config, "acme", rate_limiter=Down()) as (_, http):
        assert (await http.get("/", headers=header("acme"))).status_code == status


# -- security and observability ----------------------------------------------------------------


@pytest.mark.parametrize(("setting", "events"), [("true", 2), ("false", 0)])
async def test_enable_audit_logging_writes_the_log(
    from_env: FromEnv, setting: str, events: int
) -> None:
    async with serving(from_env(enable_audit_logging=setting), "acme") as (tenancy, _):
        tenant = await tenancy.tenants.get("acme")
        assert len(await tenancy.parts.store.audit(tenant.id)) == events


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The logger of all packages, put back afterwards."""
    found = logging.getLogger("tenancy")
    level = found.level
    yield found
    found.setLevel(level)


async def test_log_level_sets_the_level_of_the_logger(
    from_env: FromEnv, logger: logging.Logger
) -> None:
    Tenancy(from_env(log_level="error"))
    assert logger.level == logging.ERROR


async def test_log_level_is_read_from_log_level_too_and_its_own_variable_wins(
    from_env: FromEnv, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG_LEVEL", "warning")
    Tenancy(from_env())
    assert logger.level == logging.WARNING
    Tenancy(from_env(log_level="debug"))
    assert logger.level == logging.DEBUG


async def test_without_a_log_level_the_logger_is_left_alone(
    from_env: FromEnv, logger: logging.Logger
) -> None:
    logger.setLevel(37)
    Tenancy(from_env())
    assert logger.level == 37


async def test_a_section_of_a_plugin_reaches_the_plugin(from_env: FromEnv, tmp_path: Path) -> None:
    config = from_env(sqlite_root=str(tmp_path / "files"), sqlite_synchronous="normal")
    async with serving(config, "acme") as (tenancy, _):
        tenant = await tenancy.tenants.get("acme")
        assert (tmp_path / "files" / f"{tenant.placement.name}.db").is_file()
        async with tenancy.scope("acme"), tenancy.session() as session:
            assert (await session.execute(text("PRAGMA synchronous"))).scalar() == 1
            session.add(Note(text="kept"))


async def test_the_dialect_and_the_strategy_follow_from_the_url(from_env: FromEnv) -> None:
    config = from_env()
    assert (config.dialect, config.isolation_name) == ("sqlite", "database")
    postgres = TenancyConfig(database_url="postgresql+asyncpg://app@db/app")
    assert (postgres.dialect, postgres.isolation_name) == ("postgresql", "schema")
    assert make_url(config.control_url) == make_url(config.database_url.get_secret_value())
