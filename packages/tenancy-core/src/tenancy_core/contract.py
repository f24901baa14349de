"""The contract between the core and everybody else: Protocols and the values they exchange.

A plugin implements one of the Protocols; it need not inherit from it. SQLAlchemy appears in
annotations only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from tenancy_core.errors import InvalidIdentifier

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Mapping,
        MutableMapping,
        Sequence,
    )
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    from tenancy_core.tenant import Tenant, TenantStatus

__all__ = [
    "AuditEvent",
    "AuditHead",
    "AuditSink",
    "CacheBackend",
    "Change",
    "Check",
    "Command",
    "Connection",
    "Finding",
    "InvalidationBus",
    "IsolationStrategy",
    "JournalStep",
    "Membership",
    "Observer",
    "OpenAPISource",
    "PlacesTenants",
    "RateLimit",
    "RateLimitDecision",
    "RateLimiter",
    "RefusalCount",
    "Reservation",
    "Resolver",
    "RotatesCredentials",
    "Severity",
    "StoreTransaction",
    "TenantClaim",
    "TenantPage",
    "TenantStore",
]


# -- resolution --------------------------------------------------------------------------------


class Connection:
    """A read-only view of an ASGI connection, cheap to make: it decodes only what is asked for.

    Attributes:
        scope: The ASGI scope. Resolvers read it and never write to it.
    """

    __slots__ = ("scope",)

    def __init__(self, scope: MutableMapping[str, Any]) -> None:
        self.scope = scope

    @property
    def kind(self) -> str:
        """``http`` or ``websocket``."""
        kind: str = self.scope["type"]
        return kind

    @property
    def client_address(self) -> str | None:
        """Address of the peer (not of a forwarded client), or None for a Unix socket."""
        client = self.scope.get("client")
        return client[0] if client else None

    @property
    def raw_path(self) -> bytes:
        """The percent-encoded path below the application's ``root_path``, without the query.

        Servers disagree on whether ``raw_path`` includes ``root_path``: it is taken off where it
        is a whole-segment prefix.
        """
        raw: bytes | None = self.scope.get("raw_path")
        if raw is None:
            # The path is decoded already: a "%" in it is one that the client had escaped, and a
            # lone surrogate is a byte that was no UTF-8.
            quoted = quote(self.scope["path"], safe="/:@!$&'()*+,;=~-._", errors="surrogatepass")
            raw = quoted.encode("ascii")
        root = self.scope.get("root_path", "").rstrip("/").encode()
        if root and raw.startswith(root) and raw[len(root) : len(root) + 1] in (b"", b"/"):
            raw = raw[len(root) :] or b"/"
        return raw.partition(b"?")[0]

    def headers(self, name: bytes) -> list[bytes]:
        """Return all values of a header, in order, stripped of spaces and tabs.

        Args:
            name: Lower-case name, as in the ASGI scope.
        """
        return [value.strip(b" \t") for key, value in self.scope["headers"] if key == name]

    def header(self, name: bytes) -> str | None:
        """Return the one value of a header, or None if it is absent.

        Args:
            name: Lower-case name, as in the ASGI scope.

        Raises:
            InvalidIdentifier: The header is there twice, or is not ASCII. Which one an
                application would believe differs between frameworks, so neither is believed.
        """
        values = self.headers(name)
        if not values:
            return None
        if len(values) > 1:
            raise InvalidIdentifier("A header that names the tenant is there more than once.")
        try:
            return values[0].decode("ascii")
        except UnicodeDecodeError:
            raise InvalidIdentifier("A header that names the tenant is not ASCII.") from None


@dataclass(frozen=True, slots=True)
class TenantClaim:
    """What a resolver found.

    Attributes:
        identifier: The tenant's identifier, as the request says it.
        source: Where it came from: ``header``, ``subdomain``, ``path``, ``jwt`` …
        verified: Whether the source proves it (a signed token), or merely says so (a header).
    """

    identifier: str
    source: str
    verified: bool = False


@dataclass(frozen=True, slots=True)
class OpenAPISource:
    """How a resolver's source looks in an OpenAPI document; set one of the three.

    A resolver that has an attribute ``openapi`` of this type is described in the document of the
    application.

    Attributes:
        parameter: A parameter object, for a header or a query parameter. For a segment of the
            path, its ``name`` is the prefix in front of that segment: each route names it itself.
        security: The name and the object of a security scheme, for a token.
        server: A server object, for a host.
    """

    parameter: Mapping[str, Any] | None = None
    security: tuple[str, Mapping[str, Any]] | None = None
    server: Mapping[str, Any] | None = None


class Resolver(Protocol):
    """Says which tenant a connection is for."""

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        """Return the claim, or None if this source says nothing.

        Raises:
            RequestRefused: The source says something malformed, ambiguous or unproven.
        """
        ...


class Membership(Protocol):
    """The application's own answer to: may this connection act for this tenant?"""

    async def __call__(self, connection: Connection, tenant: Tenant, claim: TenantClaim, /) -> bool:
        """Return whether the connection belongs to a member of the tenant."""
        ...


