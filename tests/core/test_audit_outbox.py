"""Sinks get every event at least once: right after the commit, or from whoever is still alive."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from support.audit import Down, Intruder, Sink, erase, write_events
from support.processes import crew
from support.waiting import until
from tenancy_core import Tenancy
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.audit import outbox as outbox_module
from tenancy_core.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tenancy_core import TenancyConfig
    from tenancy_core.contract import AuditEvent

pytestmark = pytest.mark.anyio

NEVER = 3600.0
"""A poll interval in seconds: within a test, what is delivered is so by the test's own call."""


@pytest.fixture(params=["memory", "sql"])
def make(
    request: pytest.FixtureRequest, make_config: Callable[..., TenancyConfig]
) -> Callable[..., Tenancy]:
    """Make a ``Tenancy`` on each store; those in memory share one."""
    memory = MemoryTenantStore() if request.param == "memory" else None

    def one(*sinks: Any, interval: float = NEVER) -> Tenancy:
        config = make_config(invalidation_poll_seconds=interval)
        return Tenancy(config, store=memory, audit_sinks=sinks)

    return one


async def drain(tenancy: Tenancy) -> None:
    await tenancy.parts.audit.outbox.drain(before=datetime.now(UTC))


async def waiting(tenancy: Tenancy) -> list[int]:
    """Return the sequences of what no sink has confirmed."""
    found = await tenancy.parts.store.undelivered(before=datetime.now(UTC), limit=1000)
    return [event.sequence for event in found]


async def test_what_is_committed_is_delivered_at_once_and_once(
    make: Callable[..., Tenancy],
) -> None:
    one, other = Sink(), Sink()
    async with make(one, other) as tenancy:
        await tenancy.tenants.create("acme")
        await write_events(tenancy, "acme", 5)
        assert await waiting(tenancy) == []
        await drain(tenancy)
        stored = list(await tenancy.audit.read("acme"))
    assert one.events == other.events == stored


async def test_without_sinks_nothing_waits_for_them(make: Callable[..., Tenancy]) -> None:
    async with make() as tenancy:
        await tenancy.tenants.create("acme")
        assert await waiting(tenancy) == []


