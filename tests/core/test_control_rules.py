"""The control plane's rules: which status allows what, versions, and what is no argument."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from support.control import NEW_KEY, snapshot
from tenancy_core import Tenancy, TenantNotFound, TenantStatus
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.crypto import Sensitive
from tenancy_core.errors import (
    BackendUnavailable,
    ConfigurationError,
    InvalidIdentifier,
    InvalidTransition,
    TenantExists,
    VersionConflict,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from support.control import Places
    from tenancy_core import TenancyConfig, Tenant
    from tenancy_core.tenants import TenantService

pytestmark = pytest.mark.anyio


@pytest.fixture
def make_tenancy(
    make_config: Callable[..., TenancyConfig], places: Places
) -> Callable[..., Tenancy]:
    def make(**settings: Any) -> Tenancy:
        config = make_config(enable_encryption=True, encryption_keys=[NEW_KEY], **settings)
        return Tenancy(config, store=MemoryTenantStore(), isolation=places)

    return make


# -- which status allows what ----------------------------------------------------------------------

METHODS: dict[str, Callable[[TenantService, UUID], Awaitable[object]]] = {
    "create": lambda service, _: service.create("acme"),
    "rename": lambda service, key: service.rename(key, "acme-two"),
    "rename_name": lambda service, key: service.rename(key, name="Acme"),
    "set_plan": lambda service, key: service.set_plan(key, "pro"),
    "set_metadata": lambda service, key: service.set_metadata(key, {"a": 1}),
    "suspend": lambda service, key: service.suspend(key),
    "resume": lambda service, key: service.resume(key),
    "archive": lambda service, key: service.archive(key),
    "restore": lambda service, key: service.restore(key),
    "erase": lambda service, key: service.erase(key),
    "put_secret": lambda service, key: service.put_secret(key, "token", "value"),
    "forget_secret": lambda service, key: service.put_secret(key, "token", None),
}
NO = InvalidTransition
EXISTS = TenantExists
STATUSES = ("provisioning", "failed", "active", "suspended", "archived", "erasing", "erased")
# In the order of STATUSES: the status afterwards, or what is raised.
TABLE: dict[str, tuple[Any, ...]] = {
    "create": ("active", "active", EXISTS, EXISTS, EXISTS, EXISTS, EXISTS),
    "rename": (NO, NO, "active", "suspended", NO, NO, NO),
    "rename_name": (NO, NO, "active", "suspended", NO, NO, NO),
    "set_plan": (NO, NO, "active", "suspended", NO, NO, NO),
    "set_metadata": (NO, NO, "active", "suspended", NO, NO, NO),
    "suspend": (NO, NO, "suspended", "suspended", NO, NO, NO),
    "resume": (NO, NO, "active", "active", NO, NO, NO),
    "archive": (NO, NO, "archived", "archived", "archived", "archived", NO),
    "restore": (NO, NO, "active", "suspended", "active", NO, NO),
    "erase": ("erased", "erased", NO, NO, "erased", "erased", "erased"),
    "put_secret": ("provisioning", "failed", "active", "suspended", "archived", "archived", NO),
    "forget_secret": ("provisioning", "failed", "active", "suspended", "archived", "archived", NO),
}


async def bring_to(tenancy: Tenancy, places: Places, status: str) -> UUID:
    """Make ``acme`` in a status."""
    service = tenancy.tenants
    if status in {"provisioning", "failed"}:
        places.failing["provision"] = OSError()
        with pytest.raises(OSError):  # noqa: PT011 - it is ours
            await service.create("acme")
        places.failing.clear()
        acme = await service.get("acme")
        if status == "provisioning":
            async with tenancy.parts.store.transaction() as transaction:
                back = replace(acme, status=TenantStatus.PROVISIONING)
                await transaction.update(back, expected_version=acme.version)
        return acme.id
    acme = await service.create("acme")
    if status == "suspended":
        await service.suspend("acme")
    if status in {"archived", "erasing", "erased"}:
        await service.archive("acme")
    if status == "erasing":
        places.failing["destroy"] = BackendUnavailable("down")
        with pytest.raises(BackendUnavailable):
            await service.erase("acme")
        places.failing.clear()
    if status == "erased":
        await service.erase("acme")
    return acme.id


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("method", METHODS)
async def test_a_status_allows_what_the_table_says_and_a_refusal_writes_nothing(
    make_tenancy: Callable[..., Tenancy], places: Places, method: str, status: str
) -> None:
    expected = TABLE[method][STATUSES.index(status)]
    async with make_tenancy() as tenancy:
        tenant_id = await bring_to(tenancy, places, status)
        before = await snapshot(tenancy)
        if isinstance(expected, str):
            await METHODS[method](tenancy.tenants, tenant_id)
            assert (await tenancy.tenants.get(tenant_id)).status == expected
            log = await tenancy.audit.read(tenant_id)
            assert len(log) == (await tenancy.tenants.get(tenant_id)).version
        else:
            with pytest.raises(expected) as caught:
                await METHODS[method](tenancy.tenants, tenant_id)
            assert str(caught.value)
            assert await snapshot(tenancy) == before
        assert (await tenancy.audit.verify(tenant_id)).ok


async def test_without_soft_delete_an_active_tenant_is_erased_and_not_served_while_it_goes(
    make_tenancy: Callable[..., Tenancy], places: Places
) -> None:
    async with make_tenancy(enable_soft_delete=False) as tenancy:
        acme = await tenancy.tenants.create("acme")
        seen: list[object] = []

        async def look(_: Tenant) -> None:
            binding = await tenancy.parts.directory.find("acme")
            seen.append(None if binding is None else binding.tenant.status)

        await tenancy.parts.directory.find("acme")  # cached
        places.during["destroy"] = look
        erased = await tenancy.tenants.erase("acme")
        assert seen == [TenantStatus.ARCHIVED]
        assert (erased.status, erased.identifier) == (TenantStatus.ERASED, "")
        assert await tenancy.parts.directory.find("acme") is None
        assert not places.there
        names = [event.action for event in await tenancy.audit.read(acme.id)]
        assert names[2:] == ["tenant.erasure_begun", "tenant.erased"]


# -- versions --------------------------------------------------------------------------------------

VERSIONED: dict[str, Callable[[TenantService, UUID, int], Awaitable[object]]] = {
    "rename": lambda s, key, seen: s.rename(key, "other", expected_version=seen),
    "rename_name": lambda s, key, seen: s.rename(key, name="Other", expected_version=seen),
    "set_plan": lambda s, key, seen: s.set_plan(key, "pro", expected_version=seen),
    "set_metadata": lambda s, key, seen: s.set_metadata(key, {"a": 1}, expected_version=seen),
    "suspend": lambda s, key, seen: s.suspend(key, expected_version=seen),
    "resume": lambda s, key, seen: s.resume(key, expected_version=seen),
    "archive": lambda s, key, seen: s.archive(key, expected_version=seen),
    "restore": lambda s, key, seen: s.restore(key, expected_version=seen),
    "erase": lambda s, key, seen: s.erase(key, expected_version=seen),
    "put_secret": lambda s, key, seen: s.put_secret(key, "a", "b", expected_version=seen),
    "forget_secret": lambda s, key, seen: s.put_secret(key, "a", None, expected_version=seen),
}


@pytest.mark.parametrize("method", VERSIONED)
async def test_a_stale_version_is_a_conflict_and_writes_nothing(
    make_tenancy: Callable[..., Tenancy], places: Places, method: str
) -> None:
    status = {"restore": "archived", "erase": "archived"}.get(method, "active")
    async with make_tenancy() as tenancy:
        tenant_id = await bring_to(tenancy, places, status)
        now = (await tenancy.tenants.get(tenant_id)).version
        before = await snapshot(tenancy)
        for stale in (now - 1, now + 1, 0):
            with pytest.raises(VersionConflict, match=f"is at version {now}, not {stale}"):
                await VERSIONED[method](tenancy.tenants, tenant_id, stale)
            assert await snapshot(tenancy) == before
        assert places.there
        await VERSIONED[method](tenancy.tenants, tenant_id, now)


# -- what is no argument ---------------------------------------------------------------------------

LONG = "x" * 201
BAD: list[tuple[str, str, type[Exception], str]] = [
    ("create('Acme')", "", InvalidIdentifier, "A tenant identifier is"),
    ("create('new', name='')", "", ValueError, "A tenant's name is"),
    (f"create('new', name='{LONG}')", "", ValueError, "A tenant's name is"),
    ("create('new', name=' a')", "", ValueError, "A tenant's name is"),
    ("create('new', name='a\\nb')", "", ValueError, "A tenant's name is"),
    ("create('new', name='a\\u202eb')", "", ValueError, "A tenant's name is"),
    ("create('new', plan='')", "", ValueError, "A plan's name is"),
    ("create('new', plan='x' * 65)", "", ValueError, "A plan's name is"),
    ("create('new', limits={'rate': 1})", "", ValueError, "There is no limit 'rate'"),
    ("create('new', limits={'rate_limit_per_minute': 0})", "", ValueError, "is a whole number"),
    ("create('new', limits={'rate_limit_per_minute': 1.5})", "", ValueError, "is a whole number"),
    ("create('new', metadata={'a': object()})", "", ValueError, "JSON"),
    ("create('new', metadata={1: 2})", "", ValueError, "JSON|key"),
    ("create('new', metadata={'a': float('nan')})", "", ValueError, "JSON|finite"),
    ("create('new', metadata=[1])", "", (ValueError), "[Mm]etadata is"),
    ("create('new', metadata='abc')", "", ValueError, "[Mm]etadata is"),
    ("create('new', metadata=Sensitive({}))", "", ValueError, "[Mm]etadata is"),
    ("create('new', metadata={'$sealed': 'aaaa'})", "", ValueError, "sealed"),
    ("create('new', actor=1)", "", TypeError, "actor or a reason is a str"),
    ("create('new', reason=b'x')", "", TypeError, "actor or a reason is a str"),
    ("rename('acme')", "", ValueError, "Pass the new identifier"),
    ("rename('acme', 'A')", "", InvalidIdentifier, "A tenant identifier is"),
    ("rename('acme', name='')", "", ValueError, "A tenant's name is"),
    ("rename('nobody', 'new')", "", TenantNotFound, "There is no tenant 'nobody'"),
    ("rename('acme', 'beta')", "", TenantExists, "There is already a tenant 'beta'"),
    ("rename('acme', 'new', actor=1)", "", TypeError, "actor or a reason is a str"),
    ("set_plan('acme', '')", "", ValueError, "A plan's name is"),
    ("set_plan('acme', 'a', limits={'b': 1})", "", ValueError, "There is no limit 'b'"),
    ("set_metadata('acme', [1])", "", ValueError, "[Mm]etadata is"),
    ("set_metadata('acme', {'a': {1}})", "", ValueError, "JSON"),
    ("suspend('acme', reason=1)", "", TypeError, "actor or a reason is a str"),
    ("suspend('ACME')", "", InvalidIdentifier, "A tenant identifier is"),
    ("archive('acme', reason=1)", "", TypeError, "actor or a reason is a str"),
    ("erase('gone', before_retention=True)", "", ValueError, "needs a reason"),
    ("erase('gone', before_retention=True, reason='')", "", ValueError, "needs a reason"),
    ("erase('gone', reason=1)", "", TypeError, "actor or a reason is a str"),
    ("restore('gone', actor=1)", "", TypeError, "actor or a reason is a str"),
    ("put_secret('acme', 'Bad Name', 'v')", "", ValueError, "A secret's name is"),
    ("put_secret('acme', 'data-key', 'v')", "", ValueError, "is kept for the key"),
    ("put_secret('acme', 'name', 'x\\ud800')", "", ValueError, "Unicode characters"),
    ("put_secret('acme', 'data-key', None)", "", ValueError, "is kept for the key"),
    ("get_secret('acme', '../x')", "", ValueError, "A secret's name is"),
    ("erase_expired()", "", ConfigurationError, "TENANCY_ARCHIVE_RETENTION_DAYS is not set"),
    ("list(limit=0)", "", ValueError, "limit is from 1 to 1000"),
    ("list(status='gone')", "", ValueError, "gone"),
]


@pytest.mark.parametrize(("call", "_", "kind", "text"), BAD, ids=[row[0][:60] for row in BAD])
async def test_a_wrong_argument_is_refused_with_a_sentence_and_nothing_is_written(
    make_tenancy: Callable[..., Tenancy],
    call: str,
    _: str,
    kind: type[Exception],
    text: str,
) -> None:
    async with make_tenancy() as tenancy:
        for name in ("acme", "beta", "gone"):
            await tenancy.tenants.create(name)
        await tenancy.tenants.archive("gone")
        before = await snapshot(tenancy)
        with pytest.raises(kind, match=text) as caught:
            await eval(f"service.{call}", {"service": tenancy.tenants, "Sensitive": Sensitive})  # noqa: S307 - from the table above
        assert str(caught.value).endswith((".", "'gone' is not a valid TenantStatus"))
        assert await snapshot(tenancy) == before


# -- retention -------------------------------------------------------------------------------------


async def wind_back(tenancy: Tenancy, tenant_id: UUID, by: timedelta) -> None:
    """Let a tenant have been archived earlier."""
    store = tenancy.parts.store
    old = await store.get(tenant_id)
    assert old is not None
    async with store.transaction() as transaction:
        earlier = replace(old, updated_at=datetime.now(UTC) - by)
        await transaction.update(earlier, expected_version=old.version)


async def test_before_its_retention_is_over_an_archived_tenant_is_kept(
    make_tenancy: Callable[..., Tenancy], places: Places
) -> None:
    async with make_tenancy(archive_retention_days=30) as tenancy:
        service = tenancy.tenants
        acme = await service.create("acme")
        await service.archive("acme")
        await wind_back(tenancy, acme.id, timedelta(days=29, hours=23))
        before = await snapshot(tenancy)
        with pytest.raises(InvalidTransition, match=r"kept until .* before_retention=True"):
            await service.erase("acme")
        assert not await service.erase_expired()
        assert await snapshot(tenancy) == before
        assert places.there
        await wind_back(tenancy, acme.id, timedelta(days=30))
        assert (await service.erase("acme")).status is TenantStatus.ERASED
        beta = await service.create("beta")
        await service.archive("beta")
        erased = await service.erase("beta", before_retention=True, reason="asked for it")
        assert erased.status is TenantStatus.ERASED
        begun = (await tenancy.audit.read(beta.id))[3]
        assert begun.details == {"before_retention": True}
        assert not places.there


async def test_an_erasure_that_is_begun_is_finished_whatever_the_day_and_the_version(
    make_tenancy: Callable[..., Tenancy], places: Places
) -> None:
    async with make_tenancy(archive_retention_days=30) as tenancy:
        service = tenancy.tenants
        acme = await service.create("acme")
        archived = await service.archive("acme")
        places.failing["destroy"] = BackendUnavailable("down")
        with pytest.raises(BackendUnavailable):
            await service.erase(
                "acme",
                before_retention=True,
                reason="asked for it",
                expected_version=archived.version,
            )
        places.failing.clear()
        erased = await service.erase(acme.id, expected_version=archived.version)
        assert erased.status is TenantStatus.ERASED
        assert await service.erase(acme.id) == erased


async def test_what_is_done_to_an_archived_tenant_does_not_make_it_be_kept_longer(
    make_tenancy: Callable[..., Tenancy],
) -> None:
    async with make_tenancy(archive_retention_days=30) as tenancy:
        service = tenancy.tenants
        acme = await service.create("acme")
        await service.archive("acme")
        await wind_back(tenancy, acme.id, timedelta(days=31))
        await service.put_secret("acme", "token", "value")
        assert [one.outcome for one in await service.erase_expired()] == ["erased"]
        assert (await service.get(acme.id)).status is TenantStatus.ERASED


async def test_erase_expired_erases_those_that_are_due_and_one_that_fails_stops_nobody(
    make_tenancy: Callable[..., Tenancy], places: Places
) -> None:
    async with make_tenancy(archive_retention_days=30) as tenancy:
        service = tenancy.tenants
        ids = {name: (await service.create(name)).id for name in ("a", "b", "c", "d", "e")}
        for name in "abcd":
            await service.archive(name)
        for name in "abc":
            await wind_back(tenancy, ids[name], timedelta(days=31))

        async def fail_b(tenant: Tenant) -> None:
            if tenant.id == ids["b"]:
                raise BackendUnavailable("down")

        places.during["destroy"] = fail_b
        done = await service.erase_expired(actor="cron")
        assert [(one.tenant.id, one.outcome, one.error) for one in done] == [
            (ids["a"], "erased", None),
            (ids["b"], "failed", "BackendUnavailable"),
            (ids["c"], "erased", None),
        ]
        places.during.clear()
        # Begun is begun: whatever the day, and whoever finds it.
        assert [(one.tenant.id, one.outcome) for one in await service.reconcile()] == [
            (ids["b"], "erased")
        ]
        left = {name: (await service.get(key)).status.value for name, key in ids.items()}
        assert left == {"a": "erased", "b": "erased", "c": "erased", "d": "archived", "e": "active"}


@pytest.mark.parametrize("method", ["erase_expired", "reconcile"])
async def test_one_that_is_served_again_by_the_time_it_is_due_is_not_erased(
    make_tenancy: Callable[..., Tenancy],
    places: Places,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    """Without soft delete a served tenant may be erased; but nobody asked for this one."""
    async with make_tenancy(archive_retention_days=30, enable_soft_delete=False) as tenancy:
        service = tenancy.tenants
        status = "archived" if method == "erase_expired" else "failed"
        tenant_id = await bring_to(tenancy, places, status)
        await wind_back(tenancy, tenant_id, timedelta(days=31))
        real = service.iterate

        async def meanwhile(**selection: Any) -> Any:
            async for tenant in real(**selection):
                await (service.restore if status == "archived" else service.create)("acme")
                yield tenant

        monkeypatch.setattr(service, "iterate", meanwhile)
        if method == "erase_expired":
            done = await service.erase_expired()
        else:
            monkeypatch.setattr(service, "restore", service.create)
            done = await service.reconcile(remove=True)
        assert [(one.outcome, one.error) for one in done] == [("failed", "VersionConflict")]
        assert (await service.get(tenant_id)).active
        assert places.there