# -- isolation ---------------------------------------------------------------------------------


class IsolationStrategy(Protocol):
    """Hands out database sessions that reach one tenant's data and no other's."""

    def session(
        self, tenant: Tenant, /, *, read_only: bool = False
    ) -> AbstractAsyncContextManager[AsyncSession]:
        """Open one transaction as this tenant: commit on success, roll back on an exception."""
        ...

    def connection(
        self, tenant: Tenant, /, *, read_only: bool = False
    ) -> AbstractAsyncContextManager[AsyncConnection]:
        """As :meth:`session`, one level down."""
        ...

    async def provision(self, tenant: Tenant, /) -> None:
        """Make the place for the tenant's data. Idempotent: a second call completes the first."""
        ...

    async def exists(self, tenant: Tenant, /) -> bool:
        """Whether the place is there and complete."""
        ...

    async def destroy(self, tenant: Tenant, /) -> None:
        """Remove the place and all data in it. Idempotent."""
        ...


class PlacesTenants(Protocol):
    """What an isolation strategy may do besides: say where a new tenant will be."""

    def place(self, tenant: Tenant, /, *, server: str | None) -> Tenant:
        """Return the record of a new tenant with its ``isolation`` and its ``placement``.

        Called once, before the record is written, and never again: what it says stays.

        Args:
            tenant: The record, with the strategy's own name and a derived name for its place.
            server: Alias of the server that the caller wishes for; None leaves it to the strategy.

        Raises:
            ValueError: There is no such server.
        """
        ...


class RotatesCredentials(Protocol):
    """What an isolation strategy may do besides: give a tenant a new credential of its own."""

    async def rotate_credentials(self, tenant: Tenant, /) -> None:
        """Replace it. Idempotent; no session fails, neither here nor in other processes."""
        ...


# -- telling other processes -------------------------------------------------------------------


