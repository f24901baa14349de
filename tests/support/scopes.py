"""Hand-made ASGI connections, as servers make them, and what an application answers to them."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes
from uuid import uuid4

from tenancy_core import Tenancy, Tenant, TenantStatus, current_tenant
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.contract import Connection
from tenancy_core.tenant import Placement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping

    from tenancy_core import TenancyConfig

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]
    Headers = Iterable[tuple[bytes, bytes]]

PEER = "203.0.113.9"


def http_scope(
    raw_path: bytes = b"/me",
    *headers: tuple[bytes, bytes],
    method: str = "GET",
    root_path: str = "",
    client: tuple[str, int] | None = (PEER, 40000),
    **extra: Any,
) -> dict[str, Any]:
    """Return the scope of a request. ``raw_path`` is taken as it is, ``path`` follows from it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": client,
        "scheme": "http",
        "method": method,
        "root_path": root_path,
        "path": unquote_to_bytes(raw_path).decode("utf-8", "replace"),
        "raw_path": raw_path,
        "query_string": b"",
        "headers": list(headers),
        "state": {},
        **extra,
    }


def websocket_scope(
    raw_path: bytes = b"/me",
    *headers: tuple[bytes, bytes],
    can_answer: bool = True,
    **extra: Any,
) -> dict[str, Any]:
    """Return the scope of a handshake, of a server that has ``websocket.http.response`` or not."""
    scope = http_scope(raw_path, *headers, **extra)
    del scope["method"]
    scope.update(type="websocket", scheme="ws", subprotocols=[])
    if can_answer:
        scope["extensions"] = {"websocket.http.response": {}}
    return scope


def connection(*headers: tuple[bytes, bytes], **scope: Any) -> Connection:
    """Return what a resolver gets."""
    return Connection(http_scope(b"/", *headers, **scope))


@dataclass(frozen=True)
class Answer:
    """What an application sent for a request."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    @property
    def code(self) -> str | None:
        """Code of a refusal; None for an answer that is none."""
        if self.header(b"content-type") != b"application/problem+json":
            return None
        code: str = json.loads(self.body)["code"]
        return code

    def header(self, name: bytes) -> bytes | None:
        """Value of the one header of this name."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, values
        return values[0] if values else None


async def ask(app: App, scope: Scope) -> Answer:
    """Send a request without a body and return the whole answer."""
    sent: list[Message] = []
    requests: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        return requests.pop() if requests else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start, *bodies = sent
    assert start["type"] == "http.response.start", sent
    assert [message["type"] for message in bodies] == ["http.response.body"] * len(bodies), sent
    return Answer(
        start["status"],
        tuple(start["headers"]),
        b"".join(message.get("body", b"") for message in bodies),
    )


class WhoAmI:
    """An application that answers with its tenant, or with ``-`` where it has none."""

    def __init__(self) -> None:
        self.calls = 0
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        self.calls += 1
        self.scopes.append(scope)
        tenant = current_tenant()
        assert scope.get("state", {}).get("tenant") is tenant
        name = b"-" if tenant is None else tenant.identifier.encode()
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": name})
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": name.decode()})


def record(identifier: str, status: TenantStatus = TenantStatus.ACTIVE, **fields: Any) -> Tenant:
    """Return a tenant's record as a store keeps it."""
    now = datetime.now(UTC)
    return Tenant(
        id=uuid4(),
        identifier=identifier,
        name=identifier,
        status=status,
        created_at=now,
        updated_at=now,
        isolation="database",
        placement=Placement(name=f"tenant_{identifier}"),
        **fields,
    )


class CountingStore(MemoryTenantStore):
    """The store in memory; counts how often it is asked for a tenant."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def get_by_identifier(self, identifier: str, /) -> Tenant | None:
        """See the contract."""
        self.asked.append(identifier)
        return await super().get_by_identifier(identifier)

    async def keep(self, *tenants: Tenant) -> None:
        """Insert records, in whatever status."""
        async with self.transaction() as transaction:
            for tenant in tenants:
                await transaction.create(tenant)


@asynccontextmanager
async def opened(
    config: TenancyConfig, *tenants: Tenant, store: CountingStore | None = None, **objects: Any
) -> AsyncIterator[Tenancy]:
    """Open a ``Tenancy`` whose store is in memory and holds the records.

    Nothing is provisioned: these tests are about the way to the application, not about data.
    """
    kept = store or CountingStore()
    await kept.keep(*(tenants or (record("acme"), record("beta"))))
    async with Tenancy(config, store=kept, **objects) as tenancy:
        yield tenancy
