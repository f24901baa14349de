"""Signatures hold for their purpose, their parts and their deployment, and for nothing else."""

from __future__ import annotations

import hashlib
import hmac
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from support.keys import opened
from tenancy_core import ConfigurationError, Tenancy, TenancyConfig
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.crypto import SigningKeys, hkdf, signing

if TYPE_CHECKING:
    from collections.abc import Callable

ONE, TWO, THREE = ("1" * 32, "2" * 32, "3" * 32)


def test_a_tag_is_the_id_of_the_key_and_hmac_sha256_over_the_parts_with_their_lengths() -> None:
    """Written out by hand: what is stored today is verified by whatever comes later."""
    root = hmac.digest(b"tenancy-core", ONE.encode(), hashlib.sha256)

    def one_block(*info: bytes) -> bytes:
        sized = b"".join(len(part).to_bytes(8, "big") + part for part in info)
        return hmac.digest(root, sized + b"\x01", hashlib.sha256)

    key = one_block(b"key", b"signing", b"audit")
    message = bytes(7) + b"\x01a" + bytes(7) + b"\x02bc"
    tag = opened(MemoryTenantStore(), ONE).signer("audit").sign(b"a", b"bc")
    assert tag[:4] == one_block(b"id", b"signing", b"audit")[:4]
    assert tag[4:] == hmac.digest(key, message, hashlib.sha256)


lists = st.lists(st.binary(max_size=4), max_size=4)
STORE = MemoryTenantStore()
KEYS = opened(STORE)


@example([b"ab", b"c"], [b"a", b"bc"])
@example([b""], [])
@given(lists, lists)
def test_a_tag_holds_for_one_list_of_parts(parts: list[bytes], others: list[bytes]) -> None:
    signer = KEYS.signer("test")
    tag = signer.sign(*parts)
    assert signer.verify(tag, *parts)
    assert signer.verify(tag, *others) == (parts == others)


def test_no_tag_that_was_changed_holds() -> None:
    signer = KEYS.signer("test")
    tag = signer.sign(b"a")
    for position in range(len(tag) * 8):
        changed = bytearray(tag)
        changed[position // 8] ^= 1 << position % 8
        assert not signer.verify(bytes(changed), b"a")
    for length in range(len(tag)):
        assert not signer.verify(tag[:length], b"a")
    assert not signer.verify(tag + b"\0", b"a")


def test_purposes_never_share_a_key() -> None:
    purposes = ("cache", "audit", "jobs", "rls-guard", "", "cach", "caché")
    tags = {purpose: KEYS.signer(purpose).sign(b"a") for purpose in purposes}
    for purpose in purposes:
        for made_for, tag in tags.items():
            assert KEYS.signer(purpose).verify(tag, b"a") == (purpose == made_for)
    assert len({key for purpose in purposes for _, key in KEYS.ring(purpose)}) == len(purposes)


def test_the_first_key_signs_and_all_verify() -> None:
    before = opened(STORE, ONE).signer("x")
    while_rotating = opened(STORE, TWO, ONE).signer("x")
    after = opened(STORE, TWO).signer("x")
    old, new = before.sign(b"a"), while_rotating.sign(b"a")
    assert while_rotating.verify(old, b"a")
    assert while_rotating.verify(new, b"a")
    assert after.verify(new, b"a")
    assert not before.verify(new, b"a")
    assert not after.verify(old, b"a")
    assert new == after.sign(b"a")


def test_the_store_s_own_key_counts_while_it_is_named() -> None:
    default = opened(STORE).signer("x")
    moving = opened(STORE, ONE, "instance").signer("x")
    moved = opened(STORE, ONE).signer("x")
    tag = default.sign(b"a")
    assert moving.verify(tag, b"a")
    assert not moved.verify(tag, b"a")
    assert moved.verify(moving.sign(b"a"), b"a")
    assert opened(STORE, "instance").signer("x").sign(b"a") == tag


def test_each_store_has_signatures_of_its_own() -> None:
    other = opened(MemoryTenantStore()).signer("x")
    assert not other.verify(opened(STORE).signer("x").sign(b"a"), b"a")
    assert opened(MemoryTenantStore(), ONE).namespace != opened(STORE, ONE).namespace
    assert opened(STORE, ONE).namespace == opened(STORE, TWO).namespace
    assert len(KEYS.namespace) == 16


def test_keys_with_the_same_id_are_all_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id has 32 bits: sooner or later two keys share it, and nobody would find out why."""

    def collide(material: bytes, *label: bytes) -> tuple[bytes, bytes]:
        return b"same", hkdf.derive(material, *label)[1]

    monkeypatch.setattr(signing, "derive", collide)
    signer = opened(STORE, ONE, TWO, THREE).signer("x")
    tags = [opened(STORE, key).signer("x").sign(b"a") for key in (ONE, TWO, THREE)]
    assert len(set(tags)) == 3
    assert all(signer.verify(tag, b"a") for tag in tags)
    assert not signer.verify(opened(STORE, "4" * 32).signer("x").sign(b"a"), b"a")


# -- when there are keys ---------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("configured", [[], [SecretStr(ONE)]], ids=["store", "configured"])
async def test_a_signer_is_there_before_its_keys_and_after_them(
    configured: list[SecretStr],
) -> None:
    keys = SigningKeys(configured, STORE)
    signer = keys.signer("x")
    closed: tuple[Callable[[], object], ...] = (
        lambda: signer.sign(b"a"),
        lambda: signer.verify(bytes(36), b"a"),
        lambda: signer.verify(b"", b"a"),
        lambda: keys.namespace,
    )
    for call in closed:
        with pytest.raises(RuntimeError, match="while the Tenancy is open"):
            call()
    async with keys:
        tag, namespace = signer.sign(b"a"), keys.namespace
    for call in closed:
        with pytest.raises(RuntimeError, match="while the Tenancy is open"):
            call()
    async with keys:
        assert signer.verify(tag, b"a")
        assert keys.namespace == namespace


@pytest.mark.anyio
@pytest.mark.parametrize("key", [b"", b"short", bytes(33)])
async def test_a_store_without_a_proper_key_is_refused(key: bytes) -> None:
    class Poor(MemoryTenantStore):
        async def instance_key(self) -> bytes:
            return key

    with pytest.raises(ConfigurationError, match="Poor has no instance key of 32 bytes"):
        async with SigningKeys([], Poor()):
            pass


def test_keys_and_signers_print_nothing() -> None:
    keys = opened(STORE, ONE)
    signer = keys.signer("x")
    signer.sign(b"a")
    printed = repr(keys) + str(keys) + repr(signer) + str(signer)
    assert ONE not in printed
    assert repr(keys.ring("x")[0][1]) not in printed
    for thing in (keys, signer):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(thing)


@pytest.mark.anyio
async def test_a_tenancy_opens_the_keys_behind_its_store_and_forgets_them(
    make_config: Callable[..., TenancyConfig],
) -> None:
    tenancy = Tenancy(make_config())
    signer = tenancy._built.signing.signer("x")
    resources: list[Any] = list(tenancy._built.resources)
    assert resources.index(tenancy._built.signing) == resources.index(tenancy._built.store) + 1
    async with tenancy:
        tag = signer.sign(b"a")
    with pytest.raises(RuntimeError):
        signer.sign(b"a")
    # Another process on the same store, and another store.
    async with Tenancy(make_config()) as second:
        assert second.parts.signing.signer("x").verify(tag, b"a")
    async with Tenancy(make_config(), store=MemoryTenantStore()) as stranger:
        assert not stranger.parts.signing.signer("x").verify(tag, b"a")
