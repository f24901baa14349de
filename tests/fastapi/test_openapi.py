"""Where the tenant comes from, as the application's OpenAPI document says it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Header
from fastapi.openapi.utils import get_openapi
from fastapi.security import APIKeyHeader

from support.fastapi_client import ACME, requests_to
from tenancy_core import Connection, Tenancy, TenantClaim
from tenancy_core.contract import OpenAPISource
from tenancy_core.tenant import IDENTIFIER_PATTERN
from tenancy_fastapi import install

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenancy_core import TenancyConfig

HEADER = {
    "name": "X-Tenant-ID",
    "in": "header",
    "required": True,
    "description": "The tenant that the request is for.",
    "schema": {"type": "string", "maxLength": 48, "pattern": IDENTIFIER_PATTERN},
}


class BearerResolver:
    """A resolver of somebody else's, which describes itself."""

    openapi = OpenAPISource(security=("tenantToken", {"type": "http", "scheme": "bearer"}))

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        return None


@pytest.fixture
def make_app(make_config: Callable[..., TenancyConfig]) -> Callable[..., FastAPI]:
    """Make an application, with settings for its ``Tenancy``."""

    def make(*, resolver: Any = None, app: FastAPI | None = None, **settings: Any) -> FastAPI:
        app = app or FastAPI()
        tenancy = Tenancy(make_config(**settings), resolver=resolver)
        install(app, tenancy, excluded_paths=["/health"])

        @app.get("/notes")
        @app.post("/notes")
        async def notes() -> None: ...

        @app.get("/health")
        @app.get("/health/live")
        @app.get("/healthcare")
        async def health() -> None: ...

        return app

    return make


def _parameters(document: dict[str, Any]) -> dict[str, list[Any]]:
    return {
        f"{method} {path}": operation.get("parameters", [])
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }


def _security(document: dict[str, Any], path: str) -> Any:
    return document["paths"][path]["get"].get("security")


def test_the_header_is_a_parameter_of_what_needs_a_tenant_and_of_nothing_else(
    make_app: Callable[..., FastAPI],
) -> None:
    assert _parameters(make_app().openapi()) == {
        "get /notes": [HEADER],
        "post /notes": [HEADER],
        "get /health": [],
        "get /health/live": [],
        "get /healthcare": [HEADER],
    }


def test_the_header_has_the_name_that_the_settings_give_it(
    make_app: Callable[..., FastAPI],
) -> None:
    app = make_app(tenant_header_name="X-Customer", excluded_paths=["/healthcare"])
    assert _parameters(app.openapi())["get /notes"] == [{**HEADER, "name": "X-Customer"}]
    assert _parameters(app.openapi())["get /healthcare"] == []


def test_a_header_that_an_operation_declares_itself_is_not_repeated(
    make_app: Callable[..., FastAPI],
) -> None:
    app = make_app()

    @app.get("/own")
    async def own(x_tenant_id: str = Header()) -> None: ...

    (parameter,) = _parameters(app.openapi())["get /own"]
    assert parameter["name"] == "x-tenant-id"


def test_operations_of_routers_have_the_parameter_as_well(
    make_app: Callable[..., FastAPI],
) -> None:
    app = make_app()
    inner, outer = APIRouter(prefix="/inner"), APIRouter(prefix="/outer")

    @inner.get("/notes")
    async def notes() -> None: ...

    outer.include_router(inner)
    app.include_router(outer)
    app.include_router(inner, prefix="/health")
    parameters = _parameters(app.openapi())
    assert parameters["get /outer/inner/notes"] == [HEADER]
    assert parameters["get /health/inner/notes"] == []


