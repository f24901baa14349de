"""What passes the middleware without a tenant, and what must not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.scopes import Answer, WhoAmI, ask, http_scope, opened, websocket_scope
from tenancy_core import ConfigurationError, TenancyMiddleware
from tenancy_core.asgi import ExcludedPaths

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tenancy_core import Tenancy, TenancyConfig

pytestmark = pytest.mark.anyio

ACME = (b"x-tenant-id", b"acme")
ORIGIN = (b"origin", b"https://app.example")
ASKS = (b"access-control-request-method", b"GET")
OPEN, REFUSED = (200, None), (400, "tenant_missing")


@pytest.fixture
async def served(make_config: Callable[..., TenancyConfig]) -> AsyncIterator[Tenancy]:
    async with opened(make_config(excluded_paths="/health, /files/public")) as tenancy:
        yield tenancy


async def get(tenancy: Tenancy, *scope: Any, excluded: tuple[str, ...] = (), **more: Any) -> Answer:
    app = TenancyMiddleware(WhoAmI(), tenancy, excluded_paths=excluded)
    return await ask(app, http_scope(*scope, **more))


def outcome(answer: Answer) -> tuple[int, str | None]:
    assert answer.code is not None or answer.body == b"-"
    return answer.status, answer.code


# -- excluded paths --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        b"/health",
        b"/health/",
        b"/health/live",
        b"/health//live",
        b"/health?x=/../notes",
        b"/health/live?next=%2Fnotes",
        b"/files/public",
        b"/files/public/a.b/c..d/...",
        b"/health/%20",
    ],
)
async def test_an_excluded_path_is_served_without_a_tenant(served: Tenancy, path: bytes) -> None:
    assert outcome(await get(served, path)) == OPEN


@pytest.mark.parametrize("path", [b"/health", b"/health/live"])
async def test_an_excluded_path_has_no_tenant_although_the_request_names_one(
    served: Tenancy, path: bytes
) -> None:
    await get(served, b"/me", ACME)  # acme is cached: the fast way is open
    answer = await get(served, path, ACME)
    assert (answer.status, answer.body) == (200, b"-")


@pytest.mark.parametrize(
    "path",
    [
        b"/healthcare",
        b"/health.json",
        b"/health;x",
        b"/health%00",
        b"/Health",
        b"/%68ealth",
        b"/x/health",
        b"//health",
        b"/./health",
        b"health",
        b"",
        b"/",
        b"*",
        b"/files",
        b"/files/",
        b"/files/publicity",
        b"/files/secret/../public",
        b"http://host/health",
    ],
)
async def test_a_path_that_only_looks_like_it_is_not_excluded(served: Tenancy, path: bytes) -> None:
    assert outcome(await get(served, path)) == REFUSED


@pytest.mark.parametrize(
    "path",
    [
        b"/health/../notes",
        b"/health/./live",
        b"/health/..",
        b"/health/.",
        b"/health/%2e%2e/notes",
        b"/health/%2E./notes",
        b"/health/.%2e/notes",
        b"/health%2f..%2fnotes",
        b"/health/x%2Fy",
        b"/health/x%5cy",
        b"/health/x\\..\\y",
        b"/files/public/..%2fsecret",
    ],
)
async def test_a_path_with_dots_or_an_encoded_slash_is_never_excluded(
    served: Tenancy, path: bytes
) -> None:
    assert outcome(await get(served, path)) == REFUSED


@pytest.mark.parametrize("raw_path", [b"/api/health/live", b"/health/live"])
async def test_excluded_paths_are_relative_to_root_path_as_every_server_says_it(
    served: Tenancy, raw_path: bytes
) -> None:
    assert outcome(await get(served, raw_path, root_path="/api")) == OPEN


@pytest.mark.parametrize(
    ("raw_path", "root_path"),
    [
        (b"/api/notes", "/api"),
        (b"/apihealth", "/api"),
        (b"/api/health/../notes", "/api"),
        (b"/api/healthcare", "/api"),
        (b"/x/health", "/api"),
        (b"/health/notes", "/health"),  # mounted there by a proxy, all of it
        (b"/health", "/health"),
    ],
)
async def test_root_path_does_not_open_what_is_not_excluded(
    served: Tenancy, raw_path: bytes, root_path: str
) -> None:
    assert outcome(await get(served, raw_path, root_path=root_path)) == REFUSED


async def test_without_raw_path_the_decoded_path_is_matched(served: Tenancy) -> None:
    for path, expected in [
        ("/health/live", OPEN),
        ("/health/é", OPEN),
        ("/healthcare", REFUSED),
        ("/health/../notes", REFUSED),
    ]:
        scope = http_scope(b"/", path=path)
        scope["raw_path"] = None
        assert outcome(await ask(TenancyMiddleware(WhoAmI(), served), scope)) == expected


async def test_the_root_excludes_itself_and_nothing_below(served: Tenancy) -> None:
    assert outcome(await get(served, b"/", excluded=("/",))) == OPEN
    assert outcome(await get(served, b"/notes", excluded=("/",))) == REFUSED
    assert outcome(await get(served, b"//", excluded=("/",))) == REFUSED
    assert outcome(await get(served, b"/health", excluded=("/",))) == OPEN


async def test_without_excluded_paths_every_path_needs_a_tenant(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with opened(make_config()) as tenancy:
        for path in (b"/", b"/health", b"", b"/docs"):
            assert outcome(await get(tenancy, path)) == REFUSED


@pytest.mark.parametrize(
    "path",
    [
        *("health", "/health/", "", "//", "/a//b", "/a/../b", "/a/.", "/a%2fb", "/a?b", "/a#b"),
        *("/a*", "/a b", "/a\\b", "/é", "/a\n", "/\x00"),
    ],
)
async def test_an_excluded_path_that_could_never_match_is_refused_at_start(
    served: Tenancy, make_config: Callable[..., TenancyConfig], path: str
) -> None:
    with pytest.raises(ConfigurationError, match="excluded_paths"):
        TenancyMiddleware(WhoAmI(), served, excluded_paths=["/fine", path])
    if path:
        with pytest.raises(ConfigurationError, match="TENANCY_EXCLUDED_PATHS"):
            make_config(excluded_paths=("/fine", path))


def test_nothing_is_excluded_by_nothing() -> None:
    nothing = ExcludedPaths(())
    assert not nothing.match(b"/")
    assert not nothing.match(b"")


async def test_a_websocket_on_an_excluded_path_has_no_tenant(served: Tenancy) -> None:
    app = WhoAmI()
    scope = websocket_scope(b"/health/live", ACME)
    sent = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await TenancyMiddleware(app, served)(scope, receive, send)
    assert sent[-1] == {"type": "websocket.send", "text": "-"}


# -- preflights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [(ORIGIN, ASKS), (ORIGIN, ASKS, ACME)])
async def test_a_preflight_passes_without_a_tenant(
    served: Tenancy, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    await get(served, b"/me", ACME)
    assert outcome(await get(served, b"/me", *headers, method="OPTIONS")) == OPEN


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (ORIGIN,),
        (ASKS,),
        ((b"origin-", b"x"), ASKS),
        (ORIGIN, (b"access_control_request_method", b"GET")),
    ],
)
async def test_options_that_is_no_preflight_needs_a_tenant(
    served: Tenancy, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    assert outcome(await get(served, b"/me", *headers, method="OPTIONS")) == REFUSED
    answer = await get(served, b"/me", *headers, ACME, method="OPTIONS")
    assert (answer.status, answer.body) == (200, b"acme")


@pytest.mark.parametrize(
    "method", ["GET", "POST", "HEAD", "options", "TRACE", "QUERY", "X-OPTIONS"]
)
async def test_the_headers_of_a_preflight_open_no_other_method(
    served: Tenancy, method: str
) -> None:
    answer = await get(served, b"/me", ORIGIN, ASKS, method=method)
    assert (answer.status, answer.header(b"content-type")) == (400, b"application/problem+json")


async def test_a_websocket_handshake_is_no_preflight(served: Tenancy) -> None:
    app = WhoAmI()
    sent = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = websocket_scope(b"/me", ORIGIN, ASKS)
    await TenancyMiddleware(app, served)(scope, receive, send)
    assert sent[0]["status"] == 400
    assert app.calls == 0


# -- everything else -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lifespan", "something-new"])
async def test_what_is_no_request_passes_untouched_also_while_it_is_closed(
    make_config: Callable[..., TenancyConfig], kind: str
) -> None:
    async with opened(make_config()) as tenancy:
        pass
    app = WhoAmI()
    scope: dict[str, Any] = {"type": kind}

    async def receive() -> dict[str, Any]:
        raise AssertionError("not ours to take")

    async def send(message: Any) -> None:
        raise AssertionError("not ours to answer")

    await TenancyMiddleware(app, tenancy)(scope, receive, send)
    assert app.scopes == [{"type": kind}]


async def test_a_request_while_it_is_closed_is_a_mistake_in_the_service_and_no_refusal(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with opened(make_config()) as tenancy:
        app = TenancyMiddleware(WhoAmI(), tenancy)
        assert (await ask(app, http_scope(b"/me", ACME))).body == b"acme"
        assert (await ask(app, http_scope(b"/me", ACME))).body == b"acme"
    with pytest.raises(ConfigurationError, match="not open"):
        await ask(app, http_scope(b"/me", ACME))
    with pytest.raises(ConfigurationError, match="not open"):
        await ask(app, http_scope(b"/me"))


@pytest.mark.parametrize(
    "state", [{"own": 1}, {}, None, ...], ids=["own", "empty", "none", "absent"]
)
@pytest.mark.parametrize("path", [b"/me", b"/health"])
async def test_the_state_of_the_scope_is_added_to_and_never_replaced(
    served: Tenancy, state: Any, path: bytes
) -> None:
    inner = WhoAmI()
    app = TenancyMiddleware(inner, served)
    for _ in range(2):  # by the slow way and by the fast one
        own = dict(state) if isinstance(state, dict) else state
        scope = http_scope(path, ACME, state=own)
        if own is ...:
            del scope["state"]
        assert (await ask(app, scope)).status == 200
        seen = inner.scopes[-1].get("state") or {}
        assert ("tenant" in seen) is (path == b"/me")
        if isinstance(own, dict):
            assert inner.scopes[-1]["state"] is own
            assert seen.get("own") == own.get("own")
