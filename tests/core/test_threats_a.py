"""Rows A of the threats: what somebody may do to the log, and what has to be seen of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from support.audit import Intruder, Sink, erase, write_events
from support.notes import Base
from support.processes import crew
from tenancy_core import Tenancy, TenancyConfig
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.audit.chain import sealed
from tenancy_core.contract import AuditHead
from tenancy_core.errors import BackendUnavailable, TenantNotFound

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio

EVENTS = 8


# -- A1: somebody with a database client ----------------------------------------------------------

COPY = (
    "INSERT INTO tenancy_audit (tenant_id, sequence, action, actor, reason, details, personal, "
    "occurred_at, salt, digest, seal) SELECT {tenant}, {sequence}, action, actor, reason, details, "
    "personal, occurred_at, salt, digest, seal FROM tenancy_audit WHERE {where}"
)
OF_ACME = "UPDATE tenancy_audit SET {set} WHERE tenant_id = :acme AND sequence = {sequence}"
HEAD = "UPDATE tenancy_audit_heads SET {set} WHERE tenant_id = :acme"


def change(what: str, sequence: int = 4) -> str:
    return OF_ACME.format(set=what, sequence=sequence)


def copy(where: str, sequence: object, tenant: str = ":acme") -> str:
    return COPY.format(where=where, sequence=sequence, tenant=tenant)


def renumber(to: str, condition: str) -> str:
    return f"UPDATE tenancy_audit SET sequence = {to} WHERE tenant_id = :acme AND {condition}"  # noqa: S608 - a test's own words


def drop(condition: str) -> str:
    return f"DELETE FROM tenancy_audit WHERE tenant_id = :acme AND sequence {condition}"  # noqa: S608 - a test's own words


AT_4 = "tenant_id = :acme AND sequence = 4"

TAMPERING: dict[str, tuple[int, tuple[str, ...]]] = {
    # changed
    "action": (4, (change("action = 'note.read'"),)),
    "details": (4, (change("details = json_set(details, '$.number', 5)"),)),
    "a number that became a text": (4, (change("details = json_set(details, '$.number', '4')"),)),
    "a key more in details": (4, (change("details = json_set(details, '$.more', null)"),)),
    "time, by a microsecond": (
        4,
        (
            change(
                "occurred_at = substr(occurred_at, 1, 25) || ((substr(occurred_at, 26) + 1) % 10)"
            ),
        ),
    ),
    "actor": (4, (change("actor = 'somebody else'"),)),
    "actor removed": (4, (change("actor = NULL"),)),
    "reason": (4, (change("reason = 'of course'"),)),
    "personal": (4, (change("personal = '{}'"),)),
    "salt": (4, (change("salt = randomblob(16)"),)),
    "digest": (4, (change("digest = randomblob(32)"),)),
    "actor with a digest to it": (4, (change("actor = 'eve', digest = :digest"),)),
    "seal": (4, (change("seal = randomblob(36)"),)),
    "seal emptied": (4, (change("seal = x''"),)),
    "seal of another event": (
        4,
        (change(f"seal = (SELECT seal FROM tenancy_audit WHERE {AT_4} + 1)"),),  # noqa: S608 - as above
    ),
    # redacted, and nobody was erased
    "salt removed": (4, (change("salt = NULL"),)),
    "redacted": (4, (change("salt = NULL, actor = NULL, reason = NULL, personal = NULL"),)),
    "redacted from the first on": (
        1,
        ("UPDATE tenancy_audit SET salt = NULL, actor = NULL, reason = NULL, personal = NULL",),
    ),
    # not even what the store writes
    "details that are no JSON": (4, (change("details = '{'"),)),
    "details of another type": (4, (change("details = '[]'"),)),
    "details that are NaN": (4, (change("details = '{\"number\": NaN}'"),)),
    "details without an end": (4, (change(f"details = '{'[' * 100_000}'"),)),
    "a time that is none": (4, (change("occurred_at = 'yesterday'"),)),
    "a text that is no UTF-8": (4, (change("actor = CAST(x'ff' AS TEXT)"),)),
    "a salt that is a text": (4, (change("salt = 'salt'"),)),
    "a salt that is short": (4, (change("salt = x'00'"),)),
    # missing, moved, put there
    "missing in the middle": (4, (drop("= 4"),)),
    "missing at the start": (1, (drop("= 1"),)),
    "swapped": (
        4,
        (change("sequence = -4"), change("sequence = 4", 5), change("sequence = 5", -4)),
    ),
    "inserted": (
        5,
        (
            renumber("-1 - sequence", "sequence > 4"),
            copy(AT_4, 5),
            renumber("-sequence", "sequence < 0"),
            HEAD.format(set="sequence = sequence + 1"),
        ),
    ),
    "put behind the end": (EVENTS + 1, (copy(AT_4, EVENTS + 1),)),
    "put behind the end with the head": (
        EVENTS + 1,
        (copy(AT_4, EVENTS + 1), HEAD.format(set="sequence = sequence + 1")),
    ),
    "the last one cut off": (EVENTS, (drop(f"= {EVENTS}"),)),
    "three cut off": (EVENTS - 2, (drop(f"> {EVENTS - 3}"),)),
    "all removed": (1, (drop("> 0"),)),
    # another tenant's
    "a row of another tenant": (4, (drop("= 4"), copy("tenant_id = :beta AND sequence = 4", 4))),
    "the first row of another tenant": (
        1,
        (drop("= 1"), copy("tenant_id = :beta AND sequence = 1", 1)),
    ),
    "the log of another tenant": (
        1,
        (
            drop("> 0"),
            copy("tenant_id = :beta", "sequence"),
            HEAD.format(
                set="(sequence, seal) = (SELECT sequence, seal FROM tenancy_audit_heads "
                "WHERE tenant_id = :beta)"
            ),
        ),
    ),
    # the head
    "head lowered": (EVENTS, (HEAD.format(set="sequence = sequence - 1"),)),
    "head raised": (EVENTS + 1, (HEAD.format(set="sequence = sequence + 1"),)),
    "head with another seal": (EVENTS, (HEAD.format(set="seal = randomblob(36)"),)),
    "head with a seal that is a text": (EVENTS, (HEAD.format(set="seal = 'seal'"),)),
    "head with a number that is a text": (EVENTS, (HEAD.format(set="sequence = 'many'"),)),
    "head removed": (1, ("DELETE FROM tenancy_audit_heads WHERE tenant_id = :acme",)),
}


@pytest.mark.parametrize("kind", TAMPERING)
async def test_A1_the_first_bad_row_is_named(
    kind: str, tenancy: Tenancy, database_url: str
) -> None:
    acme = await write_events(tenancy, "acme", EVENTS)
    beta = await write_events(tenancy, "beta", EVENTS)
    honest = await tenancy.audit.verify(acme)
    assert honest.ok
    assert (honest.events, honest.first_bad, honest.reason) == (EVENTS, None, None)
    fourth = (await tenancy.audit.read(acme, after=3))[0]
    assert fourth.salt is not None
    digest = hashlib.sha256(
        fourth.salt
        + json.dumps(
            ["eve", fourth.reason, dict(fourth.personal)], separators=(",", ":"), sort_keys=True
        ).encode()
    ).digest()

    first_bad, statements = TAMPERING[kind]
    Intruder(database_url).run(*statements, acme=acme, beta=beta, digest=digest)

    report = await tenancy.audit.verify(acme)
    assert not report.ok
    assert report.first_bad == first_bad, report.reason
    assert report.reason is not None
    assert report.reason.startswith(f"Event {first_bad} ")
    assert (await tenancy.audit.verify(beta)).ok or "redacted from" in kind


async def test_A1_an_actor_without_a_key_can_compute_the_digest_that_is_refused(
    tenancy: Tenancy,
) -> None:
    """Without this, the case "actor with a digest to it" might refuse for a wrong digest."""
    acme = await write_events(tenancy, "acme", 3)
    event = (await tenancy.audit.read(acme, after=2))[0]
    assert event.salt is not None
    personal = json.dumps(
        [event.actor, event.reason, dict(event.personal)], separators=(",", ":"), sort_keys=True
    )
    assert hashlib.sha256(event.salt + personal.encode()).digest() == event.digest


async def test_A1_a_log_that_lost_its_end_together_with_its_head_needs_the_anchor(
    tenancy: Tenancy, database_url: str
) -> None:
    acme = await write_events(tenancy, "acme", EVENTS)
    anchor = (await tenancy.audit.verify(acme)).head
    assert anchor.sequence == EVENTS
    Intruder(database_url).run(
        drop("> 5"),
        HEAD.format(
            set="(sequence, seal) = (SELECT sequence, seal FROM tenancy_audit "
            "WHERE tenant_id = :acme AND sequence = 5)"
        ),
        acme=acme,
    )
    assert (await tenancy.audit.verify(acme)).ok, "nothing in the database tells"
    report = await tenancy.audit.verify(acme, anchor=anchor)
    assert (report.first_bad, report.events) == (6, 5)
    assert report.reason == "Event 6 is missing: the anchor is event 8."


async def forge(tenancy: Tenancy, tenant_id: UUID, *sequences: int) -> None:
    """Write events of a log in memory anew, as somebody who has the key."""
    store: Any = tenancy.parts.store
    head, log = AuditHead(), []
    for event in await store.audit(tenant_id, limit=1000):
        kept = event
        if event.sequence in sequences:
            kept = sealed(replace(event, actor="forged"), head, tenancy.parts.trail._signer)
        log.append(kept)
        head = AuditHead(kept.sequence, kept.seal)
    state = store._state.copy()
    state.audit[tenant_id] = tuple(log)
    store._swap(state)


async def test_A1_one_event_that_was_forged_with_the_key_breaks_the_chain_behind_it(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with Tenancy(make_config(), store=MemoryTenantStore()) as tenancy:
        await tenancy.tenants.create("acme")
        acme = await write_events(tenancy, "acme", EVENTS)
        await forge(tenancy, acme, 4)
        report = await tenancy.audit.verify(acme)
        assert (report.first_bad, report.events, report.head.sequence) == (5, 4, 4)


async def test_A1_a_log_that_was_written_anew_with_the_key_needs_the_anchor(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with Tenancy(make_config(), store=MemoryTenantStore()) as tenancy:
        await tenancy.tenants.create("acme")
        acme = await write_events(tenancy, "acme", 5)
        anchor = (await tenancy.audit.verify(acme)).head
        await write_events(tenancy, "acme", EVENTS)
        assert (await tenancy.audit.verify(acme, anchor=anchor)).ok
        await forge(tenancy, acme, *range(1, EVENTS + 1))
        assert (await tenancy.audit.verify(acme)).ok, "nothing in the database tells"
        report = await tenancy.audit.verify(acme, anchor=anchor)
        assert (report.first_bad, report.events) == (5, 4)
        assert report.reason == (
            "Event 5 is not the one of the anchor: the log was written anew up to here."
        )


async def test_A1_an_erased_log_is_verified_by_its_digests_and_still_shows_tampering(
    tenancy: Tenancy, database_url: str
) -> None:
    acme = await write_events(tenancy, "acme", EVENTS)
    anchor = (await tenancy.audit.verify("acme")).head
    await erase(tenancy, acme)
    report = await tenancy.audit.verify(acme, anchor=anchor)
    assert report.ok, report.reason
    assert report.events == EVENTS + 1
    intruder = Intruder(database_url)
    intruder.run(change("actor = 'the director'"), acme=acme)
    assert (await tenancy.audit.verify(acme)).first_bad == 4
    intruder.run(change("actor = NULL"), change("digest = randomblob(32)", 6), acme=acme)
    assert (await tenancy.audit.verify(acme)).first_bad == 6


async def test_A1_only_the_events_that_there_were_may_be_redacted(
    tenancy: Tenancy, database_url: str
) -> None:
    """What is appended to an erased tenant's log keeps its fields."""
    acme = await write_events(tenancy, "acme", 5)
    await erase(tenancy, acme)
    for number in range(2):
        async with tenancy.parts.store.transaction() as transaction:
            await tenancy.parts.audit.append(
                transaction, acme, "backup.purged", actor=f"operator {number}"
            )
    assert (await tenancy.audit.verify(acme)).ok
    Intruder(database_url).run(change("salt = NULL, actor = NULL, reason = NULL", 8), acme=acme)
    report = await tenancy.audit.verify(acme)
    assert report.first_bad == 8
    assert report.reason == "Event 8 lost its salt, and an event before it did not."


