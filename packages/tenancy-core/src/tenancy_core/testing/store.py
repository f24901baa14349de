"""What every tenant store does: it keeps records as they are, whole transactions, and the order."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final
from uuid import uuid4

import anyio.lowlevel
import pytest

from tenancy_core.contract import (
    AuditEvent,
    AuditHead,
    JournalStep,
    RefusalCount,
    Reservation,
)
from tenancy_core.errors import (
    IdentifierCollision,
    TenantExists,
    TenantNotFound,
    VersionConflict,
)
from tenancy_core.tenant import Placement, Tenant, TenantStatus
from tenancy_core.testing.fakes import make_tenant
from tenancy_core.testing.suite import MOST_WAITS, Suite, requires, run_together, strike

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from uuid import UUID

    from tenancy_core.contract import StoreTransaction, TenantStore

__all__ = ["TenantStoreSuite"]

NOW: Final = datetime(2026, 11, 22, 12, 30, 0, 123456, tzinfo=UTC)

DIGEST: Final = hashlib.sha256(b"acme").hexdigest()


class TenantStoreSuite(Suite, published=True):
    """Conformance of a :class:`~tenancy_core.contract.TenantStore`.

    A subclass gives the fixture ``store``: open, and empty.
    """

    known_capabilities: ClassVar[Mapping[str, str]] = {
        "shared": "several processes use one store; give `another` as well",
    }

    @pytest.fixture
    def store(self) -> TenantStore:
        """Give the store that is tested."""
        raise NotImplementedError(f"{type(self).__name__} has to give the fixture `store`.")

    def another(self) -> AbstractAsyncContextManager[TenantStore]:
        """Open a second client of the same store, as another process has it."""
        raise NotImplementedError(
            f"{type(self).__name__} declares `shared` and has to define `another`."
        )

    # -- records -----------------------------------------------------------------------------------

    async def test_a_record_comes_back_as_it_was(self, store: TenantStore) -> None:
        """Every field of a tenant is kept as it is, to the microsecond and to the JSON value."""
        made = make_tenant(
            "acme",
            name="Ünïcode ☃ Ltd",
            plan="pro",
            limits={"rate_limit_per_minute": 7},
            metadata={"nested": {"list": [1, 2.5, None, True, {"a": "ü☃"}]}, "empty": {}},
            version=3,
            status=TenantStatus.PROVISIONING,
            created_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=-7))),
        )
        await _create(store, made)
        _same(await store.get(made.id), made)
        _same(await store.get_by_identifier("acme"), made)
        found = await store.get(made.id)
        assert found is not None
        assert found.created_at.utcoffset() is not None
        _same((await store.list()).items[0], made)

    async def test_nobody_is_found_under_a_name_that_nobody_has(self, store: TenantStore) -> None:
        """Identifiers are compared to the byte: no wildcard, no case, no space is forgiven."""
        await _create(store, make_tenant("acme"))
        assert await store.get(uuid4()) is None
        for name in ("nobody", "", "ACME", "Acme", "acm", "acme ", " acme", "a%", "_cme", "acme\n"):
            assert await store.get_by_identifier(name) is None, repr(name)

    async def test_an_identifier_has_one_tenant(self, store: TenantStore) -> None:
        """A second tenant of an identifier, or of an id, is TenantExists; nothing is changed."""
        first = make_tenant("acme")
        await _create(store, first)
        with pytest.raises(TenantExists):
            await _create(store, make_tenant("acme"))
        with pytest.raises(TenantExists):
            await _create(store, make_tenant("other", id=first.id, placement=Placement(name="x")))
        _same(await store.get_by_identifier("acme"), first)
        assert await store.get_by_identifier("other") is None

    async def test_of_many_who_create_one_tenant_one_succeeds(self, store: TenantStore) -> None:
        """An identifier is taken once, however many ask for it at the same time."""
        outcomes = await run_together(
            [partial(_tried, _create, store, make_tenant("acme")) for _ in range(8)]
        )
        assert sorted(outcomes) == ["TenantExists"] * 7 + ["done"]
        assert len((await store.list()).items) == 1

    async def test_I1_a_place_has_one_tenant(self, store: TenantStore) -> None:
        """A place that is another tenant's is IdentifierCollision, in ``create`` and ``update``."""
        await _create(store, make_tenant("acme", placement=Placement(name="shared")))
        beta = make_tenant("beta", placement=Placement(name="shared"))
        with pytest.raises(IdentifierCollision):
            await _create(store, beta)
        assert await store.get(beta.id) is None
        await _create(store, replace(beta, placement=Placement(name="own")))
        with pytest.raises(IdentifierCollision):
            await _update(store, replace(beta, version=2), 1)

    async def test_a_transaction_goes_on_after_a_refusal(self, store: TenantStore) -> None:
        """TenantExists, caught inside a transaction, does not spoil what else is in it."""
        await _create(store, make_tenant("acme"))
        beta = make_tenant("beta")
        async with store.transaction() as transaction:
            with pytest.raises(TenantExists):
                await transaction.create(make_tenant("acme"))
            await transaction.create(beta)
        _same(await store.get_by_identifier("beta"), beta)

    async def test_an_update_replaces_the_version_it_expects(self, store: TenantStore) -> None:
        """Every field is replaced where the version is the expected one, else VersionConflict."""
        first = make_tenant("acme")
        await _create(store, first)
        second = replace(
            first,
            version=2,
            status=TenantStatus.SUSPENDED,
            name="Renamed",
            plan="free",
            metadata={"a": 1},
            updated_at=NOW,
        )
        await _update(store, second, 1)
        for stale in (1, 3):
            with pytest.raises(VersionConflict):
                await _update(store, replace(first, version=9), stale)
        with pytest.raises(VersionConflict):
            await _update(store, make_tenant("nobody"), 1)
        _same(await store.get(first.id), second)

    async def test_of_many_who_update_one_version_one_succeeds(self, store: TenantStore) -> None:
        """Of eight writers of one version seven get VersionConflict, and no write is lost."""
        first = make_tenant("acme")
        await _create(store, first)
        names = [f"name {number}" for number in range(8)]
        outcomes = await run_together(
            [
                partial(_tried, _update, store, replace(first, version=2, name=name), 1)
                for name in names
            ]
        )
        assert sorted(outcomes) == ["VersionConflict"] * 7 + ["done"]
        found = await store.get(first.id)
        assert found is not None
        assert found.name == names[outcomes.index("done")]

    async def test_an_identifier_can_be_renamed(self, store: TenantStore) -> None:
        """A new identifier replaces the old one; another tenant's is TenantExists."""
        acme, beta = make_tenant("acme"), make_tenant("beta")
        await _create(store, acme, beta)
        with pytest.raises(TenantExists):
            await _update(store, replace(acme, identifier="beta", version=2), 1)
        renamed = replace(acme, identifier="acme-2", version=2)
        await _update(store, renamed, 1)
        assert await store.get_by_identifier("acme") is None
        _same(await store.get_by_identifier("acme-2"), renamed)
        _same(await store.get_by_identifier("beta"), beta)

    async def test_an_erased_tenant_gives_its_identifier_back(self, store: TenantStore) -> None:
        """Of an erased tenant the id is left; its identifier is free, and it is in no list."""
        for _ in range(2):  # and two of them do not collide
            acme = make_tenant("acme")
            await _create(store, acme)
            await _update(store, replace(acme, status=TenantStatus.ERASED, version=2), 1)
            assert await store.get_by_identifier("acme") is None
            assert await store.get_by_identifier("") is None
            found = await store.get(acme.id)
            assert found is not None
            assert (found.identifier, found.status) == ("", TenantStatus.ERASED)
            assert (await store.list()).items == ()
            assert (await store.list(status=TenantStatus.ERASED)).items == ()

    async def test_deleting_removes_a_record(self, store: TenantStore) -> None:
        """``delete`` removes one tenant with its secrets, and twice is no error."""
        acme, beta = make_tenant("acme"), make_tenant("beta")
        await _create(store, acme, beta)
        async with store.transaction() as transaction:
            for one in (acme, beta):
                await transaction.put_secret(one.id, "key", b"1")
        for _ in range(2):
            async with store.transaction() as transaction:
                await transaction.delete(acme.id)
        assert await store.get(acme.id) is None
        assert await store.get_by_identifier("acme") is None
        assert await store.get_secret(acme.id, "key") is None
        _same(await store.get(beta.id), beta)
        assert await store.get_secret(beta.id, "key") == b"1"
        await _create(store, make_tenant("acme"))

    async def test_tenants_are_counted_unless_they_are_erased(self, store: TenantStore) -> None:
        """``count`` knows all statuses but one, and what its own transaction did."""
        for number, status in enumerate(TenantStatus):
            await _create(store, make_tenant(f"t{number}", status=status))
        async with store.transaction() as transaction:
            assert await transaction.count() == len(TenantStatus) - 1
            await transaction.create(make_tenant("another"))
            assert await transaction.count() == len(TenantStatus)

    async def test_a_transaction_reads_what_it_wrote(self, store: TenantStore) -> None:
        """``get`` in a transaction knows its own changes, and nobody else does yet."""
        acme = make_tenant("acme")
        await _create(store, acme)
        async with store.transaction() as transaction:
            _same(await transaction.get(acme.id), acme)
            assert await transaction.get(uuid4()) is None
            gone = replace(acme, status=TenantStatus.ARCHIVED, version=2)
            await transaction.update(gone, expected_version=1)
            _same(await transaction.get(acme.id), gone)
            _same(await store.get(acme.id), acme)

    async def test_a_count_holds_until_its_transaction_ends(self, store: TenantStore) -> None:
        """Ten who enqueue, count and create at once do not exceed a limit of three."""
        limit = 3

        async def create(number: int) -> None:
            async with store.transaction() as transaction:
                tenant = make_tenant(f"t{number}")
                await transaction.enqueue(tenant.id)
                if await transaction.count() < limit:
                    await anyio.lowlevel.checkpoint()
                    await transaction.create(tenant)

        await run_together(partial(create, number) for number in range(10))
        assert len((await store.list()).items) == limit

    # -- pages -------------------------------------------------------------------------------------

    async def test_pages_follow_the_order_of_identifiers(self, store: TenantStore) -> None:
        """Pages are in the order of bytes, and what happens between two of them moves no other."""
        names = ["0", "a", "a-b", "a0", "aa", "b", "b-0", "c", "z9"]
        await _create(store, *(make_tenant(name) for name in reversed(names)))
        found: list[str] = []
        after: str | None = None
        for _ in names:
            page = await store.list(after=after, limit=2)
            found += [one.identifier for one in page.items]
            assert len(page.items) <= 2
            if page.next is None:
                break
            assert page.next == found[-1]
            after = page.next
            if after == "a":
                # Behind us, and the row that the next page hangs on.
                await _create(store, make_tenant("00"))
                gone = await store.get_by_identifier("a")
                assert gone is not None
                async with store.transaction() as transaction:
                    await transaction.delete(gone.id)
        assert found == names

    async def test_the_last_page_says_so(self, store: TenantStore) -> None:
        """``next`` is None on the last page, also where it is full, and on an empty one."""
        await _create(store, *(make_tenant(f"t{number}") for number in range(3)))
        for limit, following in ((1, "t0"), (2, "t1"), (3, None), (4, None)):
            page = await store.list(limit=limit)
            assert (len(page.items), page.next) == (min(limit, 3), following)
        empty = await store.list(after="t2")
        assert (tuple(empty.items), empty.next) == ((), None)

    async def test_pages_can_be_of_a_status_or_a_plan(self, store: TenantStore) -> None:
        """Filters are combined, and go together with pages."""
        await _create(
            store,
            make_tenant("a", plan="pro"),
            make_tenant("b", plan="free"),
            make_tenant("c", plan="pro", status=TenantStatus.SUSPENDED),
            make_tenant("d"),
        )

        async def names(**selection: Any) -> list[str]:
            return [one.identifier for one in (await store.list(**selection)).items]

        assert await names(plan="pro") == ["a", "c"]
        assert await names(status=TenantStatus.ACTIVE) == ["a", "b", "d"]
        assert await names(status=TenantStatus.SUSPENDED, plan="pro") == ["c"]
        assert await names(status=TenantStatus.ACTIVE, plan="pro", after="a") == []
        assert await names(status=TenantStatus.ACTIVE, limit=2) == ["a", "b"]
        assert await names(plan="none") == []

    # -- transactions ------------------------------------------------------------------------------

    async def test_a_transaction_that_raises_leaves_nothing(self, store: TenantStore) -> None:
        """Of a block that raises nothing is kept, of whatever kind; its exception comes out."""
        acme = make_tenant("acme")
        await _create(store, acme)
        error = LookupError("the caller's own")
        with pytest.raises(LookupError) as caught:
            async with store.transaction() as transaction:
                await _everything(transaction, acme)
                raise error
        assert caught.value is error
        await self._untouched(store, acme)

    async def test_P2_a_transaction_cancelled_at_any_moment_leaves_nothing_or_all(
        self, store: TenantStore
    ) -> None:
        """Wherever it is struck, it is all there or not at all, and the next one is not held up."""
        acme = make_tenant("acme")
        # Each point costs a few commits: the first ones all, then every third.
        for point in (*range(30), *range(30, MOST_WAITS, 3)):
            await _create(store, acme)
            left: list[str] = []

            async def work(left: list[str] = left, acme: Tenant = acme) -> None:
                async with store.transaction() as transaction:
                    await _everything(transaction, acme)
                    left.append("the body")
                left.append("the block")

            struck = await strike(work(), point, insist=True)
            # A COMMIT that nobody waits for may still be on its way. It holds the change sequence,
            # so that whoever gets that comes after it.
            async with store.transaction() as transaction:
                await transaction.enqueue(uuid4())
            if len(left) < 2:
                found = await store.get(acme.id)
                assert found is not None
                if not left or found.version == 1:
                    await self._untouched(store, acme)
                else:
                    assert await store.get_by_identifier("beta") is not None
                    assert await store.get_secret(acme.id, "key") == b"1"
                    assert len(await store.audit(acme.id)) == 1
            async with store.transaction() as transaction:
                await transaction.delete(acme.id)
                for tenant in (await store.list()).items:
                    await transaction.delete(tenant.id)
            acme = make_tenant("acme")
            if not struck:
                return
        raise AssertionError(f"A transaction still waited after {MOST_WAITS} times.")

    async def test_what_is_not_committed_is_seen_by_nobody(self, store: TenantStore) -> None:
        """Others see a transaction when it is over, and do not wait for it."""
        async with store.transaction() as transaction:
            await transaction.create(make_tenant("acme"))
            assert await store.get_by_identifier("acme") is None
            assert (await store.list()).items == ()
        assert await store.get_by_identifier("acme") is not None

    # -- secrets -----------------------------------------------------------------------------------

    async def test_secrets_are_one_tenants(self, store: TenantStore) -> None:
        """A secret is bytes under a name of one tenant; it is replaced, listed and forgotten."""
        acme, beta = make_tenant("acme"), make_tenant("beta")
        await _create(store, acme, beta)
        value = bytes(range(256))
        async with store.transaction() as transaction:
            for name in ("url", "key", "a b"):
                await transaction.put_secret(acme.id, name, b"old")
            await transaction.put_secret(acme.id, "url", value)
            await transaction.put_secret(beta.id, "url", b"beta's")
            assert await transaction.get_secret(acme.id, "url") == value
            assert await transaction.get_secret(beta.id, "key") is None
        assert await store.get_secret(acme.id, "url") == value
        assert await store.get_secret(beta.id, "url") == b"beta's"
        assert await store.get_secret(beta.id, "key") is None
        assert [*await store.secret_names(acme.id)] == ["a b", "key", "url"]
        for _ in range(2):
            async with store.transaction() as transaction:
                await transaction.delete_secret(acme.id, "key")
        assert [*await store.secret_names(acme.id)] == ["a b", "url"]
        for _ in range(2):
            async with store.transaction() as transaction:
                await transaction.delete_secrets(acme.id)
        assert [*await store.secret_names(acme.id)] == []
        assert await store.get_secret(acme.id, "url") is None
        assert [*await store.secret_names(beta.id)] == ["url"]

    async def test_the_store_has_one_random_key(self, store: TenantStore) -> None:
        """``instance_key`` is 32 bytes, the same whenever it is asked for."""
        keys = await run_together([store.instance_key] * 5)
        assert len({*keys}) == 1
        assert len(keys[0]) == 32
        assert len({*keys[0]}) > 8, "That does not look random."

    # -- the audit log -----------------------------------------------------------------------------

    async def test_events_come_back_in_order_and_as_they_were(self, store: TenantStore) -> None:
        """Every field of an event is kept; each tenant has a log of its own, paged by sequence."""
        acme, beta = make_tenant("acme"), make_tenant("beta")
        await _create(store, acme, beta)
        async with store.transaction() as transaction:
            first = await _audit(
                transaction,
                acme.id,
                actor="ops",
                reason="why\nnot \x1b[31m",
                details={"a": [1, {"b": "ü"}], "n": None},
                personal={"identifier": "acme"},
            )
            await _audit(transaction, beta.id)
            second = await _audit(transaction, acme.id, "second")
        assert [*await store.audit(acme.id)] == [first, second]
        assert [*await store.audit(acme.id, after=1)] == [second]
        assert [*await store.audit(acme.id, limit=1)] == [first]
        assert not [*await store.audit(acme.id, after=2)]
        assert len(await store.audit(beta.id)) == 1
        assert await store.audit_head(acme.id) == AuditHead(2, second.seal)
        assert await store.audit_head(uuid4()) == AuditHead()

    async def test_A2_the_log_has_no_gap_and_no_fork(self, store: TenantStore) -> None:
        """Eight writers, some of whom fail, make a log without a gap, each event on the last."""
        acme = make_tenant("acme")
        await _create(store, acme)

        async def write(number: int) -> None:
            for turn in range(6):
                try:
                    async with store.transaction() as transaction:
                        await _audit(transaction, acme.id, f"done.{number}.{turn}")
                        await anyio.lowlevel.checkpoint()
                        if (number + turn) % 3 == 0:
                            raise LookupError
                except LookupError:
                    pass

        await run_together(partial(write, number) for number in range(8))
        log = await store.audit(acme.id)
        assert [event.sequence for event in log] == [*range(1, 33)]
        seal = b""
        for event in log:
            assert event.seal == _seal(seal, event.action), event.sequence
            seal = event.seal

    async def test_an_event_has_the_next_sequence_or_is_refused(self, store: TenantStore) -> None:
        """An event whose sequence is not the head's plus one is a ValueError."""
        acme = make_tenant("acme")
        await _create(store, acme)
        async with store.transaction() as transaction:
            event = await _audit(transaction, acme.id)
        for sequence in (0, 1, 3):
            with pytest.raises(ValueError):  # noqa: PT011 - the words are the store's own
                async with store.transaction() as transaction:
                    await transaction.append_audit(replace(event, sequence=sequence))
        assert [*await store.audit(acme.id)] == [event]

    async def test_there_is_no_event_without_a_tenant(self, store: TenantStore) -> None:
        """A tenant that was never created has no log (TenantNotFound); a deleted one keeps its."""
        with pytest.raises(TenantNotFound):
            async with store.transaction() as transaction:
                await transaction.audit_head(uuid4())
        with pytest.raises(TenantNotFound):
            async with store.transaction() as transaction:
                await transaction.append_audit(_event(uuid4(), 1))
        acme = make_tenant("acme")
        await _create(store, acme)
        async with store.transaction() as transaction:
            await _audit(transaction, acme.id, "created")
            await _audit(transaction, acme.id, "deleted")
            await transaction.delete(acme.id)
        assert [event.action for event in await store.audit(acme.id)] == ["created", "deleted"]
        assert (await store.audit_head(acme.id)).sequence == 2

    async def test_redacting_takes_the_personal_fields_and_no_others(
        self, store: TenantStore
    ) -> None:
        """``redact_audit`` empties four fields of a tenant's log, also of what is still to send."""
        acme, beta = make_tenant("acme"), make_tenant("beta")
        await _create(store, acme, beta)
        personal: dict[str, Any] = {"actor": "ops", "reason": "why", "personal": {"name": "Acme"}}
        async with store.transaction() as transaction:
            events = [await _audit(transaction, acme.id, **personal) for _ in range(3)]
            other = await _audit(transaction, beta.id, **personal)
            for event in (*events, other):
                await transaction.enqueue_delivery(event)
        async with store.transaction() as transaction:
            await transaction.redact_audit(acme.id)
        gone: dict[str, Any] = {"actor": None, "reason": None, "personal": {}, "salt": None}
        redacted = [replace(event, **gone) for event in events]
        assert [*await store.audit(acme.id)] == redacted
        assert [*await store.audit(beta.id)] == [other]
        waiting = await store.undelivered(before=NOW + timedelta(days=1))
        assert [event for event in waiting if event.tenant_id == acme.id] == redacted

    async def test_events_wait_until_the_sinks_have_them(self, store: TenantStore) -> None:
        """What is enqueued for delivery waits, oldest first, until it is ``delivered``."""
        acme = make_tenant("acme")
        await _create(store, acme)
        minute = timedelta(minutes=1)
        async with store.transaction() as transaction:
            events = [
                await _audit(transaction, acme.id, occurred_at=NOW - number * minute)
                for number in range(4)
            ]
            for event in events[:3]:
                await transaction.enqueue_delivery(event)
        later = NOW + minute
        assert [*await store.undelivered(before=later)] == events[2::-1]
        assert [*await store.undelivered(before=NOW)] == [events[2], events[1]]
        assert [*await store.undelivered(before=later, limit=1)] == [events[2]]
        for _ in range(2):
            async with store.transaction() as transaction:
                await transaction.delivered(acme.id, events[1].sequence)
        assert [*await store.undelivered(before=later)] == [events[2], events[0]]
        assert len(await store.audit(acme.id)) == len(events)

    async def test_refusals_add_up(self, store: TenantStore) -> None:
        """Counts of one tenant, code and minute are added; they are read newest first."""
        acme = make_tenant("acme")
        await _create(store, acme)
        minute = NOW.replace(second=0, microsecond=0)
        before = minute - timedelta(minutes=1)

        async def count(*counts: RefusalCount) -> None:
            async with store.transaction() as transaction:
                await transaction.count_refusals(counts)

        known = RefusalCount(acme.id, "rate_limited", minute, 3)
        await count(known, RefusalCount(None, "tenant_not_found", minute, 5))
        await run_together([partial(count, replace(known, count=1))] * 4)
        await count(replace(known, minute=before, count=2), replace(known, code="other", count=1))
        found = [*await store.refusals(acme.id, since=before)]
        assert sorted(found[:2], key=lambda one: one.code) == [
            replace(known, code="other", count=1),
            replace(known, count=7),
        ]
        assert found[2:] == [replace(known, minute=before, count=2)]
        assert len(await store.refusals(acme.id, since=minute)) == 2
        assert len(await store.refusals(acme.id, since=before, limit=1)) == 1
        assert [one.count for one in await store.refusals(since=before)] == [5]

    # -- what can be resumed -----------------------------------------------------------------------

    async def test_the_journal_keeps_the_steps_of_each_operation(self, store: TenantStore) -> None:
        """Steps are kept once, in order, for each tenant and operation, until that is closed."""
        acme, beta = make_tenant("acme"), make_tenant("beta")
        await _create(store, acme, beta)
        async with store.transaction() as transaction:
            for step in ("recorded", "provisioned", "recorded"):
                await transaction.journal(acme.id, JournalStep("create", step))
            await transaction.journal(acme.id, JournalStep("erase", "begun"))
            await transaction.journal(beta.id, JournalStep("create", "recorded"))
        async with store.transaction() as transaction:
            await transaction.journal(acme.id, JournalStep("create", "active"))
            await transaction.journal(acme.id, JournalStep("create", "provisioned"))
        async with store.transaction() as transaction:
            steps = await transaction.journaled(acme.id, "create")
            assert [*steps] == ["recorded", "provisioned", "active"]
            assert [*await transaction.journaled(acme.id, "erase")] == ["begun"]
            assert [*await transaction.journaled(beta.id, "create")] == ["recorded"]
            assert [*await transaction.journaled(beta.id, "erase")] == []
            await transaction.close_journal(acme.id, "create")
            assert [*await transaction.journaled(acme.id, "create")] == []
        async with store.transaction() as transaction:
            assert [*await transaction.journaled(acme.id, "create")] == []
            assert [*await transaction.journaled(acme.id, "erase")] == ["begun"]
            assert [*await transaction.journaled(beta.id, "create")] == ["recorded"]

    async def test_what_was_begun_is_found(self, store: TenantStore) -> None:
        """Each tenant with a step of an operation is found once, until the operation is closed."""
        acme, beta, gamma = make_tenant("acme"), make_tenant("beta"), make_tenant("gamma")
        await _create(store, acme, beta, gamma)
        assert [*await store.begun("erase")] == []
        async with store.transaction() as transaction:
            for step in ("begun", "half"):
                await transaction.journal(acme.id, JournalStep("erase", step))
            await transaction.journal(beta.id, JournalStep("erase", "begun"))
            await transaction.journal(gamma.id, JournalStep("create", "recorded"))
        assert sorted(await store.begun("erase")) == sorted([acme.id, beta.id])
        async with store.transaction() as transaction:
            await transaction.close_journal(acme.id, "erase")
            await transaction.close_journal(gamma.id, "erase")
        assert [*await store.begun("erase")] == [beta.id]
        assert [*await store.begun("create")] == [gamma.id]

    async def test_reservations_are_kept_and_replaced(self, store: TenantStore) -> None:
        """A reservation is read back as it was, until another replaces it."""
        first = Reservation(uuid4(), datetime.now(UTC) + timedelta(days=1))
        second = Reservation(uuid4(), datetime.now(UTC) + timedelta(days=2))
        async with store.transaction() as transaction:
            assert await transaction.reserved(DIGEST) is None
            await transaction.reserve(DIGEST, first)
            assert await transaction.reserved(DIGEST) == first
        async with store.transaction() as transaction:
            await transaction.reserve(DIGEST[::-1], second)
            assert await transaction.reserved(DIGEST) == first
            await transaction.reserve(DIGEST, second)
        async with store.transaction() as transaction:
            assert await transaction.reserved(DIGEST) == second
            await transaction.reserve(DIGEST, Reservation(None, second.since))
            assert await transaction.reserved(DIGEST) == Reservation(None, second.since)
            await transaction.release(DIGEST)
            await transaction.release(DIGEST)
            assert await transaction.reserved(DIGEST) is None

    # -- the change sequence -----------------------------------------------------------------------

    async def test_changes_are_numbered_one_by_one(self, store: TenantStore) -> None:
        """Each ``enqueue`` is the next number; one that was rolled back is used again."""
        assert await store.last_change() == 0
        assert [*await store.changes(after=0)] == []
        acme, beta = make_tenant("acme"), make_tenant("beta")
        await _create(store, acme, beta)
        async with store.transaction() as transaction:
            assert [await transaction.enqueue(one.id) for one in (acme, beta)] == [1, 2]
        with pytest.raises(LookupError):
            async with store.transaction() as transaction:
                await transaction.enqueue(acme.id)
                raise LookupError
        async with store.transaction() as transaction:
            assert await transaction.enqueue(acme.id) == 3
        changes = [(change.sequence, change.tenant_id) for change in await store.changes(after=0)]
        assert changes == [(1, acme.id), (2, beta.id), (3, acme.id)]
        assert [change.sequence for change in await store.changes(after=1, limit=1)] == [2]
        assert [*await store.changes(after=3)] == []
        assert await store.last_change() == 3

    async def test_a_follower_never_misses_a_late_change(self, store: TenantStore) -> None:
        """Numbers become visible in their order: who has seen 7 misses no 6 that comes later."""
        acme = make_tenant("acme")
        await _create(store, acme)
        seen: list[int] = []
        done: list[int] = []

        async def write(number: int) -> None:
            for turn in range(5):
                try:
                    async with store.transaction() as transaction:
                        await transaction.enqueue(acme.id)
                        for _ in range((number * turn) % 4):
                            await anyio.lowlevel.checkpoint()
                        if (number + turn) % 5 == 0:
                            raise LookupError
                except LookupError:
                    pass
            done.append(number)

        async def follow() -> None:
            while len(done) < 8:
                changes = await store.changes(after=seen[-1] if seen else 0, limit=3)
                seen.extend(change.sequence for change in changes)
                await anyio.lowlevel.checkpoint()

        works: list[Callable[[], Awaitable[None]]] = [partial(write, number) for number in range(8)]
        await run_together([follow, *works])
        seen += [change.sequence for change in await store.changes(after=seen[-1] if seen else 0)]
        assert seen == [*range(1, 33)]
        assert await store.last_change() == 32

    # -- several processes -------------------------------------------------------------------------

    @requires("shared")
    async def test_another_client_knows_the_same(self, store: TenantStore) -> None:
        """Records, secrets, logs, changes and the key are the same for every process."""
        acme = make_tenant("acme")
        async with self.another() as other:
            await _create(store, acme)
            _same(await other.get_by_identifier("acme"), acme)
            async with other.transaction() as transaction:
                await _everything(transaction, acme)
            for client in (store, other):
                found = await client.get(acme.id)
                assert found is not None
                assert (found.version, found.name) == (2, "changed")
                assert await client.get_secret(acme.id, "key") == b"1"
                assert len(await client.audit(acme.id)) == 1
                assert await client.last_change() == 1
            assert await store.instance_key() == await other.instance_key()
            outcomes = await run_together(
                [
                    partial(_tried, _update, client, replace(acme, version=3, name=name), 2)
                    for client, name in ((store, "one"), (other, "two"))
                ]
            )
            assert sorted(outcomes) == ["VersionConflict", "done"]

    # -- helpers -----------------------------------------------------------------------------------

    async def _untouched(self, store: TenantStore, acme: Tenant) -> None:
        """See that nothing is there of what :func:`_everything` does."""
        _same(await store.get(acme.id), acme)
        assert await store.get_by_identifier("beta") is None
        assert [*await store.secret_names(acme.id)] == []
        assert [*await store.audit(acme.id)] == []
        assert await store.audit_head(acme.id) == AuditHead()
        waiting = await store.undelivered(before=NOW + timedelta(days=1))
        assert [event for event in waiting if event.tenant_id == acme.id] == []
        assert [*await store.refusals(acme.id, since=NOW - timedelta(days=1))] == []
        changes = await store.changes(after=0)
        assert [change for change in changes if change.tenant_id == acme.id] == []
        async with store.transaction() as transaction:
            assert [*await transaction.journaled(acme.id, "test")] == []
            reservation = await transaction.reserved(DIGEST)
            assert reservation is None or reservation.tenant_id != acme.id