def test_of_several_resolvers_none_is_required(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(resolution_strategy=["header", "custom", "path"], resolver=BearerResolver())

    @app.get("/tenants/{customer}/notes")
    async def below() -> None: ...

    document = app.openapi()
    optional = {**HEADER, "required": False}
    assert _parameters(document)["get /notes"] == [optional]
    assert _security(document, "/notes") == [{"tenantToken": []}, {}]
    # The segment is there whenever the route matches.
    assert [
        (parameter["name"], parameter["in"], parameter["required"])
        for parameter in _parameters(document)["get /tenants/{customer}/notes"]
    ] == [("X-Tenant-ID", "header", False), ("customer", "path", True)]


def test_a_resolver_that_describes_nothing_still_makes_the_others_optional(
    make_app: Callable[..., FastAPI],
) -> None:
    class Silent:
        openapi = "no source"

        async def resolve(self, connection: Connection, /) -> TenantClaim | None:
            return None

    app = make_app(resolution_strategy=["header", "custom"], resolver=Silent())
    assert _parameters(app.openapi())["get /notes"] == [{**HEADER, "required": False}]
    assert _parameters(make_app(resolver=Silent()).openapi())["get /notes"] == []


def test_a_segment_of_the_path_is_a_parameter_of_the_routes_own_name(
    make_app: Callable[..., FastAPI],
) -> None:
    app = make_app(resolution_strategy=["path"], path_prefix="/t")

    @app.get("/t/{customer}/notes/{number}")
    async def without(number: int) -> None: ...

    @app.get("/t/{tenant}/declared")
    async def declared(tenant: str) -> None: ...

    @app.get("/t/fixed/notes")
    async def fixed() -> None: ...

    parameters = _parameters(app.openapi())
    number, customer = parameters["get /t/{customer}/notes/{number}"]
    assert (number["name"], number["in"]) == ("number", "path")
    assert customer == {**HEADER, "name": "customer", "in": "path"}
    (tenant,) = parameters["get /t/{tenant}/declared"]
    assert tenant["schema"] == {"type": "string", "title": "Tenant"}
    assert parameters["get /t/fixed/notes"] == []
    assert parameters["get /notes"] == []


def test_a_subdomain_is_a_server_with_a_variable(make_app: Callable[..., FastAPI]) -> None:
    servers = [{"url": "https://api.example.com"}]
    app = make_app(
        app=FastAPI(servers=servers), resolution_strategy=["subdomain"], domain_suffix="example.com"
    )
    own, tenants = app.openapi()["servers"]
    assert own == {"url": "https://api.example.com"}
    assert tenants["url"] == "//{tenant}.example.com"
    assert tenants["variables"]["tenant"]["default"]
    assert servers == [own]
    assert _parameters(app.openapi())["get /notes"] == []


def test_a_token_is_a_security_scheme(make_app: Callable[..., FastAPI]) -> None:
    document = make_app(resolver=BearerResolver()).openapi()
    schemes = document["components"]["securitySchemes"]
    assert schemes == {"tenantToken": {"type": "http", "scheme": "bearer"}}
    assert _security(document, "/notes") == [{"tenantToken": []}]
    assert _security(document, "/health") is None


def test_a_token_is_needed_beside_what_an_operation_asks_for_itself(
    make_app: Callable[..., FastAPI],
) -> None:
    app = make_app(resolver=BearerResolver())

    @app.get("/own", dependencies=[Depends(APIKeyHeader(name="X-Key", scheme_name="key"))])
    async def own() -> None: ...

    document = app.openapi()
    assert _security(document, "/own") == [{"key": [], "tenantToken": []}]
    assert set(document["components"]["securitySchemes"]) == {"key", "tenantToken"}


# -- the document itself ---------------------------------------------------------------------------


def test_the_document_is_made_once(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(resolution_strategy=["header", "custom"], resolver=BearerResolver())
    first = app.openapi()
    before = json.dumps(first)
    assert app.openapi() is first
    assert app.openapi_schema is first
    assert json.dumps(first) == before


def test_a_document_that_the_framework_makes_anew_is_described_anew(
    make_app: Callable[..., FastAPI],
) -> None:
    app = make_app(resolver=BearerResolver())
    app.openapi()

    @app.get("/later")
    async def later() -> None: ...

    app.openapi_schema = None  # newer versions notice by themselves
    document = app.openapi()
    assert _security(document, "/later") == [{"tenantToken": []}]
    assert _security(document, "/notes") == [{"tenantToken": []}]


@pytest.mark.parametrize("makes", ["one", "one each time"])
def test_an_applications_own_document_is_described(
    make_app: Callable[..., FastAPI], makes: str
) -> None:
    app = FastAPI()
    kept: list[dict[str, Any]] = []

    def own() -> dict[str, Any]:
        if makes == "one each time" or not kept:
            document = get_openapi(title="Own", version="7", routes=app.routes)
            document["info"]["x-logo"] = "logo.png"
            kept[:] = [document]
        return kept[0]

    app.openapi = own
    make_app(app=app, resolver=BearerResolver())
    for _ in range(2):
        document = app.openapi()
        assert document["info"] == {"title": "Own", "version": "7", "x-logo": "logo.png"}
        assert _security(document, "/notes") == [{"tenantToken": []}]


def test_an_applications_own_document_that_comes_later_has_the_last_word(
    make_app: Callable[..., FastAPI],
) -> None:
    app = make_app()
    app.openapi = lambda: {"openapi": "3.1.0"}
    assert app.openapi() == {"openapi": "3.1.0"}


@pytest.mark.anyio
async def test_the_document_is_served_and_names_the_root_path(tenancy: Tenancy) -> None:
    app = FastAPI()
    install(app, tenancy)

    @app.get("/notes")
    async def notes() -> str:
        return "served"

    async with requests_to(app, root_path="/api") as client:
        document = (await client.get("/openapi.json")).json()
        assert document["servers"] == [{"url": "/api"}]
        assert _parameters(document)["get /notes"] == [HEADER]
        docs = await client.get("/docs")
        assert "/api/openapi.json" in docs.text
        # As the page does it: the document's server, the operation's path, its parameter.
        assert (await client.get("/api/notes", headers=ACME)).json() == "served"