async def test_A1_a_tenant_that_is_only_marked_as_erased_keeps_its_names(
    tenancy: Tenancy, database_url: str
) -> None:
    """The status is not sealed: what says that a tenant was erased is the event."""
    acme = await write_events(tenancy, "acme", 5)
    blank = "UPDATE tenancy_audit SET salt = NULL, actor = NULL, reason = NULL, personal = NULL"
    for mark in (
        "UPDATE tenancy_tenants SET status = 'erased', identifier = NULL WHERE id = :acme",
        "DELETE FROM tenancy_tenants WHERE id = :acme",
    ):
        Intruder(database_url).run(mark, f"{blank} WHERE tenant_id = :acme", acme=acme)
        report = await tenancy.audit.verify(acme)
        assert report.first_bad == 1
        assert report.reason is not None
        assert "no event says that the tenant was erased" in report.reason


async def test_A1_seals_of_a_key_that_is_not_known_do_not_fit(
    tenancy: Tenancy, make_config: Callable[..., TenancyConfig], database_url: str
) -> None:
    acme = await write_events(tenancy, "acme", 3)
    Intruder(database_url).run("UPDATE tenancy_keys SET value = randomblob(32)")
    async with Tenancy(make_config()) as other:
        report = await other.audit.verify(acme)
        assert report.first_bad == 1
        assert report.reason is not None
        assert "TENANCY_SIGNING_KEYS" in report.reason
        # Whoever has another key goes on with the log, and cannot pass for one who has the first.
        await other.tenants.suspend("acme")
    assert (await tenancy.audit.verify(acme)).first_bad == 4


