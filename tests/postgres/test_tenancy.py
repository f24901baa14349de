"""A service on PostgreSQL, from its settings: nothing but variables names the strategy."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenancy_core import Tenancy, TenancyConfig
from tenancy_core.sql import TenantScoped
from tenancy_core.tenant import TenantStatus
from tenancy_fastapi import ReadOnlySession, TenantSession, install

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.services.databases import PostgresDatabase
    from support.services.pgbouncer import PgBouncer

pytestmark = pytest.mark.anyio


class Base(DeclarativeBase):
    pass


class Note(TenantScoped, Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str]


WAYS: dict[str, dict[str, str]] = {
    "rls": {"TENANCY_ISOLATION_STRATEGY": "rls"},
    "schema": {},
    "qualified": {"TENANCY_POSTGRES_SCHEMA_MODE": "qualified"},
}


@pytest.fixture(params=["direct", "pooled"])
def app_url(
    request: pytest.FixtureRequest,
    postgres_database: PostgresDatabase,
    pgbouncer: Callable[..., PgBouncer],
) -> str:
    if request.param == "direct":
        return postgres_database.app_url
    bouncer = pgbouncer(default_pool_size=1, max_prepared_statements=0)
    return postgres_database.url(postgres_database.app, via=bouncer)


@pytest.fixture(params=list(WAYS))
async def tenancy(
    request: pytest.FixtureRequest,
    postgres_database: PostgresDatabase,
    app_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Tenancy]:
    monkeypatch.setenv("TENANCY_DATABASE_URL", app_url)
    monkeypatch.setenv("TENANCY_CONTROL_DATABASE_URL", postgres_database.control_url)
    if request.param == "rls":
        # Who owns the database may make tables in its schema public.
        monkeypatch.setenv("TENANCY_POSTGRES_ADMIN_URL", postgres_database.owner_url)
    for name, value in WAYS[request.param].items():
        monkeypatch.setenv(name, value)
    async with Tenancy(TenancyConfig.from_env(), metadata=Base.metadata) as opened:
        yield opened


async def test_the_life_of_a_tenant(tenancy: Tenancy) -> None:
    await tenancy.tenants.create("acme", name="Acme Ltd")
    await tenancy.tenants.create("beta")
    for name in ("acme", "beta"):
        async with tenancy.scope(name), tenancy.session() as session:
            session.add(Note(id=1, text=f"{name}'s"))
    for name in ("acme", "beta"):
        for read_only in (False, True):
            async with tenancy.scope(name), tenancy.session(read_only=read_only) as session:
                assert (await session.scalars(select(Note.text))).all() == [f"{name}'s"]
            async with tenancy.scope(name), tenancy.connection(read_only=read_only) as connection:
                assert (await connection.scalars(select(Note.text))).all() == [f"{name}'s"]
    await tenancy.tenants.suspend("acme", reason="unpaid")
    await tenancy.tenants.resume("acme")
    await tenancy.tenants.archive("acme")
    await tenancy.tenants.erase("acme", reason="asked for")
    async with tenancy.scope("beta"), tenancy.session() as session:
        assert (await session.scalars(select(Note.text))).all() == ["beta's"]
    again = await tenancy.tenants.create("gamma")
    assert again.status is TenantStatus.ACTIVE
    async with tenancy.scope("gamma"), tenancy.session() as session:
        assert (await session.scalars(select(Note.text))).all() == []


async def test_requests_of_two_tenants(tenancy: Tenancy) -> None:
    app = FastAPI()
    install(app, tenancy)

    @app.post("/notes/{number}")
    async def add(number: int, session: TenantSession) -> None:
        await session.execute(insert(Note).values(id=number, text=f"line {number}"))

    @app.get("/notes")
    async def read(session: ReadOnlySession) -> list[str]:
        return list(await session.scalars(select(Note.text).order_by(Note.id)))

    for name in ("acme", "beta"):
        await tenancy.tenants.create(name)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for number in range(10):
            tenant = ("acme", "beta")[number % 2]
            added = await client.post(f"/notes/{number}", headers={"X-Tenant-ID": tenant})
            assert added.status_code == 200
        for first, tenant in enumerate(("acme", "beta")):
            found = await client.get("/notes", headers={"X-Tenant-ID": tenant})
            assert found.json() == [f"line {number}" for number in range(first, 10, 2)]


async def test_it_can_be_closed_and_opened_again(tenancy: Tenancy) -> None:
    await tenancy.tenants.create("acme")
    for _ in range(2):
        await tenancy.__aexit__(None, None, None)
        await tenancy.__aenter__()
        async with tenancy.scope("acme"), tenancy.session() as session:
            assert (await session.scalars(select(Note.text))).all() == []


async def test_S1_no_password_is_told(
    tenancy: Tenancy, postgres_database: PostgresDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await tenancy.tenants.create("acme")
    async with tenancy.scope("acme"), tenancy.session() as session:
        await session.execute(select(Note))
    isolation: Any = tenancy.parts.isolation
    said = f"{caplog.text}{tenancy!r}{isolation!r}{vars(isolation)!r}"
    assert postgres_database.password not in said
