"""Tenants' logins, while their tenant is erased or somebody else replaces them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from support.databases import KEY, KeptSecrets, database_isolation
from support.places import places, until_seen
from support.postgres import Base, Note
from tenancy_core import Tenancy, TenancyConfig, TenantStatus
from tenancy_core._stores.sql.transaction import SqlTransaction
from tenancy_core.crypto import TenantCipher, TenantSecrets
from tenancy_core.errors import BackendUnavailable, InvalidTransition, VersionConflict
from tenancy_core.testing import make_tenant

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from support.services.databases import PostgresDatabase
    from tenancy_core import Tenant
    from tenancy_postgres import DatabaseIsolation

pytestmark = pytest.mark.anyio

LOGIN = "tenancy.postgres-login"
SECRETS = "SELECT name FROM tenancy.tenancy_secrets WHERE tenant_id = $1"
WAITING = """
    SELECT count(*) FROM pg_stat_activity
     WHERE usename = $1 AND wait_event_type = 'Lock' AND query LIKE 'UPDATE tenancy.%'
"""
END_THE_LOCKS = """
    SELECT pg_catalog.pg_terminate_backend(l.pid) FROM pg_catalog.pg_locks AS l
      JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
     WHERE l.locktype = 'advisory' AND a.usename = '{}'
"""


@pytest.fixture
def configured(database: PostgresDatabase) -> Callable[[], Tenancy]:
    """Make a process of a service."""

    def make() -> Tenancy:
        config = TenancyConfig(
            database_url=database.app_url,
            control_database_url=database.control_url,
            isolation_strategy="database",
            enable_encryption=True,
            encryption_keys=(KEY,),
            database_pool_size=2,
            database_max_overflow=0,
            max_database_connections=8,
            invalidation_poll_seconds=3600,
        )
        return Tenancy(config, metadata=Base.metadata)

    return make


# -- the end of a tenant -----------------------------------------------------------------------


async def test_C5_a_tenant_that_is_erased_while_its_login_is_kept_leaves_none(
    configured: Callable[[], Tenancy], database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with configured() as one, configured() as two:
        await one.tenants.create("beta")
        without = await places(database)
        store, made, ended = one.parts.store, one.parts.isolation, two.parts.isolation
        provision, destroy, get_secret = made.provision, ended.destroy, store.get_secret
        removed, go_on = asyncio.Event(), asyncio.Event()
        erasing: list[asyncio.Task[Tenant]] = []

        async def overtaken(tenant: Tenant) -> None:
            erasing.append(asyncio.create_task(two.tenants.erase(tenant.id)))
            await removed.wait()
            await provision(tenant)

        async def removing(tenant: Tenant) -> None:
            await destroy(tenant)
            removed.set()
            await go_on.wait()

        async def late(tenant_id: Any, name: str) -> bytes | None:
            found: bytes | None = await get_secret(tenant_id, name)
            if name == "data-key":
                go_on.set()
                await asyncio.shield(erasing[0])
            return found

        monkeypatch.setattr(made, "provision", overtaken)
        monkeypatch.setattr(ended, "destroy", removing)
        monkeypatch.setattr(store, "get_secret", late)
        with pytest.raises(InvalidTransition, match="is erased; it cannot have secrets"):
            await one.tenants.create("acme")
        erased = await erasing[0]
        assert erased.status is TenantStatus.ERASED
        assert await database.fetch(SECRETS, erased.id) == []
        assert await places(database) == without


async def test_a_creation_whose_tenant_was_erased_says_so(
    configured: Callable[[], Tenancy], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with configured() as one, configured() as two:
        provision = one.parts.isolation.provision

        async def late(tenant: Tenant) -> None:
            await two.tenants.erase(tenant.id)
            await provision(tenant)

        monkeypatch.setattr(one.parts.isolation, "provision", late)
        with pytest.raises(InvalidTransition, match="is erased; it cannot have secrets"):
            await one.tenants.create("acme")


@pytest.mark.parametrize("again", [False, True], ids=["first", "replaced"])
async def test_C5_an_erasure_waits_for_a_login_that_is_being_kept(
    configured: Callable[[], Tenancy],
    database: PostgresDatabase,
    monkeypatch: pytest.MonkeyPatch,
    again: bool,
) -> None:
    """Neither is in the other's way for ever, whichever has locked what first."""
    async with configured() as one, configured() as two, database.connection() as watching:
        acme = await one.tenants.create("acme")
        await one.tenants.archive(acme.id)
        if not again:
            async with one.parts.store.transaction() as transaction:
                await transaction.delete_secret(acme.id, LOGIN)
        put_secret = SqlTransaction.put_secret
        erasing: list[asyncio.Task[Tenant]] = []

        async def slow(self: SqlTransaction, tenant_id: UUID, name: str, value: bytes) -> None:
            if not erasing:
                erasing.append(asyncio.create_task(two.tenants.erase(acme.id)))
                await until_seen(watching, WAITING, database.control)
            await put_secret(self, tenant_id, name, value)

        monkeypatch.setattr(SqlTransaction, "put_secret", slow)
        secrets = TenantSecrets(one.parts.store, TenantCipher((SecretStr(KEY),)))
        known = await secrets.get(acme.id, LOGIN)
        await secrets.keep(acme.id, LOGIN, SecretStr("{}"), expected=known)
        assert (await erasing[0]).status is TenantStatus.ERASED
        assert await database.fetch(SECRETS, acme.id) == []


