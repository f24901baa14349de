"""The way by raw header bytes answers as the long way does, whatever was asked before."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.scopes import CountingStore, WhoAmI, ask, http_scope, opened, record
from tenancy_core import TenancyMiddleware, TenantStatus
from tenancy_core.asgi.admission import Admission

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tenancy_core import Tenancy, TenancyConfig

pytestmark = pytest.mark.anyio

ACME = (b"x-tenant-id", b"acme")
BETA = (b"x-tenant-id", b"beta")
STRATEGIES: dict[str, dict[str, object]] = {
    "header": {},
    "subdomain": {"resolution_strategy": "subdomain", "domain_suffix": "ex.com"},
    "proxied": {
        "resolution_strategy": "subdomain",
        "domain_suffix": "ex.com",
        "trusted_proxies": "10.0.0.0/8",
    },
    "path": {"resolution_strategy": "path", "path_prefix": "/t"},
    "chain": {"resolution_strategy": "header,subdomain", "domain_suffix": "ex.com"},
}


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# -- one and the other -----------------------------------------------------------------------------


class Pair:
    """The same service twice: one remembers everything, the other is made to forget."""

    def __init__(self, warm: Tenancy, cold: Tenancy, clock: Clock) -> None:
        self.tenancies = (warm, cold)
        self.clock = clock
        self._pristine = [tenancy.parts.store._state.copy() for tenancy in self.tenancies]
        self._warm_app = self._app(warm)

    @staticmethod
    def _app(tenancy: Tenancy) -> TenancyMiddleware:
        return TenancyMiddleware(WhoAmI(), tenancy, excluded_paths=["/", "/health"])

    def reset(self) -> None:
        """Begin anew: the next example must not see this one."""
        for tenancy, state in zip(self.tenancies, self._pristine, strict=True):
            tenancy.parts.store._swap(state.copy())
            tenancy.parts.directory.forget_all()
        self._warm_app = self._app(self.tenancies[0])

    async def ask(self, scope: dict[str, Any]) -> list[Any]:
        """Ask both; return what they told the server, which has to be the same."""
        _, cold = self.tenancies
        answers = [await messages(self._warm_app, scope)]
        cold.parts.directory.forget_all()
        answers.append(await messages(self._app(cold), scope))
        assert answers[0] == answers[1]
        return answers[0]

    async def change(self, action: str, name: str) -> None:
        """Suspend or resume a tenant of both."""
        for tenancy in self.tenancies:
            await getattr(tenancy.tenants, action)(name)


async def messages(app: TenancyMiddleware, scope: dict[str, Any]) -> list[Any]:
    """Return what an application tells the server."""
    sent: list[Any] = []
    copied = {**scope, "headers": list(scope["headers"])}
    if isinstance(copied.get("state"), dict):
        copied["state"] = dict(copied["state"])
    begins = {"type": "http.request"} if scope["type"] == "http" else {"type": "websocket.connect"}

    async def receive() -> dict[str, Any]:
        return begins

    async def send(message: Any) -> None:
        sent.append(message)

    await app(copied, receive, send)
    return sent


@pytest.fixture(params=sorted(STRATEGIES))
async def pair(
    request: pytest.FixtureRequest, make_config: Callable[..., TenancyConfig]
) -> AsyncIterator[Pair]:
    config = make_config(**STRATEGIES[request.param])
    tenants = [record("acme"), record("beta"), record("off", TenantStatus.SUSPENDED)]
    clock = Clock()
    async with (
        opened(config, *tenants, clock=clock) as warm,
        opened(config, *tenants, clock=clock) as cold,
    ):
        yield Pair(warm, cold, clock)


names = [b"acme", b"beta", b"off", b"nobody"]
values = st.sampled_from(
    [
        *names,
        *(b" acme", b"acme\t", b"ACME", b"acme, beta", b"", b"acm\xe9", b"acme\n", b"a--b"),
        *(name + b".ex.com" for name in names),
        *(b"ACME.Ex.Com.:80", b"acme.ex.com:80", b"acme.ex.com.", b"beta.ex.com\t", b"ex.com"),
        *(b"acme.ex.com..", b"acme.evil.ex.com", b"acme.ex.com:x", b"https://app.example"),
    ]
)
names_of_headers = st.sampled_from(
    [
        *[b"x-tenant-id", b"host"] * 2,
        *(b"x_tenant_id", b"x-forwarded-host", b"origin", b"access-control-request-method"),
    ]
)
paths = [
    *(b"/me", b"/", b"/health", b"/health/live", b"/healthcare", b"/health/../me", b"/health%2fx"),
    *(b"/t/acme/x", b"/t/beta", b"/t/off", b"/t/%61cme", b"/t//acme", b"/api/t/acme", b"/api"),
    *(b"/api/health", b"/api/me", b"//", b"/?x", b"/health?x", b""),
]
absent = ...
deviations = st.one_of(
    st.tuples(st.just("header"), st.tuples(names_of_headers, values)),
    st.tuples(st.just("value"), values),
    st.tuples(st.just("host"), values),
    st.tuples(st.just("path"), st.sampled_from(paths)),
    st.tuples(st.just("method"), st.sampled_from(["POST", "HEAD", "OPTIONS"])),
    st.tuples(st.just("preflight"), st.none()),
    st.tuples(st.just("websocket"), st.none()),
    st.tuples(st.just("root_path"), st.sampled_from(["/api", "/api/", absent])),
    st.tuples(st.just("state"), st.sampled_from([{"own": 1}, None, absent])),
    st.tuples(st.just("raw_path"), st.sampled_from([None, absent])),
)


def usual(name: bytes = b"acme", path: bytes = b"/me") -> dict[str, Any]:
    """Return a request that every strategy but ``path`` finds its tenant in.

    It comes without an address: nothing is limited by what was asked before.
    """
    return http_scope(
        path, (b"x-tenant-id", name), (b"host", name + b".ex.com"), method="GET", client=None
    )


def deviate(scope: dict[str, Any], how: str, what: Any) -> None:
    """Change one thing about a request."""
    match how:
        case "header":
            scope["headers"].append(what)
        case "value" | "host":
            place = 1 if how == "host" else 0
            scope["headers"][place] = (scope["headers"][place][0], what)
        case "path":
            scope.update(
                http_scope(what), **{key: scope[key] for key in scope if "path" not in key}
            )
        case "preflight":
            scope["method"] = "OPTIONS"
            scope["headers"] += [(b"origin", b"https://app.example")]
            scope["headers"] += [(b"access-control-request-method", b"GET")]
        case "websocket":
            scope.update(type="websocket", extensions={"websocket.http.response": {}})
        case _ if what is absent:
            scope.pop(how, None)
        case _:
            scope[how] = what


@st.composite
def scopes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a connection that is as usual but for a few things, as some server might say it."""
    scope = usual(draw(st.sampled_from(names[:2])), draw(st.sampled_from([b"/me", b"/t/acme/x"])))
    for how, what in draw(st.lists(deviations, max_size=3)):
        deviate(scope, how, what)
    return scope


