"""Observers are told, each on its own; none of them can harm a request or hide that it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tenancy_core import Tenancy, observe
from tenancy_core.observe import SLOW_OBSERVER_SECONDS, Observers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenancy_core import TenancyConfig, Tenant


class Listens:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def refused(self, code: str, status: int, tenant: Tenant | None, /) -> None:
        self.told.append((code, status, tenant))

    def changed(self, tenant: Tenant, action: str, /) -> None:
        self.told.append((tenant.identifier, tenant.status, action))


class Broken:
    """An observer that fails."""

    def refused(self, code: str, status: int, tenant: object, /) -> None:
        raise LookupError(code)

    def changed(self, tenant: object, action: str, /) -> None:
        raise LookupError(action)


class Slow:
    """An observer that takes as long as the test says, on the test's clock."""

    def __init__(self, clock: list[float], *, fails: bool = False) -> None:
        self.clock = clock
        self.seconds = 0.0
        self.fails = fails

    def refused(self, code: str, status: int, tenant: object, /) -> None:
        self.clock[0] += self.seconds
        if self.fails:
            raise LookupError(code)

    def changed(self, tenant: object, action: str, /) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What observers are timed with."""
    now = [100.0]
    monkeypatch.setattr(observe, "perf_counter", lambda: now[0])
    return now


@pytest.mark.anyio
async def test_observers_are_told_of_every_change_that_is_committed(
    make_config: Callable[..., TenancyConfig],
) -> None:
    one, two = Listens(), Listens()
    async with Tenancy(make_config(), observers=[one, Broken(), two]) as tenancy:
        await tenancy.tenants.create("acme")
        await tenancy.tenants.suspend("acme")
        await tenancy.tenants.suspend("acme")
        await tenancy.tenants.resume("acme")
    assert one.told == two.told
    assert one.told == [
        ("acme", "provisioning", "tenant.created"),
        ("acme", "active", "tenant.provisioned"),
        ("acme", "suspended", "tenant.suspended"),
        ("acme", "active", "tenant.resumed"),
    ]


def test_D8_an_observer_that_fails_harms_nobody_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listens = Listens()
    observers = Observers([Broken(), listens])
    for _ in range(1000):
        observers.refused("tenant_missing", 400, None)
    assert listens.told == [("tenant_missing", 400, None)] * 1000
    assert observers.failures == {"Broken": 1000}
    # A machine that is busy may find the observer slow as well.
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage() == "the observer Broken failed; later failures are only counted"
    assert record.exc_info is not None


def test_D8_an_observer_without_the_method_is_one_that_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    incomplete: Any = object()
    listens = Listens()
    observers = Observers([incomplete, listens])
    observers.refused("rate_limited", 429, None)
    assert listens.told == [("rate_limited", 429, None)]
    assert observers.failures == {"object": 1}


def test_D8_what_is_no_error_passes_through() -> None:
    class Leaves(Listens):
        def refused(self, code: str, status: int, tenant: Tenant | None, /) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Observers([Leaves()]).refused("tenant_missing", 400, None)


@pytest.mark.parametrize("fails", [False, True])
def test_D8_an_observer_that_holds_up_the_loop_is_counted_and_logged_once(
    clock: list[float],
    caplog: pytest.LogCaptureFixture,
    fails: bool,
) -> None:
    slow = Slow(clock, fails=fails)
    observers = Observers([slow])
    slow.seconds = SLOW_OBSERVER_SECONDS * 0.9
    observers.refused("tenant_missing", 400, None)
    assert observers.slow == {}
    slow.seconds = 0.25
    for _ in range(3):
        observers.refused("tenant_missing", 400, None)
    assert observers.slow == {"Slow": 3}
    said = [record.getMessage() for record in caplog.records if "held up" in record.getMessage()]
    assert said == [
        "the observer Slow held up the event loop for 250 ms; later times are only counted"
    ]


def test_only_a_tenancy_with_observers_is_observed(
    make_config: Callable[..., TenancyConfig],
) -> None:
    assert not Tenancy(make_config()).observed
    assert Tenancy(make_config(), observers=[Listens()]).observed
