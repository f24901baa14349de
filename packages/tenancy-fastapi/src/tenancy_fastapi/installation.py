"""``install``: middleware, lifespan, error answers and OpenAPI, by FastAPI's public means."""

from __future__ import annotations

import inspect
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.responses import Response
from tenancy_core.asgi import ExcludedPaths, TenancyMiddleware, describe_tenant
from tenancy_core.asgi import render as default_render
from tenancy_core.errors import (
    BackendUnavailable,
    ConfigurationError,
    IsolationError,
    RequestRefused,
    TenancyError,
)

from tenancy_fastapi.dependencies import get_read_only_session, get_tenant_session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from fastapi import FastAPI
    from fastapi.dependencies.models import Dependant
    from starlette.requests import Request
    from tenancy_core import Tenancy
    from tenancy_core.asgi import Refusal

__all__ = ["install"]

_SESSIONS: Final = frozenset({get_tenant_session, get_read_only_session})
_ANSWERED: Final = (RequestRefused, BackendUnavailable, IsolationError)


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
    if any(middleware.cls is TenancyMiddleware for middleware in app.user_middleware):
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
    return [url for url in urls if url] if app.openapi_url else []


def _open_with(app: FastAPI, tenancy: Tenancy) -> None:
    own = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(application: Any) -> AsyncIterator[Any]:  # noqa: ANN401 - Starlette's type
        _refuse_generators(app)
        if tenancy.is_open:
            async with own(application) as state:
                yield state
        else:
            async with tenancy, own(application) as state:
                yield state

    app.router.lifespan_context = lifespan


def _answer_errors(app: FastAPI, render: Callable[[TenancyError], Refusal]) -> None:
    async def answer(_: Request, error: Exception) -> Response:
        refusal = render(error)  # type: ignore[arg-type]  # registered for _ANSWERED only
        headers = {name.decode(): value.decode() for name, value in refusal.headers}
        return Response(refusal.body, refusal.status, headers)

    for kind in _ANSWERED:
        app.exception_handlers.setdefault(kind, answer)


def _describe(app: FastAPI, tenancy: Tenancy, excluded: ExcludedPaths) -> None:
    own = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe_tenant(
                own(), tenancy, lambda path: excluded.match(path.encode())
            )
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _refuse_generators(app: FastAPI) -> None:
    for route in app.routes:
        if not isinstance(route, APIRoute):
            continue
        endpoint = inspect.unwrap(route.endpoint)
        if not (inspect.isasyncgenfunction(endpoint) or inspect.isgeneratorfunction(endpoint)):
            continue
        if _uses_session(route.dependant):
            raise ConfigurationError(
                f"{route.path} streams what it yields, and its session would be closed before the "
                "first item. Open one inside the generator: async with tenancy.session():"
            )


def _uses_session(dependant: Dependant) -> bool:
    return dependant.call in _SESSIONS or any(
        _uses_session(part) for part in dependant.dependencies
    )
