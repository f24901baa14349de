"""What every tenant store does, on the two that the core ships."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import insert

from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core._stores.sql import SqlTenantStore
from tenancy_core.contract import AuditEvent, JournalStep
from tenancy_core.errors import (
    IdentifierCollision,
    TenantExists,
    TenantNotFound,
    VersionConflict,
)
from tenancy_core.sql import ConnectionBudget, tables
from tenancy_core.tenant import Placement, Tenant, TenantStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tenancy_core import TenancyConfig
    from tenancy_core.contract import StoreTransaction

pytestmark = pytest.mark.anyio

Store = MemoryTenantStore | SqlTenantStore


@pytest.fixture(params=["memory", "sql"])
async def store(
    request: pytest.FixtureRequest, make_config: Callable[..., TenancyConfig]
) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryTenantStore()
        return
    async with SqlTenantStore(make_config(), ConnectionBudget(10)) as opened:
        yield opened


def tenant(identifier: str = "acme", **values: Any) -> Tenant:
    tenant_id = values.pop("id", None) or uuid4()
    now = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)
    return Tenant(
        **{
            "id": tenant_id,
            "identifier": identifier,
            "name": identifier.title(),
            "status": TenantStatus.ACTIVE,
            "created_at": now,
            "updated_at": now,
            "isolation": "database",
            "placement": Placement(name=f"tenant_{tenant_id.hex}"),
            **values,
        }
    )


async def put(store: Store, *tenants: Tenant) -> None:
    async with store.transaction() as transaction:
        for one in tenants:
            await transaction.create(one)


def event(tenant_id: UUID, action: str = "test.done", **values: Any) -> AuditEvent:
    return AuditEvent(action=action, tenant_id=tenant_id, occurred_at=datetime.now(UTC), **values)


async def append(transaction: StoreTransaction, one: AuditEvent) -> AuditEvent:
    """Append an event behind the head, as the audit log does."""
    head = await transaction.audit_head(one.tenant_id)
    sequence = head.sequence + 1
    sealed = replace(one, sequence=sequence, salt=b"s" * 16, digest=b"d" * 32, seal=b"seal")
    await transaction.append_audit(sealed)
    return sealed


def assert_same(found: Tenant | None, expected: Tenant) -> None:
    """Compare every field, not only the id."""
    assert found is not None
    for name in Tenant.__slots__:
        assert getattr(found, name) == getattr(expected, name), name


# -- records ---------------------------------------------------------------------------------------


async def test_what_is_stored_comes_back_as_it_was(store: Store) -> None:
    made = tenant(
        plan="pro",
        limits={"rate_limit_per_minute": 7},
        metadata={"nested": {"list": [1, 2.5, None, True, {"a": "ü☃"}]}, "empty": {}},
        version=3,
        created_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=-7))),
    )
    await put(store, made)
    assert_same(await store.get(made.id), made)
    assert_same(await store.get_by_identifier("acme"), made)
    found = await store.get(made.id)
    assert found is not None
    assert found.created_at.utcoffset() is not None
    with pytest.raises(TypeError):
        found.metadata["nested"]["list"][4]["a"] = "changed"


async def test_nobody_is_found_under_what_nobody_has(store: Store) -> None:
    await put(store, tenant())
    assert await store.get(uuid4()) is None
    for identifier in ("nobody", "", "ACME", "acm", "acme ", "a%", "_cme"):
        assert await store.get_by_identifier(identifier) is None


async def test_an_identifier_has_one_tenant(store: Store) -> None:
    first = tenant()
    await put(store, first)
    with pytest.raises(TenantExists):
        await put(store, tenant())
    with pytest.raises(TenantExists):
        await put(store, tenant("other", id=first.id, placement=Placement(name="x")))
    assert_same(await store.get_by_identifier("acme"), first)


async def test_I1_a_place_has_one_tenant(store: Store) -> None:
    first = tenant(placement=Placement(name="shared"))
    await put(store, first)
    second = tenant("beta", placement=Placement(name="shared"))
    with pytest.raises(IdentifierCollision):
        await put(store, second)
    assert await store.get(second.id) is None
    await put(store, replace(second, placement=Placement(name="own")))
    with pytest.raises(IdentifierCollision):
        async with store.transaction() as transaction:
            await transaction.update(replace(second, version=2), expected_version=1)


async def test_a_transaction_can_go_on_after_a_collision(store: Store) -> None:
    await put(store, tenant())
    beta = tenant("beta")
    async with store.transaction() as transaction:
        with pytest.raises(TenantExists):
            await transaction.create(tenant())
        await transaction.create(beta)
    assert_same(await store.get_by_identifier("beta"), beta)


async def test_an_update_replaces_the_version_it_expects_and_no_other(store: Store) -> None:
    first = tenant()
    await put(store, first)
    second = replace(first, version=2, status=TenantStatus.SUSPENDED, name="Renamed")
    async with store.transaction() as transaction:
        await transaction.update(second, expected_version=1)
    for stale in (1, 3):
        with pytest.raises(VersionConflict):
            async with store.transaction() as transaction:
                await transaction.update(replace(first, version=9), expected_version=stale)
    with pytest.raises(VersionConflict):
        async with store.transaction() as transaction:
            await transaction.update(tenant("nobody"), expected_version=1)
    assert_same(await store.get(first.id), second)


async def test_of_two_who_update_one_version_one_succeeds(store: Store) -> None:
    first = tenant()
    await put(store, first)
    outcomes: list[str] = []

    async def change(name: str) -> None:
        try:
            async with store.transaction() as transaction:
                await transaction.update(replace(first, version=2, name=name), expected_version=1)
        except VersionConflict:
            outcomes.append("conflict")
        else:
            outcomes.append(name)

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(change(f"name {number}"))
    assert outcomes.count("conflict") == 7
    (winner,) = set(outcomes) - {"conflict"}
    found = await store.get(first.id)
    assert found is not None
    assert found.name == winner


async def test_an_identifier_may_be_renamed_but_not_to_another_tenants(store: Store) -> None:
    acme, beta = tenant(), tenant("beta")
    await put(store, acme, beta)
    with pytest.raises(TenantExists):
        async with store.transaction() as transaction:
            await transaction.update(
                replace(acme, identifier="beta", version=2), expected_version=1
            )
    renamed = replace(acme, identifier="acme-2", version=2)
    async with store.transaction() as transaction:
        await transaction.update(renamed, expected_version=1)
    assert await store.get_by_identifier("acme") is None
    assert_same(await store.get_by_identifier("acme-2"), renamed)


async def test_an_erased_tenant_gives_its_identifier_back_and_keeps_its_id(store: Store) -> None:
    acme = tenant()
    await put(store, acme)
    erased = replace(acme, status=TenantStatus.ERASED, version=2)
    async with store.transaction() as transaction:
        await transaction.update(erased, expected_version=1)
    assert await store.get_by_identifier("acme") is None
    assert await store.get_by_identifier("") is None
    found = await store.get(acme.id)
    assert found is not None
    assert (found.identifier, found.status) == ("", TenantStatus.ERASED)
    assert (await store.list()).items == ()
    # Two of them do not collide, and the identifier is free.
    again = tenant()
    await put(store, again)
    async with store.transaction() as transaction:
        await transaction.update(
            replace(again, status=TenantStatus.ERASED, version=2), expected_version=1
        )
    await put(store, tenant())


async def test_what_fails_leaves_nothing_of_its_transaction(store: Store) -> None:
    acme = tenant()
    await put(store, acme)
    before = await store.last_change()
    beta = tenant("beta")
    with pytest.raises(LookupError):
        async with store.transaction() as transaction:
            await transaction.create(beta)
            await transaction.update(replace(acme, version=2, name="x"), expected_version=1)
            await append(transaction, event(acme.id))
            await transaction.journal(acme.id, JournalStep("create", "recorded"))
            await transaction.enqueue(acme.id)
            raise LookupError
    assert await store.get(beta.id) is None
    assert_same(await store.get(acme.id), acme)
    assert await store.audit(acme.id) == [] or await store.audit(acme.id) == ()
    assert await store.last_change() == before
    assert not await store.changes(after=before)
    async with store.transaction() as transaction:
        assert not await transaction.journaled(acme.id, "create")


async def test_what_is_not_committed_is_seen_by_nobody_else(store: Store) -> None:
    async with store.transaction() as transaction:
        await transaction.create(tenant())
        assert await store.get_by_identifier("acme") is None
    assert await store.get_by_identifier("acme") is not None


async def test_a_transaction_that_is_cancelled_leaves_nothing_and_holds_nobody_up(
    store: Store,
) -> None:
    inside = asyncio.Event()

    async def work() -> None:
        async with store.transaction() as transaction:
            await transaction.create(tenant())
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert await store.get_by_identifier("acme") is None
    await put(store, tenant())


async def test_deleting_removes_the_record_and_twice_is_no_error(store: Store) -> None:
    acme, beta = tenant(), tenant("beta")
    await put(store, acme, beta)
    for _ in range(2):
        async with store.transaction() as transaction:
            await transaction.delete(acme.id)
    assert await store.get(acme.id) is None
    assert await store.get_by_identifier("acme") is None
    assert_same(await store.get(beta.id), beta)


# -- pages -----------------------------------------------------------------------------------------


async def test_pages_follow_the_order_of_identifiers_whatever_happens_between_them(
    store: Store,
) -> None:
    names = ["0", "a", "a-b", "a0", "aa", "b", "b-0", "c", "z9"]
    assert names == sorted(names)
    await put(store, *(tenant(name) for name in reversed(names)))
    found: list[str] = []
    after: str | None = None
    while True:
        page = await store.list(after=after, limit=2)
        found += [one.identifier for one in page.items]
        assert len(page.items) <= 2
        if page.next is None:
            break
        assert page.next == page.items[-1].identifier
        after = page.next
        if after == "a":
            # Behind us, and the row that the next page hangs on: neither moves the others.
            await put(store, tenant("00"))
            gone = await store.get_by_identifier("a")
            assert gone is not None
            async with store.transaction() as transaction:
                await transaction.delete(gone.id)
    assert found == names


@pytest.mark.parametrize("limit", [1, 3, 4, 100])
async def test_the_last_page_says_that_it_is_the_last(store: Store, limit: int) -> None:
    await put(store, *(tenant(f"t{number}") for number in range(3)))
    page = await store.list(limit=limit)
    assert len(page.items) == min(limit, 3)
    assert page.next == ("t0" if limit == 1 else None)
    empty = await store.list(after="t2", limit=limit)
    assert (empty.items, empty.next) == ((), None)


async def test_pages_can_be_of_a_status_or_a_plan(store: Store) -> None:
    await put(
        store,
        tenant("a", plan="pro"),
        tenant("b", plan="free"),
        tenant("c", plan="pro", status=TenantStatus.SUSPENDED),
        tenant("d"),
    )

    async def names(**selection: Any) -> list[str]:
        return [one.identifier for one in (await store.list(**selection)).items]

    assert await names(plan="pro") == ["a", "c"]
    assert await names(status=TenantStatus.ACTIVE) == ["a", "b", "d"]
    assert await names(status=TenantStatus.SUSPENDED, plan="pro") == ["c"]
    assert await names(status=TenantStatus.ACTIVE, plan="pro", after="a") == []
    assert await names(plan="none") == []


# -- secrets ---------------------------------------------------------------------------------------


async def put_secret(store: Store, tenant_id: UUID, name: str, value: bytes) -> None:
    """Nothing in the contract stores secrets yet, so they are put where they will be."""
    if isinstance(store, MemoryTenantStore):
        store._state.secrets[tenant_id, name] = value
        return
    async with store._database.engine.begin() as connection:
        await connection.execute(
            insert(tables.secrets).values(tenant_id=tenant_id, name=name, value=value)
        )


async def test_a_secret_is_one_tenants_and_goes_with_it(store: Store) -> None:
    acme, beta = tenant(), tenant("beta")
    await put(store, acme, beta)
    value = bytes(range(256))
    await put_secret(store, acme.id, "database", value)
    assert await store.get_secret(acme.id, "database") == value
    assert await store.get_secret(acme.id, "other") is None
    assert await store.get_secret(beta.id, "database") is None
    async with store.transaction() as transaction:
        await transaction.delete(acme.id)
    assert await store.get_secret(acme.id, "database") is None


# -- the audit log ---------------------------------------------------------------------------------


async def test_events_come_back_in_order_and_as_they_were(store: Store) -> None:
    acme, beta = tenant(), tenant("beta")
    await put(store, acme, beta)
    first = event(acme.id, actor="ops", reason="why\nnot", details={"a": [1, {"b": "ü"}]})
    async with store.transaction() as transaction:
        assert (await append(transaction, first)).sequence == 1
        assert (await append(transaction, event(beta.id))).sequence == 1
        assert (await append(transaction, event(acme.id, "second"))).sequence == 2
    log = await store.audit(acme.id)
    assert [one.sequence for one in log] == [1, 2]
    assert log[0] == replace(first, sequence=1, salt=b"s" * 16, digest=b"d" * 32, seal=b"seal")
    assert [one.action for one in await store.audit(acme.id, after=1)] == ["second"]
    assert [one.sequence for one in await store.audit(acme.id, limit=1)] == [1]
    assert not await store.audit(acme.id, after=2)
    assert len(await store.audit(beta.id)) == 1
    assert not await store.audit(uuid4())


async def test_A2_the_sequence_has_no_gap_however_many_write_and_fail(store: Store) -> None:
    acme, beta = tenant(), tenant("beta")
    await put(store, acme, beta)

    async def work(number: int) -> None:
        one = (acme, beta)[number % 2]
        with suppress(LookupError):
            async with store.transaction() as transaction:
                await append(transaction, event(one.id, f"a{number}"))
                await asyncio.sleep(0)
                if number % 3 == 0:
                    raise LookupError
                await append(transaction, event(one.id, f"b{number}"))

    async with asyncio.TaskGroup() as group:
        for number in range(48):
            group.create_task(work(number))
    for one in (acme, beta):
        log = await store.audit(one.id, limit=1000)
        assert [entry.sequence for entry in log] == list(range(1, 33))
        # Both events of a transaction stand together.
        actions = [entry.action for entry in log]
        assert all(a[1:] == b[1:] for a, b in zip(actions[::2], actions[1::2], strict=True))


async def test_no_event_without_a_tenant(store: Store) -> None:
    with pytest.raises(TenantNotFound):
        async with store.transaction() as transaction:
            await append(transaction, event(uuid4()))


async def test_a_log_outlives_its_tenant_and_goes_on_if_that_comes_back(store: Store) -> None:
    acme = tenant()
    await put(store, acme)
    async with store.transaction() as transaction:
        await append(transaction, event(acme.id, "first"))
        await transaction.delete(acme.id)
    assert [one.action for one in await store.audit(acme.id)] == ["first"]
    async with store.transaction() as transaction:
        await transaction.create(acme)
        assert (await append(transaction, event(acme.id, "second"))).sequence == 2
    assert [one.action for one in await store.audit(acme.id)] == ["first", "second"]


# -- the journal -----------------------------------------------------------------------------------


async def test_the_journal_keeps_the_steps_of_each_operation_in_order_and_once(
    store: Store,
) -> None:
    acme, beta = tenant(), tenant("beta")
    await put(store, acme, beta)
    async with store.transaction() as transaction:
        for step in ("z", "a", "z", "m"):
            await transaction.journal(acme.id, JournalStep("create", step))
        await transaction.journal(acme.id, JournalStep("move", "only"))
    async with store.transaction() as transaction:
        await transaction.journal(acme.id, JournalStep("create", "a"))
        await transaction.journal(acme.id, JournalStep("create", "b"))
        assert list(await transaction.journaled(acme.id, "create")) == ["z", "a", "m", "b"]
        assert list(await transaction.journaled(acme.id, "move")) == ["only"]
        assert list(await transaction.journaled(beta.id, "create")) == []


# -- the sequence of changes -----------------------------------------------------------------------


async def test_the_sequence_of_changes_begins_empty(store: Store) -> None:
    assert await store.last_change() == 0
    assert not await store.changes(after=0)


async def test_changes_come_in_the_order_of_their_commits_without_a_gap(store: Store) -> None:
    acme = tenant()
    await put(store, acme)
    committed: list[int] = []

    async def work(number: int) -> None:
        with suppress(LookupError):
            async with store.transaction() as transaction:
                if number % 2:
                    await asyncio.sleep(0)
                sequence = await transaction.enqueue(acme.id)
                for _ in range(number % 5):
                    await asyncio.sleep(0)
                if number % 4 == 0:
                    raise LookupError
            committed.append(sequence)

    seen: list[int] = []

    async def follow(done: asyncio.Event) -> None:
        while True:
            last_round = done.is_set()
            for change in await store.changes(after=seen[-1] if seen else 0):
                assert change.tenant_id == acme.id
                seen.append(change.sequence)
            if last_round:
                return
            await asyncio.sleep(0)

    done = asyncio.Event()
    async with asyncio.TaskGroup() as followers:
        followers.create_task(follow(done))
        async with asyncio.TaskGroup() as writers:
            for number in range(40):
                writers.create_task(work(number))
        done.set()
    assert seen == list(range(1, 31)) == sorted(committed)
    assert await store.last_change() == 30


async def test_old_changes_are_dropped_and_the_numbers_go_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("memory", "sql.transaction"):
        monkeypatch.setattr(f"tenancy_core._stores.{module}._CHANGES_KEPT", 5)
    acme = tenant()
    await put(store, acme)
    for _ in range(12):
        async with store.transaction() as transaction:
            await transaction.enqueue(acme.id)
    assert [change.sequence for change in await store.changes(after=0)] == [8, 9, 10, 11, 12]
    assert [change.sequence for change in await store.changes(after=10)] == [11, 12]
    assert [change.sequence for change in await store.changes(after=0, limit=2)] == [8, 9]
    assert await store.last_change() == 12
