"""The checklist on roles: what tenants' sessions may, and whether they get at the tenant store."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from support.checks import ERROR, WARNING, found, mend, severities, shop, the_one
from support.databases import KEY, template_url
from support.hybrid import hybrid_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres
    from tenancy_core import Tenancy

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def role(database: PostgresDatabase, suffix: str, rights: str = "") -> AsyncIterator[str]:
    """Make a role besides those that the database has."""
    name = f"{database.name}_{suffix}"
    await database.admin(f"CREATE ROLE {name} NOLOGIN {rights}")
    try:
        yield name
    finally:
        await database.admin(f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.fixture
async def tenancy(postgres_database: PostgresDatabase) -> AsyncIterator[Tenancy]:
    """A service under ``rls`` whose tables are made."""
    async with shop(postgres_database) as opened:
        await opened.tenants.create("acme")
        yield opened


@pytest.fixture
def maker_database(postgres_server: Postgres) -> Iterator[PostgresDatabase]:
    """One whose control role may make roles and databases."""
    with hybrid_database(postgres_server) as database:
        yield database


# -- rls -------------------------------------------------------------------------------------------


async def test_three_plain_roles_have_no_findings(tenancy: Tenancy) -> None:
    assert await found(tenancy, "role") == []
    assert await found(tenancy, "control-role") == []


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ("SUPERUSER", "it is a superuser"),
        ("BYPASSRLS", "it has BYPASSRLS"),
        ("REPLICATION", "it has REPLICATION"),
    ],
)
async def test_L1_a_role_that_got_more_rights_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase, attribute: str, words: str
) -> None:
    await postgres_database.admin(f"ALTER ROLE {postgres_database.app} {attribute}")
    finding = await the_one(tenancy, "role", ERROR, words, postgres_database.app)
    await mend(postgres_database, finding)
    assert await found(tenancy, "role") == []


async def test_L1_a_membership_is_found_however_far_it_leads(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    database = postgres_database
    async with (
        role(database, "above", "BYPASSRLS") as above,
        role(database, "one") as one,
        role(database, "two") as two,
    ):
        for between in (one, two):
            await database.admin(
                f"GRANT {above} TO {between}", f"GRANT {between} TO {database.app}"
            )
        finding = await the_one(tenancy, "role", ERROR, f"a member of '{above}', which has")
        await mend(database, finding)
        assert await found(tenancy, "role") == []


async def test_L1_a_membership_that_somebody_else_gave_is_taken_away(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    """From PostgreSQL 16 on only in the name of whoever gave it."""
    database = postgres_database
    async with role(database, "above", "BYPASSRLS") as above:
        await database.admin(f"GRANT {above} TO {database.owner} WITH ADMIN OPTION")
        async with database.connection(database.owner) as owner:
            await owner.execute(f"GRANT {above} TO {database.app}")
        finding = await the_one(tenancy, "role", ERROR, f"a member of '{above}'")
        await mend(database, finding)
        assert await found(tenancy, "role") == []
        await database.admin(f"REVOKE {above} FROM {database.owner}")


async def test_L1_whoever_owns_a_table_by_now_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    database = postgres_database
    await database.admin(f"ALTER TABLE notes OWNER TO {database.app}")
    finding = await the_one(tenancy, "role", ERROR, "owns tables of tenants")
    await mend(database, finding)
    assert await found(tenancy, "role") == []


async def test_L1_a_setting_that_makes_everybody_a_tenant_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    database = postgres_database
    for where in (
        f"DATABASE {database.name}",
        f"ROLE {database.app}",
        f"ROLE {database.app} IN DATABASE {database.name}",
    ):
        await database.admin(f"ALTER {where} SET app.tenant_id = 'x'")
        finding = await the_one(tenancy, "role", ERROR, "a tenant without being told")
        await mend(database, finding)
        assert await found(tenancy, "role") == []


async def test_L1_a_role_that_opening_was_told_to_accept_is_found(
    postgres_database: PostgresDatabase,
) -> None:
    database = postgres_database
    url = database.control_url
    async with shop(
        database,
        database_url=url,
        control_database_url=url,
        section={"admin_url": url, "allow_unsafe_role": True},
    ) as tenancy:
        finding = await the_one(tenancy, "role", ERROR, "owns tables of tenants")
        assert "CREATE ROLE app LOGIN NOSUPERUSER NOBYPASSRLS" in finding.remedy
        finding = await the_one(tenancy, "control-role", ERROR, "of the tenant store, and can")
        assert "TENANCY_CONTROL_DATABASE_URL" in finding.remedy


# -- schema ----------------------------------------------------------------------------------------


async def test_L1_one_role_for_all_schemas_is_a_warning(
    postgres_database: PostgresDatabase,
) -> None:
    async with shop(postgres_database, "schema") as tenancy:
        await tenancy.tenants.create("acme")
        finding = await the_one(tenancy, "role", WARNING, "names keep them apart, and not rights")
        assert "TENANCY_POSTGRES_SCHEMA_ROLES=true" in finding.remedy
        assert await found(tenancy, "control-role") == []


async def test_a_role_for_each_tenant_has_no_finding(maker_database: PostgresDatabase) -> None:
    async with shop(maker_database, "schema", section={"schema_roles": True}) as tenancy:
        await tenancy.tenants.create("acme")
        assert await found(tenancy, "role") == []
        assert await found(tenancy, "control-role") == []
        await tenancy.tenants.archive("acme")
        await tenancy.tenants.erase("acme")


@pytest.mark.parametrize(
    ("attribute", "words"),
    [("SUPERUSER", "it is a superuser"), ("REPLICATION", "it has REPLICATION")],
)
async def test_L1_a_role_that_no_right_holds_is_found_under_schema(
    postgres_database: PostgresDatabase, attribute: str, words: str
) -> None:
    async with shop(postgres_database, "schema") as tenancy:
        await postgres_database.admin(f"ALTER ROLE {postgres_database.app} {attribute}")
        finding, warning = await found(tenancy, "role")
        assert (finding.severity, warning.severity) == (ERROR, WARNING)
        assert words in finding.message
        await mend(postgres_database, finding)
        assert await found(tenancy, "role") == [warning]


async def test_L1_one_role_for_everything_is_found_under_schema(
    postgres_database: PostgresDatabase,
) -> None:
    database = postgres_database
    async with shop(database, "schema", database_url=database.control_url) as tenancy:
        makes, shared = await found(tenancy, "role")
        assert "it makes tenants' schemas, and can drop them" in makes.message
        assert makes.severity is shared.severity is WARNING
        assert await severities(tenancy, "control-role") == [ERROR]


async def test_L1_BYPASSRLS_is_nothing_under_schema(postgres_database: PostgresDatabase) -> None:
    async with shop(postgres_database, "schema") as tenancy:
        await postgres_database.admin(f"ALTER ROLE {postgres_database.app} BYPASSRLS")
        assert await severities(tenancy, "role") == [WARNING]


# -- the tenant store ------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["rls", "schema"])
async def test_a_role_that_may_read_the_tenant_store_is_found(
    postgres_database: PostgresDatabase, strategy: str
) -> None:
    database = postgres_database
    async with shop(database, strategy) as tenancy:
        await database.admin(
            f"GRANT USAGE ON SCHEMA tenancy TO {database.app}",
            f"GRANT SELECT (identifier) ON tenancy.tenancy_tenants TO {database.app}",
        )
        finding = await the_one(tenancy, "control-role", ERROR, "reaches the tenant store")
        await mend(database, finding)
        assert await found(tenancy, "control-role") == []


@pytest.mark.parametrize("strategy", ["rls", "schema"])
async def test_a_member_of_the_role_of_the_tenant_store_is_found(
    postgres_database: PostgresDatabase, strategy: str
) -> None:
    database = postgres_database
    async with shop(database, strategy) as tenancy:
        await database.admin(f"GRANT {database.control} TO {database.app}")
        words = f"as a member of '{database.control}'"
        finding = await the_one(tenancy, "control-role", ERROR, words)
        await mend(database, finding)
        assert await found(tenancy, "control-role") == []


async def test_a_member_of_a_role_that_may_read_the_tenant_store_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    database = postgres_database
    async with role(database, "reports") as reports:
        await database.admin(
            f"GRANT USAGE ON SCHEMA tenancy TO {reports}",
            f"GRANT SELECT ON tenancy.tenancy_tenants TO {reports}",
            f"GRANT {reports} TO {database.app}",
        )
        finding = await the_one(tenancy, "control-role", ERROR, f"a member of '{reports}'")
        await mend(database, finding)
        assert await found(tenancy, "control-role") == []


async def test_a_tenant_store_that_everybody_may_read_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    database = postgres_database
    await database.admin(
        "GRANT USAGE ON SCHEMA tenancy TO PUBLIC",
        "GRANT SELECT ON tenancy.tenancy_tenants TO PUBLIC",
    )
    finding = await the_one(tenancy, "control-role", ERROR, "PUBLIC has rights on it")
    await mend(database, finding, role=database.control)
    assert await found(tenancy, "control-role") == []


@pytest.mark.parametrize(
    "right",
    [
        "SELECT ON tenancy.tenancy_keys",
        "SELECT (name) ON tenancy.tenancy_secrets",
        "INSERT ON tenancy.tenancy_audit",
        "UPDATE (value) ON tenancy.tenancy_counters",
        "DELETE ON tenancy.tenancy_tenants",
        "TRUNCATE ON tenancy.tenancy_secrets",
        "TRIGGER ON tenancy.tenancy_changes",
        "REFERENCES (id) ON tenancy.tenancy_tenants",
        "SELECT ON tenancy.overview",
        "SELECT (identifier) ON tenancy.kept",
        "UPDATE ON SEQUENCE tenancy.numbers",
        "USAGE ON SEQUENCE tenancy.numbers",
    ],
)
async def test_every_right_on_whatever_the_tenant_store_holds_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase, right: str
) -> None:
    """Its keys, secrets and changes are as good as its tenants; so is what somebody put beside."""
    database = postgres_database
    async with database.connection(database.control) as control:
        for line in (
            "CREATE VIEW tenancy.overview AS SELECT identifier FROM tenancy.tenancy_tenants",
            "CREATE MATERIALIZED VIEW tenancy.kept AS SELECT * FROM tenancy.overview",
            "CREATE SEQUENCE tenancy.numbers",
        ):
            await control.execute(line)
    for grantee, words, mender in (
        (database.app, "reaches the tenant store", None),
        ("PUBLIC", "PUBLIC has rights on it", database.control),
    ):
        await database.admin(f"GRANT USAGE ON SCHEMA tenancy TO {grantee}")
        assert await found(tenancy, "control-role") == []
        await database.admin(f"GRANT {right} TO {grantee}")
        finding = await the_one(tenancy, "control-role", ERROR, words)
        await mend(database, finding, role=mender)
        assert await found(tenancy, "control-role") == []


async def test_a_schema_of_that_name_that_holds_no_tenant_store_is_no_finding(
    postgres_database: PostgresDatabase, database_url: str
) -> None:
    database = postgres_database
    async with database.connection(database.owner) as owner:
        await owner.execute("CREATE SCHEMA tenancy; CREATE TABLE tenancy.contracts (id int)")
        await owner.execute(f"GRANT USAGE ON SCHEMA tenancy TO {database.app}")
        await owner.execute(f"GRANT SELECT ON tenancy.contracts TO {database.app}")
    async with shop(database, control_database_url=database_url) as tenancy:
        assert await found(tenancy, "control-role") == []
        assert await found(tenancy, "role") == []


async def test_a_tenant_store_elsewhere_has_no_finding(
    postgres_database: PostgresDatabase, database_url: str
) -> None:
    async with shop(postgres_database, control_database_url=database_url) as tenancy:
        assert await found(tenancy, "control-role") == []


# -- database --------------------------------------------------------------------------------------


async def test_L1_a_tenants_login_that_got_more_rights_is_found(
    maker_database: PostgresDatabase,
) -> None:
    database = maker_database
    async with shop(
        database, "database", enable_encryption=True, encryption_keys=(KEY,)
    ) as tenancy:
        acme = await tenancy.tenants.create("acme")
        assert await found(tenancy, "role") == []
        assert await found(tenancy, "control-role") == []
        await database.admin(f'GRANT pg_read_all_data TO "{acme.placement.name}"')
        finding = await the_one(tenancy, "role", ERROR, "it is a member of 'pg_read_all_data'")
        assert await severities(tenancy, "control-role") == [ERROR]
        await mend(database, finding)
        assert await found(tenancy, "role") == []
        assert await found(tenancy, "control-role") == []


async def test_L1_one_role_for_all_databases_is_a_warning(
    maker_database: PostgresDatabase,
) -> None:
    database = maker_database
    async with shop(
        database, "database", database_url_template=template_url(database, one_role=True)
    ) as tenancy:
        await tenancy.tenants.create("acme")
        finding = await the_one(tenancy, "role", WARNING, "opens every database")
        assert "{user} and {password}" in finding.remedy
        await database.admin(f"GRANT {database.control} TO {database.app}")
        error, warning = await found(tenancy, "role")
        assert "opens all of them" in error.message
        assert (error.severity, warning) == (ERROR, finding)
        await mend(database, error)
        assert await found(tenancy, "role") == [warning]
