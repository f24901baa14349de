"""Threats C1 and C5: whoever makes or removes a tenant's database is killed at any message.

A second run, of a process that knows nothing of the first, ends well, and nothing is left over.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text

from support.databases import KEY, KeptSecrets, database_isolation
from support.killing import FULL, Cut, Sweep, remove_shared
from support.places import places
from support.postgres import Base, Note, provisioned
from support.services.cutting import Cutter
from tenancy_core import Tenancy, TenancyConfig, TenantStatus
from tenancy_core.errors import TenantExists
from tenancy_core.testing import make_tenant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.services.cutting import Moment
    from support.services.databases import PostgresDatabase
    from tenancy_core import Tenant
    from tenancy_postgres import DatabaseIsolation

pytestmark = [pytest.mark.anyio, pytest.mark.storm]

LOGIN = "tenancy.postgres-login"


@pytest.fixture
def cutter(database: PostgresDatabase) -> Iterator[Cutter]:
    with Cutter(database.control_url) as cutter:
        yield cutter


class Killing:
    """Strategies whose link to the server is cut, and those that come after them."""

    def __init__(self, database: PostgresDatabase, cutter: Cutter) -> None:
        self.database = database
        self.cutter = cutter
        self.secrets = KeptSecrets()

    def opened(self, **config: Any) -> Any:
        return database_isolation(self.database, Base.metadata, secrets=self.secrets, **config)

    async def killed(self, cut: Cut, work: str, tenant: Tenant) -> bool:
        # Tenants' sessions take the way of ``database_url``.
        url = self.cutter.through(self.database.control_url)

        async def run() -> None:
            async with self.opened(control_database_url=url) as isolation:
                await getattr(isolation, work)(tenant)

        return await cut.run(run())

    async def password(self, tenant: Tenant) -> str:
        login = await self.secrets.get(tenant.id, LOGIN)
        return "" if login is None else login.get_secret_value()


async def read(isolation: DatabaseIsolation, tenant: Tenant) -> list[str]:
    async with isolation.session(tenant) as session:
        assert await session.scalar(text("SELECT session_user")) == tenant.placement.name
        return list(await session.scalars(select(Note.text)))


async def write(isolation: DatabaseIsolation, tenant: Tenant, words: str) -> None:
    async with isolation.session(tenant) as session:
        session.add(Note(text=words))


async def test_C1_C5_the_first_tenant_killed_at_any_message(
    database: PostgresDatabase, cutter: Cutter
) -> None:
    """With it come the template, and the role of all tenants."""
    kill = Killing(database, cutter)
    acme = make_tenant("acme")
    nothing = await places(database)
    async with kill.opened() as isolation:
        await isolation.provision(acme)
    made = await places(database)
    async with kill.opened() as isolation:
        await isolation.destroy(acme)
    shared = await places(database)
    sweep = Sweep(cutter)
    for cut in sweep:
        await remove_shared(database)
        assert await places(database) == nothing
        fired = await kill.killed(cut, "provision", acme)
        async with kill.opened() as isolation:
            await isolation.provision(acme)
            assert await isolation.exists(acme)
            assert await places(database) == made, cut
            await write(isolation, acme, "mine")
            assert await read(isolation, acme) == ["mine"]
        sweep.note(fired, await kill.killed(cut, "destroy", acme))
        async with kill.opened() as isolation:
            await isolation.destroy(acme)
            assert not await isolation.exists(acme)
        assert await places(database) == shared, cut
    assert sweep.cuts >= 20


async def test_C1_a_database_that_is_there_killed_while_it_is_completed(
    database: PostgresDatabase, cutter: Cutter
) -> None:
    kill = Killing(database, cutter)
    async with kill.opened() as isolation:
        acme, beta = await provisioned(isolation, "acme", "beta")
        for tenant in (acme, beta):
            await write(isolation, tenant, tenant.identifier)
    made = await places(database)
    sweep = Sweep(cutter, ("ALTER ROLE", "COMMIT", "CREATE", "REVOKE"))
    for cut in sweep:
        sweep.note(await kill.killed(cut, "provision", acme))
        async with kill.opened() as isolation:
            await isolation.provision(acme)
            for tenant in (acme, beta):
                assert await read(isolation, tenant) == [tenant.identifier], cut
        assert await places(database) == made, cut
    assert sweep.cuts >= 10


async def test_P10_a_rotation_killed_at_any_message(
    database: PostgresDatabase, cutter: Cutter
) -> None:
    kill = Killing(database, cutter)
    async with kill.opened() as isolation, kill.opened() as other:
        (acme,) = await provisioned(isolation, "acme")
        sweep = Sweep(cutter)
        for cut in sweep:
            before = await kill.password(acme)
            sweep.note(await kill.killed(cut, "rotate_credentials", acme))
            # Whichever of the two the server has, whoever connects knows it.
            async with kill.opened() as third:
                assert await read(third, acme) == [], cut
            await other.rotate_credentials(acme)
            async with kill.opened() as third:
                assert await read(third, acme) == [], cut
            after = await kill.password(acme)
            assert after != before
            assert "previous" not in after
        assert sweep.cuts >= 4
        assert await read(isolation, acme) == []


# -- through the control plane ---------------------------------------------------------------------

LIFE = ("COMMIT", "CREATE", "DROP", "REVOKE", *(("DELETE", "INSERT", "UPDATE") if FULL else ()))
SECRETS = "SELECT name FROM tenancy.tenancy_secrets WHERE tenant_id = $1"


class Service:
    """The whole service: its store is on the link that is cut."""

    def __init__(self, database: PostgresDatabase, cutter: Cutter) -> None:
        self.database = database
        self.cutter = cutter

    def opened(self, *, cut: bool = False) -> Tenancy:
        url = self.database.control_url
        config = TenancyConfig(
            database_url=self.database.app_url,
            control_database_url=self.cutter.through(url) if cut else url,
            isolation_strategy="database",
            enable_encryption=True,
            encryption_keys=(KEY,),
            database_pool_size=2,
            database_max_overflow=0,
            max_database_connections=8,
            invalidation_poll_seconds=3600,
        )
        return Tenancy(config, metadata=Base.metadata)

    async def killed(self, cut: Cut, work: str, name: str, *, whole: bool) -> bool:
        async with self.opened(cut=True) as tenancy:
            return await cut.run(getattr(tenancy.tenants, work)(name), whole=whole)


async def notes(tenancy: Tenancy, name: str) -> list[str]:
    async with tenancy.scope(name), tenancy.session() as session:
        return list(await session.scalars(select(Note.text)))


async def actions(tenancy: Tenancy, tenant: Tenant) -> list[str]:
    assert (await tenancy.audit.verify(tenant.id)).ok
    return [event.action for event in await tenancy.audit.read(tenant.id, limit=100)]


@pytest.mark.parametrize(
    ("whole", "moments"),
    [(True, ("answered", "delivered")), (False, ("before",))],
    ids=["killed", "one-link"],
)
async def test_C1_C5_a_tenant_killed_at_any_message_of_its_life(
    database: PostgresDatabase, cutter: Cutter, whole: bool, moments: tuple[Moment, ...]
) -> None:
    service = Service(database, cutter)
    async with service.opened() as tenancy:
        beta = await tenancy.tenants.create("beta")
        async with tenancy.scope("beta"), tenancy.session() as session:
            session.add(Note(text="beta's"))
    without = await places(database)
    sweep = Sweep(cutter, LIFE, moments, everything=False)
    for cut in sweep:
        name = f"acme-{cut.moment}-{cut.number}"
        fired = await service.killed(cut, "create", name, whole=whole)
        async with service.opened() as tenancy:
            # Every other time by whoever finds it.
            if cut.number % 2:
                await tenancy.tenants.reconcile(older_than=timedelta())
            try:
                acme = await tenancy.tenants.create(name)
            except TenantExists:
                acme = await tenancy.tenants.get(name)
            assert acme.active
            assert len((await places(database))["databases"]) == len(without["databases"]) + 1
            async with tenancy.scope(name), tenancy.session() as session:
                session.add(Note(text="mine"))
            await tenancy.tenants.archive(name)
        sweep.note(fired, await service.killed(cut, "erase", name, whole=whole))
        async with service.opened() as tenancy:
            if cut.number % 2:
                await tenancy.tenants.reconcile(older_than=timedelta())
            erased = await tenancy.tenants.erase(acme.id)
            assert erased.status is TenantStatus.ERASED
            names = await actions(tenancy, acme)
            assert names[-2:] == ["tenant.erasure_begun", "tenant.erased"]
            for once in ("created", "provisioned", "archived", "erasure_begun", "erased"):
                assert names.count(f"tenant.{once}") == 1, (cut, names)
            assert await tenancy.tenants.get("beta") == beta
            assert await notes(tenancy, "beta") == ["beta's"]
        assert await places(database) == without, cut
        assert not await database.fetch(SECRETS, acme.id), cut
    assert sweep.cuts >= 4
