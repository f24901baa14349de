"""What a path operation declares: the tenant, and its sessions."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import DependencyScopeError
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from support.fastapi_client import ACME, BETA, requests_to
from support.notes import Note, read
from tenancy_core import NoCurrentTenant, Tenancy, Tenant, current_tenant
from tenancy_fastapi import (
    CurrentTenant,
    OptionalTenant,
    ReadOnlySession,
    TenantSession,
    get_current_tenant,
    get_optional_tenant,
    get_read_only_session,
    get_tenant_session,
    install,
)

pytestmark = pytest.mark.anyio


# -- the tenant ------------------------------------------------------------------------------------


async def test_the_current_tenant_is_the_record_of_the_store(
    app: FastAPI, client: httpx.AsyncClient, tenancy: Tenancy
) -> None:
    found: list[Tenant] = []

    @app.get("/me")
    async def me(tenant: CurrentTenant) -> str:
        found.append(tenant)
        return tenant.name

    assert (await client.get("/me", headers=BETA)).json() == "Beta Inc"
    assert found == [await tenancy.tenants.get("beta")]


async def test_an_optional_tenant_is_none_on_an_excluded_path(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    @app.get("/open")
    @app.get("/closed")
    async def handler(tenant: OptionalTenant) -> str | None:
        return tenant and tenant.identifier

    assert (await client.get("/open")).json() is None
    # Also where the request names one: an excluded path has no tenant, ever.
    assert (await client.get("/open", headers=ACME)).json() is None
    assert (await client.get("/closed", headers=ACME)).json() == "acme"
    assert (await client.get("/closed")).status_code == 400


@pytest.mark.parametrize(
    "dependency",
    [CurrentTenant, TenantSession, ReadOnlySession],
    ids=["tenant", "session", "read-only session"],
)
async def test_what_needs_a_tenant_fails_closed_on_an_excluded_path(
    app: FastAPI, client: httpx.AsyncClient, dependency: Any
) -> None:
    errors: list[Exception] = []

    @app.exception_handler(NoCurrentTenant)
    async def keep(request: Request, error: NoCurrentTenant) -> Any:
        errors.append(error)
        raise error

    async def handler(needed: Any) -> None:
        raise AssertionError("never reached")

    handler.__annotations__["needed"] = dependency
    app.get("/open")(handler)
    assert (await client.get("/open", headers=ACME)).status_code == 500
    assert type(errors[0]) is NoCurrentTenant


async def test_a_handler_in_a_thread_has_the_tenant_as_well(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    def identifier(tenant: CurrentTenant) -> str:
        here = current_tenant()
        assert here is tenant
        return tenant.identifier

    @app.get("/me")
    def me(name: Annotated[str, Depends(identifier)], tenant: OptionalTenant) -> list[str | None]:
        here = current_tenant()
        return [name, tenant and tenant.identifier, here and here.identifier]

    assert (await client.get("/me", headers=ACME)).json() == ["acme"] * 3
    assert (await client.get("/me", headers=BETA)).json() == ["beta"] * 3


# -- sessions --------------------------------------------------------------------------------------


async def test_all_that_declare_the_session_share_one(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    async def note_of(session: TenantSession) -> Note:
        note = Note(text="shared")
        session.add(note)
        return note

    @app.get("/same")
    async def same(
        note: Annotated[Note, Depends(note_of)], first: TenantSession, second: TenantSession
    ) -> list[Any]:
        await first.flush()
        return [first is second, note in second, note.id]

    assert (await client.get("/same", headers=ACME)).json() == [True, True, 1]


async def test_a_read_only_session_refuses_writes(
    app: FastAPI, client: httpx.AsyncClient, tenancy: Tenancy
) -> None:
    errors: list[Exception] = []

    @app.exception_handler(OperationalError)
    async def keep(request: Request, error: OperationalError) -> Any:
        errors.append(error)
        raise error

    @app.post("/read-only")
    async def write(session: ReadOnlySession) -> None:
        session.add(Note(text="never"))

    assert (await client.post("/read-only", headers=ACME)).status_code == 500
    assert "readonly" in str(errors[0])
    # The connection that refused is of use again, for both kinds.
    assert (await client.post("/notes/kept", headers=ACME)).status_code == 201
    async with tenancy.scope("acme"):
        assert await read(tenancy) == ["kept"]


async def test_a_reader_does_not_wait_for_the_writer_of_the_same_request(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    @app.post("/both")
    async def both(writer: TenantSession, reader: ReadOnlySession) -> list[list[str]]:
        writer.add(Note(text="not committed yet"))
        await writer.flush()
        return [list(await session.scalars(select(Note.text))) for session in (writer, reader)]

    answer = await client.post("/both", headers=ACME)
    assert answer.json() == [["not committed yet"], []]
    assert (await client.get("/notes", headers=ACME)).json() == ["not committed yet"]


async def test_a_dependency_of_ones_own_that_yields_needs_the_scope_of_a_function() -> None:
    async def unit_of_work(session: TenantSession) -> AsyncIterator[AsyncSession]:
        yield session

    app = FastAPI()
    with pytest.raises(DependencyScopeError):

        @app.get("/")
        async def handler(work: Annotated[AsyncSession, Depends(unit_of_work)]) -> None: ...


async def test_a_dependency_of_ones_own_ends_before_the_commit_in_the_documented_way(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    async def unit_of_work(session: TenantSession) -> AsyncIterator[AsyncSession]:
        yield session
        session.add(Note(text="added on leaving"))

    @app.post("/work", status_code=201)
    async def work(
        session: Annotated[AsyncSession, Depends(unit_of_work, scope="function")],
    ) -> None:
        session.add(Note(text="added inside"))

    assert (await client.post("/work", headers=ACME)).status_code == 201
    assert (await client.get("/notes", headers=ACME)).json() == ["added inside", "added on leaving"]


# -- where the path operations are -----------------------------------------------------------------


async def test_routers_and_routers_in_routers(app: FastAPI, client: httpx.AsyncClient) -> None:
    inner, outer = APIRouter(prefix="/inner"), APIRouter(prefix="/outer")

    @inner.get("/me")
    async def me(tenant: CurrentTenant, session: ReadOnlySession) -> list[Any]:
        return [tenant.identifier, session.is_active]

    outer.include_router(inner)
    app.include_router(outer, dependencies=[Depends(get_current_tenant)])
    assert (await client.get("/outer/inner/me", headers=ACME)).json() == ["acme", True]
    assert (await client.get("/outer/inner/me")).status_code == 400


async def test_a_mounted_application_runs_as_the_tenant_of_the_outer_one(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    sub = FastAPI()

    @sub.post("/notes/{text}")
    async def add(
        text: str, request: Request, tenant: CurrentTenant, session: TenantSession
    ) -> list[Any]:
        session.add(Note(text=text))
        return [request.app is sub, tenant.identifier]

    @sub.get("/health")
    async def health() -> str:
        return "not excluded: what is excluded counts from the outer application"

    app.mount("/sub", sub)
    assert (await client.post("/sub/notes/mounted", headers=ACME)).json() == [True, "acme"]
    assert (await client.get("/notes", headers=ACME)).json() == ["mounted"]
    assert (await client.get("/notes", headers=BETA)).json() == []
    assert (await client.post("/sub/notes/mounted")).status_code == 400
    assert (await client.get("/sub/health")).status_code == 400


async def test_an_application_installed_below_a_mount_sees_paths_of_its_own(
    tenancy: Tenancy,
) -> None:
    sub = FastAPI()
    install(sub, tenancy, excluded_paths=["/health"])

    @sub.get("/health")
    @sub.get("/me")
    async def me(tenant: OptionalTenant) -> str | None:
        return tenant and tenant.identifier

    app = FastAPI()
    app.mount("/api", sub)

    @app.get("/health")
    async def outside() -> str:
        return "outside"

    async with requests_to(app) as client:
        assert (await client.get("/health")).json() == "outside"
        assert (await client.get("/api/health")).json() is None
        for _ in range(2):  # the second one could be found in the cache
            assert (await client.get("/api/me", headers=ACME)).json() == "acme"
        assert (await client.get("/api/me")).status_code == 400
        assert (await client.get("/api/docs")).status_code == 200


# -- tests of applications -------------------------------------------------------------------------


async def test_the_tenant_can_be_overridden(
    app: FastAPI, client: httpx.AsyncClient, tenancy: Tenancy
) -> None:
    @app.get("/open")
    async def me(tenant: CurrentTenant, optional: OptionalTenant) -> list[str | None]:
        return [tenant.identifier, optional and optional.identifier]

    acme, beta = await tenancy.tenants.get("acme"), await tenancy.tenants.get("beta")
    app.dependency_overrides[get_current_tenant] = lambda: acme
    app.dependency_overrides[get_optional_tenant] = lambda: beta
    assert (await client.get("/open")).json() == ["acme", "beta"]


@pytest.mark.parametrize(
    ("dependency", "replaced"),
    [(TenantSession, get_tenant_session), (ReadOnlySession, get_read_only_session)],
    ids=["session", "read-only session"],
)
async def test_a_session_can_be_overridden(
    app: FastAPI, client: httpx.AsyncClient, tenancy: Tenancy, dependency: Any, replaced: Any
) -> None:
    async def handler(session: Any) -> list[str]:
        return list(await session.scalars(select(Note.text)))

    handler.__annotations__["session"] = dependency
    app.get("/open")(handler)

    async def session_of_acme() -> AsyncIterator[AsyncSession]:
        async with tenancy.scope("acme"), tenancy.session() as session:
            session.add(Note(text="from the override"))
            yield session

    app.dependency_overrides[replaced] = session_of_acme
    assert (await client.get("/open")).json() == ["from the override"]
