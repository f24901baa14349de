"""Refused requests are counted by tenant, code and minute, apart from the chain."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import httpx
import pytest

from support.audit import Intruder
from support.waiting import until
from tenancy_core import Tenancy
from tenancy_core._background import BackgroundTasks
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.asgi import TenancyMiddleware
from tenancy_core.audit import AuditWorker
from tenancy_core.audit.outbox import Outbox
from tenancy_core.audit.refusals import OTHER, REFUSALS_LIMIT, RefusalBuffer
from tenancy_core.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tenancy_core import TenancyConfig
    from tenancy_core.contract import RefusalCount

pytestmark = pytest.mark.anyio

NEVER = 3600.0


@pytest.fixture(params=["memory", "sql"])
def store(request: pytest.FixtureRequest) -> MemoryTenantStore | None:
    return MemoryTenantStore() if request.param == "memory" else None


@pytest.fixture
async def tenancy(
    make_config: Callable[..., TenancyConfig], store: MemoryTenantStore | None
) -> AsyncIterator[Tenancy]:
    config = make_config(
        resolution_strategy=["header", "path"],
        enable_rate_limiting=True,
        rate_limit_per_minute=2,
        invalidation_poll_seconds=NEVER,
    )
    async with Tenancy(config, store=store) as opened:
        await opened.tenants.create("acme")
        await opened.tenants.create("beta")
        yield opened


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def ask(tenancy: Tenancy, *names: str, path: str = "/") -> list[int]:
    """Return the statuses of requests that name tenants in the header."""
    transport = httpx.ASGITransport(TenancyMiddleware(app, tenancy))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return [
            (await client.get(path, headers={"X-Tenant-ID": name})).status_code for name in names
        ]


def by_code(counts: tuple[RefusalCount, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in counts:
        found[one.code] = found.get(one.code, 0) + one.count
    return found


# -- what is counted ------------------------------------------------------------------------------


async def test_R19_sources_that_disagree_are_counted_as_well_as_refused(tenancy: Tenancy) -> None:
    assert await ask(tenancy, "acme", "acme", path="/tenants/beta/notes") == [403, 403]
    (one,) = await tenancy.audit.refusals()
    assert (one.tenant_id, one.code, one.count) == (None, "tenant_mismatch", 2)
    assert one.minute.second == one.minute.microsecond == 0
    assert datetime.now(UTC) - one.minute < timedelta(minutes=2)


async def test_refusals_are_counted_for_the_tenant_where_one_was_resolved(
    tenancy: Tenancy,
) -> None:
    assert await ask(tenancy, "acme", "acme", "acme") == [200, 429, 429]
    assert await ask(tenancy, "nobody", "Nobody", "no body") == [404, 400, 400]
    await tenancy.tenants.suspend("beta")
    assert await ask(tenancy, "beta") == [404]
    assert by_code(await tenancy.audit.refusals()) == {"tenant_not_found": 1, "tenant_invalid": 2}
    assert by_code(await tenancy.audit.refusals("acme")) == {"rate_limited": 2}
    assert by_code(await tenancy.audit.refusals("beta")) == {"tenant_not_found": 1}


async def test_what_is_admitted_is_not_counted(tenancy: Tenancy) -> None:
    assert await ask(tenancy, "acme", "beta") == [200, 200]
    assert await tenancy.audit.refusals() == ()
    assert await tenancy.audit.refusals("acme") == ()


async def test_refusals_are_no_part_of_the_chain(tenancy: Tenancy) -> None:
    await ask(tenancy, *["acme"] * 4)
    assert await tenancy.audit.refusals("acme")
    assert (await tenancy.audit.verify("acme")).events == 2


async def test_A7_a_tenant_sees_what_was_refused_to_it_and_no_more(tenancy: Tenancy) -> None:
    await ask(tenancy, *["acme"] * 4, *["beta"] * 4, "nobody")
    acme = await tenancy.tenants.get("acme")
    async with tenancy.scope("acme"):
        own = await tenancy.audit.refusals()
        assert {one.tenant_id for one in own} == {acme.id}
        assert own == await tenancy.audit.refusals("acme")
    assert {one.tenant_id for one in await tenancy.audit.refusals()} == {None}


async def test_without_audit_logging_nothing_is_counted(
    make_config: Callable[..., TenancyConfig], store: MemoryTenantStore | None
) -> None:
    config = make_config(enable_audit_logging=False)
    async with Tenancy(config, store=store) as tenancy:
        assert await ask(tenancy, "nobody", "Nobody") == [404, 400]
        assert await tenancy.audit.refusals() == ()
    async with Tenancy(config, store=store) as tenancy:
        assert await tenancy.audit.refusals() == ()


# -- when the store has it ------------------------------------------------------------------------


async def test_counts_of_several_rounds_and_processes_add_up(
    make_config: Callable[..., TenancyConfig],
) -> None:
    first, second = Tenancy(make_config()), Tenancy(make_config())
    async with first, second:
        for _ in range(3):
            for tenancy in (first, second):
                await ask(tenancy, "nobody")
                await tenancy.parts.audit_worker.round()
        assert by_code(await first.audit.refusals()) == {"tenant_not_found": 6}
        assert await second.audit.refusals() == await first.audit.refusals()


async def test_the_background_loop_and_closing_write_the_counts_down(
    make_config: Callable[..., TenancyConfig],
    store: MemoryTenantStore | None,
) -> None:
    config = make_config(invalidation_poll_seconds=0.05)
    async with Tenancy(config, store=store) as tenancy:
        await ask(tenancy, "nobody")
        buffer = tenancy.parts.audit_worker._refusals
        assert len(buffer) <= 1
        await until(lambda: len(buffer) == 0)
    patient = make_config(invalidation_poll_seconds=NEVER)
    async with Tenancy(patient, store=store) as tenancy:
        await ask(tenancy, "nobody")
    async with Tenancy(patient, store=store) as tenancy:
        since = datetime.now(UTC) - timedelta(hours=1)
        found = await tenancy.parts.store.refusals(None, since=since)
        assert by_code(tuple(found)) == {"tenant_not_found": 2}


async def test_closing_in_the_middle_of_writing_counts_nothing_twice() -> None:
    class Slow(MemoryTenantStore):
        def __init__(self) -> None:
            super().__init__()
            self.written = anyio.Event()

        def transaction(self) -> Any:
            inner, written = super().transaction(), self.written

            class Slowly:
                async def __aenter__(self) -> Any:
                    return await inner.__aenter__()

                async def __aexit__(self, *raised: object) -> None:
                    await inner.__aexit__(*raised)
                    written.set()
                    await anyio.sleep(0.01)  # as closing a connection does

            return Slowly()

    store = Slow()
    buffer = RefusalBuffer(store)
    worker = AuditWorker(Outbox(store, []), buffer, 0.01)
    buffer.refused("tenant_invalid", 400, None)
    async with BackgroundTasks() as tasks:
        tasks.start(worker.run(), name="audit")
        await store.written.wait()
    await worker.close()
    since = datetime.now(UTC) - timedelta(hours=1)
    assert by_code(tuple(await store.refusals(None, since=since))) == {"tenant_invalid": 1}


async def test_a_store_that_is_down_loses_no_count(
    make_config: Callable[..., TenancyConfig], database_url: str
) -> None:
    intruder = Intruder(database_url)
    async with Tenancy(make_config(invalidation_poll_seconds=NEVER)) as tenancy:
        await ask(tenancy, "nobody")
        intruder.run("ALTER TABLE tenancy_refusals RENAME TO gone")
        for _ in range(2):
            with pytest.raises(BackendUnavailable):
                await tenancy.parts.audit_worker.round()
            await ask(tenancy, "nobody")
        intruder.run("ALTER TABLE gone RENAME TO tenancy_refusals")
        assert by_code(await tenancy.audit.refusals()) == {"tenant_not_found": 3}


async def test_what_is_lost_on_closing_is_said(
    make_config: Callable[..., TenancyConfig],
    database_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    intruder = Intruder(database_url)
    async with Tenancy(make_config(invalidation_poll_seconds=NEVER)) as tenancy:
        await ask(tenancy, "nobody", "Nobody")
        intruder.run("DROP TABLE tenancy_refusals")
    assert "2 counts of refused requests were lost on closing (BackendUnavailable)" in caplog.text


async def test_whoever_is_cancelled_while_writing_puts_the_counts_back() -> None:
    class Slow(MemoryTenantStore):
        def transaction(self) -> Any:
            class Forever:
                async def __aenter__(self) -> None:
                    await anyio.sleep_forever()

                async def __aexit__(self, *_: object) -> None: ...

            return Forever()

    buffer = RefusalBuffer(Slow())
    buffer.refused("tenant_invalid", 400, None)
    with anyio.move_on_after(0.05) as time:
        await buffer.flush()
    assert time.cancelled_caught
    assert len(buffer) == 1


# -- how much is kept -----------------------------------------------------------------------------


async def test_the_buffer_is_bounded_and_counts_all(
    make_config: Callable[..., TenancyConfig], store: MemoryTenantStore | None
) -> None:
    class Someone:
        def __init__(self) -> None:
            self.id = uuid4()

    now = 1_000_000_000.0
    async with Tenancy(make_config(), store=store) as tenancy:
        buffer = RefusalBuffer(tenancy.parts.store, clock=lambda: now)
        for _ in range(3 * REFUSALS_LIMIT):
            buffer.refused("rate_limited", 429, Someone())
        buffer.refused("tenant_not_found", 404, None)
        assert len(buffer) == REFUSALS_LIMIT + 1
        # For hours, while the store cannot be reached.
        for _ in range(500):
            now += 60
            buffer.refused("tenant_not_found", 404, None)
        assert len(buffer) == REFUSALS_LIMIT + 60
        await buffer.flush()
        assert len(buffer) == 0
        others = await tenancy.audit.refusals(since=datetime.fromtimestamp(0, UTC))
    assert {one.code for one in others} == {OTHER}
    assert sum(one.count for one in others) == 2 * REFUSALS_LIMIT + 501


async def test_a_code_that_the_store_has_no_room_for_is_other(tenancy: Tenancy) -> None:
    tenancy.parts.observers.refused("x" * 33, 400, await tenancy.tenants.get("acme"))
    tenancy.parts.observers.refused("x" * 32, 400, None)
    assert by_code(await tenancy.audit.refusals()) == {OTHER: 1, "x" * 32: 1}


@pytest.mark.parametrize(
    "values",
    [{"limit": 0}, {"limit": 1001}, {"since": datetime(2026, 11, 22)}],  # noqa: DTZ001 - no time zone
)
async def test_a_time_is_aware_and_a_page_has_a_size(tenancy: Tenancy, values: Any) -> None:
    with pytest.raises(ValueError, match=r"limit is|time zone"):
        await tenancy.audit.refusals(**values)