# -- A2: many writers -----------------------------------------------------------------------------

WRITERS, EACH = 8, 20

WRITER = f"""
async def work(url, number):
    dropped = 0
    async with Tenancy(TenancyConfig(database_url=url)) as tenancy:
        audit, store = tenancy.parts.audit, tenancy.parts.store
        async with tenancy.scope("acme") as tenant:
            for step in range({EACH} * 5 // 4):
                if step % 5 != 3:
                    await tenancy.audit.record("note.written", details={{"by": number, "n": step}})
                    continue
                try:
                    async with store.transaction() as transaction:
                        await audit.append(transaction, tenant.id, "note.dropped")
                        raise LookupError
                except LookupError:
                    dropped += 1
    return dropped
"""


@pytest.mark.timeout(300)
async def test_A2_eight_processes_that_write_and_roll_back_leave_no_gap_and_no_fork(
    tenancy: Tenancy, database_url: str, tmp_path: Path
) -> None:
    with crew(WRITERS, WRITER, tmp_path) as processes:
        answers = processes.all_at_once(*(f"{database_url} {n}" for n in range(WRITERS)))
    assert answers == ["done 5"] * WRITERS, "each rolled a fifth back"
    report = await tenancy.audit.verify("acme")
    assert report.ok, report.reason
    assert report.events == 2 + WRITERS * EACH
    events = await tenancy.audit.read("acme", limit=1000)
    assert [event.sequence for event in events] == list(range(1, report.events + 1))
    assert {event.action for event in events[2:]} == {"note.written"}
    written = {(event.details["by"], event.details["n"]) for event in events[2:]}
    assert len(written) == WRITERS * EACH


