"""Secrets that plugins keep for themselves, while others change the tenant or end it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from support.control import ACME, NEW_KEY
from support.printing import printed
from tenancy_core import Tenancy, TenantNotFound
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.crypto import TenantCipher, TenantSecrets
from tenancy_core.errors import ConfigurationError, InvalidTransition, VersionConflict

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from support.control import Places
    from tenancy_core import TenancyConfig

pytestmark = pytest.mark.anyio

NAME = "tenancy.password"
CANARY = "canary-4f1d9c"


@pytest.fixture(params=["memory", "sql"])
async def tenancy(
    request: pytest.FixtureRequest, make_config: Callable[..., TenancyConfig], places: Places
) -> AsyncIterator[Tenancy]:
    store = MemoryTenantStore() if request.param == "memory" else None
    config = make_config(enable_encryption=True, encryption_keys=[NEW_KEY])
    async with Tenancy(config, store=store, isolation=places) as opened:
        await opened.tenants.create("acme", tenant_id=ACME)
        yield opened


@pytest.fixture
def secrets(tenancy: Tenancy) -> TenantSecrets:
    return TenantSecrets(tenancy.parts.store, TenantCipher((SecretStr(NEW_KEY),)))


async def kept(secrets: TenantSecrets) -> str | None:
    found = await secrets.get(ACME, NAME)
    return None if found is None else found.get_secret_value()


async def end(tenancy: Tenancy) -> None:
    await tenancy.tenants.archive(ACME)
    await tenancy.tenants.erase(ACME)


def after(
    monkeypatch: pytest.MonkeyPatch,
    store: Any,
    method: str,
    work: Callable[[], Awaitable[object]],
    times: int = 1,
) -> None:
    """Do something else as soon as the store has answered, with the answer it gave before."""
    real, left = getattr(store, method), times

    async def answer(*given: Any) -> Any:
        nonlocal left
        found = await real(*given)
        if left:
            left -= 1
            await work()
        return found

    monkeypatch.setattr(store, method, answer)


async def test_a_secret_is_kept_and_replaced_and_no_version_changes(
    tenancy: Tenancy, secrets: TenantSecrets
) -> None:
    before = await tenancy.tenants.get(ACME)
    assert await kept(secrets) is None
    for value, expected in (("one", None), ("two", SecretStr("one"))):
        await secrets.keep(ACME, NAME, SecretStr(value), expected=expected)
        assert await kept(secrets) == value
    assert await tenancy.tenants.get(ACME) == before


@pytest.mark.parametrize(("there", "expected"), [(None, "one"), ("one", None), ("one", "two")])
async def test_P10_what_somebody_else_has_kept_meanwhile_stays(
    secrets: TenantSecrets, there: str | None, expected: str | None
) -> None:
    if there is not None:
        await secrets.keep(ACME, NAME, SecretStr(there), expected=None)
    read = None if expected is None else SecretStr(expected)
    with pytest.raises(VersionConflict, match="Somebody else replaced") as caught:
        await secrets.keep(ACME, NAME, SecretStr(CANARY), expected=read)
    assert await kept(secrets) == there
    assert CANARY not in printed(caught.value, __file__)


@pytest.mark.parametrize("read", ["get_secret", "get"])
async def test_C5_nothing_is_kept_of_a_tenant_that_is_erased_meanwhile(
    tenancy: Tenancy, secrets: TenantSecrets, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    store = tenancy.parts.store
    after(monkeypatch, store, read, lambda: end(tenancy))
    with pytest.raises(InvalidTransition, match=f"Tenant {ACME} is erased"):
        await secrets.keep(ACME, NAME, SecretStr("left over"), expected=None)
    assert await store.secret_names(ACME) == []
    # Which is not what a tenant without a data key is told.
    with pytest.raises(InvalidTransition, match=f"Tenant {ACME} is erased"):
        await secrets.keep(ACME, NAME, SecretStr("late"), expected=None)


async def test_a_tenant_that_is_changed_meanwhile_has_its_secret_and_the_change(
    tenancy: Tenancy, secrets: TenantSecrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    after(monkeypatch, tenancy.parts.store, "get", lambda: tenancy.tenants.set_plan(ACME, "pro"))
    await secrets.keep(ACME, NAME, SecretStr("one"), expected=None)
    assert await kept(secrets) == "one"
    acme = await tenancy.tenants.get(ACME)
    assert (acme.plan, acme.version) == ("pro", 3)


async def test_a_tenant_that_changes_all_the_time_is_told(
    tenancy: Tenancy, secrets: TenantSecrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = iter(range(100))
    real = tenancy.parts.store.get
    busy = True

    async def get(tenant_id: Any) -> Any:
        nonlocal busy
        found = await real(tenant_id)
        if busy:
            busy = False
            await tenancy.tenants.set_plan(ACME, f"plan-{next(plans)}")
            busy = True
        return found

    monkeypatch.setattr(tenancy.parts.store, "get", get)
    with pytest.raises(VersionConflict):
        await secrets.keep(ACME, NAME, SecretStr("one"), expected=None)
    assert next(plans) == 5
    assert await kept(secrets) is None


async def test_who_has_no_data_key_and_who_is_nobody_are_told_apart(
    tenancy: Tenancy, secrets: TenantSecrets
) -> None:
    async with tenancy.parts.store.transaction() as transaction:
        await transaction.delete_secrets(ACME)
    with pytest.raises(ConfigurationError, match="older than the encryption"):
        await secrets.keep(ACME, NAME, SecretStr("one"), expected=None)
    with pytest.raises(TenantNotFound):
        await secrets.keep(uuid4(), NAME, SecretStr("one"), expected=None)


async def test_P10_whoever_keeps_between_the_reading_of_another_and_its_writing_is_noticed(
    tenancy: Tenancy, secrets: TenantSecrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Any = tenancy.parts.store
    real, overtaken = store.transaction, [False]

    @asynccontextmanager
    async def transaction() -> AsyncGenerator[Any, None]:
        if not overtaken[0]:
            overtaken[0] = True
            await secrets.keep(ACME, NAME, SecretStr("theirs"), expected=None)
        async with real() as opened:
            yield opened

    monkeypatch.setattr(store, "transaction", transaction)
    with pytest.raises(VersionConflict, match="Somebody else replaced"):
        await secrets.keep(ACME, NAME, SecretStr("mine"), expected=None)
    assert await kept(secrets) == "theirs"
