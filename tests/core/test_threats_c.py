"""Threats C1 to C9: the control plane, killed, raced, resumed, restored and flooded."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing, suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from support.control import (
    ACME,
    BETA,
    KILLED,
    OPERATIONS,
    WRITES_AGAIN,
    actions,
    assert_consistent,
    checksums,
    control_tenancy,
    outcome,
    prepare,
    rows,
)
from support.notes import read
from support.processes import crew
from tenancy_core import TenantStatus
from tenancy_core.asgi.refusals import render
from tenancy_core.crypto import Sensitive
from tenancy_core.errors import (
    DecryptionError,
    InvalidTransition,
    TenantExists,
    TenantInactive,
    TenantLimitReached,
)
from tenancy_core.sql.sqlite import StoreConnection, connect_args, file_url

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

FULL = bool(os.environ.get("TENANCY_TEST_FULL"))

# -- C1, C5: killed at any step --------------------------------------------------------------------

STEPS = {
    "create": 40,
    "rename": 20,
    "set_plan": 20,
    "set_metadata": 20,
    "put_secret": 20,
    "suspend": 20,
    "archive": 20,
    "restore": 20,
    "erase": 40,
    "rewrap_keys": 30,
}
"""At least so many steps are counted; with fewer, the hooks that kill would not be called."""


@pytest.mark.storm
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_C1_killed_at_any_step_a_second_run_ends_well_and_nothing_is_left_over(
    operation: str, tmp_path: Path
) -> None:
    fresh = tmp_path / "fresh"
    await prepare(fresh, operation)
    others = checksums(fresh, without="acme")
    half_way: set[bool] = set()
    with crew(1, KILLED, tmp_path) as workers:
        after, answer = 0, "done 9"
        while answer == "done 9":
            folder = tmp_path / f"killed-{after}"
            shutil.copytree(fresh, folder)
            (answer,) = workers.all_at_once(f"{folder} {operation} {after}")
            async with control_tenancy(folder) as tenancy:
                half_way.add(await outcome(tenancy, operation))
                # Every other time by whoever finds it, if it was recorded.
                if after % 2 and operation in {"create", "erase"}:
                    await tenancy.tenants.reconcile(older_than=timedelta())
                with suppress(TenantExists):  # created before it was killed
                    await OPERATIONS[operation](tenancy)
                assert await outcome(tenancy, operation)
                await assert_consistent(tenancy, folder)
                names = await actions(tenancy, ACME)
                if operation not in WRITES_AGAIN:
                    assert len(set(names)) == len(names), names
            unchanged = checksums(folder, without="acme").items()
            assert others.items() <= unchanged
            shutil.rmtree(folder)
            after += 1 if FULL else 11
    assert answer == "done 0", answer
    assert after > STEPS[operation]
    assert half_way == {False, True}


@pytest.mark.storm
async def test_C5_from_its_first_step_an_erasure_has_no_way_back_and_the_data_never_reappears(
    tmp_path: Path,
) -> None:
    fresh = tmp_path / "fresh"
    await prepare(fresh, "erase")
    seen: set[tuple[str, bool]] = set()
    with crew(1, KILLED, tmp_path) as workers:
        after, answer = 0, "done 9"
        while answer == "done 9":
            folder = tmp_path / f"killed-{after}"
            shutil.copytree(fresh, folder)
            (answer,) = workers.all_at_once(f"{folder} erase {after}")
            begun = "tenant.erasure_begun" in {
                action for (action,) in rows(folder, "SELECT action FROM tenancy_audit")
            }
            async with control_tenancy(folder) as tenancy:
                status = (await tenancy.tenants.get(ACME)).status
                seen.add((status, begun))
                if begun:
                    with pytest.raises(InvalidTransition):
                        await tenancy.tenants.restore(ACME)
                    with pytest.raises(InvalidTransition):
                        await tenancy.tenants.resume(ACME)
                    done = await tenancy.tenants.reconcile()
                    assert [one.outcome for one in done] == (
                        [] if status is TenantStatus.ERASED else ["erased"]
                    )
                    names = await actions(tenancy, ACME)
                    assert names[-2:] == ["tenant.erasure_begun", "tenant.erased"]
                    assert not (await tenancy.tenants.reveal(ACME))
                else:
                    restored = await tenancy.tenants.restore(ACME)
                    assert restored.active
                    async with tenancy.scope(ACME):
                        assert await read(tenancy) == ["note of acme"]
                await assert_consistent(tenancy, folder)
                async with tenancy.scope(BETA):
                    assert await read(tenancy) == ["note of beta"]
            shutil.rmtree(folder)
            after += 1 if FULL else 9
    assert answer == "done 0", answer
    assert seen == {("archived", False), ("archived", True), ("erased", True)}


# -- C2: at the same time, in several processes ----------------------------------------------------

AT_ONCE = """
from pathlib import Path
from support.control import ACME, control_tenancy