async def test_A2_tasks_that_write_and_roll_back_leave_no_gap_and_no_fork(logs: Tenancy) -> None:
    audit, store = logs.parts.audit, logs.parts.store
    acme = (await logs.tenants.get("acme")).id

    async def write(number: int) -> None:
        for step in range(EACH):
            try:
                async with store.transaction() as transaction:
                    await audit.append(transaction, acme, "note.written", actor=f"{number}")
                    await asyncio.sleep(0)
                    if step % 5 == 3:
                        raise LookupError
            except LookupError:
                pass

    async with asyncio.TaskGroup() as group:
        for number in range(WRITERS):
            group.create_task(write(number))
    report = await logs.audit.verify(acme)
    assert report.ok, report.reason
    assert report.events == 2 + WRITERS * EACH * 4 // 5


async def test_A2_two_events_in_one_transaction_follow_each_other(logs: Tenancy) -> None:
    acme = (await logs.tenants.get("acme")).id
    async with logs.parts.store.transaction() as transaction:
        for action in ("note.written", "note.read"):
            await logs.parts.audit.append(transaction, acme, action)
    assert (await logs.audit.verify(acme)).ok
    assert [event.action for event in await logs.audit.read(acme, after=2)] == [
        "note.written",
        "note.read",
    ]


async def test_A2_a_log_that_grows_while_it_is_verified_is_right(logs: Tenancy) -> None:
    """Whatever was read when: a newer event than the head is no event behind the head."""
    acme = await write_events(logs, "acme", 5)
    store: Any = logs.parts.store
    reads: list[str] = []

    def grow_after(name: str) -> Callable[..., Any]:
        asked = getattr(store, name)

        async def ask(*args: Any, **kwargs: Any) -> Any:
            answer = await asked(*args, **kwargs)
            reads.append(name)
            # In the first rounds after each answer, later when the end seemed to be reached.
            if len(reads) <= 4 or (name == "audit" and not answer):
                async with store.transaction() as transaction:
                    await logs.parts.audit.append(transaction, acme, "note.written")
            return answer

        return ask

    class Growing:
        audit_head = staticmethod(grow_after("audit_head"))
        audit = staticmethod(grow_after("audit"))
        get = store.get

    logs.parts.trail._store = Growing()
    report = await logs.audit.verify(acme)
    assert report.ok, report.reason
    assert report.events >= 7
    assert len(reads) > 4


