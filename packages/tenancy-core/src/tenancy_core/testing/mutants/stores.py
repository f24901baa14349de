"""Stores that make one mistake each."""

# They are broken in what is private to the store that they are made of, and their classes of
# transactions take the place of an attribute of it (N801).
# pyright: reportPrivateUsage=false
# ruff: noqa: N801, SLF001

from __future__ import annotations

import secrets
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import anyio.lowlevel
import pytest

from tenancy_core._stores.memory import MemoryTenantStore, _Transaction
from tenancy_core.contract import Change, TenantPage
from tenancy_core.errors import TenantExists
from tenancy_core.tenant import Placement, TenantStatus
from tenancy_core.testing.mutants.mutant import mutant
from tenancy_core.testing.store import TenantStoreSuite

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from types import TracebackType
    from uuid import UUID

    from tenancy_core.contract import (
        AuditEvent,
        JournalStep,
        RefusalCount,
        Reservation,
        TenantStore,
    )
    from tenancy_core.tenant import Tenant

__all__ = ["HONEST_STORES", "STORE_MUTANTS"]


class HonestTransaction(_Transaction):
    """The transaction of a store in memory; one step waits, as a database does."""

    __slots__ = ()

    async def put_secret(self, tenant_id: UUID, name: str, value: bytes, /) -> None:
        """See the contract."""
        await anyio.lowlevel.checkpoint()
        await super().put_secret(tenant_id, name, value)


class HonestStore(MemoryTenantStore):
    """A store in memory, whose transactions the mutants replace."""

    transaction_class: ClassVar[type[_Transaction]] = HonestTransaction

    def transaction(self) -> _Transaction:
        """See the contract."""
        return self.transaction_class(self, self._writing)

    def client(self) -> MemoryTenantStore:
        """Return what another process has."""
        return self


class StoreCase(TenantStoreSuite):
    """The suite on a store in memory."""

    capabilities = frozenset({"shared"})
    product: ClassVar[type[Any]] = HonestStore

    @pytest.fixture
    def store(self) -> Any:  # noqa: ANN401 - an implementation that may be broken
        """Make the store."""
        self.first = self.product()
        return self.first

    def another(self) -> AbstractAsyncContextManager[TenantStore]:
        """See the suite."""

        @asynccontextmanager
        async def opened() -> AsyncGenerator[TenantStore, None]:
            yield self.first.client()

        return opened()


# -- records -----------------------------------------------------------------------------------


class LosesMicroseconds(HonestStore):
    """Keeps whole seconds."""

    class transaction_class(HonestTransaction):
        """Keeps whole seconds."""

        __slots__ = ()

        async def create(self, tenant: Tenant, /) -> None:
            """Round."""
            await super().create(
                replace(tenant, created_at=tenant.created_at.replace(microsecond=0))
            )


class ForgivesSpelling(HonestStore):
    """Finds tenants by names that are not quite theirs."""

    async def get_by_identifier(self, identifier: str, /) -> Tenant | None:
        """Repair."""
        return await super().get_by_identifier(identifier.strip().lower())


class TakesIdentifiersTwice(HonestStore):
    """Lets two tenants have one identifier."""

    class transaction_class(HonestTransaction):
        """Does not look."""

        __slots__ = ()

        async def create(self, tenant: Tenant, /) -> None:
            """Insert."""
            self._state.tenants[tenant.id] = tenant


class SharesPlaces(HonestStore):
    """Lets two tenants have one place."""

    class transaction_class(HonestTransaction):
        """Does not look."""

        __slots__ = ()

        def _refuse_taken_place(self, tenant: Tenant) -> None:
            """Allow it."""


class IsSpoiltByRefusals(HonestStore):
    """Loses the whole transaction when one step of it was refused, and does not tell."""

    class transaction_class(HonestTransaction):
        """Remembers the refusal."""

        __slots__ = ("_spoilt",)

        async def create(self, tenant: Tenant, /) -> None:
            """Remember."""
            try:
                await super().create(tenant)
            except TenantExists:
                self._spoilt = True
                raise

        async def __aexit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None:
            """Roll back."""
            await super().__aexit__(LookupError if hasattr(self, "_spoilt") else kind, error, trace)