async def test_a_sink_that_is_down_undoes_nothing_is_logged_once_and_gets_all_later(
    make: Callable[..., Tenancy], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tenancy")
    down, sink = Down(), Sink()
    async with make(down, sink) as tenancy:
        tenant = await tenancy.tenants.create("acme")
        await write_events(tenancy, "acme", 5)
        assert tenant.active
        assert [event.sequence for event in sink.events] == [1, 2, 3, 4, 5]
        await drain(tenancy)
        assert await waiting(tenancy) == [1, 2, 3, 4, 5]
        said = [record.getMessage() for record in caplog.records if "sink" in record.getMessage()]
        expected = (
            f"the audit sink Down did not take event 1 of tenant {tenant.id} (ConnectionError); "
            "the store has it, and it is tried again"
        )
        assert said == [expected]
        assert "canary" not in caplog.text
        down.down = False
        await drain(tenancy)
        assert await waiting(tenancy) == []
        assert [event.sequence for event in down.events] == [1, 2, 3, 4, 5], "oldest first"
        assert caplog.records[-1].getMessage() == "the audit sink Down takes events again"
        # A sink beside one that was down sees events again: at least once, in other words.
        assert {event.sequence for event in sink.events} == {1, 2, 3, 4, 5}


async def test_the_background_loop_delivers_what_is_left_over(
    make: Callable[..., Tenancy],
) -> None:
    down, sink = Down(), Sink()
    async with make(down, interval=0.05) as tenancy:
        await tenancy.tenants.create("acme")
        await until(lambda: down.asked > 4)
        assert await waiting(tenancy) == [1, 2]
        down.down = False
        await until(lambda: len(down.events) >= 2)
    # Also by another one that was opened later.
    async with make(down) as tenancy:
        down.down = True
        await tenancy.tenants.suspend("acme")
    async with make(sink, interval=0.05):
        await until(lambda: "tenant.suspended" in sink.actions)


async def test_the_loop_leaves_to_the_others_what_they_are_about_to_deliver(
    make: Callable[..., Tenancy],
) -> None:
    down = Down()
    async with make(down, interval=NEVER) as tenancy:
        await tenancy.tenants.create("acme")
        asked = down.asked
        await tenancy.parts.audit_worker.round()
        assert down.asked == asked


async def test_a_store_that_is_down_is_asked_again(
    make_config: Callable[..., TenancyConfig],
    database_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    down = Down()
    intruder = Intruder(database_url)
    config = make_config(invalidation_poll_seconds=0.05)
    async with Tenancy(config, audit_sinks=[down]) as tenancy:
        await tenancy.tenants.create("acme")
        intruder.run("ALTER TABLE tenancy_outbox RENAME TO gone")
        await until(lambda: "left-overs have to wait" in caplog.text)
        with pytest.raises(BackendUnavailable):
            await drain(tenancy)
        intruder.run("ALTER TABLE gone RENAME TO tenancy_outbox")
        down.down = False
        await until(lambda: len(down.events) == 2)
    assert caplog.text.count("left-overs have to wait") == 1


# -- sinks that misbehave -------------------------------------------------------------------------


class Picky(Sink):
    """Never takes some of the events."""

    def __init__(self, refused: Sequence[int]) -> None:
        super().__init__()
        self.refused = refused

    async def write(self, event: AuditEvent, /) -> None:
        if event.sequence in self.refused:
            raise ValueError("too long")
        await super().write(event)


@pytest.mark.parametrize("refused", [range(1, 16), range(1, 161)], ids=["15", "160"])
async def test_events_that_a_sink_never_takes_hold_nobody_up(
    make: Callable[..., Tenancy], refused: range
) -> None:
    """More of them than a page has, and than failures in a row are allowed in a round."""
    async with make(Down()) as tenancy:
        await tenancy.tenants.create("acme")
        acme = (await tenancy.tenants.get("acme")).id
        async with tenancy.parts.store.transaction() as transaction:
            for _ in range(len(refused) + 8):
                await tenancy.parts.audit.append(transaction, acme, "note.written")
    picky = Picky(refused)
    async with make(picky) as tenancy:
        for rounds in range(1, 31):  # noqa: B007 - how many it took
            await drain(tenancy)
            if len(picky.events) == 10:
                break
        assert {event.sequence for event in picky.events} == {
            *range(len(refused) + 1, len(refused) + 11)
        }
        assert await waiting(tenancy) == list(refused)
        assert rounds <= len(refused) // 10 + 2
        picky.refused = ()
        await drain(tenancy)
        assert await waiting(tenancy) == []


class Hanging(Sink):
    """Does not answer while it is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs = True
        self.asked = anyio.Event()

    async def write(self, event: AuditEvent, /) -> None:
        self.asked.set()
        if self.hangs:
            await anyio.sleep_forever()
        await super().write(event)


async def test_a_sink_that_hangs_has_its_time(
    make: Callable[..., Tenancy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "SINK_SECONDS", 0.05)
    hanging, sink = Hanging(), Sink()
    async with make(hanging, sink) as tenancy:
        await tenancy.tenants.create("acme")
        assert len(sink.events) == 2
        assert await waiting(tenancy) == [1, 2]
        hanging.hangs = False
        await drain(tenancy)
        assert [event.sequence for event in hanging.events] == [1, 2]


async def test_whoever_is_cancelled_in_a_sink_leaves_the_event_in_the_outbox(
    make: Callable[..., Tenancy],
) -> None:
    hanging = Hanging()
    async with make(hanging) as tenancy:
        async with anyio.create_task_group() as group:
            group.start_soon(tenancy.tenants.create, "acme")
            await hanging.asked.wait()
            group.cancel_scope.cancel()
        assert await waiting(tenancy) == [1]
        hanging.hangs = False
        await drain(tenancy)
        assert hanging.actions == ["tenant.created"]


async def test_delivery_that_cannot_be_noted_is_repeated_and_raises_nothing(
    make_config: Callable[..., TenancyConfig],
    database_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    intruder = Intruder(database_url)

    class Removing(Sink):
        async def write(self, event: AuditEvent, /) -> None:
            await super().write(event)
            if len(self.events) == 3:
                sql = "ALTER TABLE tenancy_outbox RENAME TO gone"
                await anyio.to_thread.run_sync(intruder.run, sql)

    sink = Removing()
    config = make_config(invalidation_poll_seconds=NEVER)
    async with Tenancy(config, audit_sinks=[sink]) as tenancy:
        await tenancy.tenants.create("acme")
        await tenancy.tenants.suspend("acme")
        assert "cannot note that event 3" in caplog.text
        intruder.run("ALTER TABLE gone RENAME TO tenancy_outbox")
        await drain(tenancy)
        assert [event.sequence for event in sink.events] == [1, 2, 3, 3]
        assert await waiting(tenancy) == []


async def test_an_erased_tenant_s_left_overs_are_delivered_without_names(
    make: Callable[..., Tenancy],
) -> None:
    async with make(Down()) as tenancy:
        await tenancy.tenants.create("acme", actor="ada@example.com")
        acme = await write_events(tenancy, "acme", 4)
        await erase(tenancy, acme)
    sink = Sink()
    async with make(sink) as tenancy:
        await drain(tenancy)
    assert [event.sequence for event in sink.events] == [1, 2, 3, 4, 5]
    assert not any(event.actor or event.reason or event.personal for event in sink.events)


# -- kill -9 --------------------------------------------------------------------------------------

KILLED_BEFORE_DELIVERY = """
import signal

class Sink:
    async def write(self, event):
        if event.action == "note.written":
            os.kill(os.getpid(), signal.SIGKILL)

async def work(url):
    config = TenancyConfig(database_url=url)
    async with Tenancy(config, audit_sinks=[Sink()]) as tenancy, tenancy.scope("acme"):
        await tenancy.audit.record("note.written", actor="ada")
"""


async def test_A4_what_was_committed_before_kill_9_is_delivered_by_another_process(
    make_config: Callable[..., TenancyConfig], database_url: str, tmp_path: Path
) -> None:
    sink = Sink()
    config = make_config(invalidation_poll_seconds=0.2)
    async with Tenancy(config, audit_sinks=[sink]) as tenancy:
        await tenancy.tenants.create("acme")
        with crew(3, KILLED_BEFORE_DELIVERY, tmp_path) as processes:
            answers = await anyio.to_thread.run_sync(processes.all_at_once, database_url)
        assert answers == [""] * 3, "each was killed"
        await until(lambda: len({e.sequence for e in sink.events}) == 5)
        await until(lambda: sink.actions.count("note.written") >= 3)
        with anyio.fail_after(60):
            while await waiting(tenancy):
                await anyio.sleep(0.01)
        assert (await tenancy.audit.verify("acme")).events == 5