# -- A3: killed -----------------------------------------------------------------------------------

KILLED = """
import signal
from sqlalchemy import event
from sqlalchemy.engine import Engine

async def work(url, last):
    seen = 0

    def step(*_):
        nonlocal seen
        seen += 1
        if seen == int(last):
            os.kill(os.getpid(), signal.SIGKILL)

    class Sink:
        async def write(self, event):
            step()

    async with Tenancy(TenancyConfig(database_url=url), audit_sinks=[Sink()]) as tenancy:
        for moment in ("before_cursor_execute", "after_cursor_execute", "commit"):
            event.listen(Engine, moment, step)
        await tenancy.tenants.suspend("acme", reason="unpaid")
    return seen
"""


def answered(answer: str) -> int:
    assert answer.startswith("done "), answer
    return int(answer.removeprefix("done "))


@pytest.mark.timeout(300)
async def test_A3_killed_at_any_statement_change_and_event_are_both_there_or_neither(
    make_config: Callable[..., TenancyConfig], database_url: str, tmp_path: Path
) -> None:
    async with Tenancy(make_config(), metadata=Base.metadata) as tenancy:
        await tenancy.tenants.create("acme")
    data = tmp_path / "data"

    def url_of(number: int) -> str:
        folder = tmp_path / str(number)
        if not folder.exists():
            shutil.copytree(data, folder / "data")
        return f"sqlite+aiosqlite:///{folder}/data/control.db"

    with crew(1, KILLED, tmp_path) as processes:
        steps = answered(processes.all_at_once(f"{url_of(0)} 0")[0])
    assert steps > 10
    moments = range(1, steps + 1)
    with crew(steps, KILLED, tmp_path) as processes:
        answers = processes.all_at_once(*(f"{url_of(number)} {number}" for number in moments))
    assert answers == [""] * steps, "each was killed"

    outcomes = []
    for number in moments:
        sink = Sink()
        config = TenancyConfig(database_url=url_of(number))
        async with Tenancy(config, audit_sinks=[sink]) as tenancy:
            acme = await tenancy.tenants.get("acme")
            actions = [event.action for event in await tenancy.audit.read("acme")]
            assert (acme.status == "suspended") == ("tenant.suspended" in actions), number
            assert len(actions) == 2 + (acme.status == "suspended")
            assert (await tenancy.audit.verify("acme")).ok
            # What was committed reaches the sinks, whoever was killed; what was not does not.
            await tenancy.parts.audit.outbox.drain(before=datetime.now(UTC))
            assert set(sink.actions) == set(actions[2:])
        outcomes.append(acme.status.value)
    assert outcomes == sorted(outcomes), "first it did not happen, then it did"
    assert set(outcomes) == {"active", "suspended"}


# -- A4: the store is down ------------------------------------------------------------------------


async def test_A4_without_the_log_an_action_is_refused_and_nothing_is_changed(
    tenancy: Tenancy, database_url: str
) -> None:
    before = await tenancy.tenants.get("acme")
    intruder = Intruder(database_url)
    intruder.run("ALTER TABLE tenancy_audit RENAME TO gone")
    with pytest.raises(BackendUnavailable):
        await tenancy.tenants.suspend("acme")
    with pytest.raises(BackendUnavailable):
        await tenancy.tenants.create("gamma")
    async with tenancy.scope("acme"):
        with pytest.raises(BackendUnavailable):
            await tenancy.audit.record("note.written")
        with pytest.raises(BackendUnavailable):
            await tenancy.scope("beta", switch=True, reason="ticket").__aenter__()
    intruder.run("ALTER TABLE gone RENAME TO tenancy_audit")
    assert await tenancy.tenants.get("acme") == before
    with pytest.raises(TenantNotFound):
        await tenancy.tenants.get("gamma")
    for name in ("acme", "beta"):
        report = await tenancy.audit.verify(name)
        assert (report.ok, report.events) == (True, 2)


