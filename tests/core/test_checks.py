"""The production checklist: what the core looks at, and a runner that hides nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tenancy_core import Tenancy, TenancyConfig
from tenancy_core.checks import CORE_CHECKS, run_checks
from tenancy_core.contract import Check, Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.anyio


def finding(check: str, severity: Severity = Severity.WARNING) -> Finding:
    return Finding(check, severity, "something is wrong", "mend it")


def check(name: str, *found: Any) -> Check:
    async def run(_: object) -> Sequence[Finding]:
        return found

    return Check(name, "A check", run)


class Listens:
    """An observer."""

    def refused(self, code: str, status: int, tenant: object, /) -> None: ...

    def changed(self, tenant: object, action: str, /) -> None: ...


async def is_member(connection: object, tenant: object, claim: object, /) -> bool:
    return True


async def names(config: TenancyConfig, **given: Any) -> list[str]:
    async with Tenancy(config, **given) as tenancy:
        return [found.check for found in await tenancy.check()]


async def test_a_fresh_service_is_told_what_is_missing_for_production(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with Tenancy(make_config()) as tenancy:
        found = await tenancy.check()
    assert [(item.check, item.severity) for item in found] == [
        ("core.proof", Severity.WARNING),
        ("core.metrics", Severity.INFO),
        ("core.signing-keys", Severity.INFO),
    ]
    assert all(item.message.endswith(".") and item.remedy.endswith(".") for item in found)


async def test_what_was_found_goes_away_when_it_is_mended(
    make_config: Callable[..., TenancyConfig],
) -> None:
    keys = {"signing_keys": ("s" * 32,)}
    config = make_config(**keys)
    assert await names(config, membership=is_member, observers=[Listens()]) == []
    config = make_config(**keys, require_verified_tenant=True)
    assert await names(config, observers=[Listens()]) == []


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"database_echo": True}, "core.database-echo"),
        ({"enable_audit_logging": False}, "core.audit-logging"),
        ({"enable_soft_delete": False}, "core.soft-delete"),
    ],
)
async def test_a_setting_that_is_wrong_in_production_is_found(
    make_config: Callable[..., TenancyConfig], settings: dict[str, Any], name: str
) -> None:
    assert name in await names(make_config(**settings))
    assert name not in await names(make_config())


@pytest.mark.parametrize(
    ("control", "found"), [({}, 1), ({"control_database_url": "postgresql+asyncpg://c@db/c"}, 0)]
)
async def test_a_server_whose_tenants_share_the_role_of_the_store_is_found(
    control: dict[str, str], found: int
) -> None:
    class OnAServer:
        config = TenancyConfig(database_url="postgresql+asyncpg://app@db/app", **control)

    (separate,) = (item for item in CORE_CHECKS if item.name == "core.control-database")
    assert len(await separate.run(OnAServer())) == found


async def test_every_check_of_the_core_has_a_name_of_its_own_and_says_what_holds() -> None:
    assert len({item.name for item in CORE_CHECKS}) == len(CORE_CHECKS)
    assert all(item.name.startswith("core.") and item.title for item in CORE_CHECKS)


async def test_the_worst_comes_first() -> None:
    found = await run_checks(
        None,
        [
            check("b.info", finding("b.info", Severity.INFO)),
            check("c.error", finding("c.error", Severity.ERROR)),
            check("d.two", finding("d.warning"), finding("a.error", Severity.ERROR)),
        ],
    )
    assert [item.check for item in found] == ["a.error", "c.error", "d.warning", "b.info"]


async def test_a_check_that_fails_is_a_finding_and_hides_no_other() -> None:
    async def fail(_: object) -> Sequence[Finding]:
        raise OSError("postgresql://app:canary@db")

    found = await run_checks(None, [Check("acme.broken", "It works", fail), check("ok"),
                                    check("b", finding("b"))])  # fmt: skip
    assert found == [
        Finding(
            "acme.broken",
            Severity.ERROR,
            "The check itself failed: it raised OSError.",
            "Mend what it needs, or report it to the package that brings it.",
        ),
        finding("b"),
    ]


@pytest.mark.parametrize("answer", [None, [None], ["all is well"], 1])
async def test_a_check_that_returns_something_else_is_a_finding_too(answer: Any) -> None:
    async def run(_: object) -> Any:
        return answer

    found = await run_checks(None, [Check("acme.odd", "It works", run), check("b", finding("b"))])
    assert [(item.check, item.severity) for item in found] == [
        ("acme.odd", Severity.ERROR),
        ("b", Severity.WARNING),
    ]
    assert found[0].message == "The check itself failed: it raised TypeError."


SILENT = Finding(
    "acme.silent",
    Severity.ERROR,
    "This could not be looked at: there was no answer within 0.1 seconds.",
    "See whether what it asks still answers, and check again.",
)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_check_that_does_not_end_is_a_finding_and_keeps_no_other_waiting() -> None:
    async def wait(_: object) -> Sequence[Finding]:
        await anyio.sleep_forever()
        raise AssertionError

    with anyio.fail_after(10):
        checks = [Check("acme.silent", "It answers", wait), check("b", finding("b"))]
        assert await run_checks(None, checks, patience=0.1) == [SILENT, finding("b")]


async def test_nobody_waits_for_the_clean_up_of_a_check_that_did_not_end() -> None:
    """A transaction on a link that is silent cannot be rolled back either."""
    wakes, tidied = anyio.Event(), anyio.Event()

    async def wait(_: object) -> Sequence[Finding]:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await wakes.wait()
            tidied.set()
        raise AssertionError

    with anyio.fail_after(10):
        silent = Check("acme.silent", "It answers", wait)
        assert await run_checks(None, [silent], patience=0.1) == [SILENT]
        assert not tidied.is_set()
        wakes.set()
        await tidied.wait()


async def test_a_check_that_waited_too_long_itself_has_failed() -> None:
    async def give_up(_: object) -> Sequence[Finding]:
        raise TimeoutError

    (failed,) = await run_checks(None, [Check("acme.busy", "It answers", give_up)])
    assert failed.message == "The check itself failed: it raised TimeoutError."


async def test_checks_end_with_whoever_asked_for_them() -> None:
    ended = anyio.Event()

    async def wait(_: object) -> Sequence[Finding]:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
        raise AssertionError

    with anyio.move_on_after(0.1) as asking:
        await run_checks(None, [Check("acme.silent", "It answers", wait)])
    assert asking.cancelled_caught
    with anyio.fail_after(10):
        await ended.wait()


class CannotProvision:
    """An isolation strategy on a full disk."""

    async def provision(self, tenant: object, /) -> None:
        raise OSError("full")

    async def exists(self, tenant: object, /) -> bool:
        return False

    async def destroy(self, tenant: object, /) -> None: ...

    def session(self, tenant: object, /, *, read_only: bool = False) -> Any: ...

    connection = session


async def _half_way(tenancy: Tenancy) -> list[str]:
    return [one.message for one in await tenancy.check() if one.check == "core.unfinished"]


async def test_tenants_that_were_never_finished_are_found_once_it_is_nobodys_patience_any_more(
    make_config: Callable[..., TenancyConfig],
) -> None:
    config = make_config()
    async with Tenancy(config, isolation=CannotProvision()) as tenancy:
        for name in ("acme", "beta"):
            with pytest.raises(OSError, match="full"):
                await tenancy.tenants.create(name)
        assert await _half_way(tenancy) == []
        path = config.control_url.removeprefix("sqlite+aiosqlite:///")
        with closing(sqlite3.connect(path, timeout=60)) as control, control:
            control.execute("UPDATE tenancy_tenants SET updated_at = '2026-01-01 00:00:00'")
        assert await _half_way(tenancy) == ["Tenants whose creation was begun and not finished: 2."]
        for done in await tenancy.tenants.reconcile(older_than=timedelta(0), remove=True):
            assert done.outcome == "erased"
        assert await _half_way(tenancy) == []


async def test_tenants_that_are_half_erased_are_found(tenancy: Tenancy) -> None:
    destroy = tenancy.parts.isolation.destroy

    async def fail(tenant: object) -> None:
        raise OSError("busy")

    for name in ("acme", "beta"):
        await tenancy.tenants.archive(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tenancy.parts.isolation, "destroy", fail)
        with pytest.raises(OSError, match="busy"):
            await tenancy.tenants.erase("acme")
    assert tenancy.parts.isolation.destroy == destroy
    assert await _half_way(tenancy) == ["Tenants whose erasure was begun and not finished: 1."]
    assert [one.identifier async for one in tenancy.tenants.unfinished()] == ["acme"]
    assert [done.outcome for done in await tenancy.tenants.reconcile()] == ["erased"]
    assert await _half_way(tenancy) == []
