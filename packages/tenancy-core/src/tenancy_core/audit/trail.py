"""``tenancy.audit``: reading and verifying logs, and an application's own events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from tenancy_core.audit.text import check_action
from tenancy_core.audit.verification import UNREADABLE, Verification
from tenancy_core.context import binding
from tenancy_core.contract import AuditHead
from tenancy_core.errors import NoCurrentTenant, TenantNotFound
from tenancy_core.tenant import Tenant, not_found, validate_identifier

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from tenancy_core.audit.log import AuditLog
    from tenancy_core.audit.refusals import RefusalBuffer
    from tenancy_core.audit.verification import AuditReport
    from tenancy_core.context import Binding
    from tenancy_core.contract import AuditEvent, RefusalCount, TenantStore
    from tenancy_core.crypto import Signer

__all__ = ["AuditTrail"]

_MOST_PER_PAGE: Final = 1000
_RESERVED: Final = ("tenant.", "scope.")
_LATELY: Final = timedelta(days=1)


class AuditTrail:
    """The audit logs of all tenants. Reached as ``tenancy.audit``.

    Where a tenant is current, in a request or in a scope, there is only that tenant's own log:
    every other tenant is as if it did not exist. Elsewhere, any tenant's log can be read: whoever
    runs code there is an operator.
    """

    __slots__ = ("_log", "_owner", "_refusals", "_signer", "_store")

    def __init__(
        self,
        *,
        owner: Any,  # noqa: ANN401 - Tenancy is above
        store: TenantStore,
        log: AuditLog,
        refusals: RefusalBuffer,
        signer: Signer,
    ) -> None:
        self._owner = owner
        self._store = store
        self._log = log
        self._refusals = refusals
        self._signer = signer

    async def read(
        self, tenant: str | UUID | Tenant | None = None, *, after: int = 0, limit: int = 100
    ) -> tuple[AuditEvent, ...]:
        """Return events of a tenant's log, the oldest first.

        Args:
            tenant: Its identifier, its id or its record; None for the current one.
            after: Sequence of the last event that is known already.
            limit: From 1 to 1000.

        Raises:
            NoCurrentTenant: ``tenant`` is None, and there is no tenant here.
            TenantNotFound: There is no such tenant, or another one is current.
            InvalidIdentifier: That is no identifier.
            ValueError: ``after`` or ``limit`` is none that is allowed.
            BackendUnavailable: The store cannot be reached.
        """
        if not 1 <= limit <= _MOST_PER_PAGE:
            raise ValueError(f"limit is from 1 to {_MOST_PER_PAGE}, not {limit}.")
        if after < 0:
            raise ValueError(f"after is the sequence of an event, or 0; not {after}.")
        tenant_id = await self._whose(tenant)
        return tuple(await self._store.audit(tenant_id, after=after, limit=limit))

    async def verify(
        self, tenant: str | UUID | Tenant | None = None, *, anchor: AuditHead | None = None
    ) -> AuditReport:
        """Read a tenant's whole log and say which event is the first that is not as written.

        Others may append to it meanwhile. An erased tenant's log is verified by its id.

        Args:
            tenant: Its identifier, its id or its record; None for the current one.
            anchor: The ``head`` of an earlier report, kept where those who can write to the
                database cannot. Without one, a log that lost its newest events together with its
                head, or that was written anew with the signing key, looks right.

        Raises:
            NoCurrentTenant: ``tenant`` is None, and there is no tenant here.
            TenantNotFound: There is no such tenant, or another one is current.
            InvalidIdentifier: That is no identifier.
            ValueError: ``anchor`` is no head of any log.
            BackendUnavailable: The store cannot be reached.
        """
        if anchor is not None and (
            anchor.sequence < 0 or (anchor.sequence == 0) != (not anchor.seal)
        ):
            raise ValueError("An anchor is the head of a report: a sequence and its seal.")
        tenant_id = await self._whose(tenant)
        return await Verification(self._store, self._signer, tenant_id, anchor).run()

    async def refusals(
        self,
        tenant: str | UUID | Tenant | None = None,
        *,
        since: datetime | None = None,
        limit: int = 1000,
    ) -> tuple[RefusalCount, ...]:
        """Return how many requests were refused, by code and minute, the newest minute first.

        What this process has counted is written to the store first; other processes do so within
        the setting ``invalidation_poll_seconds``.

        Args:
            tenant: Its identifier, its id or its record. None for the current one, or where there
                is none, for requests whose tenant was not resolved.
            since: Aware; by default 24 hours ago.
            limit: From 1 to 1000.

        Raises:
            TenantNotFound: There is no such tenant, or another one is current.
            InvalidIdentifier: That is no identifier.
            ValueError: ``since`` or ``limit`` is none that is allowed.
            BackendUnavailable: The store cannot be reached.
        """
        if not 1 <= limit <= _MOST_PER_PAGE:
            raise ValueError(f"limit is from 1 to {_MOST_PER_PAGE}, not {limit}.")
        since = datetime.now(UTC) - _LATELY if since is None else since
        if since.tzinfo is None:
            raise ValueError("since has no time zone; use for instance datetime.now(UTC).")
        nobody = tenant is None and self._current() is None
        tenant_id = None if nobody else await self._whose(tenant)
        await self._refusals.flush()
        return tuple(await self._store.refusals(tenant_id, since=since, limit=limit))

    async def record(
        self,
        action: str,
        *,
        actor: str | None = None,
        reason: str | None = None,
        details: Mapping[str, Any] | None = None,
        personal: Mapping[str, Any] | None = None,
    ) -> AuditEvent | None:
        """Append an event of the application to the current tenant's log.

        It is committed when this returns, apart from any session: record what was done after its
        commit, or what is about to be tried before.

        Args:
            action: Two or more words of ``[a-z0-9_-]`` with dots between, at most 64 characters;
                ``tenant.…`` and ``scope.…`` are tenancy's own.
            actor: Who did it. At most 1,000 characters are kept, control characters escaped.
            reason: Why. As ``actor``.
            details: JSON values that name nobody, at most 8 KiB; texts as ``actor``.
            personal: As ``details``, for what names somebody: removed when the tenant is erased.

        Returns:
            The event as it is stored; None while audit logging is off.

        Raises:
            NoCurrentTenant: There is no tenant here.
            TenantNotFound: The tenant was erased since it became current.
            ValueError: ``action``, ``details`` or ``personal`` cannot be stored; nothing was.
            TypeError: ``actor`` or ``reason`` is no text.
            BackendUnavailable: The store cannot be reached; nothing was stored.
            CommitUnknown: The connection was lost in the commit, and the store cannot say what
                became of it.
        """
        check_action(action)
        if action.startswith(_RESERVED):
            raise ValueError(
                "Audit actions that start with 'tenant.' or 'scope.' are tenancy's own; use "
                "another first word."
            )
        bound = self._current()
        if bound is None:
            raise NoCurrentTenant
        return await self._log.record(
            bound.tenant.id,
            action,
            actor=actor,
            reason=reason,
            details=details,
            personal=personal,
        )

    # -- whose log -----------------------------------------------------------------------------

    def _current(self) -> Binding | None:
        bound = binding.get()
        if bound is not None and bound.owner is not self._owner:
            raise NoCurrentTenant("The current tenant is one of another Tenancy object.")
        return bound

    async def _whose(self, tenant: str | UUID | Tenant | None) -> UUID:
        bound = self._current()
        if tenant is None:
            if bound is None:
                raise NoCurrentTenant
            return bound.tenant.id
        if isinstance(tenant, str):
            validate_identifier(tenant)
        wanted = tenant.id if isinstance(tenant, Tenant) else tenant
        found: UUID | None = None
        if bound is not None:
            # Nobody is looked up: a tenant that exists must take no longer than one that does not.
            own = bound.tenant
            found = own.id if wanted in (own.id, own.identifier) else None
        elif isinstance(wanted, str):
            record = await self._store.get_by_identifier(wanted)
            found = None if record is None else record.id
        elif await self._has_log(wanted):
            found = wanted
        if found is None:
            name = tenant.identifier if isinstance(tenant, Tenant) else tenant
            raise TenantNotFound(not_found(name))
        return found

    async def _has_log(self, tenant_id: UUID) -> bool:
        """Whether the tenant exists or existed. Also asks for events: its head may be gone."""
        if await self._store.get(tenant_id) is not None:
            return True
        try:
            head = await self._store.audit_head(tenant_id)
            return head != AuditHead() or bool(await self._store.audit(tenant_id, limit=1))
        except UNREADABLE:
            return True