async def test_A4_a_store_that_somebody_else_holds_refuses_the_action(
    tenancy: Tenancy, make_config: Callable[..., TenancyConfig]
) -> None:
    async with Tenancy(make_config(database_pool_timeout=0.2)) as impatient:
        async with tenancy.parts.store.transaction():
            with pytest.raises(BackendUnavailable):
                await impatient.tenants.suspend("acme")
        assert (await impatient.tenants.get("acme")).active
        assert (await impatient.audit.verify("acme")).events == 2


# -- A6: what people write ------------------------------------------------------------------------

HOSTILE = {
    "newline": ("line\nbreak\r\nand more", r"line\nbreak\r\nand more"),
    "ansi": ("\x1b[31mred\x1b[0m\x9b1m", r"\x1b[31mred\x1b[0m\x9b1m"),
    "separators": ("a\x85b\u2028c\u2029d\x1ce\x0bf\x0cg", r"a\x85b\u2028c\u2029d\x1ce\x0bf\x0cg"),
    "nul and delete": ("a\x00b\x7f", r"a\x00b\x7f"),
    "surrogate": ("half \ud800 of one", r"half \ud800 of one"),
    "invalid UTF-8": (b"caf\xe9".decode("utf-8", "surrogateescape"), r"caf\udce9"),
    "bidi": ("user \u202egnp.exe\u202c \u2066x", r"user \u202egnp.exe\u202c \u2066x"),
    "invisible": ("pay\u200bpal\ufeff\U000e0041", r"pay\u200bpal\ufeff\U000e0041"),
    "long": ("x" * 1_000_000, "x" * 999 + "…"),
    "long and hostile": ("\U000e0041" * 1_000_000, r"\U000e0041" * 99 + "…"),
    "harmless": ("ünïcödé \U0001f512 \\n", "ünïcödé \U0001f512 \\n"),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_A6_whatever_people_write_stays_one_event_on_one_line(
    kind: str, logs: Tenancy, caplog: pytest.LogCaptureFixture
) -> None:
    text, kept = HOSTILE[kind]
    await logs.tenants.suspend("acme", reason=text, actor=text)
    await logs.tenants.resume("acme")
    async with logs.scope("acme"):
        await logs.audit.record(
            "note.written", details={text: text, "in": [text]}, personal={text: {"deep": text}}
        )
    suspended, _, written = await logs.audit.read("acme", after=2)
    assert (suspended.action, suspended.actor, suspended.reason) == ("tenant.suspended", kept, kept)
    assert dict(written.details) == {kept: kept, "in": [kept]}
    assert dict(written.personal) == {kept: {"deep": kept}}
    for event in (suspended, written):
        line = f"{event.actor} {event.reason} {event.details} {event.personal} {event}"
        assert len(line.splitlines()) == 1
        assert line.isprintable()
        line.encode("utf-8")
    assert (await logs.audit.verify("acme")).ok


# -- A7: whose log it is --------------------------------------------------------------------------


async def test_A7_a_tenant_s_log_holds_nothing_of_another(tenancy: Tenancy) -> None:
    await tenancy.tenants.suspend("beta", reason="of beta")
    acme = await tenancy.tenants.get("acme")
    events = await tenancy.audit.read("acme")
    assert {event.tenant_id for event in events} == {acme.id}
    assert "of beta" not in {event.reason for event in events}


async def test_A7_a_tenant_reads_its_own_log_and_no_other(logs: Tenancy) -> None:
    beta = await logs.tenants.get("beta")
    async with logs.scope("acme") as acme:
        own = await logs.audit.read()
        assert {event.tenant_id for event in own} == {acme.id}
        for name in (acme, acme.id, "acme"):
            assert await logs.audit.read(name) == own
            assert (await logs.audit.verify(name)).ok
        for ask in (logs.audit.read, logs.audit.verify, logs.audit.refusals):
            said = []
            for other in (beta, beta.id, "beta", uuid4(), "nobody"):
                with pytest.raises(TenantNotFound) as caught:
                    await ask(other)
                name = other.identifier if other is beta else other
                said.append(str(caught.value).replace(str(name), "…"))
            assert len(set(said)) == 1, "whether it exists cannot be seen"


async def test_A7_an_operator_reads_every_log(logs: Tenancy) -> None:
    for name in ("acme", "beta"):
        tenant = await logs.tenants.get(name)
        events = await logs.audit.read(name)
        assert [event.action for event in events] == ["tenant.created", "tenant.provisioned"]
        assert await logs.audit.read(tenant.id) == await logs.audit.read(tenant) == events
    with pytest.raises(TenantNotFound):
        await logs.audit.read("nobody")
    with pytest.raises(TenantNotFound):
        await logs.audit.read(uuid4())
