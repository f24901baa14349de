"""What an application's own code raises, and what a client gets for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from support.fastapi_client import ACME, requests_to
from tenancy_core import (
    ConfigurationError,
    NoCurrentTenant,
    RequestRefused,
    TenancyError,
    TenantNotFound,
)
from tenancy_core.errors import (
    AlreadyProvisioning,
    BackendUnavailable,
    CrossTenantWrite,
    InvalidCredentials,
    InvalidTransition,
    IsolationError,
    RateLimitExceeded,
    ResolverError,
    TenantExists,
    VersionConflict,
)
from tenancy_fastapi import install

if TYPE_CHECKING:
    import httpx

    from tenancy_core import Tenancy

pytestmark = pytest.mark.anyio

SECRET = "postgresql://app:hunter2@db/prod"


class QuotaUsedUp(RequestRefused):
    """A refusal of the application's own."""

    code = "quota_used_up"
    status: ClassVar[int] = 402
    title = "Upgrade your plan."


def _raising(app: FastAPI, error: Exception) -> None:
    @app.get("/raise")
    async def handler() -> None:
        raise error


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (TenantNotFound(SECRET), 404, "tenant_not_found"),
        (InvalidCredentials(SECRET), 401, "token_invalid"),
        (RateLimitExceeded(SECRET, retry_after=2.5, limit=9, window=60), 429, "rate_limited"),
        (QuotaUsedUp(SECRET), 402, "quota_used_up"),
        (TenantExists(SECRET), 409, "tenant_exists"),
        (VersionConflict(SECRET), 409, "version_conflict"),
        (InvalidTransition(SECRET), 409, "transition_invalid"),
        (BackendUnavailable(SECRET), 503, "backend_unavailable"),
        (ResolverError(SECRET), 503, "resolver_failed"),
        (IsolationError(SECRET), 503, "unavailable"),
        (CrossTenantWrite(SECRET), 503, "unavailable"),
        (AlreadyProvisioning(SECRET), 503, "unavailable"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_it_is_answered_with_a_problem_document_that_tells_nothing_more(
    app: FastAPI, client: httpx.AsyncClient, error: TenancyError, status: int, code: str
) -> None:
    _raising(app, error)
    answer = await client.get("/raise", headers=ACME)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    problem = answer.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["title"]
    assert SECRET not in answer.text
    assert ("retry-after" in answer.headers) == (status in (429, 503))


async def test_D3_a_503_says_when_to_come_back_where_somebody_knows(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    _raising(app, BackendUnavailable("No connection became free.", retry_after=7.2))
    answer = await client.get("/raise", headers=ACME)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "8")


async def test_what_is_not_the_clients_doing_is_logged_with_its_cause(
    app: FastAPI, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/fails")
    async def fails() -> None:
        raise BackendUnavailable("The database file cannot be used now.") from OSError("disk full")

    _raising(app, TenantExists("There is already a tenant."))
    with caplog.at_level(logging.INFO, logger="tenancy"):
        assert (await client.get("/raise", headers=ACME)).status_code == 409
        assert caplog.records == []
        assert (await client.get("/fails", headers=ACME)).status_code == 503
    assert "cannot be used now" in caplog.text
    assert "disk full" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        NoCurrentTenant(),
        ConfigurationError("That cannot work."),
        TenancyError("of no kind"),
        LookupError("a bug"),
    ],
    ids=["no tenant", "configuration", "the base class", "a bug"],
)
async def test_a_mistake_in_the_code_stays_a_500(
    app: FastAPI, client: httpx.AsyncClient, error: Exception
) -> None:
    _raising(app, error)
    answer = await client.get("/raise", headers=ACME)
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")


async def test_such_a_mistake_reaches_an_applications_handler_for_everything(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    errors: list[Exception] = []

    @app.exception_handler(Exception)
    async def everything(request: Request, error: Exception) -> JSONResponse:
        errors.append(error)
        return JSONResponse("sorry", 500)

    error = NoCurrentTenant()
    _raising(app, error)
    assert (await client.get("/raise", headers=ACME)).json() == "sorry"
    assert errors == [error]


@pytest.mark.parametrize("first", ["handler", "install"])
@pytest.mark.parametrize("kind", [TenantExists, RequestRefused, TenancyError])
async def test_an_applications_own_handler_wins(
    tenancy: Tenancy, first: str, kind: type[TenancyError]
) -> None:
    async def own(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse("own", 418)

    app = FastAPI()
    if first == "handler":
        app.add_exception_handler(kind, own)
    install(app, tenancy)
    if first == "install":
        app.add_exception_handler(kind, own)

    @app.get("/exists")
    async def exists() -> None:
        raise TenantExists

    @app.get("/missing")
    async def missing() -> None:
        raise TenantNotFound

    async with requests_to(app) as client:
        for path, error in (("/exists", TenantExists), ("/missing", TenantNotFound)):
            answer = await client.get(path, headers=ACME)
            assert (answer.status_code == 418) == issubclass(error, kind)


async def test_what_the_control_plane_raises_needs_no_handler_of_the_application(
    app: FastAPI, client: httpx.AsyncClient, tenancy: Tenancy
) -> None:
    @app.post("/open/tenants/{identifier}")
    async def create(identifier: str) -> None:
        await tenancy.tenants.create(identifier)

    @app.post("/open/tenants/{identifier}/suspend")
    async def suspend(identifier: str, version: int | None = None) -> None:
        await tenancy.tenants.suspend(identifier, expected_version=version)

    async def post(path: str) -> tuple[int, str | None]:
        answer = await client.post(f"/open/tenants/{path}")
        return answer.status_code, answer.json() and answer.json()["code"]

    assert await post("new") == (200, None)
    assert await post("new") == (409, "tenant_exists")
    assert await post("NEW") == (400, "tenant_invalid")
    assert await post("nobody/suspend") == (404, "tenant_not_found")
    assert await post("new/suspend?version=7") == (409, "version_conflict")
    assert await post("new/suspend") == (200, None)
