"""``install``: middleware, lifespan, error answers and OpenAPI, by FastAPI's public means."""

from __future__ import annotations

import inspect
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, cast

from fastapi import routing
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketState

from tenancy_core.asgi import (
    ANSWERED,
    ExcludedPaths,
    TenancyMiddleware,
    answer,
    close_code,
    describe_tenant,
)
from tenancy_core.asgi import render as default_render
from tenancy_core.errors import ConfigurationError, TenancyError
from tenancy_fastapi.dependencies import get_read_only_session, get_tenant_session

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Iterator

    from fastapi import FastAPI
    from fastapi.dependencies.models import Dependant
    from starlette.requests import HTTPConnection

    from tenancy_core import Tenancy
    from tenancy_core.asgi import Refusal

__all__ = ["install"]

_SESSIONS: Final = frozenset({get_tenant_session, get_read_only_session})


def install(
    app: FastAPI,
    tenancy: Tenancy,
    *,
    excluded_paths: Iterable[str] = (),
    render: Callable[[TenancyError], Refusal] = default_render,
) -> None:
    """Make every request of an application run as its tenant.

    The application's lifespan opens and closes ``tenancy`` around its own. The middleware stands
    innermost, so that refusals carry the headers of CORS and other middleware, whether that is
    added before or after. The framework's own documentation pages need no tenant.

    Args:
        app: Before it has served anything.
        tenancy: Opened with the application, unless it is open already.
        excluded_paths: Paths without a tenant, beside ``TENANCY_EXCLUDED_PATHS``.
        render: Turns a refusal into an answer.

    Raises:
        ConfigurationError: The application runs already, has it installed already, or an excluded
            path could never match.
    """
    if app.middleware_stack is not None:
        raise ConfigurationError(
            "install() comes before the application's first request: its middleware is built "
            "already, and later additions would be ignored."
        )
    present: list[Any] = [middleware.cls for middleware in app.user_middleware]
    if TenancyMiddleware in present:
        raise ConfigurationError("tenancy is installed in this application already.")
    excluded = (*excluded_paths, *_documentation(app))
    # Fails here rather than at the first request.
    TenancyMiddleware(app.router, tenancy, excluded_paths=excluded, render=render)
    app.user_middleware.append(
        Middleware(TenancyMiddleware, tenancy=tenancy, excluded_paths=excluded, render=render)
    )
    _open_with(app, tenancy)
    _answer_errors(app, render)
    _describe(app, tenancy, ExcludedPaths((*tenancy.config.excluded_paths, *excluded)))


def _documentation(app: FastAPI) -> list[str]:
    urls = [app.openapi_url, app.docs_url, app.redoc_url]
    if app.docs_url:
        urls.append(app.swagger_ui_oauth2_redirect_url)
    return [url.rstrip("/") or "/" for url in urls if url] if app.openapi_url else []


def _open_with(app: FastAPI, tenancy: Tenancy) -> None:
    own = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(application: Any) -> AsyncGenerator[Any, None]:  # noqa: ANN401 - Starlette's type
        _check_sessions(app)
        async with nullcontext() if tenancy.is_open else tenancy, own(application) as state:
            yield {**(state or {}), "tenancy": tenancy}

    app.router.lifespan_context = lifespan


def _answer_errors(app: FastAPI, render: Callable[[TenancyError], Refusal]) -> None:
    async def respond(connection: HTTPConnection, error: TenancyError) -> Response | None:
        if not isinstance(error, ANSWERED):
            raise error
        refusal = answer(error, render)
        headers = {name.decode(): value.decode() for name, value in refusal.headers}
        response = Response(refusal.body, refusal.status, headers)
        if not isinstance(connection, WebSocket):
            return response
        if (
            connection.application_state is WebSocketState.CONNECTING
            and "websocket.http.response" in connection.scope.get("extensions", {})
        ):
            await connection.send_denial_response(response)
        elif connection.application_state is not WebSocketState.DISCONNECTED:
            await connection.close(close_code(refusal.status))
        return None

    # For the base class, so that an application's own handler, for whichever class, is the more
    # specific one or takes the place of this one.
    cast("dict[Any, Any]", app.exception_handlers).setdefault(TenancyError, respond)


def _describe(app: FastAPI, tenancy: Tenancy, excluded: ExcludedPaths) -> None:
    own = app.openapi
    described: dict[str, Any] | None = None

    def openapi() -> dict[str, Any]:
        nonlocal described
        document = own()
        # FastAPI keeps the document until the routes change, and then makes another one.
        if document is not described:
            described = describe_tenant(
                document, tenancy, lambda path: excluded.match(path.encode())
            )
        return document

    app.openapi = openapi  # type: ignore[method-assign]


# -- what would lose data is refused at start ------------------------------------------------------


def _check_sessions(app: FastAPI) -> None:
    for path, endpoint, dependant in _operations(app.routes):
        scopes = set(_session_scopes(dependant))
        if scopes - {"function"}:
            raise ConfigurationError(
                f"{path} depends on a session that would commit after the answer has left. Declare "
                'it as TenantSession or ReadOnlySession, or with Depends(…, scope="function").'
            )
        if scopes and _streams(endpoint):
            raise ConfigurationError(
                f"{path} streams what it yields, and its session would be closed before the first "
                "item. Open one inside the generator: async with tenancy.session():"
            )


def _operations(
    routes: Iterable[Any],
) -> Iterator[tuple[str, Callable[..., Any], Dependant]]:
    # Newer versions keep an included router as one route; this finds what is in it.
    contexts: Callable[[Iterable[Any]], Iterable[Any]] = getattr(
        routing, "iter_route_contexts", iter
    )
    for route in contexts(routes):
        if isinstance(getattr(route, "original_route", route), (APIRoute, APIWebSocketRoute)):
            yield route.path, route.endpoint, route.dependant
        else:
            yield from _operations(getattr(route, "routes", None) or ())


def _streams(endpoint: Callable[..., Any]) -> bool:
    function = inspect.unwrap(endpoint)
    return any(
        inspect.isasyncgenfunction(part) or inspect.isgeneratorfunction(part)
        for part in (function, getattr(function, "__call__", None))  # noqa: B004 - of an instance
    )


def _session_scopes(dependant: Dependant) -> Iterator[str | None]:
    if dependant.call in _SESSIONS:
        yield dependant.scope
    for part in dependant.dependencies:
        yield from _session_scopes(part)
