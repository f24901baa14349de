"""The link to the store's PostgreSQL is cut, refused, or leads to the wrong place."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url

from support.postgres_store import store_on
from support.services.databases import fresh_database
from tenancy_core._stores.sql import transaction as transaction_module
from tenancy_core.errors import BackendUnavailable, CommitUnknown, ConfigurationError, TenancyError
from tenancy_core.testing import make_tenant

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.services.chaos import ChaosProxy
    from support.services.databases import PostgresDatabase
    from support.services.pgbouncer import PgBouncer
    from support.services.postgres import Postgres
    from support.services.round_trips import RoundTripCounter
    from tenancy_core import Tenant
    from tenancy_core._stores.sql import SqlTenantStore

pytestmark = pytest.mark.anyio

LOCK = "SELECT 1 FROM tenancy.tenancy_counters WHERE name = 'changes' FOR UPDATE"
WAITING = "SELECT 1 FROM pg_locks WHERE NOT granted"


async def create(store: SqlTenantStore, tenant: Tenant, before_commit: Any = None) -> None:
    async with store.transaction() as transaction:
        await transaction.create(tenant)
        await transaction.enqueue(tenant.id)
        if before_commit is not None:
            before_commit()


@pytest.fixture
def proxy(
    postgres_database: PostgresDatabase, chaos_proxy: Callable[..., ChaosProxy]
) -> ChaosProxy:
    """Before the server, for the store's role."""
    return chaos_proxy(postgres_database.control_url)


# -- a COMMIT without an answer --------------------------------------------------------------------


async def test_A3_a_commit_that_arrived_is_known_to_have_arrived(proxy: ChaosProxy) -> None:
    tenant = make_tenant("acme")
    async with store_on(proxy.url) as store:
        await create(store, tenant, lambda: proxy.kill_after(b"COMMIT"))
        assert await store.get(tenant.id) is not None
        assert await store.last_change() == 1


async def test_A3_a_commit_that_did_not_arrive_is_an_error_and_nothing_else(
    proxy: ChaosProxy,
) -> None:
    tenant = make_tenant("acme")
    async with store_on(proxy.url) as store:
        with pytest.raises(BackendUnavailable, match="nothing was changed"):
            await create(store, tenant, lambda: proxy.kill_when(b"COMMIT"))
        assert await store.get(tenant.id) is None
        # And the same once more succeeds.
        await create(store, tenant)
        assert await store.last_change() == 1


async def test_a_commit_that_cannot_be_read_back_is_unknown(
    proxy: ChaosProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction_module, "_READ_BACK_PAUSE", 0)

    def cut() -> None:
        proxy.kill_after(b"COMMIT")
        proxy.refuse = True

    tenant = make_tenant("acme")
    async with store_on(proxy.url) as store:
        with pytest.raises(CommitUnknown, match="Read the tenant again"):
            await create(store, tenant, cut)
        proxy.refuse = False
        assert await store.get(tenant.id) is not None


