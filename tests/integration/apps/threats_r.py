"""One process with an application per way of naming a tenant; ``X-Which`` chooses among them.

Each is a FastAPI application as a user would write it. That they share a server lets one pair of
processes (one per HTTP parser) stand for all of them; nothing of a request is changed on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from tenancy_core import Tenancy, TenancyConfig, TenantClaim, current_tenant
from tenancy_fastapi import CurrentTenant, install

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from tenancy_core import Tenant
    from tenancy_core.contract import Connection

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

CHUNK = "x" * 65536


class Query:
    """Takes the tenant from ``?tenant=`` or from a subprotocol ``tenant.<identifier>``."""

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        """See the contract."""
        for name in connection.scope.get("subprotocols", ()):
            if name.startswith("tenant."):
                return TenantClaim(name.removeprefix("tenant."), "subprotocol")
        key, _, value = connection.scope["query_string"].partition(b"=")
        return TenantClaim(value.decode("ascii"), "query") if key == b"tenant" else None


class Broken:
    """Fails if the request says so; else it finds nothing."""

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        """See the contract."""
        if connection.header(b"x-break") is not None:
            raise OSError("canary")
        return None


class Vouched:
    """A source that proves what it says: stands for the token resolver, which is not there yet."""

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        """See the contract."""
        value = connection.header(b"x-vouched")
        return None if value is None else TenantClaim(value, "vouched", verified=True)


def make(strategy: str, *, proxies: str = "", resolver: Any = None) -> FastAPI:
    """Return an application whose tenants are named in one way."""
    config = TenancyConfig.from_env(
        resolution_strategy=strategy,
        domain_suffix="ex.com",
        path_prefix="/t",
        trusted_proxies=proxies,
    )
    tenancy = Tenancy(config, resolver=resolver)
    app = FastAPI()
    app.state.sent = app.state.busy = 0
    install(app, tenancy, excluded_paths=["/health", "/admin"])

    @app.get("/health")
    async def health() -> str:
        tenant = current_tenant()
        return "-" if tenant is None else tenant.identifier

    @app.api_route("/me", methods=["GET", "HEAD", "POST"])
    @app.get("/{_path:path}")
    async def me(tenant: CurrentTenant, _path: str = "") -> str:
        return tenant.identifier

    @app.post("/admin/{action}/{identifier}")
    async def admin(action: str, identifier: str) -> str:
        changed: Tenant = await getattr(tenancy.tenants, action)(identifier)
        return changed.status

    @app.post("/admin/counts")
    async def counts() -> dict[str, int]:
        return {"sent": app.state.sent, "busy": app.state.busy}

    _add_sockets(app)
    return app


def _add_sockets(app: FastAPI) -> None:
    @app.websocket("/idle")
    async def idle(socket: WebSocket) -> None:
        tenant = current_tenant()
        assert tenant is not None
        await socket.accept(subprotocol=next(iter(socket.scope["subprotocols"]), None))
        await socket.send_text(tenant.identifier)
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await socket.receive_text()
                tenant = current_tenant()
                await socket.send_text("-" if tenant is None else tenant.identifier)

    @app.websocket("/busy")
    async def busy(socket: WebSocket) -> None:
        await socket.accept()
        app.state.busy += 1
        try:
            while True:
                await socket.send_text(CHUNK)
                app.state.sent += 1
                await asyncio.sleep(0)
        except WebSocketDisconnect:
            return
        finally:
            app.state.busy -= 1

    @app.websocket("/thinking")
    async def thinking(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("thinking")
        await asyncio.Event().wait()


apps = {
    b"header": make("header"),
    b"subdomain": make("subdomain"),
    b"proxied": make("subdomain", proxies="127.0.0.0/8"),
    b"path": make("path"),
    b"chain": make("custom,header,subdomain", resolver=Vouched()),
    b"broken": make("custom,header", resolver=Broken()),
    b"query": make("header,custom", resolver=Query()),
}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Hand the connection on, as it is."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    which = next((value for name, value in scope["headers"] if name == b"x-which"), b"header")
    await apps[which](scope, receive, send)


async def _lifespan(receive: Receive, send: Send) -> None:
    async with AsyncExitStack() as stack:
        await receive()
        for one in apps.values():
            await stack.enter_async_context(one.router.lifespan_context(one))
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})


assert "TENANCY_DATABASE_URL" in os.environ, "the tests say where"
