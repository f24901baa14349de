"""FastAPI path operations under type checkers: what is declared is what arrives."""

from typing import assert_type

from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tenancy_core import Tenancy, TenancyConfig, Tenant
from tenancy_fastapi import (
    CurrentTenant,
    OptionalTenant,
    ReadOnlySession,
    TenantSession,
    get_current_tenant,
    get_tenant_session,
    install,
)

app = FastAPI()
tenancy = Tenancy(TenancyConfig(database_url="sqlite+aiosqlite:///./data/control.db"))
install(app, tenancy, excluded_paths=["/health"])
install(app, excluded_paths=["/health"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
install(app, tenancy, excluded_paths=[1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
install(app, tenancy, exclude=["/health"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


@app.get("/notes")
async def list_notes(session: TenantSession, tenant: CurrentTenant) -> list[str]:
    assert_type(session, AsyncSession)
    assert_type(tenant, Tenant)
    await session.scalars(text("select 1"))
    session.notes()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    return [tenant.identifier]


@app.get("/read")
async def read(session: ReadOnlySession) -> None:
    assert_type(session, AsyncSession)


@app.get("/health")
async def health(tenant: OptionalTenant) -> str:
    _ = tenant.name  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    return "nobody" if tenant is None else tenant.name


async def as_beta() -> Tenant:
    raise NotImplementedError


app.dependency_overrides[get_current_tenant] = as_beta
app.dependency_overrides[get_tenant_session] = as_beta