async def _create(store: TenantStore, *tenants: Tenant) -> None:
    async with store.transaction() as transaction:
        for tenant in tenants:
            await transaction.create(tenant)


async def _update(store: TenantStore, tenant: Tenant, expected_version: int) -> None:
    async with store.transaction() as transaction:
        await transaction.update(tenant, expected_version=expected_version)


async def _tried(work: Any, *args: Any) -> str:  # noqa: ANN401 - any of the two above
    """Return ``done``, or the name of the refusal."""
    try:
        await work(*args)
    except (TenantExists, VersionConflict) as error:
        return type(error).__name__
    return "done"


async def _everything(transaction: StoreTransaction, acme: Tenant) -> None:
    """Write something of every kind that a transaction can write."""
    await transaction.create(make_tenant("beta"))
    await transaction.update(replace(acme, version=2, name="changed"), expected_version=1)
    await transaction.put_secret(acme.id, "key", b"1")
    await transaction.reserve(DIGEST, Reservation(acme.id, datetime.now(UTC) + timedelta(days=1)))
    event = await _audit(transaction, acme.id)
    await transaction.enqueue_delivery(event)
    await transaction.count_refusals([RefusalCount(acme.id, "rate_limited", NOW, 1)])
    await transaction.journal(acme.id, JournalStep("test", "done"))
    await transaction.enqueue(acme.id)


async def _audit(
    transaction: StoreTransaction, tenant_id: UUID, action: str = "test.done", **values: Any
) -> AuditEvent:
    """Append the next event, sealed in a way that these tests can follow."""
    head = await transaction.audit_head(tenant_id)
    event = replace(
        _event(tenant_id, head.sequence + 1, action, **values), seal=_seal(head.seal, action)
    )
    await transaction.append_audit(event)
    return event


def _event(tenant_id: UUID, sequence: int, action: str = "test.done", **values: Any) -> AuditEvent:
    fields: dict[str, Any] = {
        "action": action,
        "tenant_id": tenant_id,
        "occurred_at": NOW,
        "sequence": sequence,
        "salt": bytes(range(16)),
        "digest": bytes(range(32)),
        "seal": bytes(32),
        **values,
    }
    return AuditEvent(**fields)


def _seal(before: bytes, action: str) -> bytes:
    return hashlib.sha256(before + action.encode()).digest()


def _same(found: Tenant | None, expected: Tenant) -> None:
    """Compare every field, not only the id."""
    assert found is not None
    names = [*Tenant.__slots__]
    assert {name: getattr(found, name) for name in names} == {
        name: getattr(expected, name) for name in names
    }