class IgnoresVersions(HonestStore):
    """Has no optimistic locking: the last writer wins."""

    class transaction_class(HonestTransaction):
        """Overwrites."""

        __slots__ = ()

        async def update(self, tenant: Tenant, /, *, expected_version: int) -> None:
            """Take any version."""
            old = self._state.tenants.get(tenant.id)
            version = expected_version if old is None else old.version
            await super().update(tenant, expected_version=version)


class ForgetsToRename(HonestStore):
    """Keeps the identifier of the first record."""

    class transaction_class(HonestTransaction):
        """Keeps it."""

        __slots__ = ()

        async def update(self, tenant: Tenant, /, *, expected_version: int) -> None:
            """Keep the old one."""
            old = self._state.tenants.get(tenant.id)
            await super().update(tenant, expected_version=expected_version)
            if old is not None and tenant.status is not TenantStatus.ERASED:
                self._state.tenants[tenant.id] = replace(tenant, identifier=old.identifier)


class ListsTheErased(HonestStore):
    """Keeps the identifier of a tenant that is erased."""

    class transaction_class(HonestTransaction):
        """Keeps it."""

        __slots__ = ()

        async def update(self, tenant: Tenant, /, *, expected_version: int) -> None:
            """Keep all."""
            await super().update(tenant, expected_version=expected_version)
            self._state.tenants[tenant.id] = tenant


class KeepsSecretsOfTheDeleted(HonestStore):
    """Leaves the secrets of a tenant that is deleted."""

    class transaction_class(HonestTransaction):
        """Removes the record."""

        __slots__ = ()

        async def delete(self, tenant_id: UUID, /) -> None:
            """Remove the record only."""
            self._state.tenants.pop(tenant_id, None)


class CountsTheErased(HonestStore):
    """Counts tenants that are erased."""

    class transaction_class(HonestTransaction):
        """Counts."""

        __slots__ = ()

        async def count(self) -> int:
            """Count all."""
            return len(self._state.tenants)


class ReadsWhatIsCommitted(HonestStore):
    """Reads past the transaction that asks."""

    class transaction_class(HonestTransaction):
        """Reads elsewhere."""

        __slots__ = ()

        async def get(self, tenant_id: UUID, /) -> Tenant | None:
            """Ask the store."""
            return await self._store.get(tenant_id)


# -- pages -------------------------------------------------------------------------------------


class SortsByAge(HonestStore):
    """Lists tenants in the order in which they were created."""

    async def list(self, **selection: Any) -> TenantPage:
        """Sort otherwise."""
        page = await super().list(**selection)
        items = tuple(sorted(page.items, key=lambda tenant: tenant.created_at))
        return TenantPage(items, page.next)


class AlwaysSaysThatThereIsMore(HonestStore):
    """Names a next page after every full one."""

    async def list(self, **selection: Any) -> TenantPage:
        """Promise."""
        page = await super().list(**selection)
        full = len(page.items) == selection.get("limit")
        return TenantPage(page.items, page.items[-1].identifier if full else page.next)


class TakesOneFilter(HonestStore):
    """Forgets the plan where there is a status."""

    async def list(self, **selection: Any) -> TenantPage:
        """Forget."""
        if selection.get("status") is not None:
            selection.pop("plan", None)
        return await super().list(**selection)


# -- transactions ------------------------------------------------------------------------------


class LeavesHalf(HonestStore):
    """Keeps the audit log of a transaction that raised."""

    class transaction_class(HonestTransaction):
        """Keeps a part."""

        __slots__ = ()

        async def __aexit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None:
            """Keep it."""
            self._store._state.audit = self._state.audit
            await super().__aexit__(kind, error, trace)


class CommitsTheCancelled(HonestStore):
    """Commits what a cancelled task had done so far."""

    class transaction_class(HonestTransaction):
        """Commits."""

        __slots__ = ()

        async def __aexit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None:
            """Look at exceptions only."""
            failed = kind is not None and issubclass(kind, Exception)
            await super().__aexit__(kind if failed else None, error, trace)


