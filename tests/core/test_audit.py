"""Audit events: written with the change or not at all, and told to sinks once it is committed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from support.notes import Base
from tenancy_core import Tenancy
from tenancy_core.audit import AuditLog
from tenancy_core.errors import VersionConflict

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenancy_core import TenancyConfig
    from tenancy_core.contract import AuditEvent

pytestmark = pytest.mark.anyio


class Sink:
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []

    async def write(self, event: AuditEvent, /) -> None:
        self.events.append(event)


class Down:
    """A sink that is down."""

    async def write(self, event: AuditEvent, /) -> None:
        raise ConnectionError("amqp://app:canary@queue")


async def test_every_change_leaves_an_event_with_who_and_why(
    make_config: Callable[..., TenancyConfig],
) -> None:
    began = datetime.now(UTC)
    sink = Sink()
    async with Tenancy(make_config(), metadata=Base.metadata, audit_sinks=[sink]) as tenancy:
        tenant = await tenancy.tenants.create("acme", plan="pro", actor="ops@example.com")
        await tenancy.tenants.suspend("acme", reason="unpaid", actor="billing")
        await tenancy.tenants.resume("acme", reason="paid")
        stored = await tenancy.parts.store.audit(tenant.id)
    assert [(event.sequence, event.action, event.actor, event.reason) for event in stored] == [
        (1, "tenant.created", "ops@example.com", None),
        (2, "tenant.provisioned", "ops@example.com", None),
        (3, "tenant.suspended", "billing", "unpaid"),
        (4, "tenant.resumed", None, "paid"),
    ]
    assert dict(stored[0].details) == {"plan": "pro"}
    assert all(began <= event.occurred_at <= datetime.now(UTC) for event in stored)
    assert {event.tenant_id for event in stored} == {tenant.id}
    assert sink.events == stored


async def test_A3_what_is_not_changed_leaves_no_event(tenancy: Tenancy) -> None:
    tenant = await tenancy.tenants.get("acme")
    before = await tenancy.parts.store.audit(tenant.id)
    with pytest.raises(VersionConflict):
        await tenancy.tenants.suspend("acme", expected_version=tenant.version + 1)
    await tenancy.tenants.resume("acme")  # it is active already
    assert await tenancy.parts.store.audit(tenant.id) == before


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
        assert len(await store.audit(tenant.id)) == told
        assert len(sink.events) == told


async def test_a_sink_that_is_down_undoes_nothing_and_is_logged(
    make_config: Callable[..., TenancyConfig], caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink()
    async with Tenancy(make_config(), audit_sinks=[Down(), sink]) as tenancy:
        tenant = await tenancy.tenants.create("acme")
        assert tenant.active
        assert len(await tenancy.parts.store.audit(tenant.id)) == 2
    assert [event.action for event in sink.events] == ["tenant.created", "tenant.provisioned"]
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"the audit sink Down did not take event {number} of tenant {tenant.id}; the store has it"
        for number in (1, 2)
    ]


async def test_without_audit_logging_nothing_is_written_and_nobody_told(
    make_config: Callable[..., TenancyConfig],
) -> None:
    sink = Sink()
    config = make_config(enable_audit_logging=False)
    async with Tenancy(config, audit_sinks=[sink]) as tenancy:
        tenant = await tenancy.tenants.create("acme")
        await tenancy.tenants.suspend("acme")
        assert await tenancy.parts.store.audit(tenant.id) == []
    assert sink.events == []


async def test_a_log_that_is_off_never_touches_the_transaction() -> None:
    transaction: Any = None
    log = AuditLog(enabled=False, sinks=[])
    assert await log.append(transaction, uuid4(), "tenant.created") is None
    await log.deliver(None)


@pytest.mark.parametrize(
    "text",
    ["line\nbreak", "\x1b[31mred\x1b[0m", "tab\tnul-free", "ünïcödé \U0001f512", "x" * 1_000_000],
    ids=["newline", "ansi", "tab", "unicode", "1M"],
)
async def test_A6_whatever_people_write_stays_one_event(tenancy: Tenancy, text: str) -> None:
    tenant = await tenancy.tenants.suspend("acme", reason=text, actor=text[:100])
    *_, event = await tenancy.parts.store.audit(tenant.id)
    assert (event.action, event.reason) == ("tenant.suspended", text)


async def test_A7_a_tenant_s_log_holds_nothing_of_another(tenancy: Tenancy) -> None:
    await tenancy.tenants.suspend("beta", reason="of beta")
    acme = await tenancy.tenants.get("acme")
    assert all(event.tenant_id == acme.id for event in await tenancy.parts.store.audit(acme.id))
    assert "of beta" not in {event.reason for event in await tenancy.parts.store.audit(acme.id)}
