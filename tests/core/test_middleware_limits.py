"""Limits of tenants, and of those who ask for tenants that do not exist."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from support.scopes import Answer, CountingStore, WhoAmI, ask, http_scope, opened, record
from tenancy_core import RateLimit, TenancyMiddleware, TenantStatus
from tenancy_core._ratelimit import MemoryRateLimiter
from tenancy_core._ratelimit.misses import MISSES
from tenancy_core.contract import RateLimitDecision
from tenancy_core.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenancy_core import TenancyConfig

pytestmark = pytest.mark.anyio


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def get(app: Any, name: str, *headers: tuple[bytes, bytes], **scope: Any) -> Answer:
    return await ask(app, http_scope(b"/", (b"x-tenant-id", name.encode()), *headers, **scope))


# -- tenants ---------------------------------------------------------------------------------------


async def test_a_tenant_that_has_used_up_its_share_gets_429_with_all_that_a_client_needs(
    make_config: Callable[..., TenancyConfig],
) -> None:
    clock, inner = Clock(), WhoAmI()
    config = make_config(
        enable_rate_limiting=True,
        rate_limit_per_minute=20,
        rate_limit_burst=5,
        rate_limit_window_seconds=60,
    )
    async with opened(config, rate_limiter=MemoryRateLimiter(clock)) as tenancy:
        app = TenancyMiddleware(inner, tenancy)
        accepted = [await get(app, "acme") for _ in range(5)]
        refused = await get(app, "acme")
        other = await get(app, "beta")
        assert [answer.status for answer in accepted] == [200] * 5
        assert (refused.status, refused.code) == (429, "rate_limited")
        # T = W / (N - B) = 4 s, and none of it has passed.
        assert refused.header(b"retry-after") == b"4"
        assert refused.header(b"ratelimit-policy") == b'"tenant";q=20;w=60'
        assert refused.header(b"ratelimit") == b'"tenant";r=0;t=4'
        assert refused.header(b"cache-control") == b"no-store"
        assert other.status == 200
        assert inner.calls == 6
        clock.now += 3.9
        assert (await get(app, "acme")).header(b"retry-after") == b"1"
        clock.now += 0.1
        assert (await get(app, "acme")).status == 200
        assert (await get(app, "acme")).status == 429


async def test_a_limited_tenant_is_never_served_past_the_limiter_by_the_cache(
    make_config: Callable[..., TenancyConfig],
) -> None:
    config = make_config(enable_rate_limiting=True, rate_limit_per_minute=3, rate_limit_burst=2)
    async with opened(config) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        statuses = [(await get(app, "acme")).status for _ in range(6)]
        assert statuses == [200, 200, 429, 429, 429, 429]
        assert tenancy.parts.directory.l1.aliases == {}


async def test_what_is_refused_for_another_reason_costs_the_tenant_nothing(
    make_config: Callable[..., TenancyConfig],
) -> None:
    config = make_config(enable_rate_limiting=True, rate_limit_per_minute=3, rate_limit_burst=2)
    limiter = MemoryRateLimiter()
    tenants = [record("acme"), record("off", TenantStatus.SUSPENDED)]
    async with opened(config, *tenants, rate_limiter=limiter) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        for name in ("off", "nobody", "ACME", ""):
            await get(app, name)
        await get(app, "acme", (b"x-tenant-id", b"acme"))
        assert len(limiter) == 0


async def test_a_tenants_own_limit_counts(make_config: Callable[..., TenancyConfig]) -> None:
    config = make_config(
        enable_rate_limiting=True,
        rate_limit_per_minute=10,
        plans={"pro": {"rate_limit_per_minute": 40, "rate_limit_burst": 8}},
    )
    tenants = [
        record("plain"),
        record("planned", plan="pro"),
        record("own", plan="pro", limits={"rate_limit_per_minute": 9, "rate_limit_burst": 3}),
        record("gone", plan="a-plan-that-was-removed"),
    ]
    async with opened(config, *tenants) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        accepted = {
            tenant.identifier: [
                (await get(app, tenant.identifier)).status for _ in range(12)
            ].count(200)
            for tenant in tenants
        }
    assert accepted == {"plain": 2, "planned": 8, "own": 3, "gone": 2}


async def test_a_burst_that_no_longer_fits_a_lowered_limit_is_cut_and_not_an_error(
    make_config: Callable[..., TenancyConfig],
) -> None:
    """The record says burst 50; since then the service was given 10 a minute."""
    config = make_config(
        enable_rate_limiting=True,
        rate_limit_per_minute=10,
        plans={"small": {"rate_limit_per_minute": 3}},
    )
    tenants = [
        record("plain", limits={"rate_limit_burst": 50}),
        record("planned", plan="small", limits={"rate_limit_burst": 50}),
    ]
    async with opened(config, *tenants) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        for name, burst in [("plain", 9), ("planned", 2)]:
            statuses = [(await get(app, name)).status for _ in range(burst + 1)]
            assert statuses == [200] * burst + [429]


# -- a limiter that fails --------------------------------------------------------------------------


class Fails:
    """A limiter that is down, or that answers what it must not."""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


FAILURES = [
    OSError("canary"),
    TimeoutError("canary"),
    ValueError("canary"),
    BackendUnavailable("canary"),
    None,
    True,
    False,
    SimpleNamespace(allowed="yes"),
]


@pytest.mark.parametrize("answer", FAILURES, ids=lambda value: repr(value)[:18])
@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
async def test_a_limiter_that_fails_is_open_or_closed_as_the_setting_says(
    make_config: Callable[..., TenancyConfig],
    caplog: pytest.LogCaptureFixture,
    answer: object,
    *,
    closed: bool,
) -> None:
    config = make_config(enable_rate_limiting=True, rate_limit_fail_closed=closed)
    async with opened(config, rate_limiter=Fails(answer)) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        got = await get(app, "acme")
    if closed:
        assert (got.status, got.code) == (503, "backend_unavailable")
        assert got.header(b"retry-after") == b"1"
    else:
        assert (got.status, got.body) == (200, b"acme")
    assert "rate limiter" in caplog.text
    assert "canary" not in caplog.text
    assert b"canary" not in got.body


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), -5.0, 0.0, 1e9])
async def test_an_odd_retry_after_of_a_limiter_is_still_a_429_with_a_sound_header(
    make_config: Callable[..., TenancyConfig], seconds: float
) -> None:
    decision = RateLimitDecision(
        allowed=False,
        limit=RateLimit(100),
        remaining=0,
        retry_after=seconds,
        reset_after=seconds,
    )
    async with opened(
        make_config(enable_rate_limiting=True), rate_limiter=Fails(decision)
    ) as tenancy:
        got = await get(TenancyMiddleware(WhoAmI(), tenancy), "acme")
    assert (got.status, got.code) == (429, "rate_limited")
    value = got.header(b"retry-after")
    assert value is not None
    assert 1 <= int(value) <= 60  # never longer than the window


# -- those who ask for tenants that do not exist ---------------------------------------------------

ALLOWED = MISSES.burst


async def flood(app: Any, count: int, **scope: Any) -> list[int]:
    return [(await get(app, f"unknown-{number}", **scope)).status for number in range(count)]


async def test_a_flood_of_unknown_tenants_is_limited_by_address_before_it_reaches_the_store(
    make_config: Callable[..., TenancyConfig],
) -> None:
    store, clock = CountingStore(), Clock()
    async with opened(make_config(), store=store, clock=clock) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        assert await flood(app, ALLOWED + 200) == [404] * ALLOWED + [429] * 200
        assert len(store.asked) == ALLOWED
        answer = await get(app, "unknown-again")
        assert (answer.status, answer.code) == (429, "rate_limited")
        assert answer.header(b"retry-after") == b"1"
        assert answer.header(b"ratelimit") is None
        # Another address is none of its business.
        assert (await get(app, "unknown-x", client=("198.51.100.7", 1))).status == 404
        assert (await get(app, "acme", client=("198.51.100.7", 1))).status == 200
        clock.now += MISSES.interval
        assert await flood(app, 2) == [404, 429]


async def test_a_flood_holds_up_nobody_whose_tenant_is_cached(
    make_config: Callable[..., TenancyConfig],
) -> None:
    """Behind a proxy that is not trusted all clients have one address."""
    async with opened(make_config(), clock=Clock()) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        assert (await get(app, "acme")).status == 200
        assert (await flood(app, ALLOWED + 1))[-1] == 429
        assert [(await get(app, "acme")).status for _ in range(20)] == [200] * 20


async def test_only_misses_are_counted(make_config: Callable[..., TenancyConfig]) -> None:
    tenants = [record(f"tenant-{number}") for number in range(ALLOWED + 50)]
    config = make_config(l1_cache_max_size=10)
    async with opened(config, *tenants, clock=Clock()) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        for tenant in tenants:  # each is looked up, none stays cached for long
            assert (await get(app, tenant.identifier)).status == 200
        for name in ["ACME", "", "a_b"] * ALLOWED:
            assert (await get(app, name)).status == 400
        assert (await get(app, "unknown")).status == 404


async def test_a_remembered_nobody_is_a_miss_like_the_first(
    make_config: Callable[..., TenancyConfig],
) -> None:
    store = CountingStore()
    async with opened(make_config(), store=store, clock=Clock()) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        statuses = [(await get(app, "unknown")).status for _ in range(ALLOWED + 2)]
    assert statuses == [404] * ALLOWED + [429] * 2
    assert store.asked == ["unknown"]


async def test_a_trusted_proxy_speaks_for_the_client_that_it_names_last(
    make_config: Callable[..., TenancyConfig],
) -> None:
    config = make_config(trusted_proxies="10.0.0.0/8")
    proxy = ("10.0.0.1", 1)
    async with opened(config, clock=Clock()) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)

        async def miss(forwarded: bytes, client: tuple[str, int] = proxy) -> int:
            header = (b"x-forwarded-for", forwarded)
            return (await get(app, "unknown", header, client=client)).status

        flooded = [
            # What a client writes in front changes nothing.
            await miss(b"198.51.100.%d, 203.0.113.66" % (number % 250))
            for number in range(ALLOWED + 2)
        ]
        assert flooded == [404] * ALLOWED + [429] * 2
        assert await miss(b"203.0.113.66, 203.0.113.67") == 404
        assert await miss(b"203.0.113.67") == 404


async def test_R1_a_client_cannot_hand_its_misses_to_another_address(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with opened(make_config(), clock=Clock()) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        statuses = [
            (await get(app, "unknown", (b"x-forwarded-for", b"198.51.100.%d" % (n % 250)))).status
            for n in range(ALLOWED + 2)
        ]
    assert statuses == [404] * ALLOWED + [429] * 2


async def test_R18_an_address_that_a_proxy_hands_on_is_kept_in_bounded_form(
    make_config: Callable[..., TenancyConfig],
) -> None:
    config = make_config(trusted_proxies="10.0.0.0/8")
    async with opened(config) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        for value in [b"", b",", b"\xff\xfe", b"x" * 70_000, b"[::1]:80"]:
            answer = await get(app, "unknown", (b"x-forwarded-for", value), client=("10.0.0.1", 1))
            assert answer.status == 404
        kept = app._admission._misses._limiter._arrivals
        assert max(map(len, kept)) <= 64


async def test_a_peer_without_an_address_is_not_limited_with_others(
    make_config: Callable[..., TenancyConfig],
) -> None:
    """Behind a Unix socket stands a proxy; all of its clients would share one limit."""
    async with opened(make_config(), clock=Clock()) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        assert set(await flood(app, ALLOWED + 2, client=None)) == {404}


async def test_a_thousand_floods_at_once_ask_the_store_once_per_name(
    make_config: Callable[..., TenancyConfig],
) -> None:
    class Slow(CountingStore):
        async def get_by_identifier(self, identifier: str, /) -> Any:
            found = await super().get_by_identifier(identifier)
            await asyncio.sleep(0)
            return found

    store = Slow()
    async with opened(make_config(), store=store) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        answers = await asyncio.gather(*(get(app, "unknown") for _ in range(200)))
    assert {answer.status for answer in answers} == {404}
    assert store.asked == ["unknown"]