class KeepsItsLock(HonestStore):
    """Keeps everybody out after a transaction that was cancelled."""

    class transaction_class(HonestTransaction):
        """Keeps the lock."""

        __slots__ = ()

        async def __aexit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None:
            """Release it after a commit or an exception only."""
            if kind is None or issubclass(kind, Exception):
                await super().__aexit__(kind, error, trace)


class ShowsTheUncommitted(HonestStore):
    """Lets everybody see what is not committed."""

    class transaction_class(HonestTransaction):
        """Works in public."""

        __slots__ = ()

        async def __aenter__(self) -> Self:
            """Work on what all see."""
            await super().__aenter__()
            self._state = self._store._state
            return self


class HasNoLock(HonestStore):
    """Lets two transactions begin from one state, and keeps what the later one wrote."""

    class transaction_class(HonestTransaction):
        """Begins at once."""

        __slots__ = ()

        async def __aenter__(self) -> Self:
            """Take no lock."""
            self._state = self._store._state.copy()
            await anyio.lowlevel.checkpoint()
            return self

        async def __aexit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None:
            """Overwrite."""
            if kind is None:
                self._store._swap(self._state)


# -- secrets -----------------------------------------------------------------------------------


class SharesSecrets(HonestStore):
    """Keeps one secret of a name, whose ever it is."""

    async def get_secret(self, tenant_id: UUID, name: str, /) -> bytes | None:
        """Forget the tenant."""
        del tenant_id
        found = [value for key, value in self._state.secrets.items() if key[1] == name]
        return found[-1] if found else None


class SharesSecretsInTransactions(HonestStore):
    """Keeps one secret of a name, whose ever it is, until the transaction ends."""

    class transaction_class(HonestTransaction):
        """Looks at the name alone."""

        __slots__ = ()

        async def get_secret(self, tenant_id: UUID, name: str, /) -> bytes | None:  # noqa: ARG002 - wrong on purpose
            """Look at the name alone."""
            found = [value for key, value in self._state.secrets.items() if key[1] == name]
            return found[0] if found else None


class MakesAKeyEachTime(HonestStore):
    """Makes a new key whenever it is asked for it."""

    async def instance_key(self) -> bytes:
        """Make one."""
        return secrets.token_bytes(32)


# -- the audit log -----------------------------------------------------------------------------


class LosesDetails(HonestStore):
    """Keeps an event without its details."""

    class transaction_class(HonestTransaction):
        """Loses them."""

        __slots__ = ()

        async def append_audit(self, event: AuditEvent, /) -> None:
            """Lose them."""
            await super().append_audit(replace(event, details={}))


class ReusesSequences(HonestStore):
    """Takes an event of any sequence."""

    class transaction_class(HonestTransaction):
        """Does not look."""

        __slots__ = ()

        async def append_audit(self, event: AuditEvent, /) -> None:
            """Append."""
            await self.audit_head(event.tenant_id)
            log = self._state.audit.get(event.tenant_id, ())
            self._state.audit[event.tenant_id] = (*log, event)


class WritesForNobody(HonestStore):
    """Keeps logs of tenants that were never created."""

    class transaction_class(HonestTransaction):
        """Does not look."""

        __slots__ = ()

        async def audit_head(self, tenant_id: UUID, /) -> Any:  # noqa: ANN401 - as the store's
            """Say that there is nothing."""
            return await self._store.audit_head(tenant_id)


class RedactsTheLogOnly(HonestStore):
    """Leaves the personal fields in what is still to be delivered."""

    class transaction_class(HonestTransaction):
        """Forgets the outbox."""

        __slots__ = ()

        async def redact_audit(self, tenant_id: UUID, /) -> None:
            """Leave it."""
            outbox = dict(self._state.outbox)
            await super().redact_audit(tenant_id)
            self._state.outbox = outbox


class DeliversForEver(HonestStore):
    """Does not note that the sinks have an event."""

    class transaction_class(HonestTransaction):
        """Forgets."""

        __slots__ = ()

        async def delivered(self, tenant_id: UUID, sequence: int, /) -> None:
            """Forget."""


