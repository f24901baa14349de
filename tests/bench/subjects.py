"""What is measured: the plain application, the ideal middleware and ours, on the same requests."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn

from tenancy_core import Tenancy, TenancyConfig, TenancyMiddleware
from tenancy_core._stores.memory import MemoryTenantStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from tenancy_core import Tenant

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

TENANTS = 100

_tenant: ContextVar[Any] = ContextVar("tenant")


class Ideal:
    """The limit: reads one header, one dict, sets a context variable, and nothing else.

    It refuses nothing: no duplicate headers, no suspension, no expiry, no excluded path.
    """

    __slots__ = ("app", "name", "tenants")

    def __init__(self, app: App, tenants: dict[bytes, Any]) -> None:
        self.app = app
        self.tenants = tenants
        self.name = b"x-tenant-id"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        name = self.name
        for key, value in scope["headers"]:  # noqa: B007 - used behind the loop
            if key == name:
                break
        else:
            raise LookupError
        token = _tenant.set(self.tenants[value])
        try:
            await self.app(scope, receive, send)
        finally:
            _tenant.reset(token)


class _NoIsolation:
    """A strategy without a database: what is measured is the way to the application."""

    def session(self, tenant: Tenant, /, *, read_only: bool = False) -> NoReturn:
        """Refuse."""
        raise NotImplementedError

    def connection(self, tenant: Tenant, /, *, read_only: bool = False) -> NoReturn:
        """Refuse."""
        raise NotImplementedError

    async def provision(self, tenant: Tenant, /) -> None:
        """Do nothing."""

    async def exists(self, tenant: Tenant, /) -> bool:
        """Pretend."""
        return True

    async def destroy(self, tenant: Tenant, /) -> None:
        """Do nothing."""


async def null(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Do nothing: the application that costs least."""


def request(number: int) -> dict[str, Any]:
    """Return the scope of a typical request, as uvicorn makes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 40000),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": "/notes",
        "raw_path": b"/notes",
        "query_string": b"",
        "headers": [
            (b"host", b"api.example.com"),
            (b"user-agent", b"bench/1"),
            (b"accept", b"*/*"),
            (b"accept-encoding", b"gzip, deflate"),
            (b"x-tenant-id", b"tenant-%03d" % (number % TENANTS)),
            (b"connection", b"keep-alive"),
        ],
        "state": {},
    }


async def receive() -> dict[str, Any]:
    """Return an empty body."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(_message: Message) -> None:
    """Drop the answer."""


def drive(app: App, scope: Scope) -> None:
    """Run a request to its end by hand: no event loop in what is counted."""
    steps = app(scope, receive, send).__await__()
    try:
        while True:
            next(steps)
    except StopIteration:
        return


def ideal(app: App) -> App:
    """Wrap an application in the ideal middleware."""
    return Ideal(app, {b"tenant-%03d" % number: object() for number in range(TENANTS)})


def tenancy(app: App) -> App:
    """Wrap an application in ours, with every tenant in its cache."""
    opened = Tenancy(
        TenancyConfig(
            database_url="sqlite+aiosqlite:///unused.db",
            l1_cache_ttl_seconds=1e6,
            excluded_paths=("/health", "/docs"),
        ),
        store=MemoryTenantStore(),
        isolation=_NoIsolation(),
    )

    async def warm() -> App:
        await opened.__aenter__()
        for number in range(TENANTS):
            await opened.tenants.create(f"tenant-{number:03d}")
        wrapped = TenancyMiddleware(app, opened)
        for number in range(TENANTS):
            await wrapped(request(number), receive, send)
        return wrapped

    return asyncio.run(warm())


SUBJECTS: dict[str, Callable[[App], App]] = {
    "bare": lambda app: app,
    "ideal": ideal,
    "tenancy": tenancy,
}