def odd(how: str, what: Any) -> dict[str, Any]:
    """Return the usual request with one thing changed."""
    scope = usual()
    deviate(scope, how, what)
    return scope


steps = st.one_of(
    scopes(),
    scopes(),
    scopes(),
    st.tuples(st.sampled_from(["suspend", "resume"]), st.sampled_from(["acme", "beta"])),
    st.sampled_from([1.0, 5.0, 60.0]),
)


@pytest.mark.storm
@settings(
    max_examples=5_000 if os.environ.get("TENANCY_TEST_FULL") else 150,
    database=None,
    # The fixture is shared by all examples: Pair.reset. And the machine may be busy.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(steps, min_size=2, max_size=12))
@example([("suspend", "acme"), usual(), ("resume", "acme"), usual()])
@example([60.0, usual(), usual(b"off"), 5.0, usual(b"off"), usual(b"nobody")])
@example([odd("header", ACME), odd("header", BETA), odd("header", (b"host", b"acme.ex.com"))])
@example([odd("path", path) for path in paths])
@example([odd("preflight", None), odd("method", "OPTIONS"), odd("method", "HEAD")])
@example([odd("root_path", "/api"), odd("root_path", absent), odd("websocket", None)])
@example([{**usual(path=b"/api/health"), "root_path": "/api"}])
@example([odd("state", None), odd("state", absent), odd("raw_path", None)])
async def test_a_request_is_answered_the_same_whatever_is_cached(
    pair: Pair, todo: list[dict[str, Any] | tuple[str, str] | float]
) -> None:
    pair.reset()
    for name in (b"acme", b"beta"):
        await pair.ask(usual(name))
    for step in todo:
        if isinstance(step, dict):
            await pair.ask(step)
            await pair.ask(step)
        elif isinstance(step, tuple):
            await pair.change(*step)
        else:
            pair.clock.now += step


# -- that it is the fast way at all ----------------------------------------------------------------


@pytest.fixture
def admissions(monkeypatch: pytest.MonkeyPatch) -> list[bytes | None]:
    """Note every request that takes the long way."""
    slow: list[bytes | None] = []
    admit = Admission.admit

    async def noting(self: Admission, connection: Any) -> Any:
        slow.append(connection.scope.get("raw_path"))
        return await admit(self, connection)

    monkeypatch.setattr(Admission, "admit", noting)
    return slow


async def test_a_cached_tenant_takes_the_fast_way_and_every_doubt_the_long_one(
    make_config: Callable[..., TenancyConfig], admissions: list[bytes | None]
) -> None:
    clock = Clock()
    async with opened(make_config(), clock=clock) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy, excluded_paths=["/health"])

        async def was_slow(*scope: Any, **more: Any) -> bool:
            admissions.clear()
            await ask(app, http_scope(*scope, **more))
            return bool(admissions)

        assert await was_slow(b"/me", ACME)
        assert not await was_slow(b"/me", ACME)
        assert not await was_slow(b"/other", (b"accept", b"*/*"), ACME, method="POST")
        assert not await was_slow(b"/me", ACME, method="HEAD")
        assert await was_slow(b"/me", ACME, ACME)
        assert await was_slow(b"/me", ACME, BETA)
        assert await was_slow(b"/me", (b"x-tenant-id", b" acme"))
        assert not await was_slow(b"/me", (b"x-tenant-id", b" acme"))
        assert await was_slow(b"/healthcare", ACME)
        assert await was_slow(b"/me", ACME, root_path="/api")
        assert await was_slow(b"/me", ACME, method="OPTIONS")
        assert await was_slow(b"/me")
        clock.now += 60
        assert await was_slow(b"/me", ACME)
        assert not await was_slow(b"/me", ACME)


