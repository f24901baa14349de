"""The shared cache is not trusted: what this deployment did not write under a key is a miss."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from support.keys import opened
from support.notes import Base
from tenancy_core import Sensitive, Tenancy, TenancyConfig
from tenancy_core._cache.memory import MemoryCacheBackend
from tenancy_core._directory import TenantCodec
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.tenant import Placement, Tenant, TenantStatus
from tenancy_core.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

CANARY = "canary-4f1d9c"
STORE = MemoryTenantStore()
ONE, TWO = "1" * 32, "2" * 32


def tenant(identifier: str = "acme", **values: Any) -> Tenant:
    now = datetime.now(UTC)
    return Tenant(
        **{
            "id": uuid4(),
            "identifier": identifier,
            "name": f"{CANARY} Ltd",
            "status": TenantStatus.ACTIVE,
            "created_at": now,
            "updated_at": now,
            "isolation": "database",
            "placement": Placement(name=f"tenant_{identifier}"),
            **values,
        }
    )


def codec(
    *keys: str, store: MemoryTenantStore = STORE, clock: FakeClock | None = None
) -> TenantCodec:
    return TenantCodec(opened(store, *keys), clock or FakeClock(1_800_000_000.0))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert CANARY not in caplog.text
    return [r.getMessage() for r in caplog.records if "signing keys" in r.getMessage()]


def test_a_tenant_comes_back_as_it_was() -> None:
    mine = codec()
    acme = tenant(plan="pro", limits={"rate_limit_per_minute": 5}, metadata={"a": [1, {"b": "é"}]})
    key = mine.key(3, "acme")
    copy = codec().decode(key, mine.encode(key, acme, ttl=60))
    assert copy is not None
    for name in Tenant.__slots__:
        assert getattr(copy, name) == getattr(acme, name), name


def test_no_value_that_was_changed_is_believed(caplog: pytest.LogCaptureFixture) -> None:
    mine = codec()
    acme = tenant()
    key = mine.key(0, "acme")
    data = mine.encode(key, acme, ttl=60)
    believed = 0
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        assert mine.decode(key, bytes(changed)) in {None, acme}
        believed += mine.decode(key, bytes(changed)) is not None
    # What JSON allows to be written in another way, and means the same.
    assert believed == 0
    for length in range(len(data)):
        assert mine.decode(key, data[:length]) is None
    failed = 2 * len(data) + len(data)
    told = [line.partition("(")[2] for line in warnings(caplog)]
    assert told == [f"{10**n} so far)" for n in range(len(str(failed)))]


@pytest.mark.parametrize("name", ["id", "version", "until", "tenant", "format", "mac"])
def test_no_part_of_a_value_can_be_taken_from_another_one(name: str) -> None:
    mine = codec()
    key = mine.key(0, "acme")
    acme = tenant(version=7)
    one = json.loads(mine.encode(key, acme, ttl=60))
    other = json.loads(mine.encode(key, tenant(version=8, status=TenantStatus.SUSPENDED), ttl=61))
    other["format"] = 3
    assert mine.decode(key, json.dumps(one).encode()) == acme
    assert mine.decode(key, json.dumps({**one, name: other[name]}).encode()) is None
    del one[name]
    assert mine.decode(key, json.dumps(one).encode()) is None


@pytest.mark.parametrize("kind", [str, float, bool, lambda value: [value]], ids=range(4))
@pytest.mark.parametrize("name", ["version", "until"])
def test_a_number_is_an_integer(name: str, kind: Callable[[Any], Any]) -> None:
    """A float formats like the integer that was signed; a tenant has no version 1.0."""
    mine = codec()
    key = mine.key(0, "acme")
    value = json.loads(mine.encode(key, tenant(), ttl=60))
    value[name] = kind(value[name])
    assert mine.decode(key, json.dumps(value).encode()) is None


def test_a_value_is_believed_under_its_own_key_only() -> None:
    mine = codec()
    data = mine.encode(mine.key(0, "acme"), tenant(), ttl=60)
    for key in (mine.key(0, "beta"), mine.key(1, "acme"), "", "tenant:0:acme"):
        assert mine.decode(key, data) is None


def test_a_value_of_another_deployment_is_not_believed() -> None:
    """Both may share the cache, and even the signing keys that somebody copied."""
    for keys in ((), (ONE,)):
        mine, theirs = codec(*keys), codec(*keys, store=MemoryTenantStore())
        assert mine.key(0, "acme") != theirs.key(0, "acme")
        data = theirs.encode(mine.key(0, "acme"), tenant(), ttl=60)
        assert mine.decode(mine.key(0, "acme"), data) is None


def test_while_keys_are_rotated_each_side_believes_the_other() -> None:
    old, rotating, new = codec(ONE), codec(TWO, ONE), codec(TWO)
    key = old.key(0, "acme")
    assert key == new.key(0, "acme")
    acme = tenant()
    assert rotating.decode(key, old.encode(key, acme, ttl=60)) == acme
    assert new.decode(key, rotating.encode(key, acme, ttl=60)) == acme
    assert old.decode(key, rotating.encode(key, acme, ttl=60)) is None


def test_a_value_that_is_put_back_later_is_believed_no_longer_than_it_would_have_been(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock(1_800_000_000.0)
    mine = codec(clock=clock)
    key = mine.key(0, "acme")
    data = mine.encode(key, tenant(), ttl=60)
    clock.advance(59)
    assert mine.decode(key, data) is not None
    clock.advance(1)
    assert mine.decode(key, data) is None
    assert warnings(caplog) == []


def test_what_version_1_wrote_is_a_miss(caplog: pytest.LogCaptureFixture) -> None:
    """The format before there were signatures."""
    acme = tenant()
    unsigned = {
        "format": 1,
        "id": str(acme.id),
        "identifier": "acme",
        "name": CANARY,
        "status": "active",
        "plan": None,
        "limits": {},
        "isolation": "database",
        "placement": ["default", "tenant_acme"],
        "metadata": {},
        "version": 1,
        "created_at": acme.created_at.isoformat(),
        "updated_at": acme.updated_at.isoformat(),
    }
    mine = codec()
    assert mine.decode(mine.key(0, "acme"), json.dumps(unsigned).encode()) is None
    assert mine.decode(mine.key(0, "acme"), json.dumps({**unsigned, "format": 2}).encode()) is None
    assert len(warnings(caplog)) == 1


def test_what_another_version_wrote_and_this_one_cannot_read_is_a_miss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = codec()
    key = mine.key(0, "acme")
    monkeypatch.setattr(TenantStatus.ACTIVE, "_value_", "sleeping")
    data = mine.encode(key, tenant(), ttl=60)
    monkeypatch.undo()
    assert b"sleeping" in data
    assert mine.decode(key, data) is None


# -- in a Tenancy ----------------------------------------------------------------------------------


class Watched(MemoryCacheBackend):
    """A shared cache that an attacker can write to."""

    def values(self) -> dict[str, bytes]:
        return {key: data for key, (_, data) in self._entries.items()}

    def put(self, key: str, data: bytes) -> None:
        self._entries[key] = (float("inf"), data)


@pytest.mark.anyio
async def test_an_attacker_in_the_shared_cache_moves_nobody_to_another_tenant(
    make_config: Callable[..., TenancyConfig], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    cache = Watched()
    config = make_config(cache_enabled=True)
    async with Tenancy(config, cache_backend=cache, metadata=Base.metadata) as tenancy:
        acme = await tenancy.tenants.create("acme", name=CANARY)
        beta = await tenancy.tenants.create("beta", name=CANARY)
        for name in ("acme", "beta"):
            async with tenancy.scope(name):
                pass
        tenancy.parts.directory.forget_all()
        keys = {key.rpartition(":")[2]: key for key in cache.values()}
        assert set(keys) == {"acme", "beta"}
        genuine = cache.values()
        # Beta's record under acme's key, and beta's place in acme's record.
        cache.put(keys["acme"], genuine[keys["beta"]])
        async with tenancy.scope("acme") as found:
            assert found.id == acme.id
        tenancy.parts.directory.forget_all()
        edited = genuine[keys["acme"]].replace(
            acme.placement.name.encode(), beta.placement.name.encode()
        )
        assert edited != genuine[keys["acme"]]
        cache.put(keys["acme"], edited)
        async with tenancy.scope("acme") as found:
            assert found.placement == acme.placement
    assert len(warnings(caplog)) == 1


@pytest.mark.anyio
async def test_K8_the_shared_cache_holds_ciphertext_only(
    make_config: Callable[..., TenancyConfig],
) -> None:
    cache = Watched()
    config = make_config(cache_enabled=True, enable_encryption=True, encryption_keys=ONE)
    async with Tenancy(config, cache_backend=cache, metadata=Base.metadata) as tenancy:
        made = await tenancy.tenants.create("acme", metadata={"token": Sensitive(CANARY)})
        assert CANARY not in repr(made) + repr(made.metadata)
        async with tenancy.scope("acme"):
            pass
        tenancy.parts.directory.forget_all()
        async with tenancy.scope("acme") as from_cache:
            assert list(from_cache.metadata["token"]) == ["$sealed"]
    (data,) = cache.values().values()
    assert b"$sealed" in data
    assert CANARY.encode() not in data
