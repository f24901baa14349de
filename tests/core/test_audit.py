"""Audit events: written with the change or not at all; what an application adds to its own log."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from fastapi import FastAPI
from sqlalchemy import event as sqlalchemy_events
from sqlalchemy.engine import Engine

from support.audit import Intruder, Sink, erase, write_events
from support.fastapi_client import ACME, requests_to
from support.notes import Base
from tenancy_core import NoCurrentTenant, Tenancy
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.audit import AuditLog
from tenancy_core.contract import AuditHead
from tenancy_core.errors import (
    BackendUnavailable,
    CommitUnknown,
    ConfigurationError,
    InvalidIdentifier,
    TenantNotFound,
    VersionConflict,
)
from tenancy_fastapi import install

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from tenancy_core import TenancyConfig
    from tenancy_core.contract import StoreTransaction

pytestmark = pytest.mark.anyio


# -- tenancy's own events -------------------------------------------------------------------------


async def test_every_change_leaves_an_event_with_who_and_why(
    make_config: Callable[..., TenancyConfig],
) -> None:
    began = datetime.now(UTC)
    sink = Sink()
    async with Tenancy(make_config(), metadata=Base.metadata, audit_sinks=[sink]) as tenancy:
        tenant = await tenancy.tenants.create("acme", plan="pro", actor="ops@example.com")
        await tenancy.tenants.suspend("acme", reason="unpaid", actor="billing")
        await tenancy.tenants.resume("acme", reason="paid")
        stored = await tenancy.audit.read("acme")
    assert [(event.sequence, event.action, event.actor, event.reason) for event in stored] == [
        (1, "tenant.created", "ops@example.com", None),
        (2, "tenant.provisioned", "ops@example.com", None),
        (3, "tenant.suspended", "billing", "unpaid"),
        (4, "tenant.resumed", None, "paid"),
    ]
    assert stored[0].details["plan"] == "pro"
    assert all(began <= event.occurred_at <= datetime.now(UTC) for event in stored)
    assert {event.tenant_id for event in stored} == {tenant.id}
    assert sink.events == list(stored)


async def test_A3_what_is_not_changed_leaves_no_event(tenancy: Tenancy) -> None:
    tenant = await tenancy.tenants.get("acme")
    before = await tenancy.audit.read(tenant)
    with pytest.raises(VersionConflict):
        await tenancy.tenants.suspend("acme", expected_version=tenant.version + 1)
    await tenancy.tenants.resume("acme")  # it is active already
    assert await tenancy.audit.read(tenant) == before


async def test_A3_an_event_whose_transaction_fails_is_neither_kept_nor_told(
    make_config: Callable[..., TenancyConfig],
) -> None:
    sink = Sink()
    async with Tenancy(make_config(), audit_sinks=[sink]) as tenancy:
        tenant = await tenancy.tenants.create("acme")
        told = len(sink.events)
        audit, store = tenancy.parts.audit, tenancy.parts.store

        async def fail_half_way() -> None:
            async with store.transaction() as transaction:
                await audit.append(transaction, tenant.id, "tenant.suspended")
                raise LookupError

        with pytest.raises(LookupError):
            await fail_half_way()
        assert len(await tenancy.audit.read("acme")) == told
        assert await store.undelivered(before=datetime.now(UTC)) in ([], ())
        assert len(sink.events) == told


async def test_without_audit_logging_nothing_is_written_and_nobody_told(
    make_config: Callable[..., TenancyConfig],
) -> None:
    sink = Sink()
    config = make_config(enable_audit_logging=False)
    async with Tenancy(config, audit_sinks=[sink]) as tenancy:
        await tenancy.tenants.create("acme")
        await tenancy.tenants.suspend("acme")
        async with tenancy.scope("acme", statuses={"suspended"}):
            assert await tenancy.audit.record("note.written") is None
            with pytest.raises(ValueError, match="two or more words"):
                await tenancy.audit.record("nonsense")
        assert await tenancy.audit.read("acme") == ()
        assert (await tenancy.audit.verify("acme")).ok
    assert sink.events == []


async def test_a_log_that_is_off_never_touches_the_transaction() -> None:
    nothing: Any = None
    log = AuditLog(enabled=False, sinks=[], store=nothing, signer=nothing)
    assert await log.append(nothing, uuid4(), "tenant.created") is None
    await log.deliver(None)


async def test_an_event_costs_three_statements_and_a_fourth_where_there_are_sinks(
    make_config: Callable[..., TenancyConfig],
) -> None:
    seen: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        seen.append(" ".join(statement.split()[:3]))

    for sinks in ([], [Sink()]):
        async with Tenancy(make_config(), audit_sinks=sinks) as tenancy:
            if not sinks:
                await tenancy.tenants.create("acme")
            async with tenancy.scope("acme"):
                seen.clear()
                sqlalchemy_events.listen(Engine, "before_cursor_execute", note)
                async with tenancy.parts.store.transaction() as transaction:
                    began = len(seen)
                    tenant = (await tenancy.find("acme")).tenant
                    await tenancy.parts.audit.append(transaction, tenant.id, "note.written")
                    mine = seen[began:]
                sqlalchemy_events.remove(Engine, "before_cursor_execute", note)
        assert [statement.split()[0] for statement in mine] == [
            "SELECT",
            "UPDATE",
            "INSERT",
            *(["INSERT"] if sinks else []),
        ]


# -- an application's own events ------------------------------------------------------------------


async def test_an_application_records_its_own_events(logs: Tenancy) -> None:
    async with logs.scope("acme") as acme:
        event = await logs.audit.record(
            "invoice.sent",
            actor="ada@example.com",
            reason="month's end",
            details={"number": 7, "lines": ("a", "b")},
            personal={"to": "bob@example.com"},
        )
        assert event is not None
        assert (event.sequence, event.tenant_id, event.action) == (3, acme.id, "invoice.sent")
        assert dict(event.details) == {"number": 7, "lines": ["a", "b"]}
        assert "bob@example.com" not in repr(event)
        assert (await logs.audit.read(after=2)) == (event,)
        assert (await logs.audit.verify()).events == 3
    assert len(await logs.audit.read("beta")) == 2


@pytest.mark.parametrize(
    "action",
    [
        "tenant.suspended",
        "tenant.mine",
        "scope.switched",
        "nodots",
        "",
        ".a",
        "a.",
        "a..b",
        "a b.c",
        "A.b",
        "ä.b",
        "a.b\n",
        "a." + "b" * 63,
    ],
)
async def test_an_action_is_dotted_short_and_not_tenancys_own(
    tenancy: Tenancy, action: str
) -> None:
    async with tenancy.scope("acme"):
        with pytest.raises(ValueError, match="action") as caught:
            await tenancy.audit.record(action)
        assert not action or "\n" not in str(caught.value)
        await tenancy.audit.record("a." + "b" * 62)
        await tenancy.audit.record("tenants.listed")
    assert len(await tenancy.audit.read("acme")) == 4


async def test_what_cannot_be_stored_is_refused_before_anything_is_locked(logs: Tenancy) -> None:
    async with logs.scope("acme"):
        with pytest.raises(ValueError, match=r"details\.when is a datetime"):
            await logs.audit.record("note.written", details={"when": datetime.now(UTC)})
        with pytest.raises(ValueError, match=r"personal\.name is a set"):
            await logs.audit.record("note.written", personal={"name": {"a"}})
        with pytest.raises(TypeError, match="not UUID"):
            await logs.audit.record("note.written", actor=uuid4())
    assert len(await logs.audit.read("acme")) == 2


async def test_without_a_tenant_there_is_nothing_to_record_or_to_read(
    logs: Tenancy, make_config: Callable[..., TenancyConfig]
) -> None:
    with pytest.raises(NoCurrentTenant):
        await logs.audit.record("note.written")
    with pytest.raises(NoCurrentTenant):
        await logs.audit.read()
    with pytest.raises(NoCurrentTenant):
        await logs.audit.verify()
    other = Tenancy(make_config())
    async with other, logs.scope("acme"):
        for ask in (
            other.audit.read(),
            other.audit.read("acme"),
            other.audit.record("note.written"),
            other.audit.refusals(),
        ):
            with pytest.raises(NoCurrentTenant, match="another Tenancy"):
                await ask
    with pytest.raises(ConfigurationError, match="not open"):
        _ = other.audit


async def test_a_switch_is_in_the_log_of_the_tenant_that_is_entered(logs: Tenancy) -> None:
    async with logs.scope("acme") as acme, logs.scope("beta", switch=True, reason="ticket 4711"):
        (event,) = await logs.audit.read(after=2)
    assert (event.action, event.reason) == ("scope.switched", "ticket 4711")
    assert dict(event.details) == {"from": str(acme.id)}


# -- reading --------------------------------------------------------------------------------------


async def test_a_log_is_read_page_by_page(logs: Tenancy) -> None:
    await write_events(logs, "acme", 7)
    pages = [await logs.audit.read("acme", after=after, limit=3) for after in (0, 3, 6, 7)]
    assert [[event.sequence for event in page] for page in pages] == [[1, 2, 3], [4, 5, 6], [7], []]


@pytest.mark.parametrize("values", [{"limit": 0}, {"limit": 1001}, {"after": -1}])
async def test_a_page_has_a_size_and_a_start(tenancy: Tenancy, values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"limit is|after is"):
        await tenancy.audit.read("acme", **values)


async def test_a_name_that_is_none_is_refused_everywhere(tenancy: Tenancy) -> None:
    with pytest.raises(InvalidIdentifier):
        await tenancy.audit.read("A b")
    async with tenancy.scope("acme"):
        with pytest.raises(InvalidIdentifier):
            await tenancy.audit.read("A b")


async def test_A7_in_a_request_another_tenant_s_log_is_404(tenancy: Tenancy) -> None:
    app = FastAPI()
    install(app, tenancy, excluded_paths=["/operator"])

    @app.get("/audit")
    @app.get("/audit/{name}")
    @app.get("/operator/{name}")
    async def read(name: str | None = None) -> list[str]:
        return [event.action for event in await tenancy.audit.read(name)]

    async with requests_to(app) as client:
        own = await client.get("/audit", headers=ACME)
        assert own.json() == ["tenant.created", "tenant.provisioned"]
        assert (await client.get("/audit/acme", headers=ACME)).json() == own.json()
        assert (await client.get("/operator/beta")).json() == own.json()
        other = await client.get("/audit/beta", headers=ACME)
        nobody = await client.get("/audit/nobody", headers=ACME)
    assert (other.status_code, other.json()["code"]) == (404, "tenant_not_found")
    assert other.content == nobody.content
    assert other.headers == nobody.headers


# -- verifying ------------------------------------------------------------------------------------


async def test_a_log_of_several_pages_is_verified(
    logs: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenancy_core.audit.verification._PAGE", 3)
    acme = await write_events(logs, "acme", 10)
    report = await logs.audit.verify(acme)
    assert (report.ok, report.events) == (True, 10)
    last = (await logs.audit.read("acme", after=9))[0]
    assert report.head == AuditHead(10, last.seal)
    for number in range(1, 11):
        event = (await logs.audit.read("acme", after=number - 1, limit=1))[0]
        assert (await logs.audit.verify(acme, anchor=AuditHead(number, event.seal))).ok


async def test_an_unreadable_row_is_named_also_in_the_middle_of_a_page(
    tenancy: Tenancy, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenancy_core.audit.verification._PAGE", 4)
    acme = await write_events(tenancy, "acme", 10)
    Intruder(database_url).run(
        "UPDATE tenancy_audit SET details = '{' WHERE tenant_id = :acme AND sequence = 7", acme=acme
    )
    report = await tenancy.audit.verify(acme)
    assert (report.first_bad, report.events, report.head.sequence) == (7, 6, 6)


async def test_a_tenant_without_events_has_a_log_that_is_right(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with Tenancy(make_config(enable_audit_logging=False)) as tenancy:
        acme = await tenancy.tenants.create("acme")
        report = await tenancy.audit.verify(acme)
        assert (report.ok, report.events, report.head) == (True, 0, AuditHead())
        lost = await tenancy.audit.verify(acme, anchor=AuditHead(3, b"seal"))
        assert lost.first_bad == 1
        with pytest.raises(TenantNotFound):
            await tenancy.audit.verify(uuid4())


async def test_a_seal_is_what_the_explanation_says(logs: Tenancy) -> None:
    """A log that this version wrote has to be right for every later one."""
    await write_events(logs, "acme", 3)
    second, third = await logs.audit.read("acme", after=1)
    assert third.salt is not None
    personal = b'["acme-3@example.com","reason 3",{"name":"Ada 3"}]'
    assert third.digest == hashlib.sha256(third.salt + personal).digest()
    microseconds = (third.occurred_at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(
        microseconds=1
    )
    parts = (
        b"tenancy.audit/1",
        third.tenant_id.bytes,
        b"3",
        b"note.written",
        str(microseconds).encode(),
        b'{"number":3,"words":["ein",{"zwei":true}]}',
        third.digest,
        second.seal,
    )
    signer = logs.parts.signing.signer("audit")
    assert signer.verify(third.seal, *parts)
    assert logs.parts.trail._signer.sign(*parts) == third.seal
    for number in range(len(parts)):
        assert not signer.verify(third.seal, *parts[:number], *parts[number + 1 :])


async def test_a_log_outlives_the_record_of_its_tenant(tenancy: Tenancy, database_url: str) -> None:
    acme = await write_events(tenancy, "acme", 5)
    intruder = Intruder(database_url)
    intruder.run("DELETE FROM tenancy_tenants WHERE id = :acme", acme=acme)
    assert len(await tenancy.audit.read(acme)) == 5
    assert (await tenancy.audit.verify(acme)).ok
    intruder.run("UPDATE tenancy_audit_heads SET seal = 'text' WHERE tenant_id = :acme", acme=acme)
    assert (await tenancy.audit.verify(acme)).first_bad == 5
    intruder.run("DELETE FROM tenancy_audit_heads WHERE tenant_id = :acme", acme=acme)
    assert (await tenancy.audit.verify(acme)).first_bad == 1
    intruder.run("DELETE FROM tenancy_audit WHERE tenant_id = :acme", acme=acme)
    with pytest.raises(TenantNotFound):
        await tenancy.audit.verify(acme)


@pytest.mark.parametrize("anchor", [AuditHead(-1, b"x"), AuditHead(0, b"x"), AuditHead(2)])
async def test_an_anchor_is_a_head(tenancy: Tenancy, anchor: AuditHead) -> None:
    with pytest.raises(ValueError, match="anchor"):
        await tenancy.audit.verify("acme", anchor=anchor)


async def test_an_erased_tenant_s_log_keeps_what_was_done_and_not_by_whom(logs: Tenancy) -> None:
    acme = await write_events(logs, "acme", 5)
    before = await logs.audit.read(acme)
    await erase(logs, acme)
    *after, erased = await logs.audit.read(acme)
    assert erased.action == "tenant.erased"
    assert [(e.action, e.details, e.seal) for e in after] == [
        (e.action, e.details, e.seal) for e in before
    ]
    assert all(
        (e.actor, e.reason, dict(e.personal), e.salt) == (None, None, {}, None) for e in after
    )
    assert (await logs.audit.verify(acme)).ok


async def test_a_tenant_that_is_erased_while_its_log_is_verified_is_no_tampering(
    logs: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenancy_core.audit.verification._PAGE", 2)
    acme = await write_events(logs, "acme", 6)
    store: Any = logs.parts.store
    pages = 0

    class Meanwhile:
        get = store.get
        audit_head = store.audit_head

        async def audit(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal pages
            pages += 1
            if pages == 2:
                await erase(logs, acme)
            return await store.audit(*args, **kwargs)

    logs.parts.trail._store = Meanwhile()
    report = await logs.audit.verify(acme)
    assert (report.ok, report.events) == (True, 7), report.reason


async def test_a_store_that_is_down_is_no_tampering(tenancy: Tenancy, database_url: str) -> None:
    Intruder(database_url).run("ALTER TABLE tenancy_audit_heads RENAME TO gone")
    with pytest.raises(BackendUnavailable):
        await tenancy.audit.verify("acme")


# -- a commit whose answer was lost ---------------------------------------------------------------


class Losing(MemoryTenantStore):
    """Loses the answer to a COMMIT, which took place or did not."""

    def __init__(self) -> None:
        super().__init__()
        self.lose: bool | None = None

    def transaction(self) -> Any:
        return _Losing(self, super().transaction())


class _Losing:
    def __init__(self, store: Losing, inner: AbstractAsyncContextManager[StoreTransaction]) -> None:
        self._store = store
        self._inner = inner

    async def __aenter__(self) -> StoreTransaction:
        return await self._inner.__aenter__()

    async def __aexit__(self, *raised: object) -> None:
        lose, self._store.lose = self._store.lose, None
        if lose is None:
            await self._inner.__aexit__(*raised)
            return
        committed = (None, None, None) if lose else (LookupError, LookupError(), None)
        await self._inner.__aexit__(*committed)
        raise CommitUnknown("lost")


async def test_A3_a_commit_whose_answer_was_lost_is_read_back(
    make_config: Callable[..., TenancyConfig],
) -> None:
    store, sink = Losing(), Sink()
    async with Tenancy(make_config(), store=store, audit_sinks=[sink]) as tenancy:
        await tenancy.tenants.create("acme")
        async with tenancy.scope("acme"):
            store.lose = True
            event = await tenancy.audit.record("note.written")
            assert event == (await tenancy.audit.read(after=2))[0]
            assert sink.events[-1] == event
            store.lose = False
            with pytest.raises(BackendUnavailable, match="nothing was stored"):
                await tenancy.audit.record("note.lost")
            assert len(await tenancy.audit.read()) == 3
        assert (await tenancy.audit.verify("acme")).ok


async def test_A3_what_cannot_be_read_back_is_said(
    make_config: Callable[..., TenancyConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Losing()
    async with Tenancy(make_config(), store=store) as tenancy:
        await tenancy.tenants.create("acme")

        async def down(*_: Any, **__: Any) -> Any:
            raise BackendUnavailable("down")

        async with tenancy.scope("acme"):
            store.lose = True
            with monkeypatch.context() as patch:
                patch.setattr(store, "audit", down)
                with pytest.raises(CommitUnknown, match="Read the log"):
                    await tenancy.audit.record("note.written")


async def test_C7_whoever_still_holds_an_erased_tenant_writes_nothing_behind_its_erasure(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with Tenancy(make_config(enable_soft_delete=False)) as tenancy:
        acme = await tenancy.tenants.create("acme")
        async with tenancy.scope("acme"):
            await tenancy.tenants.erase(acme.id)
            with pytest.raises(TenantNotFound):
                await tenancy.audit.record("note.added", actor="Ada", personal={"name": "Ada"})
        log = await tenancy.audit.read(acme.id)
        assert log[-1].action == "tenant.erased"
        assert (await tenancy.audit.verify(acme.id)).ok
