"""The control plane under attack: interleavings, cancellations, strategies and listeners that fail.

Rows C1, C2 and C5 of the threats, where several things are half-way in one process.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from support.control import (
    ACME,
    NEW_KEY,
    OLD_KEY,
    actions,
    assert_consistent,
    control_tenancy,
    prepare,
)
from tenancy_core import Tenancy, TenantStatus
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.errors import (
    BackendUnavailable,
    InvalidTransition,
    TenantExists,
    TenantNotFound,
    VersionConflict,
)
from tenancy_core.testing.suite import strike

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.control import Places
    from tenancy_core import TenancyConfig, Tenant
    from tenancy_core.contract import AuditEvent
    from tenancy_core.tenants import TenantService

pytestmark = pytest.mark.anyio


class Half:
    """Stops the first who comes by, until it is let go."""

    def __init__(self) -> None:
        self.there = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self, *_: object) -> None:
        if not self.there.is_set():
            self.there.set()
            await self.go.wait()


def stop_once_asked(service: TenantService, monkeypatch: pytest.MonkeyPatch) -> Half:
    """Stop the first erasure that has asked whether one is begun, with the answer it got."""
    erasure = service._erasure
    real, half = erasure.is_begun, Half()

    async def stopped(tenant_id: Any) -> bool:
        found = await real(tenant_id)
        await half()
        return found

    monkeypatch.setattr(erasure, "is_begun", stopped)
    return half


@pytest.fixture
def make_tenancy(
    make_config: Callable[..., TenancyConfig], places: Places
) -> Callable[..., Tenancy]:
    def make(store: Any = None, listeners: tuple[Any, ...] = (), **settings: Any) -> Tenancy:
        return Tenancy(
            make_config(**settings),
            store=store or MemoryTenantStore(),
            isolation=places,
            observers=listeners,
            audit_sinks=listeners,
        )

    return make


# -- interleavings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
async def test_C2_a_creation_whose_tenant_is_erased_while_it_provisions_leaves_nothing(
    make_tenancy: Callable[..., Tenancy],
    places: Places,
    fails: bool,
) -> None:
    async with make_tenancy() as tenancy:
        half = places.during["provision"] = Half()
        creating = asyncio.create_task(tenancy.tenants.create("acme"))
        await half.there.wait()
        acme = await tenancy.tenants.get("acme")
        assert (await tenancy.tenants.erase("acme")).status is TenantStatus.ERASED
        if fails:
            places.failing["provision"] = OSError("half-way")
        half.go.set()
        with pytest.raises(OSError if fails else InvalidTransition):
            await creating
        assert not places.there
        assert await actions(tenancy, acme.id) == [
            "tenant.created",
            "tenant.erasure_begun",
            "tenant.erased",
        ]


async def test_C2_a_creation_that_is_cancelled_after_its_tenant_was_erased_leaves_nothing(
    make_tenancy: Callable[..., Tenancy], places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_tenancy() as tenancy:
        half, made = Half(), asyncio.Event()

        async def provision(tenant: Tenant) -> None:
            await half()
            places.there.add(tenant.placement.name)
            made.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(places, "provision", provision)
        creating = asyncio.create_task(tenancy.tenants.create("acme"))
        await half.there.wait()
        await tenancy.tenants.erase("acme")
        half.go.set()
        await made.wait()
        assert places.there
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        assert not places.there


@pytest.mark.parametrize("order", ["first-last", "first-first"])
async def test_C2_an_erasure_that_overtakes_another_one_is_the_same_erasure(
    make_tenancy: Callable[..., Tenancy], places: Places, order: str
) -> None:
    async with make_tenancy() as tenancy:
        service = tenancy.tenants
        acme = await service.create("acme")
        await service.archive("acme")
        half = Half()
        places.during["destroy"] = half
        one = asyncio.create_task(service.erase(acme.id))
        await half.there.wait()
        if order == "first-last":
            assert (await service.erase(acme.id)).status is TenantStatus.ERASED
            half.go.set()
        else:
            other = asyncio.create_task(service.erase(acme.id))
            half.go.set()
            assert (await other).status is TenantStatus.ERASED
        assert (await one).status is TenantStatus.ERASED
        assert (await actions(tenancy, acme.id))[3:] == ["tenant.erasure_begun", "tenant.erased"]
        assert (await service.get(acme.id)).version == 5


async def test_C2_two_erasures_that_both_find_none_begun_begin_one(
    make_tenancy: Callable[..., Tenancy], places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_tenancy() as tenancy:
        service = tenancy.tenants
        acme = await service.create("acme")
        await service.archive("acme")
        half = stop_once_asked(service, monkeypatch)
        slow = asyncio.create_task(service.erase(acme.id))
        await half.there.wait()
        places.failing["destroy"] = BackendUnavailable("down")
        with pytest.raises(BackendUnavailable):
            await service.erase(acme.id)
        places.failing.clear()
        half.go.set()
        assert (await slow).status is TenantStatus.ERASED
        assert (await actions(tenancy, acme.id))[3:] == ["tenant.erasure_begun", "tenant.erased"]
        assert not places.there


async def test_C2_an_erasure_that_finds_none_begun_and_then_everything_done_is_done(
    make_tenancy: Callable[..., Tenancy], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_tenancy() as tenancy:
        service = tenancy.tenants
        acme = await service.create("acme")
        await service.archive("acme")
        half = stop_once_asked(service, monkeypatch)
        slow = asyncio.create_task(service.erase(acme.id))
        await half.there.wait()
        done = await service.erase(acme.id)
        half.go.set()
        assert await slow == done


@pytest.mark.parametrize("restored_first", [False, True])
async def test_C5_a_restoration_and_an_erasure_at_once_end_in_one_of_the_two(
    make_tenancy: Callable[..., Tenancy],
    places: Places,
    monkeypatch: pytest.MonkeyPatch,
    restored_first: bool,
) -> None:
    async with make_tenancy() as tenancy:
        service = tenancy.tenants
        acme = await service.create("acme")
        await service.archive("acme")
        if restored_first:
            half = stop_once_asked(service, monkeypatch)
        else:
            half = places.during["destroy"] = Half()
        erasing = asyncio.create_task(service.erase(acme.id))
        await half.there.wait()
        if restored_first:
            assert (await service.restore("acme")).active
            half.go.set()
            with pytest.raises(InvalidTransition, match="is active; it cannot be erased"):
                await erasing
            assert places.there
            assert (await service.get("acme")).active
        else:
            for _ in range(2):
                with pytest.raises(InvalidTransition, match="no way back"):
                    await service.restore("acme")
            half.go.set()
            assert (await erasing).status is TenantStatus.ERASED
            assert not places.there


async def test_C6_a_restoration_that_is_overtaken_by_another_archiving_restores_that(
    make_tenancy: Callable[..., Tenancy], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_tenancy() as tenancy:
        service = tenancy.tenants
        acme = await service.create("acme")
        await service.archive("acme")
        changes = service._changes
        real, half = changes.apply, Half()

        async def stopped(tenant_id: Any, action: str, *rest: Any, **more: Any) -> Tenant:
            if action == "tenant.restored":
                await half()
            return await real(tenant_id, action, *rest, **more)

        monkeypatch.setattr(changes, "apply", stopped)
        slow = asyncio.create_task(service.restore("acme"))
        await half.there.wait()
        await service.restore("acme")
        await service.suspend("acme")
        await service.archive("acme")
        half.go.set()
        # It was to become active again, as it was archived then; by now that would be wrong.
        with pytest.raises(VersionConflict, match="archived once more"):
            await slow
        assert (await service.restore("acme")).status is TenantStatus.SUSPENDED
        assert acme.id == (await service.get("acme")).id


async def test_C2_two_tenancy_objects_on_one_store_agree(
    make_tenancy: Callable[..., Tenancy],
) -> None:
    store = MemoryTenantStore()
    async with make_tenancy(store) as one, make_tenancy(store) as two:
        await one.tenants.create("acme")

        async def turn(number: int) -> None:
            service = (one, two)[number % 2].tenants
            with suppress(VersionConflict, InvalidTransition, TenantExists):
                await (service.suspend, service.resume, service.archive, service.restore)[
                    number % 4
                ]("acme")

        await asyncio.gather(*(turn(number) for number in range(40)))
        acme = await one.tenants.get("acme")
        assert len(await actions(two, acme.id)) == acme.version
        assert await store.last_change() == acme.version


# -- cancelled -------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize("operation", ["erase", "restore"])
async def test_C5_cancelled_at_any_wait_it_is_finished_by_the_next_call(
    operation: str, tmp_path: Path
) -> None:
    after, finished = 0, False
    while not finished:
        folder = tmp_path / f"cancelled-{after}"
        await prepare(folder, operation)
        async with control_tenancy(folder) as tenancy:
            call = getattr(tenancy.tenants, operation)
            finished = not await strike(call(ACME), after, insist=False)
            done = await call(ACME)
            assert done.status == {"erase": "erased", "restore": "suspended"}[operation]
            names = await actions(tenancy, ACME)
            assert len(set(names)) == len(names)
            await assert_consistent(tenancy, folder)
            connections = tenancy.parts.connections
            assert connections.open == connections.idle
        after += 11
    assert after > 22


# -- strategies and listeners that fail ------------------------------------------------------------


async def test_C5_a_server_that_is_down_while_erasing_leaves_it_begun(
    make_tenancy: Callable[..., Tenancy], places: Places
) -> None:
    async with make_tenancy() as tenancy:
        service = tenancy.tenants
        acme = await service.create("acme")
        await service.archive("acme")
        places.failing["destroy"] = BackendUnavailable("down")
        for _ in range(3):
            with pytest.raises(BackendUnavailable):
                await service.erase(acme.id)
            (one,) = await service.reconcile()
            assert (one.outcome, one.error) == ("failed", "BackendUnavailable")
            with pytest.raises(InvalidTransition, match="no way back"):
                await service.restore(acme.id)
        places.failing.clear()
        (one,) = await service.reconcile()
        assert one.outcome == "erased"
        assert (await actions(tenancy, acme.id))[3:] == ["tenant.erasure_begun", "tenant.erased"]


class Broken:
    """An observer and an audit sink that fail at everything."""

    def refused(self, *_: object) -> None:
        raise RuntimeError

    def changed(self, *_: object) -> None:
        raise RuntimeError

    async def write(self, _event: AuditEvent, /) -> None:
        raise RuntimeError


async def test_a_broken_listener_stops_no_change(make_tenancy: Callable[..., Tenancy]) -> None:
    async with make_tenancy(listeners=(Broken(),)) as tenancy:
        service = tenancy.tenants
        acme = await service.create("acme")
        await service.rename("acme", "other")
        await service.suspend("other")
        await service.archive("other")
        await service.restore("other")
        await service.archive("other")
        assert (await service.erase("other")).status is TenantStatus.ERASED
        assert len(await actions(tenancy, acme.id)) == 9


# -- keys ------------------------------------------------------------------------------------------


async def test_a_tenant_that_is_renamed_past_the_page_while_keys_are_rotated_is_not_left_out(
    make_config: Callable[..., TenancyConfig], places: Places
) -> None:
    class Moving(MemoryTenantStore):
        armed = False

        async def list(self, **given: Any) -> Any:
            page = await super().list(**given)
            if self.armed:
                self.armed = False
                await tenancy.tenants.rename("zz", "a-first")
            return page

    store = Moving()
    old = make_config(enable_encryption=True, encryption_keys=[OLD_KEY])
    async with Tenancy(old, store=store, isolation=places) as tenancy:
        for number in range(101):
            await tenancy.tenants.create(f"t{number}")
        await tenancy.tenants.create("zz")
        await tenancy.tenants.put_secret("zz", "token", "value")
    both = make_config(enable_encryption=True, encryption_keys=[NEW_KEY, OLD_KEY])
    async with Tenancy(both, store=store, isolation=places) as tenancy:
        store.armed = True
        assert await tenancy.tenants.rewrap_keys() == 102
        assert await tenancy.tenants.rewrap_keys() == 0
    new = make_config(enable_encryption=True, encryption_keys=[NEW_KEY])
    async with Tenancy(new, store=store, isolation=places) as tenancy:
        secret = await tenancy.tenants.get_secret("a-first", "token")
        assert secret is not None
        assert secret.get_secret_value() == "value"


async def test_a_tenant_that_is_erased_while_keys_are_rotated_stops_nobody(
    make_config: Callable[..., TenancyConfig], places: Places
) -> None:
    class Erasing(MemoryTenantStore):
        armed = False

        async def get_secret(self, tenant_id: Any, name: str, /) -> bytes | None:
            found = await super().get_secret(tenant_id, name)
            if self.armed:
                self.armed = False
                await tenancy.tenants.archive("a")
                await tenancy.tenants.erase("a")
            return found

    store = Erasing()
    old = make_config(enable_encryption=True, encryption_keys=[OLD_KEY])
    async with Tenancy(old, store=store, isolation=places) as tenancy:
        a = await tenancy.tenants.create("a")
        await tenancy.tenants.create("b")
    both = make_config(enable_encryption=True, encryption_keys=[NEW_KEY, OLD_KEY])
    async with Tenancy(both, store=store, isolation=places) as tenancy:
        store.armed = True
        assert await tenancy.tenants.rewrap_keys() == 1
        assert not await store.secret_names(a.id)


async def test_so_many_changes_while_keys_are_rotated_that_some_are_dropped_begin_it_anew(
    make_config: Callable[..., TenancyConfig], places: Places
) -> None:
    class Dropping(MemoryTenantStore):
        floor: int | None = None

        async def changes(self, *, after: int, limit: int = 1000) -> Any:
            found = await super().changes(after=after, limit=limit)
            if found and self.floor is None:
                # Who was behind the pages is wrapped with the old key, and its entry is gone.
                self.floor = found[-1].sequence
                self._state.secrets[zz.id, "data-key"] = wrapped
                await tenancy.tenants.rename("a", name="A")
                found = await super().changes(after=after, limit=limit)
            return [change for change in found if change.sequence > (self.floor or 0)]

    store = Dropping()
    old = make_config(enable_encryption=True, encryption_keys=[OLD_KEY])
    async with Tenancy(old, store=store, isolation=places) as tenancy:
        await tenancy.tenants.create("a")
        await tenancy.tenants.create("b")
        zz = await tenancy.tenants.create("zz")
        wrapped = await store.get_secret(zz.id, "data-key") or b""
    both = make_config(enable_encryption=True, encryption_keys=[NEW_KEY, OLD_KEY])
    async with Tenancy(both, store=store, isolation=places) as tenancy:
        assert await tenancy.tenants.rewrap_keys() == 4
        assert await store.get_secret(zz.id, "data-key") != wrapped
        assert await tenancy.tenants.rewrap_keys() == 0


# -- C7: nothing is written behind an erasure -----------------------------------------------------


@pytest.mark.parametrize("how", ["record", "switch"])
async def test_C7_who_still_has_a_tenant_that_is_erased_writes_no_names_behind_its_erasure(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await prepare(tmp_path, "erase")
    both = {"statuses": {"active", "archived"}}
    async with control_tenancy(tmp_path) as eraser, control_tenancy(tmp_path) as late:
        begin, half = late.parts.store.transaction, Half()

        class Begins:
            """A transaction that begins when the erasure is through."""

            async def __aenter__(self) -> Any:
                await half()
                self.begun = begin()
                return await self.begun.__aenter__()

            async def __aexit__(self, *raised: object) -> None:
                await self.begun.__aexit__(*raised)

        async def write() -> None:
            if how == "record":
                async with late.scope("acme", **both):
                    await late.audit.record("invoice.sent", actor="ada@example.com")
            else:
                async with (
                    late.scope("beta"),
                    late.scope("acme", switch=True, reason="of bob@example.com", **both),
                ):
                    raise AssertionError

        monkeypatch.setattr(late.parts.store, "transaction", Begins)
        writing = asyncio.create_task(write())
        await half.there.wait()
        await eraser.tenants.erase(ACME)
        half.go.set()
        with pytest.raises(TenantNotFound, match="its log is closed"):
            await writing
        events = await eraser.audit.read(ACME)
        assert events[-1].action == "tenant.erased"
        assert {(event.actor, event.reason) for event in events} == {(None, None)}
        assert (await eraser.audit.verify(ACME)).ok


@pytest.mark.parametrize("logged_before", [True, False])
async def test_C7_erased_while_audit_logging_is_off_a_log_still_verifies(
    tmp_path: Path, *, logged_before: bool
) -> None:
    async with control_tenancy(tmp_path, enable_audit_logging=logged_before) as tenancy:
        acme = await tenancy.tenants.create("acme", actor="ada")
        await tenancy.tenants.archive("acme")
    async with control_tenancy(tmp_path, enable_audit_logging=False) as tenancy:
        await tenancy.tenants.erase("acme")
        report = await tenancy.audit.verify(acme.id)
        assert report.ok, report.reason
        actions_left = [event.action for event in await tenancy.audit.read(acme.id)]
        assert actions_left[-1:] == (["tenant.erased"] if logged_before else [])


# -- S: what is kept of a failure -----------------------------------------------------------------


async def test_S1_what_a_driver_wrote_into_its_error_is_not_logged(
    make_tenancy: Callable[..., Tenancy], places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "postgresql://app:canary-71@db/x"

    caplog.set_level(0)
    async with make_tenancy(MemoryTenantStore()) as tenancy:
        places.failing["provision"] = ConnectionError(canary)
        with pytest.raises(ConnectionError):
            await tenancy.tenants.create("acme")
        (one,) = await tenancy.tenants.reconcile(older_than=timedelta())
    assert (one.outcome, one.error) == ("failed", "ConnectionError")
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len([text for text in said if "tenant acme could not be provisioned" in text]) == 2
    assert len([text for text in said if "could not be reconciled (ConnectionError)" in text]) == 1
    assert all("in provision" in text for text in said), "where it was raised"
    assert "canary-71" not in caplog.text


async def test_two_first_secrets_at_once_share_one_data_key(
    make_tenancy: Callable[..., Tenancy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a tenant that is older than the encryption; the second key would lose the first secret."""
    store = MemoryTenantStore()
    async with make_tenancy(store) as tenancy:
        await tenancy.tenants.create("acme", tenant_id=ACME)
    keys = {"enable_encryption": True, "encryption_keys": [NEW_KEY]}
    async with make_tenancy(store, **keys) as tenancy:
        get_secret, waiting, both = tenancy.parts.store.get_secret, [0], asyncio.Event()

        async def meet(*given: Any) -> bytes | None:
            found = await get_secret(*given)
            waiting[0] += 1
            if waiting[0] == 2:
                both.set()
            await both.wait()
            return found

        monkeypatch.setattr(tenancy.parts.store, "get_secret", meet)
        names = ("first", "second")
        await asyncio.gather(*(tenancy.tenants.put_secret(ACME, name, name) for name in names))
        for name in names:
            secret = await tenancy.tenants.get_secret(ACME, name)
            assert secret is not None
            assert secret.get_secret_value() == name


async def test_ten_thousand_tenants_are_listed_once_each_and_in_order(
    make_tenancy: Callable[..., Tenancy],
) -> None:
    store = MemoryTenantStore()
    async with make_tenancy(store) as tenancy:
        first = await tenancy.tenants.create("t00000")
        tenants = store._state.tenants
        for number in range(1, 10_000):
            made = replace(first, id=type(first.id)(int=number), identifier=f"t{number:05}")
            tenants[made.id] = made
        names = [tenant.identifier async for tenant in tenancy.tenants.iterate()]
        assert names == [f"t{number:05}" for number in range(10_000)]
