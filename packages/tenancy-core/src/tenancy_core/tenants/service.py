"""``TenantService``: what may be done to a tenant.

Every change is the record, its audit event and its entry in the change sequence in one
transaction; then caches forget, and listeners are told.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from tenancy_core.contract import JournalStep, RateLimit
from tenancy_core.errors import InvalidTransition, TenantExists, TenantNotFound, VersionConflict
from tenancy_core.sql.naming import derive_name
from tenancy_core.tenant import Placement, Tenant, TenantStatus, validate_identifier

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tenancy_core._directory import Directory
    from tenancy_core.audit import AuditLog
    from tenancy_core.config import TenancyConfig
    from tenancy_core.contract import IsolationStrategy, TenantPage, TenantStore
    from tenancy_core.observe import Observers

__all__ = ["TenantService"]

_log = logging.getLogger("tenancy")

_LIMITS: Final = frozenset({"rate_limit_per_minute", "rate_limit_burst"})
_UNFINISHED: Final = frozenset({TenantStatus.PROVISIONING, TenantStatus.FAILED})
_MOST_PER_PAGE: Final = 1000
_CONFLICT_TRIES: Final = 5


class TenantService:
    """Creates, finds, suspends and resumes tenants. Reached as ``tenancy.tenants``."""

    def __init__(
        self,
        *,
        config: TenancyConfig,
        store: TenantStore,
        isolation: IsolationStrategy,
        directory: Directory,
        audit: AuditLog,
        observers: Observers,
    ) -> None:
        self._config = config
        self._store = store
        self._isolation = isolation
        self._directory = directory
        self._audit = audit
        self._observers = observers

    # -- reading -------------------------------------------------------------------------------

    async def get(self, tenant: str | UUID, /) -> Tenant:
        """Return a tenant in whatever status, straight from the store.

        Args:
            tenant: Its identifier or its id.

        Raises:
            TenantNotFound: There is none.
            InvalidIdentifier: That is no identifier.
        """
        found = (
            await self._store.get(tenant)
            if isinstance(tenant, UUID)
            else await self._store.get_by_identifier(validate_identifier(tenant))
        )
        if found is None:
            raise TenantNotFound(f"There is no tenant {str(tenant)!r}.")
        return found

    async def list(
        self,
        *,
        status: TenantStatus | str | None = None,
        plan: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> TenantPage:
        """Return a page of tenants in the order of their identifiers.

        Args:
            status: Only these.
            plan: Only these.
            after: The ``next`` of the page before.
            limit: From 1 to 1000.

        Raises:
            ValueError: ``limit`` or ``status`` is none that is allowed.
        """
        if not 1 <= limit <= _MOST_PER_PAGE:
            raise ValueError(f"limit is from 1 to {_MOST_PER_PAGE}, not {limit}.")
        wanted = None if status is None else TenantStatus(status)
        return await self._store.list(status=wanted, plan=plan, after=after, limit=limit)

    async def iterate(
        self, *, status: TenantStatus | str | None = None, plan: str | None = None
    ) -> AsyncIterator[Tenant]:
        """Iterate over all tenants of a selection, page by page."""
        after: str | None = None
        while True:
            page = await self.list(status=status, plan=plan, after=after)
            for tenant in page.items:
                yield tenant
            if page.next is None:
                return
            after = page.next

    # -- creating ------------------------------------------------------------------------------

    async def create(
        self,
        identifier: str,
        /,
        *,
        name: str | None = None,
        plan: str | None = None,
        limits: Mapping[str, int] | None = None,
        metadata: Mapping[str, Any] | None = None,
        tenant_id: UUID | None = None,
        actor: str | None = None,
    ) -> Tenant:
        """Create a tenant and the place for its data, and return it active.

        If an earlier call was killed or failed half-way, calling again finishes it, with the
        values of the first call.

        Args:
            identifier: What the outside world says.
            name: For people; by default the identifier.
            plan: A key of the setting ``plans``, or any name if that is empty.
            limits: Overrides of the plan: ``rate_limit_per_minute``, ``rate_limit_burst``.
            metadata: The application's own JSON values.
            tenant_id: By default a random UUID.
            actor: Who does it, for the audit log.

        Raises:
            InvalidIdentifier: That is no identifier.
            TenantExists: The identifier is taken.
            IdentifierCollision: The derived database name is taken; nothing was created.
            ValueError: The plan or a limit is not known.
        """
        validate_identifier(identifier)
        self._check_plan(plan)
        self._check_limits(limits or {}, plan)
        existing = await self._store.get_by_identifier(identifier)
        if existing is None:
            tenant = await self._record(
                identifier,
                name=identifier if name is None else name,
                plan=plan,
                limits=limits or {},
                metadata=metadata or {},
                tenant_id=tenant_id or uuid4(),
                actor=actor,
            )
        elif existing.status in _UNFINISHED and tenant_id in (None, existing.id):
            tenant = existing
        else:
            raise TenantExists(f"There is already a tenant {identifier!r}.")
        return await self._provision(tenant, actor)

    def _check_plan(self, plan: str | None) -> None:
        plans = self._config.plans
        if plan is not None and plans and plan not in plans:
            raise ValueError(
                f"There is no plan {plan!r}; TENANCY_PLANS has {', '.join(sorted(plans))}."
            )

    def _check_limits(self, limits: Mapping[str, int], plan: str | None) -> None:
        for key, value in limits.items():
            if key not in _LIMITS:
                raise ValueError(
                    f"There is no limit {key!r}; there is {', '.join(sorted(_LIMITS))}."
                )
            if type(value) is not int or value < 1:
                raise ValueError(f"The limit {key!r} is a whole number from 1.")
        count = limits.get("rate_limit_per_minute", self._config.plan_limit(plan).count)
        RateLimit(count, burst=limits.get("rate_limit_burst", 0))

    async def _record(
        self,
        identifier: str,
        *,
        name: str,
        plan: str | None,
        limits: Mapping[str, int],
        metadata: Mapping[str, Any],
        tenant_id: UUID,
        actor: str | None,
    ) -> Tenant:
        now = datetime.now(UTC)
        tenant = Tenant(
            id=tenant_id,
            identifier=identifier,
            name=name,
            status=TenantStatus.PROVISIONING,
            created_at=now,
            updated_at=now,
            isolation=self._config.isolation_name,
            plan=plan,
            limits=limits,
            placement=Placement(
                name=derive_name(self._config.schema_prefix, identifier, tenant_id)
            ),
            metadata=metadata,
        )
        async with self._store.transaction() as transaction:
            await transaction.create(tenant)
            await transaction.journal(tenant.id, JournalStep("create", "recorded"))
            event = await self._audit.append(
                transaction, tenant.id, "tenant.created", actor=actor, details={"plan": plan}
            )
            await transaction.enqueue(tenant.id)
        try:
            await self._directory.forget(tenant.id, identifier)
        finally:
            await self._audit.deliver(event)
        return tenant

    async def _provision(self, tenant: Tenant, actor: str | None) -> Tenant:
        try:
            await self._isolation.provision(tenant)
        except Exception:
            _log.exception("tenant %s could not be provisioned", tenant.identifier)
            try:
                await self._change(
                    tenant.id, TenantStatus.FAILED, "tenant.failed", _UNFINISHED, actor=actor
                )
            except Exception:  # noqa: BLE001 - what the caller has to see is why it failed
                _log.exception("tenant %s stays in status provisioning", tenant.identifier)
            raise
        return await self._change(
            tenant.id,
            TenantStatus.ACTIVE,
            "tenant.provisioned",
            _UNFINISHED,
            actor=actor,
            step=JournalStep("create", "provisioned"),
        )

    # -- changing ------------------------------------------------------------------------------

    async def suspend(
        self,
        tenant: str | UUID,
        /,
        *,
        reason: str | None = None,
        actor: str | None = None,
        expected_version: int | None = None,
    ) -> Tenant:
        """Stop serving a tenant: here at once, in other processes within the poll interval.

        Its data stays, and open WebSockets are closed. Suspending a suspended tenant changes
        nothing.

        Args:
            tenant: Its identifier or its id.
            reason: Why, for the audit log.
            actor: Who, for the audit log.
            expected_version: Refuse if the tenant was changed since this version was read.

        Raises:
            TenantNotFound: There is none.
            InvalidTransition: It is neither active nor suspended.
            VersionConflict: It is at another version than ``expected_version``.
        """
        found = await self.get(tenant)
        return await self._change(
            found.id,
            TenantStatus.SUSPENDED,
            "tenant.suspended",
            frozenset({TenantStatus.ACTIVE}),
            reason=reason,
            actor=actor,
            expected_version=expected_version,
        )

    async def resume(
        self,
        tenant: str | UUID,
        /,
        *,
        reason: str | None = None,
        actor: str | None = None,
        expected_version: int | None = None,
    ) -> Tenant:
        """Serve a suspended tenant again. Arguments and errors as :meth:`suspend`."""
        found = await self.get(tenant)
        return await self._change(
            found.id,
            TenantStatus.ACTIVE,
            "tenant.resumed",
            frozenset({TenantStatus.SUSPENDED}),
            reason=reason,
            actor=actor,
            expected_version=expected_version,
        )

    async def _change(
        self,
        tenant_id: UUID,
        status: TenantStatus,
        action: str,
        allowed: frozenset[TenantStatus],
        *,
        reason: str | None = None,
        actor: str | None = None,
        expected_version: int | None = None,
        step: JournalStep | None = None,
    ) -> Tenant:
        for left in reversed(range(_CONFLICT_TRIES)):
            old = await self.get(tenant_id)
            if expected_version is not None and old.version != expected_version:
                raise VersionConflict(
                    f"Tenant {old.identifier!r} is at version {old.version}, "
                    f"not {expected_version}."
                )
            if old.status is status:
                # Forgotten all the same: the call may be the second try of one whose change was
                # committed and not told to everybody.
                await self._directory.forget(old.id, old.identifier)
                return old
            if old.status not in allowed:
                raise InvalidTransition(
                    f"Tenant {old.identifier!r} is {old.status}; that cannot become {status}."
                )
            new = replace(old, status=status, version=old.version + 1, updated_at=datetime.now(UTC))
            try:
                async with self._store.transaction() as transaction:
                    await transaction.update(new, expected_version=old.version)
                    if step is not None:
                        await transaction.journal(tenant_id, step)
                    event = await self._audit.append(
                        transaction, tenant_id, action, actor=actor, reason=reason
                    )
                    await transaction.enqueue(tenant_id)
            except VersionConflict:
                if expected_version is not None or not left:
                    raise
                continue
            try:
                await self._directory.forget(new.id, new.identifier)
            finally:
                # The change is committed, whatever the caches say.
                await self._audit.deliver(event)
                self._observers.changed(new, action)
            return new
        raise AssertionError("unreachable")  # pragma: no cover