async def work(folder, what, number):
    async with control_tenancy(Path(folder)) as tenancy:
        service = tenancy.tenants
        try:
            match what:
                case "create":
                    return (await service.create("gamma")).id
                case "erase":
                    return (await service.erase(ACME)).status
                case "back":
                    await service.archive(ACME)
                    return (await service.restore(ACME)).status
                case "rename":
                    return (await service.rename(ACME, f"renamed-{number}")).identifier
                case "one-name":
                    owner = (await service.create(f"mover-{number}")).id
                    return (await service.rename(owner, "wanted")).identifier
                case "flood":
                    made = 0
                    for one in range(20):
                        try:
                            await service.create(f"flood-{number}-{one}")
                        except Exception as error:
                            if type(error).__name__ != "TenantLimitReached":
                                return f"{type(error).__name__}: {error}"
                        else:
                            made += 1
                    return made
        except Exception as error:
            return type(error).__name__
"""


@pytest.mark.parametrize(
    ("what", "before", "allowed"),
    [
        ("create", "create", {"TenantExists"}),
        ("erase", "erase", {"erased"}),
        # Whoever comes while another is half-way finds it archived or restored by them.
        ("back", "archive", {"active", "VersionConflict"}),
        ("rename", "rename", {"VersionConflict"}),
        ("one-name", "create", {"TenantExists", "wanted"}),
    ],
)
async def test_C2_of_eight_processes_that_do_one_thing_at_once_one_wins(
    what: str, before: str, allowed: set[str], tmp_path: Path
) -> None:
    folder = tmp_path / "fresh"
    await prepare(folder, before)
    others = checksums(folder, without="acme")
    with crew(8, AT_ONCE, tmp_path) as workers:
        answers = [
            answer.removeprefix("done ")
            for answer in workers.all_at_once(*(f"{folder} {what} {number}" for number in range(8)))
        ]
    async with control_tenancy(folder) as tenancy:
        await assert_consistent(tenancy, folder)
        if what == "create":
            gamma = await tenancy.tenants.get("gamma")
            assert set(answers) - allowed == {str(gamma.id)}
            assert await actions(tenancy, gamma.id) == ["tenant.created", "tenant.provisioned"]
        elif what == "erase":
            assert set(answers) == allowed
            names = await actions(tenancy, ACME)
            assert names[-2:] == ["tenant.erasure_begun", "tenant.erased"]
            assert names.count("tenant.erasure_begun") == names.count("tenant.erased") == 1
        elif what == "back":
            assert set(answers) <= allowed
            acme = await tenancy.tenants.get(ACME)
            assert acme.active
            turns = {"tenant.archived", "tenant.restored"}
            done = [name for name in await actions(tenancy, ACME) if name in turns]
            assert done
            assert done == ["tenant.archived", "tenant.restored"] * (len(done) // 2)
        elif what == "rename":
            acme = await tenancy.tenants.get(ACME)
            assert acme.identifier in answers
            assert all(answer in allowed or answer.startswith("renamed-") for answer in answers)
        else:
            assert answers.count("wanted") == 1
            assert set(answers) == allowed
    assert others.items() <= checksums(folder).items()


# -- C9: not more than there may be ----------------------------------------------------------------


async def test_C9_eight_processes_that_create_twenty_each_make_as_many_as_there_may_be(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "fresh"
    await prepare(folder, "create")  # two
    limited = AT_ONCE.replace(
        "control_tenancy(Path(folder))", "control_tenancy(Path(folder), max_tenants=5)"
    )
    assert limited != AT_ONCE
    with crew(8, limited, tmp_path) as workers:
        answers = workers.all_at_once(*(f"{folder} flood {number}" for number in range(8)))
    assert sum(int(answer.removeprefix("done ")) for answer in answers) == 3, answers
    async with control_tenancy(folder, max_tenants=5) as tenancy:
        await assert_consistent(tenancy, folder)
        assert len(checksums(folder)) == 5
        before = await tenancy.parts.store.last_change()
        with pytest.raises(
            TenantLimitReached, match="There are 5 tenants, and TENANCY_MAX_TENANTS"
        ) as caught:
            await tenancy.tenants.create("another")
        answer = render(caught.value)
        assert answer.status == 403
        assert json.loads(answer.body)["code"] == "tenant_limit_reached"
        assert await tenancy.parts.store.last_change() == before
        # One that is erased does not count, one that is archived does.
        await tenancy.tenants.archive(ACME)
        with pytest.raises(TenantLimitReached):
            await tenancy.tenants.create("another")
        await tenancy.tenants.erase(ACME)
        await tenancy.tenants.create("another")
        with pytest.raises(TenantLimitReached):
            await tenancy.tenants.create("one-more")
        await assert_consistent(tenancy, folder)


# -- C6: archive and restore -----------------------------------------------------------------------


@pytest.mark.parametrize("status", [TenantStatus.ACTIVE, TenantStatus.SUSPENDED])
async def test_C6_a_restored_tenant_is_what_it_was_and_nobody_else_is_touched(
    status: TenantStatus, tmp_path: Path
) -> None:
    await prepare(tmp_path, "archive")
    others = checksums(tmp_path, without="acme")
    async with control_tenancy(tmp_path) as tenancy:
        service = tenancy.tenants
        if status is TenantStatus.SUSPENDED:
            await service.suspend(ACME)
        before, beta = await service.get(ACME), await service.get(BETA)
        await service.archive(ACME)
        with pytest.raises(TenantInactive):
            async with tenancy.scope(ACME):
                pass
        after = await service.restore(ACME)
        assert after == await service.get(ACME)
        unchanged = replace(
            before, version=before.version + 2, updated_at=after.updated_at, status=status
        )
        assert after == unchanged
        assert await service.reveal(ACME) == {"vat": Sensitive("vat of acme")}
        secret = await service.get_secret(ACME, "password")
        assert secret is not None
        assert secret.get_secret_value() == "password of acme"
        async with tenancy.scope(ACME, statuses=[status]):
            assert await read(tenancy) == ["note of acme"]
        assert await service.get(BETA) == beta
        # Archived once more from the other status, it comes back as that.
        await (service.resume if status is TenantStatus.SUSPENDED else service.suspend)(ACME)
        other = (await service.get(ACME)).status
        await service.archive(ACME)
        assert (await service.restore(ACME)).status is other is not status
        await assert_consistent(tenancy, tmp_path)
    assert others.items() <= checksums(tmp_path).items()


# -- C7: erased, and nothing personal is left ------------------------------------------------------


async def test_C7_nothing_personal_of_an_erased_tenant_is_left_in_the_control_database(
    tmp_path: Path,
) -> None:
    canary = "qq7canary"
    control = tmp_path / "control.db"
    async with control_tenancy(tmp_path) as tenancy:
        service = tenancy.tenants
        made = []
        # As many and as long that pages are freed, split and joined.
        for number in range(40):
            tenant = await service.create(
                f"{canary}-{number}",
                name=f"{canary} name {number} " + "x" * (1 + number * 37 % 150),
                metadata={f"{canary}-key": canary + "y" * (number * 977 % 9000)},
                actor=f"{canary} actor",
                reason=f"{canary} reason " + "z" * (number * 37 % 900),
            )
            made.append(tenant.id)
            await service.put_secret(tenant.id, "token", canary, actor=canary)
        for tenant_id in made[::2]:
            await service.rename(tenant_id, f"{canary}-r-{tenant_id.hex[:8]}", name=f"{canary} two")
            await service.set_metadata(tenant_id, {canary: [canary] * 200}, reason=canary)
        kept = await service.create("bystander", name="By Stander", actor="bystander-actor")
        stolen = rows(tmp_path, "SELECT tenant_id, name, value FROM tenancy_secrets")
        assert (
            canary.encode()
            in control.read_bytes() + control.with_name("control.db-wal").read_bytes()
        )
        for tenant_id in made:
            await service.archive(tenant_id, actor=canary, reason=canary)
            await service.erase(tenant_id, actor=canary, reason=canary)
        # While it is open, and nobody has to close it for that.
        for path in tmp_path.rglob("*"):
            assert canary not in path.name
            assert path.is_dir() or canary.encode() not in path.read_bytes(), path.name
        for tenant_id in made:
            await actions(tenancy, tenant_id)  # verifies
            for one in await tenancy.audit.read(tenant_id):
                assert (one.actor, one.reason, dict(one.personal)) == (None, None, {})
        (created, _) = await tenancy.audit.read(kept.id)
        assert (created.actor, created.personal["name"]) == ("bystander-actor", "By Stander")
        # Whoever kept the ciphertexts and has the keys of the service has nothing to decrypt with.
        async with tenancy.parts.store.transaction() as transaction:
            for tenant_id, name, value in stolen:
                if name != "data-key" and UUID(tenant_id) != kept.id:
                    await transaction.put_secret(UUID(tenant_id), name, value)
        with pytest.raises(DecryptionError, match="no data key"):
            await service.get_secret(made[0], "token")
        async with tenancy.parts.store.transaction() as transaction:
            for tenant_id in made:
                await transaction.delete_secrets(tenant_id)
    assert canary.encode() not in control.read_bytes()


async def test_C7_the_log_of_a_busy_store_is_emptied_later_and_the_erasure_succeeds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await prepare(tmp_path, "erase")
    async with control_tenancy(tmp_path) as tenancy:
        with closing(sqlite3.connect(tmp_path / "control.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM tenancy_tenants").fetchall()
            assert (await tenancy.tenants.erase(ACME)).status is TenantStatus.ERASED
            assert "still in the write-ahead log" in caplog.text
        await assert_consistent(tenancy, tmp_path)
    assert b"actor-of-acme" not in (tmp_path / "control.db").read_bytes()
    assert not (tmp_path / "control.db-wal").exists()


async def test_C7_what_is_deleted_is_overwritten_whatever_sqlite_was_built_with(
    tmp_path: Path,
) -> None:
    """Some builds overwrite by default, so that a deleted canary alone would prove nothing."""

    class BuiltByOthers(StoreConnection):
        def write_ahead(self) -> None:
            self.execute("PRAGMA secure_delete = OFF")
            super().write_ahead()

    engine = create_async_engine(
        file_url(tmp_path / "any.db"),
        connect_args={**connect_args(60), "factory": BuiltByOthers},
    )
    async with engine.connect() as connection:
        found = await connection.exec_driver_sql("PRAGMA secure_delete")
        assert found.scalar() == 1
    await engine.dispose()


async def test_C7_a_log_that_cannot_be_emptied_does_not_make_an_erasure_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is committed by then; the checkpoint of a full disk is the driver's own, bare error."""

    async def full(_engine: object) -> bool:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr("tenancy_core.sql.sqlite.empty_wal", full)
    await prepare(tmp_path, "erase")
    async with control_tenancy(tmp_path) as tenancy:
        assert (await tenancy.tenants.erase(ACME)).status is TenantStatus.ERASED
        assert "still in the write-ahead log" in caplog.text
