"""``install``: where the middleware stands, what it lets pass, and what it refuses at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, Request
from starlette.middleware.cors import CORSMiddleware

from support.fastapi_client import ACME, BETA, requests_to
from tenancy_core import ConfigurationError, NoCurrentTenant, current_tenant
from tenancy_core.asgi import Refusal
from tenancy_fastapi import TenantSession, install

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tenancy_core import Tenancy, TenancyConfig, TenancyError

pytestmark = pytest.mark.anyio

ORIGIN = "https://shop.example"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "X-Tenant-ID",
}


def _with_cors(tenancy: Tenancy, *, first: str) -> FastAPI:
    app = FastAPI()
    if first == "tenancy":
        install(app, tenancy)
    app.add_middleware(
        CORSMiddleware, allow_origins=[ORIGIN], allow_methods=["*"], allow_headers=["*"]
    )
    if first == "cors":
        install(app, tenancy)

    @app.get("/me")
    async def me() -> str | None:
        tenant = current_tenant()
        return tenant and tenant.identifier

    return app


async def test_each_tenant_reads_its_own_notes_only(client: httpx.AsyncClient) -> None:
    assert (await client.post("/notes/of-acme", headers=ACME)).status_code == 201
    assert (await client.post("/notes/of-beta", headers=BETA)).status_code == 201
    assert (await client.get("/notes", headers=ACME)).json() == ["of-acme"]
    assert (await client.get("/notes", headers=BETA)).json() == ["of-beta"]


async def test_without_a_tenant_and_for_an_unknown_one_a_request_is_refused(
    client: httpx.AsyncClient,
) -> None:
    nobody = await client.get("/notes")
    assert (nobody.status_code, nobody.json()["code"]) == (400, "tenant_missing")
    unknown = await client.get("/notes", headers={"X-Tenant-ID": "unknown"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "tenant_not_found")
    assert unknown.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("first", ["cors", "tenancy"])
async def test_refusals_carry_cors_headers_in_whichever_order(tenancy: Tenancy, first: str) -> None:
    async with requests_to(_with_cors(tenancy, first=first)) as client:
        served = await client.get("/me", headers={**ACME, "Origin": ORIGIN})
        refused = await client.get("/me", headers={"X-Tenant-ID": "unknown", "Origin": ORIGIN})
    assert served.json() == "acme"
    assert refused.status_code == 404
    for answer in (served, refused):
        assert answer.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize("first", ["cors", "tenancy"])
async def test_a_preflight_passes_in_whichever_order(tenancy: Tenancy, first: str) -> None:
    async with requests_to(_with_cors(tenancy, first=first)) as client:
        answer = await client.options("/me", headers=PREFLIGHT)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "x-tenant-id" in answer.headers["access-control-allow-headers"].lower()


async def test_a_preflight_reaches_an_application_that_answers_it_itself(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    @app.options("/notes")
    async def preflight() -> str | None:
        tenant = current_tenant()
        return tenant and tenant.identifier

    assert (await client.options("/notes", headers=PREFLIGHT)).json() is None
    # A preflight is what the Fetch standard says it is; any other OPTIONS has a tenant or is none.
    assert (await client.options("/notes")).status_code == 400
    assert (await client.options("/notes", headers={"Origin": ORIGIN})).status_code == 400
    assert (await client.options("/notes", headers=ACME)).json() == "acme"


async def test_installing_twice_is_refused(app: FastAPI, tenancy: Tenancy) -> None:
    with pytest.raises(ConfigurationError, match="installed in this application already"):
        install(app, tenancy)


async def test_installing_after_the_first_request_is_refused(tenancy: Tenancy) -> None:
    app = FastAPI()
    async with requests_to(app) as client:
        assert (await client.get("/")).status_code == 404
    with pytest.raises(ConfigurationError, match="before the application's first request"):
        install(app, tenancy)


@pytest.mark.parametrize("path", ["health", "/health/", "//health", "/a%20b", "/../x", "/x?y", ""])
async def test_an_excluded_path_that_can_never_match_is_refused_at_once(
    tenancy: Tenancy, path: str
) -> None:
    app = FastAPI()
    with pytest.raises(ConfigurationError, match="excluded_paths"):
        install(app, tenancy, excluded_paths=[path])
    assert app.user_middleware == []


async def test_excluded_paths_are_those_of_install_and_of_the_settings(
    make_config: Callable[..., TenancyConfig],
) -> None:
    from tenancy_core import Tenancy

    app = FastAPI()
    async with Tenancy(make_config(excluded_paths=["/ready"])) as tenancy:
        install(app, tenancy, excluded_paths=["/health"])

        @app.get("/{path:path}")
        async def anything(path: str) -> str:
            return path

        async with requests_to(app) as client:
            statuses = {
                path: (await client.get(path)).status_code
                for path in ("/ready", "/health", "/health/live", "/healthcare", "/", "/Health")
            }
    assert statuses == {
        "/ready": 200,
        "/health": 200,
        "/health/live": 200,
        "/healthcare": 400,
        "/": 400,
        "/Health": 400,
    }


async def test_refusals_are_rendered_as_the_application_likes(tenancy: Tenancy) -> None:
    def render(error: TenancyError) -> Refusal:
        return Refusal(418, ((b"x-code", error.code.encode()),), json.dumps("no").encode())

    app = FastAPI()
    install(app, tenancy, render=render)

    @app.get("/suspend")
    async def suspend() -> None:
        await tenancy.tenants.suspend("unknown")

    async with requests_to(app) as client:
        by_middleware = await client.get("/", headers={"X-Tenant-ID": "unknown"})
        by_handler = await client.get("/suspend", headers=ACME)
    for answer in (by_middleware, by_handler):
        assert (answer.status_code, answer.json()) == (418, "no")
        assert answer.headers["x-code"] == "tenant_not_found"


async def test_middleware_of_the_application_stands_outside_and_sees_refusals(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    seen: list[int] = []

    @app.middleware("http")
    async def watch(request: Request, call_next: Any) -> Any:
        answer = await call_next(request)
        seen.append(answer.status_code)
        return answer

    await client.get("/notes")
    await client.get("/notes", headers=ACME)
    assert seen == [400, 200]


async def test_the_dependencies_say_what_is_missing_where_nothing_is_installed() -> None:
    app = FastAPI()
    errors: list[Exception] = []

    @app.exception_handler(NoCurrentTenant)
    async def keep(request: Request, error: NoCurrentTenant) -> Any:
        errors.append(error)
        raise error

    @app.get("/")
    async def handler(session: TenantSession) -> None:
        raise AssertionError("never reached")

    async with requests_to(app) as client:
        assert (await client.get("/")).status_code == 500
    assert "install(app, tenancy)" in str(errors[0])


# -- the framework's own pages ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "root_path", "paths"),
    [
        ({}, "", ["/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"]),
        (
            {
                "docs_url": "/internal/docs",
                "redoc_url": None,
                "openapi_url": "/internal/schema.json",
                "swagger_ui_oauth2_redirect_url": "/internal/redirect",
            },
            "",
            ["/internal/docs", "/internal/schema.json", "/internal/redirect"],
        ),
        ({"docs_url": "/"}, "", ["/", "/openapi.json"]),
        ({"docs_url": "/docs/"}, "", ["/docs/"]),
        ({}, "/api", ["/docs", "/api/docs", "/openapi.json", "/api/openapi.json"]),
    ],
    ids=["as they are", "moved", "at the root", "with a slash", "below root_path"],
)
async def test_documentation_needs_no_tenant(
    tenancy: Tenancy, settings: dict[str, Any], root_path: str, paths: list[str]
) -> None:
    app = FastAPI(**settings)
    install(app, tenancy)

    @app.get("/notes")
    async def notes() -> str:
        return "served"

    async with requests_to(app, root_path=root_path) as client:
        for path in paths:
            assert (await client.get(path)).status_code == 200, path
        assert (await client.get("/notes")).status_code == 400
        assert (await client.get("/notes", headers=ACME)).json() == "served"


async def test_where_there_is_no_documentation_nothing_is_excluded_for_it(
    tenancy: Tenancy,
) -> None:
    app = FastAPI(openapi_url=None)
    install(app, tenancy)

    @app.get("/docs")
    async def docs() -> str:
        return "the tenant's documents"

    async with requests_to(app) as client:
        assert (await client.get("/docs")).status_code == 400
        assert (await client.get("/docs", headers=ACME)).status_code == 200
