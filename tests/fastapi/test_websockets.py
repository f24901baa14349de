"""WebSocket endpoints: the tenant of the handshake, for as long as the socket is open."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from fastapi import Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient
from sqlalchemy import select
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from support.fastapi_client import ACME, create_tenants
from support.notes import Base, Note
from tenancy_core import Tenancy, TenantNotFound, current_tenant
from tenancy_core.errors import BackendUnavailable, TenantExists
from tenancy_fastapi import CurrentTenant, OptionalTenant, ReadOnlySession, TenantSession, install

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tenancy_core import TenancyConfig, TenancyError


@pytest.fixture
def tenancy(make_config: Callable[..., TenancyConfig]) -> Tenancy:
    """Opened by the application."""
    return Tenancy(make_config(), metadata=Base.metadata)


@pytest.fixture
def app(tenancy: Tenancy) -> FastAPI:
    """An application in which tests may still add endpoints."""
    app = FastAPI()
    install(app, tenancy, excluded_paths=["/open"])
    return app


@pytest.fixture
def client(app: FastAPI, tenancy: Tenancy) -> Iterator[TestClient]:
    """A client that runs the application's lifespan."""
    with TestClient(app) as client:
        create_tenants(client, tenancy, "acme", "beta")
        yield client


def test_an_endpoint_has_the_tenant_of_the_handshake(app: FastAPI, client: TestClient) -> None:
    @app.websocket("/ws")
    async def endpoint(socket: WebSocket, tenant: CurrentTenant, same: OptionalTenant) -> None:
        await socket.accept()
        async for _ in socket.iter_text():
            here = current_tenant()
            assert here is tenant is same
            await socket.send_text(tenant.identifier)

    with client.websocket_connect("/ws", headers=ACME) as socket:
        for _ in range(2):
            socket.send_text("who")
            assert socket.receive_text() == "acme"


def test_on_an_excluded_path_there_is_none(app: FastAPI, client: TestClient) -> None:
    @app.websocket("/open")
    async def endpoint(socket: WebSocket, tenant: OptionalTenant) -> None:
        await socket.accept()
        await socket.send_json(tenant and tenant.identifier)
        await socket.close()

    with client.websocket_connect("/open", headers=ACME) as socket:
        assert socket.receive_json() is None


def test_sessions_work_and_are_done_with_the_endpoint(
    app: FastAPI, client: TestClient, tenancy: Tenancy
) -> None:
    done = threading.Event()

    async def tell() -> AsyncIterator[None]:
        yield
        done.set()

    @app.websocket("/write", dependencies=[Depends(tell, scope="function")])
    async def write(socket: WebSocket, session: TenantSession) -> None:
        await socket.accept()
        session.add(Note(text=await socket.receive_text()))
        await socket.close()

    @app.websocket("/read")
    async def read(socket: WebSocket, session: ReadOnlySession) -> None:
        await socket.accept()
        await socket.send_json(list(await session.scalars(select(Note.text))))
        await socket.close()

    with client.websocket_connect("/write", headers=ACME) as socket:
        socket.send_text("written")
        assert done.wait(60)
    for tenant, notes in (("acme", ["written"]), ("beta", [])):
        with client.websocket_connect("/read", headers={"X-Tenant-ID": tenant}) as socket:
            assert socket.receive_json() == notes


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 400), ({"X-Tenant-ID": "nobody"}, 404), ({"X-Tenant-ID": "A"}, 400)],
)
def test_a_handshake_is_refused_with_the_status_of_a_request(
    app: FastAPI, client: TestClient, headers: dict[str, str], status: int
) -> None:
    @app.websocket("/ws")
    async def endpoint(socket: WebSocket) -> None:
        raise AssertionError("never reached")

    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect("/ws", headers=headers),
    ):
        pytest.fail("it was accepted")
    assert refused.value.status_code == status
    assert refused.value.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (TenantNotFound(), 404, 1008),
        (TenantExists(), 409, 1008),
        (BackendUnavailable("down"), 503, 1013),
    ],
    ids=["not found", "exists", "unavailable"],
)
def test_what_an_endpoint_raises_refuses_the_handshake_or_closes_the_socket(
    app: FastAPI, client: TestClient, error: TenancyError, status: int, code: int
) -> None:
    @app.websocket("/before")
    async def before(socket: WebSocket) -> None:
        raise error

    @app.websocket("/after")
    async def after(socket: WebSocket) -> None:
        await socket.accept()
        raise error

    @app.websocket("/last")
    async def last(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close(4000)
        raise error

    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect("/before", headers=ACME),
    ):
        pytest.fail("it was accepted")
    assert refused.value.status_code == status
    with client.websocket_connect("/after", headers=ACME) as socket:
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
        assert closed.value.code == code
    with client.websocket_connect("/last", headers=ACME) as socket:
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
        assert closed.value.code == 4000


def test_the_socket_of_a_tenant_that_is_suspended_is_closed(
    app: FastAPI, client: TestClient, tenancy: Tenancy
) -> None:
    left: list[tuple[str, int]] = []

    @app.websocket("/ws")
    async def endpoint(socket: WebSocket, tenant: CurrentTenant) -> None:
        await socket.accept()
        await socket.send_text("ready")
        try:
            await socket.receive_text()
        except WebSocketDisconnect as error:
            left.append((tenant.identifier, error.code))

    assert client.portal is not None
    with (
        client.websocket_connect("/ws", headers={"X-Tenant-ID": "beta"}) as other,
        client.websocket_connect("/ws", headers=ACME) as socket,
    ):
        assert (socket.receive_text(), other.receive_text()) == ("ready", "ready")
        client.portal.call(tenancy.tenants.suspend, "acme")
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
        assert closed.value.code == 1008
        assert left == [("acme", 1008)]
        other.send_text("still here")
    assert left == [("acme", 1008)]
