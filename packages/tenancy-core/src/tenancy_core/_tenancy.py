"""``Tenancy``: the built object that an application holds."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, ParamSpec, Self, TypeVar
from uuid import UUID
from weakref import WeakSet

import anyio
import anyio.to_thread

from tenancy_core._background import BackgroundTasks, leave_to_parent, on_asyncio, own_loop
from tenancy_core._build import Given, Parts, build, require_arguments
from tenancy_core._fork import in_child, lineage, put_aside
from tenancy_core._plugins import load_plugins
from tenancy_core.checks import run_checks
from tenancy_core.context import Binding, binding, require_binding
from tenancy_core.errors import (
    BackendUnavailable,
    ConfigurationError,
    NoCurrentTenant,
    TenancyError,
    TenantContextLocked,
    TenantInactive,
    TenantNotFound,
)
from tenancy_core.tenant import Tenant, TenantStatus, not_found, validate_identifier

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    from tenancy_core.audit import AuditTrail
    from tenancy_core.config import TenancyConfig
    from tenancy_core.contract import (
        AuditSink,
        CacheBackend,
        Finding,
        InvalidationBus,
        IsolationStrategy,
        Membership,
        Observer,
        RateLimiter,
        Resolver,
        TenantStore,
    )
    from tenancy_core.tenants import TenantService

__all__ = ["Tenancy"]

P = ParamSpec("P")
T = TypeVar("T")

_ACTIVE = frozenset({TenantStatus.ACTIVE})

_in_use: Final[WeakSet[Tenancy]] = WeakSet()
"""Those that are being opened, open, or being closed."""


class Tenancy:
    """Multi-tenancy for one service.

    Build it once, at import; open it with ``async with`` or an application's lifespan. It can be
    opened again after it was closed.

    Args:
        config: The settings.
        metadata: The tables that every tenant has; created when a tenant is provisioned.
        resolver: Used instead of, or under the name ``custom`` within, ``resolution_strategy``.
        membership: Asked for every request whether the caller may act for the tenant.
        isolation: Used instead of ``isolation_strategy``.
        store: Used instead of the tenant store in the control database.
        cache_backend: Used instead of ``cache_backend``.
        invalidation_bus: Used instead of ``invalidation_bus``.
        rate_limiter: Used instead of ``rate_limiter``.
        observers: Told what happens, beside those that packages bring.
        audit_sinks: Fed with audit events, beside those that packages bring.
        clock: Seconds, never going back; for what this process caches and counts on its own.

    Attributes:
        is_open: Whether it is open.

    Raises:
        ConfigurationError: The settings, the packages or the objects do not fit together.
    """

    def __init__(
        self,
        config: TenancyConfig,
        *,
        metadata: MetaData | None = None,
        resolver: Resolver | None = None,
        membership: Membership | None = None,
        isolation: IsolationStrategy | None = None,
        store: TenantStore | None = None,
        cache_backend: CacheBackend | None = None,
        invalidation_bus: InvalidationBus | None = None,
        rate_limiter: RateLimiter | None = None,
        observers: Sequence[Observer] = (),
        audit_sinks: Sequence[AuditSink] = (),
        clock: Callable[[], float] = monotonic,
    ) -> None:
        require_arguments(config, metadata, membership)
        self.config = config
        self.membership = membership
        self.clock = clock
        self.is_open = False
        self._open: AsyncExitStack | None = None
        self._given = Given(
            resolver=resolver,
            isolation=isolation,
            store=store,
            cache_backend=cache_backend,
            invalidation_bus=invalidation_bus,
            rate_limiter=rate_limiter,
            observers=tuple(observers),
            audit_sinks=tuple(audit_sinks),
            metadata=metadata,
            clock=clock,
        )
        if config.log_level is not None:
            logging.getLogger("tenancy").setLevel(config.log_level)
        self._registry = load_plugins(blocked=config.plugins_blocked)
        self._built = build(config, self._given, self._registry, self)
        self._fresh = True
        self._watchers: dict[UUID, set[Callable[[], Coroutine[Any, Any, None]]]] = {}
        self._loop: AbstractEventLoop | None = None
        self._parents = False

    def __repr__(self) -> str:
        state = "open" if self._open is not None else "closed"
        return f"<Tenancy {self.config.isolation_name} on {self.config.dialect}, {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A Tenancy holds secrets and connections and is not pickled; make one in each process, "
            "for instance by importing the module that does."
        )

    # -- opening and closing -------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._open is not None:
            raise ConfigurationError("This Tenancy is open already; open it once per process.")
        if self._parents:
            self._require_own_parts()
        self._loop = own_loop()
        _in_use.add(self)
        try:
            await self._enter()
        except BaseException:
            _in_use.discard(self)
            raise
        self.is_open = True
        self._parents = False
        return self

    async def _enter(self) -> None:
        if not self._fresh:
            self._built = build(self.config, self._given, self._registry, self)
        self._fresh = False
        parts = self._built
        async with AsyncExitStack() as stack:
            for resource in parts.resources:
                await stack.enter_async_context(resource)
            await parts.follower.start()
            parts.directory.on_change(self._revoke)
            shared = not getattr(parts.store, "in_process", False)
            stack.push_async_callback(parts.audit_worker.close)
            background = await stack.enter_async_context(BackgroundTasks())
            if shared:
                background.start(parts.follower.run(), name="change-follower")
            if parts.listener is not None and on_asyncio():
                background.start(parts.listener.run(), name="invalidation")
            # A store in memory works on every event loop, and tasks are started on asyncio only.
            if (parts.audit.enabled or parts.audit.outbox.sinks) and (shared or on_asyncio()):
                background.start(parts.audit_worker.run(), name="audit")
            self._open = stack.pop_all()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stack, self._open = self._open, None
        self.is_open = False
        # The middleware looks into this cache directly; nothing of a closed Tenancy is believed.
        self._built.directory.forget_all()
        if stack is not None:
            await stack.__aexit__(kind, error, trace)
        self._loop = None
        _in_use.discard(self)

    def _leave_to_parent(self) -> Iterator[object]:
        """Be as if never opened: what is open is the parent process's."""
        left = (self._built, self._open, self._watchers, self._loop)
        self._open = None
        self.is_open = False
        self._fresh = False
        self._parents = True
        self._built.directory.forget_all()
        self._watchers = {}
        self._loop = None
        yield from left
        if (loop := left[-1]) is not None and not loop.is_closed():
            yield from leave_to_parent(loop)

    def _require_own_parts(self) -> None:
        """Refuse objects that the parent process opened: nobody here knows how to make another."""
        for argument, part in self._given.objects():
            if any(part is resource for resource in self._built.resources):
                raise ConfigurationError(
                    f"What is passed to Tenancy({argument}=…), a {type(part).__name__}, was opened "
                    "before this process was forked, and what it has open is the other process's. "
                    "Close the Tenancy before the fork, or make both in the process that uses them."
                )

    def lifespan(self, app: object = None, /) -> AbstractAsyncContextManager[None]:  # noqa: ARG002 - what ASGI frameworks pass
        """Return a lifespan for an ASGI framework: ``Starlette(lifespan=tenancy.lifespan)``."""
        return _Lifespan(self)

    @property
    def parts(self) -> Parts:
        """The objects it is made of.

        Raises:
            ConfigurationError: It is not open.
        """
        if self._open is None:
            if self._parents:
                raise ConfigurationError(
                    "This Tenancy was opened in the process that this one was forked from, and "
                    "its connections are that process's. Open it in each worker: run the lifespan "
                    "there, or write `async with tenancy:` after the fork."
                )
            raise ConfigurationError(
                "This Tenancy is not open. In an application run its lifespan (a test client does "
                "so in a `with` block); elsewhere write `async with tenancy:`."
            )
        return self._built

    @property
    def tenants(self) -> TenantService:
        """The control plane."""
        return self.parts.tenants

    @property
    def audit(self) -> AuditTrail:
        """The audit logs: reading, verifying, and the application's own events."""
        return self.parts.trail

    @property
    def resolver(self) -> Resolver:
        """The resolver, or the chain of them. Integrations describe it in their documents."""
        return self._built.resolver

    @property
    def observed(self) -> bool:
        """Whether any observer listens."""
        return self._built.observed

    @property
    def proves_membership(self) -> bool:
        """Whether the application decides who may act for a tenant."""
        return self.membership is not None

    # -- being a tenant ------------------------------------------------------------------------

    def scope(
        self,
        tenant: str | UUID | Tenant,
        /,
        *,
        switch: bool = False,
        reason: str | None = None,
        statuses: Collection[TenantStatus] = _ACTIVE,
    ) -> AbstractAsyncContextManager[Tenant]:
        """Make a tenant current for a block: in jobs, scripts, tests and shells.

        Args:
            tenant: Its identifier, its id or its record.
            switch: Allow it inside another tenant's scope; this is audited.
            reason: Why, for the audit log; required with ``switch``.
            statuses: Which tenants are served; by default active ones only.

        Raises:
            TenantNotFound: On entering: there is no such tenant.
            TenantInactive: On entering: its status is not among ``statuses``.
            TenantContextLocked: On entering: another tenant is current, and ``switch`` is false.
            ValueError: ``switch`` without a reason.
        """
        if switch and not reason:
            raise ValueError("scope(switch=True) needs a reason; it is written to the audit log.")
        return _Scope(self, tenant, switch=switch, reason=reason, statuses=frozenset(statuses))

    def session(self, *, read_only: bool = False) -> AbstractAsyncContextManager[AsyncSession]:
        """Open a database session as the current tenant: commits on leaving, or rolls back.

        Args:
            read_only: The database refuses writes, and readers need not wait for a writer.

        Raises:
            NoCurrentTenant: There is no tenant here.
            BackendUnavailable: On entering: the tenant's database cannot be used now.
        """
        return _Opening(self.parts.isolation.session, self._current(), read_only=read_only)

    def connection(
        self, *, read_only: bool = False
    ) -> AbstractAsyncContextManager[AsyncConnection]:
        """As :meth:`session`, for code that works with an ``AsyncConnection``."""
        return _Opening(self.parts.isolation.connection, self._current(), read_only=read_only)

    def _current(self) -> Tenant:
        bound = require_binding()
        if bound.owner is not self:
            raise NoCurrentTenant("The current tenant is one of another Tenancy object.")
        return bound.tenant

    async def run_in_executor(
        self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a blocking function in a thread, with the current tenant.

        A plain ``loop.run_in_executor`` copies no context: there ``require_tenant`` raises.
        """
        return await anyio.to_thread.run_sync(
            lambda: function(*args, **kwargs), abandon_on_cancel=True
        )

    # -- watching ------------------------------------------------------------------------------

    def watch(
        self, tenant: Tenant, revoked: Callable[[], Coroutine[Any, Any, None]]
    ) -> Callable[[], None]:
        """Call ``revoked`` once this process learns that the tenant is no longer served.

        Args:
            tenant: Whom to watch.
            revoked: Takes a bounded time and does not raise.

        Returns:
            A function that ends the watch.
        """
        watchers = self._watchers.setdefault(tenant.id, set())
        watchers.add(revoked)

        def end() -> None:
            watchers.discard(revoked)
            if not watchers and self._watchers.get(tenant.id) is watchers:
                del self._watchers[tenant.id]

        return end

    async def _revoke(self, tenant_id: UUID | None) -> None:
        if tenant_id is None:
            for watched in tuple(self._watchers):
                await self._revoke(watched)
            return
        watchers = self._watchers.get(tenant_id)
        if not watchers:
            return
        bound = await self._built.directory.find_by_id(tenant_id)
        if bound is None or not bound.tenant.active:
            async with anyio.create_task_group() as group:
                for revoked in tuple(watchers):
                    group.start_soon(revoked)

    # -- checking ------------------------------------------------------------------------------

    async def check(self) -> list[Finding]:
        """Run the production checklist of all installed packages; the worst come first.

        Raises:
            ConfigurationError: It is not open.
        """
        _ = self.parts
        return await run_checks(self, [check for check, _ in self._registry.checks])

    # -- what a scope needs --------------------------------------------------------------------

    async def find(self, tenant: str | UUID | Tenant, /) -> Binding:
        """Return the binding of a tenant in whatever status.

        Raises:
            TenantNotFound: There is none.
            InvalidIdentifier: That is no identifier.
        """
        directory = self.parts.directory
        if isinstance(tenant, str):
            found = await directory.find(validate_identifier(tenant))
        else:
            found = await directory.find_by_id(tenant if isinstance(tenant, UUID) else tenant.id)
        if found is None:
            name = tenant.identifier if isinstance(tenant, Tenant) else tenant
            raise TenantNotFound(not_found(name))
        return found


@in_child
def _leave_to_parent() -> Iterator[object]:
    for tenancy in tuple(_in_use):
        yield from tenancy._leave_to_parent()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    _in_use.clear()


class _Opening(Generic[T]):
    """A session that an isolation strategy opens: what fails on the way is not the caller's error.

    The strategy may be anybody's, and whatever it raises must not look like a fault of the code in
    the block; that one's errors pass through as they are.
    """

    __slots__ = ("_context", "_generation", "_open", "_read_only", "_tenant")

    _context: AbstractAsyncContextManager[T]

    def __init__(
        self,
        open_: Callable[..., AbstractAsyncContextManager[T]],
        tenant: Tenant,
        *,
        read_only: bool,
    ) -> None:
        self._open = open_
        self._tenant = tenant
        self._read_only = read_only

    async def __aenter__(self) -> T:
        try:
            self._context = self._open(self._tenant, read_only=self._read_only)
            self._generation = lineage.generation
            return await self._context.__aenter__()
        except TenancyError:
            raise
        except Exception as error:
            raise BackendUnavailable(
                f"The isolation strategy failed ({type(error).__name__})."
            ) from error

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        if self._generation != lineage.generation:
            # A child is on its way out through its parent's block; the parent ends the session.
            put_aside(self._context)
            return None
        return await self._context.__aexit__(kind, error, trace)


class _Lifespan:
    __slots__ = ("_tenancy",)

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy

    async def __aenter__(self) -> None:
        await self._tenancy.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._tenancy.__aexit__(kind, error, trace)


class _Scope:
    """A hand-written context manager: the variable is set in the caller's own context."""

    __slots__ = ("_entered", "_reason", "_statuses", "_switch", "_tenancy", "_wanted")

    def __init__(
        self,
        tenancy: Tenancy,
        wanted: str | UUID | Tenant,
        *,
        switch: bool,
        reason: str | None,
        statuses: frozenset[TenantStatus],
    ) -> None:
        self._tenancy = tenancy
        self._wanted = wanted
        self._switch = switch
        self._reason = reason
        self._statuses = statuses
        self._entered = False

    async def __aenter__(self) -> Tenant:
        if self._entered:
            raise RuntimeError("A scope is entered once; call tenancy.scope() again.")
        self._entered = True
        found = await self._tenancy.find(self._wanted)
        tenant = found.tenant
        if tenant.status not in self._statuses:
            raise TenantInactive(f"Tenant {tenant.identifier!r} is {tenant.status}.")
        outer = binding.get()
        if outer is not None and outer.generation != lineage.generation:
            outer = None
        if outer is not None and (outer.tenant.id != tenant.id or outer.owner is not found.owner):
            if not self._switch:
                raise TenantContextLocked(
                    f"Tenant {outer.tenant.identifier!r} is current; the scope of "
                    f"{tenant.identifier!r} inside it needs scope(…, switch=True, reason='…')."
                )
            await self._audit_switch(outer.tenant, tenant)
        elif outer is not None and outer.tenant.version == tenant.version:
            return outer.tenant
        binding.set(Binding(tenant, found.owner, scope=self, outer=outer))
        return tenant

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Nothing is restored where this scope is not current: it may be left in another context
        # than it was entered in (a generator that the event loop closes).
        bound = binding.get()
        if bound is not None:
            binding.set(bound.without(self))

    async def _audit_switch(self, outer: Tenant, tenant: Tenant) -> None:
        await self._tenancy.parts.audit.record(
            tenant.id, "scope.switched", reason=self._reason, details={"from": str(outer.id)}
        )
