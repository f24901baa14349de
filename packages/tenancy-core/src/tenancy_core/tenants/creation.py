"""How a tenant comes to be: recorded, provisioned, active; killed anywhere, it can go on."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import anyio

from tenancy_core.contract import JournalStep
from tenancy_core.crypto import seal_metadata
from tenancy_core.errors import InvalidTransition, TenantLimitReached, TenantNotFound
from tenancy_core.sql.naming import derive_name
from tenancy_core.tenant import Placement, Tenant, TenantStatus
from tenancy_core.tenants.failures import log_failure
from tenancy_core.tenants.rules import CREATE, ERASE, UNFINISHED, require_status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from tenancy_core.config import TenancyConfig
    from tenancy_core.contract import IsolationStrategy, StoreTransaction
    from tenancy_core.tenants.changes import Author, Changes
    from tenancy_core.tenants.identifiers import Identifiers
    from tenancy_core.tenants.vault import Vault

__all__ = ["Creation"]

_CLEAN_UP_SECONDS: Final = 5.0
"""How long a cancelled creation may still look whether its tenant was erased meanwhile."""


class Creation:
    """The state machine of ``create``, one step at a time, each of them idempotent."""

    def __init__(
        self,
        *,
        config: TenancyConfig,
        isolation: IsolationStrategy,
        changes: Changes,
        identifiers: Identifiers,
        vault: Vault,
    ) -> None:
        self._config = config
        self._isolation = isolation
        self._changes = changes
        self._identifiers = identifiers
        self._vault = vault

    async def record(
        self,
        identifier: str,
        *,
        tenant_id: UUID,
        name: str,
        plan: str | None,
        limits: Mapping[str, int],
        metadata: Mapping[str, Any],
        server: str | None,
        author: Author,
    ) -> Tenant:
        """Write the record of a tenant that has no place yet.

        Raises:
            ValueError: There is no such server.
            TenantExists: The identifier is taken, or was another's and is not released.
            TenantLimitReached: There are ``max_tenants`` already.
        """
        await self._identifiers.prepare()
        now = datetime.now(UTC)
        wrapped, cipher = self._vault.new_cipher(tenant_id)
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
            metadata=seal_metadata(metadata, cipher),
        )
        tenant = self._placed(tenant, server)
        action = "tenant.created"
        async with self._changes.store.transaction() as transaction:
            await transaction.create(tenant)
            if wrapped is not None:
                await self._vault.keep_data_key(transaction, tenant_id, wrapped)
            await transaction.journal(tenant_id, JournalStep(CREATE, "recorded"))
            event = await self._changes.audit.append(
                transaction,
                tenant_id,
                action,
                actor=author.actor,
                reason=author.reason,
                details={"plan": plan, "isolation": tenant.isolation},
                personal={"identifier": identifier, "name": name},
            )
            await transaction.enqueue(tenant_id)
            await self._require_room(transaction)
            await self._identifiers.require_free(transaction, identifier, tenant_id)
        await self._changes.tell(tenant, action, event)
        return tenant

    def _placed(self, tenant: Tenant, server: str | None) -> Tenant:
        place: Callable[..., Tenant] | None = getattr(self._isolation, "place", None)
        if place is not None:
            return place(tenant, server=server)
        if server not in (None, tenant.placement.server):
            raise ValueError(
                f"There is no server {server!r}: the isolation strategy {tenant.isolation!r} has "
                f"one, which is called {tenant.placement.server!r}."
            )
        return tenant

    async def _require_room(self, transaction: StoreTransaction) -> None:
        most = self._config.max_tenants
        if most is not None and (count := await transaction.count()) > most:
            raise TenantLimitReached(
                f"There are {count - 1} tenants, and TENANCY_MAX_TENANTS is {most}. Erase one, or "
                "raise the limit."
            )

    async def finish(self, tenant: Tenant, author: Author) -> Tenant:
        """Make the place of a recorded tenant, and the tenant active.

        Raises:
            Exception: Whatever the isolation strategy raised; the tenant is ``failed`` then.
            InvalidTransition: Somebody erased it meanwhile.
        """
        try:
            await self._isolation.provision(tenant)
        except Exception as error:
            log_failure(error, "tenant %s could not be provisioned", tenant.identifier)
            await self._fail(tenant, author, error)
            await self._leave_nothing(tenant)
            raise
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(_CLEAN_UP_SECONDS, shield=True):
                await self._leave_nothing(tenant)
            raise
        try:
            return await self._changes.apply(
                tenant.id, "tenant.provisioned", _activate, author, also=self._note_provisioned
            )
        except (TenantNotFound, InvalidTransition):
            await self._leave_nothing(tenant)
            raise

    async def _leave_nothing(self, tenant: Tenant) -> None:
        # Whoever erases the tenant may have looked for its place before it was there.
        try:
            if await self._is_removed(tenant.id):
                await self._isolation.destroy(tenant)
        except Exception as error:  # noqa: BLE001 - what the caller has to see is why it failed
            log_failure(error, "the place of tenant %s may be left over", tenant.id)

    async def _fail(self, tenant: Tenant, author: Author, error: Exception) -> None:
        try:
            await self._changes.apply(
                tenant.id,
                "tenant.failed",
                _fail,
                author,
                # Not its text: a driver may have put a URL or data into it.
                details={"error": type(error).__name__},
            )
        except Exception as failure:  # noqa: BLE001 - what the caller has to see is why it failed
            log_failure(failure, "tenant %s stays in status provisioning", tenant.identifier)

    async def _note_provisioned(
        self, transaction: StoreTransaction, _old: Tenant, new: Tenant
    ) -> None:
        await transaction.journal(new.id, JournalStep(CREATE, "provisioned"))

    async def _is_removed(self, tenant_id: UUID) -> bool:
        current = await self._changes.store.get(tenant_id)
        if current is None or current.status is TenantStatus.ERASED:
            return True
        return current.status is TenantStatus.ARCHIVED and (
            tenant_id in await self._changes.store.begun(ERASE)
        )


def _activate(old: Tenant) -> Tenant:
    if old.status is TenantStatus.ACTIVE:
        return old
    require_status(old, UNFINISHED, "become active by being provisioned")
    return replace(old, status=TenantStatus.ACTIVE)


def _fail(old: Tenant) -> Tenant:
    require_status(old, UNFINISHED, "fail")
    return old if old.status is TenantStatus.FAILED else replace(old, status=TenantStatus.FAILED)
