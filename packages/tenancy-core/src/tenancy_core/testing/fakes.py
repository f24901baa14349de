"""Stand-ins for what a test cannot wait for, and makers of the values that plugins are given."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote_to_bytes
from uuid import uuid4

from tenancy_core.context import Binding, binding
from tenancy_core.contract import Connection
from tenancy_core.tenant import Placement, Tenant, TenantStatus

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from tenancy_core.contract import AuditEvent

__all__ = [
    "FakeClock",
    "RecordingAuditSink",
    "RecordingObserver",
    "current_as",
    "make_connection",
    "make_tenant",
]


class FakeClock:
    """Seconds that pass when a test says so; give it where a ``clock`` is asked for.

    Args:
        now: What it shows at first.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return what it shows."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let seconds pass.

        Raises:
            ValueError: They are negative; the clocks that this one stands for never go back.
        """
        if seconds < 0:
            raise ValueError("A clock of this kind does not go back.")
        self.now += seconds


def make_connection(
    path: str = "/",
    *,
    headers: Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]] = (),
    host: str | None = "localhost",
    client: tuple[str, int] | None = ("127.0.0.1", 50000),
    kind: str = "http",
    method: str = "GET",
    root_path: str = "",
) -> Connection:
    """Make a connection as an ASGI server hands it to an application.

    Args:
        path: As the client sends it: percent-encoded, with a query if there is one.
        headers: By name, or as pairs where one comes twice. Text is sent as UTF-8.
        host: The header ``Host``; None leaves it out, as HTTP/1.0 may.
        client: Address and port of the peer; None for a Unix socket.
        kind: ``http`` or ``websocket``.
        method: Of an HTTP request.
        root_path: Where the application is mounted.
    """
    mapped = cast("Mapping[str, str | bytes]", headers) if isinstance(headers, Mapping) else None
    pairs = cast("Iterable[tuple[str, str | bytes]]", headers if mapped is None else mapped.items())
    sent = [(name.lower().encode("latin-1"), _bytes(value)) for name, value in pairs]
    if host is not None:
        sent.insert(0, (b"host", _bytes(host)))
    raw_path, _, query = _bytes(path).partition(b"?")
    scope: dict[str, Any] = {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "http" if kind == "http" else "ws",
        "server": ("127.0.0.1", 8000),
        "client": client,
        "root_path": root_path,
        "path": unquote_to_bytes(raw_path).decode("utf-8", "surrogateescape"),
        "raw_path": raw_path,
        "query_string": query,
        "headers": sent,
        "state": {},
    }
    if kind == "http":
        scope["method"] = method
    else:
        scope["subprotocols"] = []
    return Connection(scope)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")


def make_tenant(identifier: str = "acme", **fields: Any) -> Tenant:
    """Make an active tenant, with an id and a place of its own.

    Args:
        identifier: What the outside world calls it.
        **fields: Other fields of :class:`~tenancy_core.Tenant`.
    """
    from tenancy_core.sql.naming import derive_name  # noqa: PLC0415 - brings SQLAlchemy

    tenant_id = fields.pop("id", None) or uuid4()
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "name": identifier.title(),
        "status": TenantStatus.ACTIVE,
        "created_at": now,
        "updated_at": now,
        "isolation": "database",
        "placement": Placement(name=derive_name("tenant_", identifier, tenant_id)),
        **fields,
    }
    return Tenant(id=tenant_id, identifier=identifier, **values)


@contextmanager
def current_as(tenant: Tenant) -> Generator[Tenant, None, None]:
    """Make a tenant the current one, for code that asks for it and opens no session.

    There is no ``Tenancy`` behind it: ``tenancy.session()`` refuses it. With a ``Tenancy`` at
    hand, ``tenancy.scope(tenant)`` is the better way.
    """
    token = binding.set(Binding(tenant, None))
    try:
        yield tenant
    finally:
        binding.reset(token)


class RecordingObserver:
    """Implements :class:`~tenancy_core.contract.Observer`; remembers what it was told.

    Attributes:
        refusals: Code, status and tenant of each refused request.
        changes: Tenant and action of each change.
    """

    def __init__(self) -> None:
        self.refusals: list[tuple[str, int, Tenant | None]] = []
        self.changes: list[tuple[Tenant, str]] = []

    def refused(self, code: str, status: int, tenant: Tenant | None, /) -> None:
        """See the contract."""
        self.refusals.append((code, status, tenant))

    def changed(self, tenant: Tenant, action: str, /) -> None:
        """See the contract."""
        self.changes.append((tenant, action))


class RecordingAuditSink:
    """Implements :class:`~tenancy_core.contract.AuditSink`; keeps the events.

    Attributes:
        events: In the order in which they came.
    """

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []

    async def write(self, event: AuditEvent, /) -> None:
        """See the contract."""
        self.events.append(event)