@pytest.mark.parametrize(
    "spelling", [b"acme", b" acme", b"acme ", b"\tacme", b"acme\t", b"  acme", b"acme  "]
)
async def test_every_spelling_of_a_suspended_tenant_is_forgotten_at_once(
    make_config: Callable[..., TenancyConfig], spelling: bytes
) -> None:
    async with opened(make_config()) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        for _ in range(2):
            for other in (b"acme", b" acme", b"acme ", spelling):
                answer = await ask(app, http_scope(b"/me", (b"x-tenant-id", other)))
                assert (answer.status, answer.body) == (200, b"acme")
        await tenancy.tenants.suspend("acme")
        answer = await ask(app, http_scope(b"/me", (b"x-tenant-id", spelling)))
        assert answer.status == 404
        assert tenancy.parts.directory.l1.aliases == {}


async def test_R18_spellings_do_not_fill_the_memory(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with opened(make_config()) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        for spaces in range(500):
            scope = http_scope(b"/me", (b"x-tenant-id", b" " * spaces + b"acme"))
            assert (await ask(app, scope)).body == b"acme"
        assert len(tenancy.parts.directory.l1.aliases) <= 8


async def test_one_tenants_bytes_never_lead_to_another(
    make_config: Callable[..., TenancyConfig],
) -> None:
    tenants = [record(f"t{number}") for number in range(50)]
    async with opened(make_config(l1_cache_max_size=7), *tenants) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        for number in [*range(50), *range(49, -1, -1), *([3, 4] * 20), *range(0, 50, 7)]:
            name = b"t%d" % number
            assert (await ask(app, http_scope(b"/", (b"x-tenant-id", name)))).body == name
            l1 = tenancy.parts.directory.l1
            assert len(l1) <= 7
            assert {entry.tenant.identifier.encode() for entry in l1.aliases.values()} == set(
                l1.aliases
            )


async def test_a_tenancy_that_is_opened_again_believes_nothing_of_its_former_life(
    make_config: Callable[..., TenancyConfig],
) -> None:
    store = CountingStore()
    async with opened(make_config(), store=store) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        for _ in range(2):
            assert (await ask(app, http_scope(b"/me", ACME))).body == b"acme"
    tenant = await store.get_by_identifier("acme")
    assert tenant is not None
    async with store.transaction() as transaction:
        await transaction.delete(tenant.id)
    async with tenancy:
        assert (await ask(app, http_scope(b"/me", ACME))).status == 404
        assert (await ask(app, http_scope(b"/me", BETA))).body == b"beta"


@pytest.mark.parametrize(
    "settings",
    [
        {"enable_rate_limiting": True},
        {"require_verified_tenant": True},
        *(STRATEGIES[name] for name in ("proxied", "chain", "path")),
    ],
    ids=["limiter", "proof", "proxies", "chain", "path"],
)
async def test_where_more_than_one_header_decides_there_is_no_fast_way(
    make_config: Callable[..., TenancyConfig], settings: dict[str, object]
) -> None:
    async with opened(make_config(**settings)) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        for _ in range(2):
            scope = http_scope(b"/t/acme", ACME, (b"host", b"acme.ex.com"))
            await ask(app, scope)
        assert app._entries == {}
        assert tenancy.parts.directory.l1.aliases == {}