class CountsTheLastRefusals(HonestStore):
    """Replaces a count where it should add to it."""

    class transaction_class(HonestTransaction):
        """Replaces."""

        __slots__ = ()

        async def count_refusals(self, counts: Sequence[RefusalCount], /) -> None:
            """Replace."""
            for one in counts:
                self._state.refusals[one.tenant_id, one.minute, one.code] = one.count


# -- what can be resumed -----------------------------------------------------------------------


class MixesOperations(HonestStore):
    """Keeps the steps of all operations of a tenant in one list."""

    class transaction_class(HonestTransaction):
        """Mixes."""

        __slots__ = ()

        async def journal(self, tenant_id: UUID, step: JournalStep, /) -> None:
            """Forget the operation."""
            await super().journal(tenant_id, replace(step, operation="any"))

        async def journaled(self, tenant_id: UUID, operation: str, /) -> Sequence[str]:
            """Forget the operation."""
            del operation
            return await super().journaled(tenant_id, "any")


class FindsEveryOperation(HonestStore):
    """Takes a tenant with any operation for one with the operation that is asked for."""

    async def begun(self, operation: str, /) -> Sequence[UUID]:
        """Look at the tenants only."""
        del operation
        return list(dict.fromkeys(owner for owner, _ in self._state.journal))


class KeepsTheFirstReservation(HonestStore):
    """Does not replace a reservation."""

    class transaction_class(HonestTransaction):
        """Keeps it."""

        __slots__ = ()

        async def reserve(self, digest: str, reservation: Reservation, /) -> None:
            """Keep the first."""
            self._state.reservations.setdefault(digest, reservation)


# -- the change sequence -----------------------------------------------------------------------


class BurnsNumbers(HonestStore):
    """Takes its numbers from a counter that is not rolled back."""

    def __init__(self) -> None:
        super().__init__()
        self.counter = 0

    class transaction_class(HonestTransaction):
        """Counts outside of itself."""

        __slots__ = ()

        async def enqueue(self, tenant_id: UUID, /) -> int:
            """Count."""
            store: Any = self._store
            store.counter += 1
            self._state.sequence = store.counter
            self._state.changes = (*self._state.changes, Change(store.counter, tenant_id))
            return self._state.sequence


class NumbersBeforeItCommits(HonestStore):
    """Hands out numbers before the order of commits is known."""

    def __init__(self) -> None:
        super().__init__()
        self.counter = 0

    class transaction_class(HonestTransaction):
        """Adds to what is there when it ends."""

        __slots__ = ("_mine",)

        async def __aenter__(self) -> Self:
            """Take no lock."""
            self._state = self._store._state.copy()
            self._mine: list[Change] = []
            return self

        async def enqueue(self, tenant_id: UUID, /) -> int:
            """Count."""
            store: Any = self._store
            store.counter += 1
            self._mine.append(Change(store.counter, tenant_id))
            return self._mine[-1].sequence

        async def __aexit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None:
            """Add."""
            if kind is None:
                now = self._store._state
                self._state.changes = tuple(
                    sorted((*now.changes, *self._mine), key=lambda change: change.sequence)
                )
                self._state.sequence = max([now.sequence, *(one.sequence for one in self._mine)])
                self._store._swap(self._state)


class KnowsOnlyItself(HonestStore):
    """Keeps everything in its own process, and says that it is shared."""

    def client(self) -> MemoryTenantStore:
        """Return another store."""
        return HonestStore()


class GivesPlacesAway(HonestStore):
    """Forgets the place of a tenant that is updated."""

    class transaction_class(HonestTransaction):
        """Forgets."""

        __slots__ = ()

        async def update(self, tenant: Tenant, /, *, expected_version: int) -> None:
            """Forget."""
            lost = replace(tenant, placement=Placement(name=f"lost-{tenant.id}"))
            await super().update(lost, expected_version=expected_version)


HONEST_STORES: Final = (StoreCase,)

_ONE_OF_MANY: Final = "test_of_many_who_update_one_version_one_succeeds"