async def test_reading_a_commit_back_does_not_wait_for_ever(
    postgres_database: PostgresDatabase, proxy: ChaosProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may think that the link is still there, and keep the row locked."""
    monkeypatch.setattr(transaction_module, "_READ_BACK_PAUSE", 0)
    monkeypatch.setattr(transaction_module, "_READ_BACK_PATIENCE", 0.2)
    tenant = make_tenant("acme")
    async with store_on(proxy.url) as store, postgres_database.connection() as zombie:
        await create(store, make_tenant("beta"))
        async with asyncio.timeout(60), zombie.transaction():
            with pytest.raises(CommitUnknown):
                async with store.transaction() as transaction:
                    await transaction.create(tenant)
                    await transaction.enqueue(tenant.id)
                    # In line behind the writer, and before whoever reads back.
                    waits = asyncio.create_task(zombie.execute(LOCK))
                    while not await postgres_database.fetch(WAITING):
                        await asyncio.sleep(0)
                    proxy.kill_when(b"COMMIT")
            await waits
        assert await store.get(tenant.id) is None
        await create(store, tenant)


# -- a server that goes and comes back -------------------------------------------------------------


@pytest.mark.parametrize("pre_ping", [True, False])
@pytest.mark.parametrize("crash", [True, False])
async def test_P5_a_look_up_after_a_restart_succeeds(
    postgres_victim: Postgres, *, pre_ping: bool, crash: bool
) -> None:
    """Whether the end of the idle connections has been noticed, or not yet."""
    with fresh_database(postgres_victim) as database:
        settings = {"database_pool_pre_ping": pre_ping}
        async with store_on(database.control_url, **settings) as store:
            await create(store, make_tenant("acme"))
            # Several idle connections, all of which are dead afterwards.
            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(store.get_by_identifier("acme"))
            for _ in range(2):
                # Nothing is awaited meanwhile: nobody notices.
                postgres_victim.restart(crash=crash)
                for _ in range(5):
                    assert await store.get_by_identifier("acme") is not None
            await create(store, make_tenant("beta"))


async def test_P5_a_change_begins_on_a_connection_that_is_not_known_to_be_closed(
    postgres_database: PostgresDatabase,
) -> None:
    async with store_on(postgres_database.control_url) as store:
        await create(store, make_tenant("acme"))
        await postgres_database.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND usename = $1",
            postgres_database.control,
        )
        pool: Any = store._database.engine.pool
        async with asyncio.timeout(60):
            while not all(one.driver_connection.is_closed() for one in pool._free):
                await asyncio.sleep(0)
        await create(store, make_tenant("beta"))


async def test_P5_the_store_heals_when_the_server_comes_back(postgres_victim: Postgres) -> None:
    with fresh_database(postgres_victim) as database:
        async with store_on(database.control_url, database_pool_timeout=5) as store:
            await create(store, make_tenant("acme"))
            postgres_victim.kill()
            for _ in range(2):
                with pytest.raises(BackendUnavailable):
                    await store.get_by_identifier("acme")
            with pytest.raises(BackendUnavailable):
                await create(store, make_tenant("beta"))
            postgres_victim.start()
            assert await store.get_by_identifier("acme") is not None
            await create(store, make_tenant("beta"))


async def test_P5_a_standby_that_is_not_promoted_yet_is_no_place_to_write(
    postgres_database: PostgresDatabase,
) -> None:
    role = postgres_database.control
    async with store_on(postgres_database.control_url) as store:
        await create(store, make_tenant("acme"))
    await postgres_database.admin(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    async with store_on(postgres_database.control_url) as store:
        assert await store.get_by_identifier("acme") is not None
        with pytest.raises(BackendUnavailable, match="25006"):
            await create(store, make_tenant("beta"))


async def test_a_look_up_that_a_pooler_gave_up_is_not_asked_again(
    postgres_database: PostgresDatabase,
    pgbouncer: Callable[..., PgBouncer],
    round_trip_counter: Callable[..., RoundTripCounter],
) -> None:
    bouncer = pgbouncer(default_pool_size=1, options={"query_wait_timeout": 1})
    counter = round_trip_counter(postgres_database.url(postgres_database.control, via=bouncer))
    async with store_on(counter.url) as store, store.transaction() as transaction:
        await transaction.count()
        counter.reset()
        with pytest.raises(BackendUnavailable):
            await store.last_change()
        assert [sql for sql in counter.counts.statements if sql.startswith("BEGIN")] == [
            "BEGIN ISOLATION LEVEL READ COMMITTED;"
        ]


# -- what is told, and what is not -----------------------------------------------------------------


NOWHERE = "nowhere.invalid"
RESOLVE = socket.getaddrinfo


def resolve(host: Any, *rest: Any, **more: Any) -> Any:
    """Resolve a name as the machine does, without asking the network for one that nobody has."""
    if host in {NOWHERE, NOWHERE.encode()}:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return RESOLVE(host, *rest, **more)


def wrong(url: str, what: str) -> str:
    """Return a URL that leads nowhere."""
    parts = make_url(url)
    changed = {
        "password": lambda: parts.set(password=f"{parts.password}x"),
        "user": lambda: parts.set(username=f"{parts.username}x"),
        "database": lambda: parts.set(database=f"{parts.database}x"),
        "host": lambda: parts.set(host=NOWHERE),
        "port": lambda: parts.set(port=1),
        "tls": lambda: parts.set(query={"ssl": "require"}),
        "mode": lambda: parts.set(query={"ssl": "perhaps"}),
        "authority": lambda: parts.set(query={"ssl": "verify-full"}),
    }[what]()
    return changed.render_as_string(hide_password=False)


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("password", BackendUnavailable, "28P01"),
        ("user", BackendUnavailable, "28P01"),
        ("database", BackendUnavailable, "3D000"),
        ("host", BackendUnavailable, "gaierror"),
        ("port", BackendUnavailable, "ConnectionRefusedError|OSError"),
        ("tls", BackendUnavailable, "ConnectionError"),
        ("mode", ConfigurationError, "TLS mode"),
        ("authority", ConfigurationError, "sslrootcert"),
    ],
)
async def test_X_a_store_that_cannot_be_opened_tells_a_code_and_nothing_of_its_url(
    postgres_database: PostgresDatabase,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
    kind: type[TenancyError],
    words: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    url = wrong(postgres_database.control_url, what)
    with pytest.raises(kind, match=words) as caught:
        async with store_on(url):
            pass
    parts = make_url(url)
    for secret in (parts.password, parts.username, parts.host, f":{parts.port}"):
        assert secret is not None
        assert secret not in str(caught.value)
        assert secret not in repr(caught.value)
    # The driver's own words are in the traceback: there the user is named, and no password.
    whole = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert parts.password is not None
    assert parts.password not in whole


async def test_X_the_values_of_a_statement_that_fails_are_not_told(
    postgres_database: PostgresDatabase,
) -> None:
    async with store_on(postgres_database.control_url) as store:
        await create(store, make_tenant("acme"))
        await postgres_database.admin("DROP TABLE tenancy.tenancy_secrets")
        value = secrets.token_hex(8)
        with pytest.raises(Exception, match="tenancy_secrets") as caught:
            async with store.transaction() as transaction:
                await transaction.put_secret(make_tenant("beta").id, "key", value.encode())
        assert value not in "".join(traceback.format_exception(caught.value))