# -- two who are at work -----------------------------------------------------------------------


class SlowSecrets(KeptSecrets):
    """What one of the calls keeps arrives when it is let go."""

    def __init__(self, slow: int) -> None:
        super().__init__()
        self.calls = 0
        self.slow = slow
        self.there, self.go = asyncio.Event(), asyncio.Event()

    async def keep(self, *given: Any, **named: Any) -> None:
        self.calls += 1
        if self.calls == self.slow:
            self.there.set()
            await self.go.wait()
        await super().keep(*given, **named)


async def read(isolation: DatabaseIsolation, tenant: Tenant) -> list[str]:
    async with isolation.session(tenant) as session:
        return list(await session.scalars(select(Note.text)))


@pytest.mark.parametrize(("work", "slow"), [("rotate", 2), ("rotate", 3), ("provision", 1)])
async def test_P10_what_arrives_late_of_whoever_has_lost_the_lock_is_refused(
    database: PostgresDatabase, work: str, slow: int
) -> None:
    """Its link to the server breaks while the store is slow, and another process is let in."""
    secrets = SlowSecrets(slow)
    same: dict[str, Any] = {"secrets": secrets}
    async with (
        database_isolation(database, Base.metadata, **same) as one,
        database_isolation(database, Base.metadata, **same) as two,
    ):
        acme = make_tenant("acme", isolation="database")
        if work == "rotate":
            await one.provision(acme)
        first = one.rotate_credentials if work == "rotate" else one.provision
        second = two.rotate_credentials if work == "rotate" else two.provision
        late = asyncio.create_task(first(acme))
        await secrets.there.wait()
        await database.admin(END_THE_LOCKS.format(database.control))
        await second(acme)
        kept = await secrets.get(acme.id, LOGIN)
        secrets.go.set()
        # Whoever makes a database is told of the link first, over which it was copied meanwhile.
        with pytest.raises(VersionConflict if work == "rotate" else BackendUnavailable):
            await late
        assert await secrets.get(acme.id, LOGIN) == kept
    # Who knows no password of before.
    async with database_isolation(database, Base.metadata, **same) as three:
        assert await read(three, acme) == []
        await three.rotate_credentials(acme)
    async with database_isolation(database, Base.metadata, **same) as four:
        assert await read(four, acme) == []


async def test_P10_of_those_who_keep_a_login_at_once_one_has_kept_it(
    configured: Callable[[], Tenancy],
) -> None:
    """Whatever the processes, the server lets one at a time read and write."""
    async with configured() as one, configured() as two:
        acme = await one.tenants.create("acme")
        cipher = TenantCipher((SecretStr(KEY),))
        stores = [TenantSecrets(process.parts.store, cipher) for process in (one, two)]
        for _ in range(5):
            known = await stores[0].get(acme.id, LOGIN)
            names = [f"{number}" * 3 for number in range(6)]
            answers = await asyncio.gather(
                *(
                    stores[number % 2].keep(acme.id, LOGIN, SecretStr(name), expected=known)
                    for number, name in enumerate(names)
                ),
                return_exceptions=True,
            )
            (won,) = [name for name, answer in zip(names, answers, strict=True) if answer is None]
            assert sum(isinstance(answer, VersionConflict) for answer in answers) == 5
            now = await stores[1].get(acme.id, LOGIN)
            assert now is not None
            assert now.get_secret_value() == won
            await stores[0].keep(acme.id, LOGIN, SecretStr("before"), expected=now)
