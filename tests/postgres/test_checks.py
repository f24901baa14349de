"""The checklist as a whole: which items there are, for whom, and that none raises."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from support.checks import ERROR, WARNING, found, mend, shop
from support.hybrid import hybrid_database
from support.scoped import Base
from tenancy_core import Tenancy, TenancyConfig
from tenancy_core.checks import run_checks
from tenancy_postgres.checks import POSTGRES_CHECKS
from tenancy_postgres.checks.strategies import strategies_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.services.chaos import ChaosProxy
    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres

pytestmark = pytest.mark.anyio

NAMES = [check.name.removeprefix("postgres.") for check in POSTGRES_CHECKS]


class Elsewhere:
    """A strategy of somebody else."""

    name = "schema"

    async def provision(self, tenant: Any, /) -> None:
        raise AssertionError

    exists = destroy = provision

    def session(self, tenant: Any, /, *, read_only: bool = False) -> Any:
        raise AssertionError

    connection = session


def of_ours(findings: list[Any]) -> list[tuple[str, str]]:
    return [(one.check, one.message) for one in findings if one.check.startswith("postgres.")]


def test_names_are_the_packages_own_and_different() -> None:
    assert all(check.name.startswith("postgres.") for check in POSTGRES_CHECKS)
    assert len(set(NAMES)) == len(NAMES) == 13
    assert all(check.title for check in POSTGRES_CHECKS)


def test_the_list_is_read_without_a_driver() -> None:
    code = (
        "import sys\n"
        "from tenancy_postgres._plugin import tenancy_checks\n"
        "assert len(list(tenancy_checks())) == 13\n"
        "assert not {'asyncpg', 'sqlalchemy'} & set(sys.modules), 'a driver'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_a_service_that_is_set_up_well_has_no_findings(
    postgres_database: PostgresDatabase,
) -> None:
    async with shop(postgres_database) as tenancy:
        await tenancy.tenants.create("acme")
        assert of_ours(await tenancy.check()) == []


async def test_both_strategies_of_a_hybrid_are_looked_at(postgres_server: Postgres) -> None:
    with hybrid_database(postgres_server) as database:
        config = TenancyConfig(
            database_url=database.app_url,
            control_database_url=database.control_url,
            isolation_strategy="hybrid",
            standard_isolation_strategy="rls",
            premium_isolation_strategy="schema",
            premium_plans=("gold",),
            database_pool_size=2,
            database_max_overflow=0,
            max_database_connections=8,
            sections={"postgres": {"workers": 1}},
        )
        async with Tenancy(config, metadata=Base.metadata) as tenancy:
            await tenancy.tenants.create("acme")
            await tenancy.tenants.create("vip", plan="gold")
            assert strategies_of(tenancy.parts.isolation).shared != ()
            (shared,) = await found(tenancy, "role")
            assert (shared.severity, "not rights" in shared.message) == (WARNING, True)
            await database.admin(
                "ALTER TABLE notes NO FORCE ROW LEVEL SECURITY",
                f"ALTER ROLE {database.app} CONNECTION LIMIT 2",
            )
            (force,) = await found(tenancy, "force")
            assert force.severity is ERROR
            # Both find it, and it is told once.
            (limit,) = await found(tenancy, "connections")
            await mend(database, force, limit)
            assert await found(tenancy, "force") == await found(tenancy, "connections") == []


async def test_somebody_elses_strategy_has_no_findings(
    postgres_database: PostgresDatabase,
) -> None:
    config = TenancyConfig(
        database_url=postgres_database.app_url,
        control_database_url=postgres_database.control_url,
    )
    async with Tenancy(config, isolation=Elsewhere()) as tenancy:
        for check in POSTGRES_CHECKS:
            assert list(await check.run(tenancy)) == []


async def test_what_cannot_be_looked_at_is_a_finding(postgres_victim: Postgres) -> None:
    with hybrid_database(postgres_victim) as database:
        async with shop(database, "schema", database_pool_timeout=2) as tenancy:
            postgres_victim.stop()
            for check in POSTGRES_CHECKS:
                if check.name in {"postgres.invalidation", "postgres.tier"}:
                    continue
                for finding in await check.run(tenancy):
                    assert finding.severity is ERROR
                    assert "This could not be looked at." in finding.message
                    assert database.password not in repr(finding)
            assert list(await POSTGRES_CHECKS[0].run(tenancy)) != []
            postgres_victim.start()


async def test_P5_an_item_on_a_link_that_is_silent_keeps_no_other_waiting(
    postgres_database: PostgresDatabase, chaos_proxy: Callable[..., ChaosProxy]
) -> None:
    proxy = chaos_proxy(postgres_database.owner_url)
    section = {"admin_url": proxy.url}
    async with shop(postgres_database, section=section, database_pool_timeout=2) as tenancy:
        assert of_ours(await tenancy.check()) == []
        # The link that the look at places was over; what is opened after it is well.
        proxy.half_open()
        began = time.monotonic()
        findings = await run_checks(tenancy, POSTGRES_CHECKS, patience=2)
        assert time.monotonic() - began < 10
        assert [(one.check, one.severity) for one in findings] == [("postgres.role", ERROR)]
        assert "there was no answer within 2 seconds" in findings[0].message
        assert await run_checks(tenancy, POSTGRES_CHECKS, patience=5) == []
