"""Resolvers that the core did not write."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from support.scopes import connection, opened
from tenancy_core._resolvers.chain import ChainResolver
from tenancy_core._resolvers.guarded import RESOLVER_TIMEOUT, GuardedResolver
from tenancy_core.contract import Connection, TenantClaim
from tenancy_core.errors import (
    BackendUnavailable,
    ConfigurationError,
    InvalidCredentials,
    InvalidIdentifier,
    NoCurrentTenant,
    RequestRefused,
    ResolverError,
    TenancyError,
    TenantNotFound,
    TenantNotIdentified,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenancy_core import TenancyConfig

pytestmark = pytest.mark.anyio


class Plugin:
    """A resolver from elsewhere, with whatever answer."""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    async def resolve(self, connection: Connection, /) -> Any:
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer


async def ask(answer: object) -> TenantClaim | None:
    return await GuardedResolver("theirs", Plugin(answer)).resolve(connection())


async def test_R22_none_means_that_the_next_one_is_asked() -> None:
    assert await ask(None) is None


async def test_a_claim_is_handed_on_as_it_is() -> None:
    claim = TenantClaim("acme", "theirs", verified=True)
    assert await ask(claim) is claim


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "acme",
        b"acme",
        0,
        False,
        True,
        {},
        ("acme", "theirs"),
        TenantClaim,
        TenantClaim(None, "theirs"),
        TenantClaim(b"acme", "theirs"),
        TenantClaim(["acme"], "theirs"),
        TenantClaim("acme", "theirs", verified="no"),
        TenantClaim("acme", "theirs", verified=None),
        TenantClaim("acme", "theirs", verified=1),
    ],
    ids=repr,
)
async def test_R22_what_is_no_claim_is_the_plugins_error_and_names_it(answer: object) -> None:
    with pytest.raises(ResolverError, match="'theirs'"):
        await ask(answer)


@pytest.mark.parametrize(
    "identifier", ["", "Acme", "a_b", "acme\n", "a" * 49, "\u212aelvin", "../acme", "\ud800"]
)
async def test_R21_R22_a_claim_that_is_no_identifier_is_refused(identifier: str) -> None:
    with pytest.raises(InvalidIdentifier):
        await ask(TenantClaim(identifier, "theirs", verified=True))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("secret-value"),
        OSError("secret-value"),
        KeyError("secret-value"),
        TimeoutError("secret-value"),
        StopAsyncIteration(),
        RecursionError(),
        ExceptionGroup("secret-value", [ValueError("secret-value")]),
        # What a resolver may run into when it asks tenancy itself: none of these is an answer.
        NoCurrentTenant(),
        ConfigurationError("secret-value"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_R22_whatever_it_raises_is_one_kind_of_error_that_names_it(error: Exception) -> None:
    with pytest.raises(ResolverError, match="'theirs'") as raised:
        await ask(error)
    assert raised.value.__cause__ is error
    assert "secret-value" not in str(raised.value)


@pytest.mark.parametrize(
    "error",
    [
        InvalidIdentifier(),
        InvalidCredentials(),
        TenantNotFound(),
        RequestRefused("no"),
        BackendUnavailable("down"),
        ResolverError("its own words"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_R22_what_the_contract_allows_it_to_raise_is_handed_on(error: TenancyError) -> None:
    with pytest.raises(type(error)) as raised:
        await ask(error)
    assert raised.value is error


class Stuck:
    """Waits for something that never comes; notes that it was told to stop."""

    def __init__(self) -> None:
        self.stopped = False

    async def resolve(self, connection: Connection, /) -> TenantClaim | None:
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped = True
        raise AssertionError("unreachable")


async def test_R22_a_resolver_that_waits_for_ever_is_stopped() -> None:
    stuck = Stuck()
    with pytest.raises(ResolverError, match=r"'theirs' took longer than 0\.01 seconds"):
        await GuardedResolver("theirs", stuck, timeout=0.01).resolve(connection())
    assert stuck.stopped


async def test_R22_a_cancelled_request_is_not_mistaken_for_a_slow_resolver() -> None:
    stuck = Stuck()
    task = asyncio.create_task(GuardedResolver("theirs", stuck).resolve(connection()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stuck.stopped


async def test_R22_every_resolver_that_is_not_the_cores_is_guarded(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with opened(make_config(), resolver=Plugin(None)) as tenancy:
        alone = tenancy.resolver
    config = make_config(resolution_strategy="header,custom")
    async with opened(config, resolver=Plugin(None)) as tenancy:
        chain = tenancy.resolver
    assert isinstance(chain, ChainResolver)
    for guarded in (alone, chain.resolvers[1]):
        assert isinstance(guarded, GuardedResolver)
        assert guarded.name == "Plugin"
        assert guarded._timeout == RESOLVER_TIMEOUT


class _Speaks(Plugin):
    missing = TenantNotFound


class _Mumbles(Plugin):
    missing = "tenant_not_found"


@pytest.mark.parametrize(
    ("kind", "missing"),
    [(Plugin, TenantNotIdentified), (_Speaks, TenantNotFound), (_Mumbles, TenantNotIdentified)],
)
def test_how_a_missing_tenant_is_refused_is_the_resolvers_choice_of_a_refusal(
    kind: type[Plugin], missing: type[RequestRefused]
) -> None:
    assert GuardedResolver("theirs", kind(None)).missing is missing
