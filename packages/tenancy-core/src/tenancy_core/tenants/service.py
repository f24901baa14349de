"""``TenantService``: what may be done to a tenant."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from pydantic import SecretStr

from tenancy_core.crypto import reveal_metadata, seal_metadata
from tenancy_core.errors import ConfigurationError, TenantExists, TenantNotFound
from tenancy_core.tenant import Tenant, TenantStatus, not_found, validate_identifier
from tenancy_core.tenants.changes import Author, Changes
from tenancy_core.tenants.creation import Creation
from tenancy_core.tenants.erasure import Erasure
from tenancy_core.tenants.identifiers import Identifiers
from tenancy_core.tenants.reconciliation import Reconciled, Reconciliation
from tenancy_core.tenants.rules import (
    SERVED,
    UNFINISHED,
    check_limits,
    check_metadata,
    check_name,
    check_plan,
    require_status,
)
from tenancy_core.tenants.vault import Vault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from tenancy_core._directory import Directory
    from tenancy_core.audit import AuditLog
    from tenancy_core.config import TenancyConfig
    from tenancy_core.contract import IsolationStrategy, StoreTransaction, TenantPage, TenantStore
    from tenancy_core.crypto import FieldCipher, TenantCipher
    from tenancy_core.observe import Observers

__all__ = ["TenantService"]

_MOST_PER_PAGE: Final = 1000
_PLACED: Final = SERVED | {TenantStatus.ARCHIVED}
_PATIENCE: Final = timedelta(minutes=5)
"""A creation that is under way for less than this may well be finished by whoever began it."""


class TenantService:
    """The control plane, reached as ``tenancy.tenants``.

    Each change is the new record, its audit event and its entry in the change sequence in one
    transaction; then this process forgets the tenant at once, and the others within the interval
    at which they ask. Whatever takes an ``expected_version`` raises
    :class:`~tenancy_core.errors.VersionConflict` if the tenant has another one by now; what takes
    an ``actor`` and a ``reason`` writes them into the audit log.

    Any of these may be killed at any moment: called again it goes on where it was, and
    :meth:`reconcile` finds what nobody called again.
    """

    def __init__(
        self,
        *,
        config: TenancyConfig,
        store: TenantStore,
        isolation: IsolationStrategy,
        directory: Directory,
        audit: AuditLog,
        observers: Observers,
        cipher: TenantCipher | None = None,
    ) -> None:
        self._config = config
        self._store = store
        self._isolation = isolation
        self._changes = Changes(store=store, directory=directory, audit=audit, observers=observers)
        self._identifiers = Identifiers(config, store)
        self._vault = Vault(changes=self._changes, cipher=cipher)
        self._creation = Creation(
            config=config,
            isolation=isolation,
            changes=self._changes,
            identifiers=self._identifiers,
            vault=self._vault,
        )
        self._erasure = Erasure(
            config=config,
            isolation=isolation,
            changes=self._changes,
            identifiers=self._identifiers,
        )
        self._reconciliation = Reconciliation(
            creation=self._creation,
            erasure=self._erasure,
            tenants=lambda status: self.iterate(status=status),
        )

    # -- reading -------------------------------------------------------------------------------

    async def get(self, tenant: str | UUID, /) -> Tenant:
        """Return a tenant in whatever status, straight from the store.

        Args:
            tenant: Its identifier or its id; an erased one has only its id.

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
            raise TenantNotFound(not_found(tenant))
        return found

    async def list(
        self,
        *,
        status: TenantStatus | str | None = None,
        plan: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> TenantPage:
        """Return a page of tenants in the order of their identifiers; without erased ones.

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
        server: str | None = None,
        reason: str | None = None,
        actor: str | None = None,
    ) -> Tenant:
        """Create a tenant and the place for its data, and return it active.

        If an earlier call was killed or failed half-way, calling again with the same values
        finishes it. Where strangers choose the identifier (a sign-up), pass a ``tenant_id`` that
        belongs to the attempt: then nobody finishes, and gets, what somebody else has begun.

        Args:
            identifier: What the outside world says.
            name: For people; by default the identifier.
            plan: A key of the setting ``plans``, or any name if that is empty.
            limits: Overrides of the plan: ``rate_limit_per_minute``, ``rate_limit_burst``.
            metadata: The application's own JSON values; what is ``Sensitive`` is encrypted.
            tenant_id: By default a random UUID.
            server: Alias of the database server that is to hold its data, where the isolation
                strategy knows several; by default ``default``.
            reason: Why, for the audit log.
            actor: Who does it, for the audit log.

        Raises:
            InvalidIdentifier: That is no identifier.
            TenantExists: The identifier is taken, or was another tenant's and is not released.
            TenantLimitReached: There are ``max_tenants`` already.
            IdentifierCollision: The derived database name is taken; nothing was created.
            ValueError: The name, the plan, a limit, the metadata or the server is none that is
                allowed.
        """
        validate_identifier(identifier)
        name = identifier if name is None else name
        check_name(name)
        check_plan(plan, self._config)
        check_limits(limits or {}, plan, self._config)
        check_metadata({} if metadata is None else metadata)
        author = Author(actor, reason)
        existing = await self._store.get_by_identifier(identifier)
        if existing is None:
            tenant = await self._creation.record(
                identifier,
                tenant_id=tenant_id or uuid4(),
                name=name,
                plan=plan,
                limits=limits or {},
                metadata=metadata or {},
                server=server,
                author=author,
            )
        elif (
            existing.status in UNFINISHED
            and tenant_id in (None, existing.id)
            and server in (None, existing.placement.server)
            and (existing.name, existing.plan) == (name, plan)
            and dict(existing.limits) == dict(limits or {})
            and await self._vault.reveal(existing) == reveal_metadata(metadata or {}, None)
        ):
            tenant = existing
        elif existing.status in UNFINISHED:
            raise TenantExists(
                f"There is already a tenant {identifier!r}, which was never finished "
                f"({existing.status}). Call create() with the values that it was begun with, "
                "reconcile(), or erase()."
            )
        else:
            raise TenantExists(f"There is already a tenant {identifier!r}.")
        return await self._creation.finish(tenant, author)

    # -- changing ------------------------------------------------------------------------------

    async def rename(
        self,
        tenant: str | UUID,
        /,
        identifier: str | None = None,
        *,
        name: str | None = None,
        reason: str | None = None,
        actor: str | None = None,
        expected_version: int | None = None,
    ) -> Tenant:
        """Give a tenant another identifier, another name for people, or both.

        Its data stays where it is. The old identifier is nobody's at once in this process, and
        within the poll interval in others; nobody but this tenant can have it until it is
        released, see :meth:`release`.

        Args:
            tenant: Its identifier or its id.
            identifier: The new one.
            name: The new one.
            reason: Why, for the audit log.
            actor: Who, for the audit log.
            expected_version: Refuse if the tenant was changed since this version was read.

        Raises:
            TenantNotFound: There is none.
            TenantExists: The identifier is taken, or was another tenant's and is not released.
            InvalidIdentifier: That is no identifier.
            InvalidTransition: It is archived.
            VersionConflict: It is at another version than ``expected_version``.
            ValueError: The name is none that is allowed, or there is nothing to change.
        """
        if identifier is None and name is None:
            raise ValueError("Pass the new identifier, or name=, or both.")
        if identifier is not None:
            validate_identifier(identifier)
        if name is not None:
            check_name(name)
        await self._identifiers.prepare()

        def edit(old: Tenant) -> Tenant:
            require_status(old, SERVED, "be renamed")
            new = replace(
                old,
                identifier=old.identifier if identifier is None else identifier,
                name=old.name if name is None else name,
            )
            return old if (new.identifier, new.name) == (old.identifier, old.name) else new

        async def swap(transaction: StoreTransaction, old: Tenant, new: Tenant) -> None:
            if new.identifier != old.identifier:
                await self._identifiers.give_up(transaction, old.identifier, old.id)
                await self._identifiers.require_free(transaction, new.identifier, new.id)

        return await self._changes.apply(
            (await self.get(tenant)).id,
            "tenant.renamed",
            edit,
            Author(actor, reason, expected_version),
            personal=lambda old, new: {
                "from": {"identifier": old.identifier, "name": old.name},
                "to": {"identifier": new.identifier, "name": new.name},
            },
            also=swap,
        )

    async def release(
        self, identifier: str, /, *, reason: str | None = None, actor: str | None = None
    ) -> None:
        """Let anybody have an identifier that a tenant gave up by being renamed or erased.

        Do it when nothing names that tenant by it any more: no token that is still valid, no
        message in a queue, no identity provider, no bookmark that matters. Whoever gets the
        identifier gets what is sent there.

        Args:
            identifier: What was given up. No error if it is free, or a tenant's.
            reason: Why, for the audit log of the tenant that had it; an erased one's is closed.
            actor: Who, likewise.

        Raises:
            InvalidIdentifier: That is no identifier.
            TenantExists: It was given up so recently that other processes may still know it as
                that tenant; the message says when it can be released.
        """
        validate_identifier(identifier)
        await self._identifiers.prepare()
        audit = self._changes.audit
        async with self._store.transaction() as transaction:
            owner = await self._identifiers.owner(transaction, identifier)
            event = None
            if owner is not None and await audit.is_open(transaction, owner):
                event = await audit.append(
                    transaction,
                    owner,
                    "tenant.identifier_released",
                    actor=actor,
                    reason=reason,
                    personal={"identifier": identifier},
                )
            await self._identifiers.release(transaction, identifier)
        await audit.deliver(event)

    async def set_plan(
        self,
        tenant: str | UUID,
        /,
        plan: str | None,
        *,
        limits: Mapping[str, int] | None = None,
        reason: str | None = None,
        actor: str | None = None,
        expected_version: int | None = None,
    ) -> Tenant:
        """Put a tenant on another plan. Its data stays where it is.

        Args:
            tenant: Its identifier or its id.
            plan: A key of the setting ``plans``, any name if that is empty, or None for no plan.
            limits: Its own limits from now on; None leaves those it has, {} takes them away.
            reason: Why, for the audit log.
            actor: Who, for the audit log.
            expected_version: Refuse if the tenant was changed since this version was read.

        Raises:
            TenantNotFound: There is none.
            InvalidTransition: It is archived.
            VersionConflict: It is at another version than ``expected_version``.
            ValueError: The plan or a limit is none that is allowed.
        """
        check_plan(plan, self._config)

        def edit(old: Tenant) -> Tenant:
            require_status(old, SERVED, "change its plan")
            kept = old.limits if limits is None else limits
            check_limits(kept, plan, self._config)
            same = old.plan == plan and dict(old.limits) == dict(kept)
            return old if same else replace(old, plan=plan, limits=kept)

        return await self._changes.apply(
            (await self.get(tenant)).id,
            "tenant.plan_set",
            edit,
            Author(actor, reason, expected_version),
            details={"plan": plan, "limits": None if limits is None else dict(limits)},
        )

    async def set_metadata(
        self,
        tenant: str | UUID,
        /,
        metadata: Mapping[str, Any],
        *,
        reason: str | None = None,
        actor: str | None = None,
        expected_version: int | None = None,
    ) -> Tenant:
        """Replace a tenant's metadata.

        Args:
            tenant: Its identifier or its id.
            metadata: JSON values; what is ``Sensitive`` is encrypted. An encrypted value of the
                present metadata may stay where it is: ``{**tenant.metadata, "colour": "red"}``.
            reason: Why, for the audit log.
            actor: Who, for the audit log.
            expected_version: Refuse if the tenant was changed since this version was read.

        Raises:
            TenantNotFound: There is none.
            InvalidTransition: It is archived.
            VersionConflict: It is at another version than ``expected_version``.
            ValueError: It is no JSON, or has a ``Sensitive`` value and encryption is off.
        """
        check_metadata(metadata)

        def edit(old: Tenant, cipher: FieldCipher | None) -> Tenant:
            require_status(old, SERVED, "change its metadata")
            return replace(old, metadata=seal_metadata(metadata, cipher, current=old.metadata))

        return await self._vault.apply(
            (await self.get(tenant)).id,
            "tenant.metadata_set",
            edit,
            Author(actor, reason, expected_version),
            details={"keys": len(metadata)},
        )

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
        return await self._turn(
            tenant,
            TenantStatus.SUSPENDED,
            "tenant.suspended",
            Author(actor, reason, expected_version),
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
        return await self._turn(
            tenant, TenantStatus.ACTIVE, "tenant.resumed", Author(actor, reason, expected_version)
        )

    async def _turn(
        self, tenant: str | UUID, status: TenantStatus, action: str, author: Author
    ) -> Tenant:
        def edit(old: Tenant) -> Tenant:
            if old.status is status:
                return old
            require_status(old, SERVED, f"become {status}")
            return replace(old, status=status)

        return await self._changes.apply((await self.get(tenant)).id, action, edit, author)

    # -- ending --------------------------------------------------------------------------------

    async def archive(
        self,
        tenant: str | UUID,
        /,
        *,
        reason: str | None = None,
        actor: str | None = None,
        expected_version: int | None = None,
    ) -> Tenant:
        """Stop serving a tenant for good, and keep its data for ``archive_retention_days``.

        Until it is erased, :meth:`restore` brings it back, and its identifier stays its own.
        Arguments and errors as :meth:`suspend`.
        """
        return await self._erasure.archive(
            await self.get(tenant), Author(actor, reason, expected_version)
        )

    async def restore(
        self,
        tenant: str | UUID,
        /,
        *,
        reason: str | None = None,
        actor: str | None = None,
        expected_version: int | None = None,
    ) -> Tenant:
        """Return an archived tenant to the status it was archived in, with all its data.

        Arguments and errors as :meth:`suspend`; a tenant that is being erased is not restored.
        """
        return await self._erasure.restore(
            await self.get(tenant), Author(actor, reason, expected_version)
        )

    async def erase(
        self,
        tenant: str | UUID,
        /,
        *,
        before_retention: bool = False,
        reason: str | None = None,
        actor: str | None = None,
        expected_version: int | None = None,
    ) -> Tenant:
        """Destroy a tenant's data, and forget everything about it but its id. There is no way back.

        Nobody can have its identifier until that is released, see :meth:`release`. Its audit log
        stays, without actors, reasons and names, and still verifies. Erasing an erased tenant
        changes nothing; one whose erasure was killed is erased to the end.

        Args:
            tenant: Its identifier or its id.
            before_retention: Also before ``archive_retention_days`` are over; needs a reason.
            reason: Why; it is told to the audit sinks, and then erased as well.
            actor: Who; likewise.
            expected_version: Refuse if the tenant was changed since this version was read.

        Raises:
            TenantNotFound: There is none.
            InvalidTransition: It is not archived (with ``enable_soft_delete``), or has to be kept
                longer.
            VersionConflict: It is at another version than ``expected_version``.
            ValueError: ``before_retention`` without a reason.
        """
        if before_retention and not reason:
            raise ValueError("before_retention=True needs a reason=, for the audit log.")
        return await self._erasure.erase(
            await self.get(tenant),
            Author(actor, reason, expected_version),
            before_retention=before_retention,
        )

    async def erase_expired(self, *, actor: str | None = None) -> Sequence[Reconciled]:
        """Erase all archived tenants whose ``archive_retention_days`` are over.

        Call it once a day. One that cannot be erased now does not keep the others from it.

        Returns:
            One entry for each tenant that was due.

        Raises:
            ConfigurationError: ``archive_retention_days`` is not set: nothing expires.
        """
        if self._config.archive_retention_days is None:
            raise ConfigurationError(
                "TENANCY_ARCHIVE_RETENTION_DAYS is not set, so no archived tenant expires. Set "
                "it, or erase tenants one by one."
            )
        return await self._reconciliation.expired(author=Author(actor, "archive retention is over"))

    def unfinished(self, *, older_than: timedelta = _PATIENCE) -> AsyncIterator[Tenant]:
        """Iterate over the tenants whose creation or erasure was begun and not finished.

        Args:
            older_than: Leave out creations that were begun later: somebody may be at it.
        """
        return self._reconciliation.half_way(older_than=older_than)

    async def reconcile(
        self,
        *,
        older_than: timedelta = _PATIENCE,
        remove: bool = False,
        actor: str | None = None,
    ) -> Sequence[Reconciled]:
        """End creations and erasures that were killed or failed half-way.

        Args:
            older_than: Leave alone creations that were begun later: somebody may be at it.
            remove: Erase tenants that were never finished, instead of finishing them.
            actor: Who, for the audit log.

        Returns:
            One entry for each tenant that was half-way. One that fails again does not keep the
            others from being tried.
        """
        return await self._reconciliation.unfinished(
            older_than=older_than, remove=remove, author=Author(actor, "reconciled")
        )

    # -- secrets -------------------------------------------------------------------------------

    async def rotate_credentials(
        self, tenant: str | UUID, /, *, reason: str | None = None, actor: str | None = None
    ) -> Tenant:
        """Give a tenant a new password for its database. No session fails, in no process.

        Killed anywhere, the tenant is served all the same, and calling again finishes it. What is
        connected already stays so until it is done.

        Args:
            tenant: Its identifier or its id.
            reason: Why, for the audit log.
            actor: Who, for the audit log.

        Raises:
            TenantNotFound: There is none.
            InvalidTransition: It has no place yet, or no more: it may have been erased meanwhile.
            VersionConflict: Somebody else rotates them at the same time; call again.
            ConfigurationError: Tenants have no credentials of their own.
        """

        def edit(old: Tenant) -> Tenant:
            require_status(old, _PLACED, "get other credentials")
            return replace(old)

        found = edit(await self.get(tenant))
        rotate: Any = getattr(self._isolation, "rotate_credentials", None)
        if rotate is None:
            raise ConfigurationError(
                f"With the isolation strategy {found.isolation!r} tenants have no credentials of "
                "their own."
            )
        await rotate(found)
        author = Author(actor, reason)
        # Its place may be removed by now, and its log closed: nobody is named behind the erasure.
        return await self._changes.apply(found.id, "tenant.credentials_rotated", edit, author)

    async def put_secret(
        self,
        tenant: str | UUID,
        /,
        name: str,
        value: SecretStr | str | None,
        *,
        reason: str | None = None,
        actor: str | None = None,
        expected_version: int | None = None,
    ) -> Tenant:
        """Keep a secret of a tenant, encrypted; None forgets it.

        Args:
            tenant: Its identifier or its id.
            name: Lower-case, for instance ``database-password``.
            value: What to keep.
            reason: Why, for the audit log.
            actor: Who, for the audit log.
            expected_version: Refuse if the tenant was changed since this version was read.

        Raises:
            TenantNotFound: There is none.
            InvalidTransition: It is erased.
            VersionConflict: It is at another version than ``expected_version``.
            ConfigurationError: Encryption is off.
            ValueError: The name is none that is allowed.
        """
        # Under its own name: error trackers print the local variables of every frame.
        value = SecretStr(value) if isinstance(value, str) else value
        return await self._vault.put(
            await self.get(tenant), name, value, Author(actor, reason, expected_version)
        )

    async def get_secret(self, tenant: str | UUID, /, name: str) -> SecretStr | None:
        """Return a secret of a tenant, or None.

        Raises:
            TenantNotFound: There is none.
            DecryptionError: It cannot be decrypted, or encryption is off.
            ValueError: The name is none that is allowed.
        """
        return await self._vault.get(await self.get(tenant), name)

    async def secret_names(self, tenant: str | UUID, /) -> Sequence[str]:
        """Return the names of a tenant's secrets, sorted.

        Raises:
            TenantNotFound: There is none.
        """
        return await self._vault.names(await self.get(tenant))

    async def reveal(self, tenant: Tenant | str | UUID, /) -> Mapping[str, Any]:
        """Return a tenant's metadata with its encrypted values as ``Sensitive``.

        Args:
            tenant: Its record, as a request has it, or its identifier or id.

        Raises:
            TenantNotFound: There is none.
            DecryptionError: A value cannot be decrypted, or encryption is off.
        """
        return await self._vault.reveal(
            tenant if isinstance(tenant, Tenant) else await self.get(tenant)
        )

    async def rewrap_keys(self, *, actor: str | None = None) -> int:
        """Wrap every tenant's data key with the first of ``encryption_keys``.

        When it has returned, the keys behind the first one are no longer needed.

        Returns:
            How many were wrapped with another one.

        Raises:
            ConfigurationError: Encryption is off.
            DecryptionError: A data key is wrapped by none of the keys.
        """
        author = Author(actor, "encryption keys are rotated")
        seen = await self._store.last_change()
        rewrapped = 0
        async for tenant in self.iterate():
            rewrapped += await self._vault.rewrap(tenant, author)
        # One that was renamed meanwhile may have moved from behind the page to before it.
        while changes := await self._store.changes(after=seen):
            if changes[0].sequence > seen + 1:
                # So much changed meanwhile that the store has dropped some of it.
                return rewrapped + await self.rewrap_keys(actor=actor)
            for tenant_id in {change.tenant_id for change in changes}:
                changed = await self._store.get(tenant_id)
                if changed is not None:
                    rewrapped += await self._vault.rewrap(changed, author)
            seen = changes[-1].sequence
        return rewrapped