class InvalidationBus(Protocol):
    """Tells all processes at once what they have to forget.

    It may lose messages: every process polls the store as well, and does so whenever its
    subscription begins anew. Messages carry no authority: whoever gets one forgets what is cached,
    and asks the store. They are printable ASCII, at most 4096 characters.
    """

    async def publish(self, message: str, /) -> None:
        """Tell every subscriber, in every process."""
        ...

    def subscribe(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Iterate over what is published from the moment on in which it is entered.

        The iteration raises where messages may have been lost, and soon after the link broke.

        Raises:
            ConfigurationError: On entering: it cannot work with these settings, now or later.
                After any other exception the caller tries again.
        """
        ...


# -- cache -------------------------------------------------------------------------------------


class CacheBackend(InvalidationBus, Protocol):
    """A cache that several processes may share, and a bus between them.

    Keys are ASCII. Values are opaque bytes: what a backend returns is checked by the caller.
    """

    async def get(self, key: str, /) -> bytes | None:
        """Return the value, or None if it is absent or has expired."""
        ...

    async def set(self, key: str, value: bytes, /, *, ttl: float) -> None:
        """Keep the value for at most ``ttl`` seconds."""
        ...

    async def delete(self, key: str, /) -> None:
        """Forget the value. No error if it is absent."""
        ...

    async def generation(self, *, bump: bool = False) -> int:
        """Return the generation that is part of every key; ``bump`` makes all old keys unread."""
        ...

    async def publish(self, message: str, /) -> None:
        """As :meth:`InvalidationBus.publish`."""
        ...

    def subscribe(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """As :meth:`InvalidationBus.subscribe`."""
        ...


# -- limits ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most ``count`` accepted hits in any half-open window of ``window`` seconds.

    ``burst`` hits may come at once; the sustained rate is ``(count - burst) / window``. That is
    the price of never exceeding ``count`` in *any* window, wherever it starts.

    Attributes:
        count: N, at least 1.
        window: W, in seconds, above 0 and finite.
        burst: B, from 1 to N - 1 (1 where N is 1); by default N // 5, at least 1.
    """

    count: int
    window: float = 60.0
    burst: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("A rate limit's count is at least 1.")
        if not 0 < self.window < inf:
            raise ValueError("A rate limit's window is above 0 seconds, and finite.")
        if self.burst == 0:
            object.__setattr__(self, "burst", max(1, self.count // 5))
        if not 1 <= self.burst <= max(1, self.count - 1):
            raise ValueError("A rate limit's burst is from 1 to count - 1.")

    @property
    def interval(self) -> float:
        """Emission interval T = W / (N - B), in seconds."""
        return self.window / max(1, self.count - self.burst)


@dataclass(frozen=True, slots=True)
class RateLimitDecision:
    """The answer to a hit.

    Attributes:
        allowed: Whether the hit is accepted.
        limit: The limit that was applied.
        remaining: Hits that would be accepted right now.
        retry_after: Seconds until a hit of the same cost is accepted; 0 when allowed.
        reset_after: Seconds until the whole burst is free again.
    """

    allowed: bool
    limit: RateLimit
    remaining: int
    retry_after: float
    reset_after: float


class RateLimiter(Protocol):
    """Counts hits per key, exactly."""

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Count ``cost`` hits under ``key``, all or none.

        Raises:
            ValueError: ``cost`` is below 1 or above the limit's burst: it could never be accepted.
        """
        ...


# -- the store ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TenantPage:
    """One page of tenants, in the order of their identifiers.

    Attributes:
        items: The tenants of this page.
        next: Pass it as ``after`` for the next page; None on the last one.
    """

    items: tuple[Tenant, ...]
    next: str | None = None


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Something that was done to or as a tenant.

    Whatever names a person or the customer is in ``actor``, ``reason`` and ``personal``: erasing a
    tenant removes these three from its log, and the log stays verifiable.

    Attributes:
        action: Dotted name, such as ``tenant.suspended``.
        tenant_id: Whom it concerns.
        occurred_at: Aware, UTC.
        actor: Who did it, as the application names people; None where nobody was named.
        reason: Why, in the actor's words.
        details: JSON values, without personal data and secrets.
        personal: JSON values that name somebody, such as an identifier; not printed.
        sequence: Position in the tenant's own, gap-free log, from 1; 0 until it is stored.
        salt: 16 random bytes that go into ``digest``; None once the personal fields are erased.
        digest: SHA-256 of the salt and the personal fields; 32 bytes once it is stored.
        seal: Keyed hash of this event and of the seal before it: a link of the chain.
    """

    action: str
    tenant_id: UUID
    occurred_at: datetime
    actor: str | None = None
    reason: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    personal: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    sequence: int = 0
    salt: bytes | None = field(default=None, repr=False)
    digest: bytes = field(default=b"", repr=False)
    seal: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class AuditHead:
    """The end of a tenant's log: what the next event is chained to.

    Attributes:
        sequence: Of the newest event; 0 where there is none.
        seal: Of the newest event; empty where there is none.
    """

    sequence: int = 0
    seal: bytes = b""


@dataclass(frozen=True, slots=True)
class RefusalCount:
    """How often requests were refused within one minute.

    Attributes:
        tenant_id: Whose requests; None where no tenant was resolved.
        code: Of the error they were answered with.
        minute: Start of the minute, aware, UTC.
        count: At least 1.
    """

    tenant_id: UUID | None
    code: str
    minute: datetime
    count: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """An identifier that was given up, and that nobody else has until it is released.

    Other processes, tokens and messages may still name its tenant by it: whoever took it would be
    shown that tenant's data, or show it theirs.

    Attributes:
        tenant_id: Who had it, and may take it back; None for one that was erased.
        since: When it was given up, aware, UTC.
    """

    tenant_id: UUID | None
    since: datetime


@dataclass(frozen=True, slots=True)
class Change:
    """An entry of the change sequence that every process follows.

    Attributes:
        sequence: Increases by one with every change, in commit order.
        tenant_id: Whose cached record is out of date.
    """

    sequence: int
    tenant_id: UUID


@dataclass(frozen=True, slots=True)
class JournalStep:
    """A finished step of an operation that can be killed and resumed.

    Attributes:
        operation: For instance ``create``.
        step: For instance ``provisioned``.
    """

    operation: str
    step: str


class StoreTransaction(Protocol):
    """Everything that is written together or not at all."""

    async def create(self, tenant: Tenant, /) -> None:
        """Insert a tenant.

        Raises:
            TenantExists: The identifier or the id is taken.
            IdentifierCollision: The placement is another tenant's.
        """
        ...

    async def update(self, tenant: Tenant, /, *, expected_version: int) -> None:
        """Replace the record whose version is ``expected_version``.

        Raises:
            VersionConflict: Somebody else changed it first.
        """
        ...

    async def delete(self, tenant_id: UUID, /) -> None:
        """Remove the record and its secrets. No error if it is absent."""
        ...

    async def get(self, tenant_id: UUID, /) -> Tenant | None:
        """Return a record as this transaction sees it, changes of its own included.

        Behind :meth:`audit_head` it holds what everybody has committed who wrote to that log
        before.
        """
        ...

    async def count(self) -> int:
        """Return how many tenants there are that are not erased.

        After :meth:`enqueue` in the same transaction the number holds until its end: whoever
        creates a tenant has enqueued a change, and waits.
        """
        ...

    async def reserve(self, digest: str, reservation: Reservation, /) -> None:
        """Keep an identifier from others; replaces an earlier reservation.

        Args:
            digest: Of the identifier, as 64 hexadecimal digits.
            reservation: By whom, and since when.
        """
        ...

    async def reserved(self, digest: str, /) -> Reservation | None:
        """Return the reservation of an identifier."""
        ...

    async def release(self, digest: str, /) -> None:
        """Forget the reservation of an identifier. No error if there is none."""
        ...

    async def get_secret(self, tenant_id: UUID, name: str, /) -> bytes | None:
        """Return a stored secret as this transaction sees it, changes of its own included.

        Behind :meth:`update` it is what everybody has committed who changed that tenant before.
        """
        ...

    async def put_secret(self, tenant_id: UUID, name: str, value: bytes, /) -> None:
        """Keep a secret, encrypted already; replaces the one that has this name."""
        ...

    async def delete_secret(self, tenant_id: UUID, name: str, /) -> None:
        """Forget a secret. No error if it is absent."""
        ...

    async def delete_secrets(self, tenant_id: UUID, /) -> None:
        """Forget all secrets of a tenant."""
        ...

    async def audit_head(self, tenant_id: UUID, /) -> AuditHead:
        """Return the end of a tenant's log, which nobody else can move until this one ends.

        Raises:
            TenantNotFound: The tenant was never created.
        """
        ...

    async def append_audit(self, event: AuditEvent, /) -> None:
        """Append an event whose ``sequence`` is the head's plus one, and move the head.

        Raises:
            ValueError: The sequence is another.
            TenantNotFound: The tenant was never created.
        """
        ...

    async def redact_audit(self, tenant_id: UUID, /) -> None:
        """Remove ``actor``, ``reason``, ``personal`` and ``salt`` from a tenant's whole log."""
        ...

    async def enqueue_delivery(self, event: AuditEvent, /) -> None:
        """Note that an appended event has to reach the audit sinks after the commit."""
        ...

    async def delivered(self, tenant_id: UUID, sequence: int, /) -> None:
        """Note that the sinks have an event. No error if that is known."""
        ...

    async def count_refusals(self, counts: Sequence[RefusalCount], /) -> None:
        """Add to what is counted for the same tenant, code and minute."""
        ...

    async def journal(self, tenant_id: UUID, step: JournalStep, /) -> None:
        """Note that a step is finished. Idempotent."""
        ...

    async def journaled(self, tenant_id: UUID, operation: str, /) -> Sequence[str]:
        """Return the steps of an operation that are finished, oldest first."""
        ...

    async def close_journal(self, tenant_id: UUID, operation: str, /) -> None:
        """Forget the steps of an operation, so that it can begin anew."""
        ...

    async def enqueue(self, tenant_id: UUID, /) -> int:
        """Put a change of this tenant into the change sequence; returns its number."""
        ...


class TenantStore(Protocol):
    """The durable truth about tenants."""

    async def get_by_identifier(self, identifier: str, /) -> Tenant | None:
        """Return the tenant that has this identifier and is not erased."""
        ...

    async def get(self, tenant_id: UUID, /) -> Tenant | None:
        """Return the tenant with this id, whatever its status."""
        ...

    async def list(
        self,
        *,
        status: TenantStatus | None = None,
        plan: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> TenantPage:
        """Return a page in the order of identifiers, by keyset."""
        ...

    async def get_secret(self, tenant_id: UUID, name: str, /) -> bytes | None:
        """Return a stored (encrypted) secret of a tenant."""
        ...

    async def secret_names(self, tenant_id: UUID, /) -> Sequence[str]:
        """Return the names of a tenant's secrets, sorted."""
        ...

    async def begun(self, operation: str, /) -> Sequence[UUID]:
        """Return the tenants for which the journal has a step of this operation."""
        ...

    async def instance_key(self) -> bytes:
        """Return 32 random bytes, made when the store was, the same for every process."""
        ...

    async def audit(
        self, tenant_id: UUID, /, *, after: int = 0, limit: int = 100
    ) -> Sequence[AuditEvent]:
        """Return a tenant's log in order, from the event behind sequence ``after``."""
        ...

    async def audit_head(self, tenant_id: UUID, /) -> AuditHead:
        """Return the end of a tenant's log, as it is committed."""
        ...

    async def undelivered(self, *, before: datetime, limit: int = 100) -> Sequence[AuditEvent]:
        """Return events from before a time that no audit sink has confirmed, oldest first."""
        ...

    async def refusals(
        self, tenant_id: UUID | None = None, /, *, since: datetime, limit: int = 1000
    ) -> Sequence[RefusalCount]:
        """Return what was refused since a time, newest minute first.

        Args:
            tenant_id: Whose requests; None for those without a resolved tenant.
            since: Aware.
            limit: Most rows.
        """
        ...

    async def changes(self, *, after: int, limit: int = 1000) -> Sequence[Change]:
        """Return what changed behind the number ``after``, in order."""
        ...

    async def last_change(self) -> int:
        """Return the number of the newest change; 0 if there was none."""
        ...

    def transaction(self) -> AbstractAsyncContextManager[StoreTransaction]:
        """Open one transaction; it commits on leaving without an exception.

        Raises:
            BackendUnavailable: On leaving: nothing was committed.
            CommitUnknown: On leaving: the answer to the COMMIT was lost, and reading back what
                became of it failed too.
        """
        ...


# -- listeners ---------------------------------------------------------------------------------


class Observer(Protocol):
    """What metrics and tracing listen to. Isolated, timed, and never fatal to a request."""

    def refused(self, code: str, status: int, tenant: Tenant | None, /) -> None:
        """A request was refused. ``tenant`` is None unless it was resolved."""
        ...

    def changed(self, tenant: Tenant, action: str, /) -> None:
        """This process changed a tenant; the change is committed."""
        ...


class AuditSink(Protocol):
    """A secondary place for audit events. The store is the first; sinks are fed after commit.

    An event comes at least once: right after its commit, and again, perhaps from another process,
    until every sink took it. So a sink is asked for the same event several times, and is told
    events in another order than they happened. ``(tenant_id, sequence)`` says which event it is.
    """

    async def write(self, event: AuditEvent, /) -> None:
        """Keep the event, within five seconds; that it is there already is no error.

        An exception is logged, never undoes what was done, and makes the event come again.
        """
        ...


# -- checks and commands -----------------------------------------------------------------------


class Severity(StrEnum):
    """How bad a finding is: an ``error`` breaks the promise, a ``warning`` weakens it."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the production checklist found.

    Attributes:
        check: Name of the check.
        severity: See :class:`Severity`.
        message: What is wrong, without secrets.
        remedy: What to do.
    """

    check: str
    severity: Severity
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Check:
    """One item of the production checklist.

    Attributes:
        name: Dotted, starting with the distribution's short name: ``sqlite.root-writable``.
        title: What holds when it passes.
        run: Given the open ``Tenancy``, returns what it found; nothing means passed.
    """

    name: str
    title: str
    run: Callable[[Any], Awaitable[Sequence[Finding]]]


@dataclass(frozen=True, slots=True)
class Command:
    """A command that a plugin adds to the ``tenancy`` command line.

    Attributes:
        name: As typed.
        help: One line.
        run: Given the open ``Tenancy`` and the remaining arguments, returns the exit status.
    """

    name: str
    help: str
    run: Callable[[Any, Sequence[str]], Awaitable[int]]