STORE_MUTANTS: Final = (
    mutant(StoreCase, LosesMicroseconds, "test_a_record_comes_back_as_it_was"),
    mutant(StoreCase, ForgivesSpelling, "test_nobody_is_found_under_a_name_that_nobody_has"),
    mutant(
        StoreCase,
        TakesIdentifiersTwice,
        "test_an_identifier_has_one_tenant",
        "test_of_many_who_create_one_tenant_one_succeeds",
    ),
    mutant(StoreCase, SharesPlaces, "test_I1_a_place_has_one_tenant"),
    mutant(StoreCase, IsSpoiltByRefusals, "test_a_transaction_goes_on_after_a_refusal"),
    mutant(
        StoreCase,
        IgnoresVersions,
        "test_an_update_replaces_the_version_it_expects",
        _ONE_OF_MANY,
    ),
    mutant(StoreCase, GivesPlacesAway, "test_an_update_replaces_the_version_it_expects"),
    mutant(StoreCase, ForgetsToRename, "test_an_identifier_can_be_renamed"),
    mutant(StoreCase, ListsTheErased, "test_an_erased_tenant_gives_its_identifier_back"),
    mutant(StoreCase, KeepsSecretsOfTheDeleted, "test_deleting_removes_a_record"),
    mutant(StoreCase, CountsTheErased, "test_tenants_are_counted_unless_they_are_erased"),
    mutant(StoreCase, ReadsWhatIsCommitted, "test_a_transaction_reads_what_it_wrote"),
    mutant(StoreCase, SortsByAge, "test_pages_follow_the_order_of_identifiers"),
    mutant(StoreCase, AlwaysSaysThatThereIsMore, "test_the_last_page_says_so"),
    mutant(StoreCase, TakesOneFilter, "test_pages_can_be_of_a_status_or_a_plan"),
    mutant(StoreCase, LeavesHalf, "test_a_transaction_that_raises_leaves_nothing"),
    mutant(
        StoreCase,
        CommitsTheCancelled,
        "test_P2_a_transaction_cancelled_at_any_moment_leaves_nothing_or_all",
    ),
    mutant(
        StoreCase,
        KeepsItsLock,
        "test_P2_a_transaction_cancelled_at_any_moment_leaves_nothing_or_all",
        timeout=1.0,
    ),
    mutant(StoreCase, ShowsTheUncommitted, "test_what_is_not_committed_is_seen_by_nobody"),
    mutant(
        StoreCase,
        HasNoLock,
        "test_a_count_holds_until_its_transaction_ends",
        "test_A2_the_log_has_no_gap_and_no_fork",
        _ONE_OF_MANY,
    ),
    mutant(StoreCase, SharesSecrets, "test_secrets_are_one_tenants"),
    mutant(StoreCase, SharesSecretsInTransactions, "test_secrets_are_one_tenants"),
    mutant(StoreCase, MakesAKeyEachTime, "test_the_store_has_one_random_key"),
    mutant(StoreCase, LosesDetails, "test_events_come_back_in_order_and_as_they_were"),
    mutant(StoreCase, ReusesSequences, "test_an_event_has_the_next_sequence_or_is_refused"),
    mutant(StoreCase, WritesForNobody, "test_there_is_no_event_without_a_tenant"),
    mutant(StoreCase, RedactsTheLogOnly, "test_redacting_takes_the_personal_fields_and_no_others"),
    mutant(StoreCase, DeliversForEver, "test_events_wait_until_the_sinks_have_them"),
    mutant(StoreCase, CountsTheLastRefusals, "test_refusals_add_up"),
    mutant(StoreCase, MixesOperations, "test_the_journal_keeps_the_steps_of_each_operation"),
    mutant(StoreCase, FindsEveryOperation, "test_what_was_begun_is_found"),
    mutant(StoreCase, KeepsTheFirstReservation, "test_reservations_are_kept_and_replaced"),
    mutant(StoreCase, BurnsNumbers, "test_changes_are_numbered_one_by_one"),
    mutant(StoreCase, NumbersBeforeItCommits, "test_a_follower_never_misses_a_late_change"),
    mutant(StoreCase, KnowsOnlyItself, "test_another_client_knows_the_same"),
)
