"""The application's lifespan opens the ``Tenancy`` around its own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.testclient import TestClient

from support.fastapi_client import ACME, BETA, create_tenants, requests_to
from support.notes import Base, Note, read
from tenancy_core import ConfigurationError, Tenancy, current_tenant
from tenancy_fastapi import CurrentTenant, TenantSession, install

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tenancy_core import TenancyConfig


@pytest.fixture
def closed(make_config: Callable[..., TenancyConfig]) -> Tenancy:
    """A ``Tenancy`` that the application is to open."""
    return Tenancy(make_config(), metadata=Base.metadata)


def test_an_applications_own_lifespan_runs_inside_an_open_tenancy(closed: Tenancy) -> None:
    seen: list[tuple[str, bool, object]] = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[None]:
        await closed.tenants.create("acme")
        async with closed.scope("acme"):
            seen.append(("up", closed.is_open, await read(closed)))
        seen.append(("current", closed.is_open, current_tenant()))
        yield
        async with closed.scope("acme"):
            seen.append(("down", closed.is_open, await read(closed)))

    app = FastAPI(lifespan=own)
    install(app, closed)
    assert not closed.is_open
    with TestClient(app):
        assert closed.is_open
    assert not closed.is_open
    assert seen == [("up", True, []), ("current", True, None), ("down", True, [])]


def test_the_state_of_an_applications_own_lifespan_reaches_its_requests(closed: Tenancy) -> None:
    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        await closed.tenants.create("acme")
        yield {"model": "loaded"}

    app = FastAPI(lifespan=own)
    install(app, closed, excluded_paths=["/open"])

    @app.get("/")
    @app.get("/open")
    async def state(request: Request) -> list[Any]:
        tenant = getattr(request.state, "tenant", None)
        return [request.state.model, request.state.tenancy is closed, tenant and tenant.identifier]

    with TestClient(app) as client:
        for _ in range(2):  # the second one is found in the cache
            assert client.get("/", headers=ACME).json() == ["loaded", True, "acme"]
        # What one request writes into its state is not another's.
        assert client.get("/open").json() == ["loaded", True, None]


@pytest.mark.parametrize("moment", ["up", "down"])
def test_an_own_lifespan_that_fails_closes_the_tenancy(closed: Tenancy, moment: str) -> None:
    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[None]:
        if moment == "up":
            raise LookupError("no model")
        yield
        raise LookupError("no model")

    app = FastAPI(lifespan=own)
    install(app, closed)
    with pytest.raises(LookupError, match="no model"), TestClient(app):
        assert moment == "down"
    assert not closed.is_open
    assert closed._open is None


def test_a_tenancy_that_is_open_already_stays_open(closed: Tenancy) -> None:
    app = FastAPI()
    install(app, closed)

    async def run() -> tuple[bool, bool]:
        async with closed:
            async with app.router.lifespan_context(app):
                inside = closed.is_open
            return inside, closed.is_open

    import anyio

    assert anyio.run(run) == (True, True)


def test_a_router_included_later_has_its_lifespan_inside_as_well(closed: Tenancy) -> None:
    seen: list[bool] = []

    @asynccontextmanager
    async def own(app: object) -> AsyncIterator[dict[str, str]]:
        seen.append(closed.is_open)
        yield {"of": "router"}
        seen.append(closed.is_open)

    app = FastAPI()
    install(app, closed, excluded_paths=["/state"])
    router = APIRouter(lifespan=own)

    @router.get("/state")
    async def state(request: Request) -> str:
        value: str = request.state.of
        return value

    app.include_router(router)
    with TestClient(app) as client:
        assert client.get("/state").json() == "router"
    assert seen == [True, True]


# Starlette 0.50 warns of them; FastAPI has kept them since Starlette has not.
@pytest.mark.filterwarnings("ignore:The on_startup and on_shutdown parameters:DeprecationWarning")
def test_startup_and_shutdown_functions_run_inside_as_well(closed: Tenancy) -> None:
    seen: list[bool] = []
    app = FastAPI(
        on_startup=[lambda: seen.append(closed.is_open)],
        on_shutdown=[lambda: seen.append(closed.is_open)],
    )
    install(app, closed)
    with TestClient(app):
        assert seen == [True]
    assert seen == [True, True]


def test_an_application_can_be_started_twice(closed: Tenancy) -> None:
    app = FastAPI()
    install(app, closed)

    @app.post("/notes/{text}", status_code=201)
    async def add(text: str, session: TenantSession) -> None:
        session.add(Note(text=text))

    @app.get("/me")
    async def me(tenant: CurrentTenant) -> str:
        return tenant.identifier

    with TestClient(app) as client:
        create_tenants(client, closed, "acme", "beta")
        assert client.get("/me", headers=ACME).json() == "acme"
        assert client.post("/notes/first", headers=ACME).status_code == 201
    # What the first opening had cached and connected is of no use to the second.
    with TestClient(app) as client:
        assert client.get("/me", headers=ACME).json() == "acme"
        assert client.get("/me", headers=BETA).json() == "beta"
        assert client.post("/notes/second", headers=ACME).status_code == 201

    async def notes() -> list[str]:
        async with closed, closed.scope("acme"):
            return await read(closed)

    import anyio

    assert anyio.run(notes) == ["first", "second"]


@pytest.mark.anyio
async def test_between_two_starts_nothing_is_served(closed: Tenancy) -> None:
    app = FastAPI()
    install(app, closed)

    @app.get("/me")
    async def me(tenant: CurrentTenant) -> str:
        return tenant.identifier

    async with requests_to(app) as client:
        async with closed:
            await closed.tenants.create("acme")
            for _ in range(2):  # the second one is found in the cache
                assert (await client.get("/me", headers=ACME)).json() == "acme"
        assert (await client.get("/me", headers=ACME)).status_code == 500
        async with closed:
            assert (await client.get("/me", headers=ACME)).json() == "acme"


def test_without_its_lifespan_an_application_says_that_it_was_not_run(closed: Tenancy) -> None:
    app = FastAPI()
    install(app, closed)
    with pytest.raises(ConfigurationError, match="lifespan"):
        TestClient(app).get("/", headers=ACME)


@pytest.mark.anyio
async def test_an_open_tenancy_needs_no_lifespan_and_no_lifespan_state(tenancy: Tenancy) -> None:
    app = FastAPI()
    install(app, tenancy)

    @app.get("/state")
    async def state(request: Request, session: TenantSession) -> list[Any]:
        return [session.is_active, request.state.tenant.identifier]

    states: list[bool] = []

    async def without_state(scope: Any, receive: Any, send: Any) -> None:
        states.append("state" in scope)
        await app(scope, receive, send)

    async with requests_to(without_state) as client:
        for _ in range(2):  # the second one is found in the cache
            assert (await client.get("/state", headers=ACME)).json() == [True, "acme"]
    assert states == [False, False]
