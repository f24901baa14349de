"""Secrets: what is encrypted stays so, and nothing that is printed, logged or raised shows it.

The settings have rows of their own: test_secrets.py (URLs and errors of the settings) and
test_crypto_settings.py (keys).
"""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import random
import threading
import traceback
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy.exc import DatabaseError

from support.keys import opened
from support.notes import Base, read
from support.printing import printed
from support.processes import crew
from tenancy_core import Sensitive, Tenancy, TenancyConfig, TenancyMiddleware
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.crypto import TenantCipher, seal_metadata
from tenancy_core.crypto.encryption import MOST_BYTES
from tenancy_core.errors import (
    BackendUnavailable,
    DecryptionError,
    IsolationError,
    TenancyError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

CANARY = "canary-4f1d9c"
ENCRYPTION = [f"{CANARY}-{number}-{'e' * 32}" for number in range(3)]
SIGNING = [f"{CANARY}-{number}-{'s' * 32}" for number in range(2)]
ACME, BETA = UUID(int=1), UUID(int=2)


def cipher(*keys: str) -> TenantCipher:
    return TenantCipher([SecretStr(key) for key in keys])


# -- S4: what was changed is refused ---------------------------------------------------------------

KEYS = cipher(*ENCRYPTION)
WRAPPED = KEYS.new_data_key(ACME)
FIELDS = KEYS.open(ACME, WRAPPED)
VALUE = CANARY.encode()
MESSAGES: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "a field": (FIELDS.encrypt("f", VALUE), lambda data: FIELDS.decrypt("f", data)),
    "an empty field": (FIELDS.encrypt("f", b""), lambda data: FIELDS.decrypt("f", data)),
    "a data key": (WRAPPED, lambda data: KEYS.open(ACME, data)),
    "a data key to be wrapped again": (
        cipher(ENCRYPTION[1]).new_data_key(ACME),
        lambda data: KEYS.rewrap(ACME, data),
    ),
}


def refused(data: bytes, open_: Callable[[bytes], object]) -> str:
    with pytest.raises(DecryptionError) as caught:
        open_(data)
    assert caught.value.__cause__ is None
    if VALUE not in data:
        assert CANARY not in printed(caught.value, __file__)
    return str(caught.value)


@pytest.mark.parametrize("kind", MESSAGES)
def test_S4_a_bit_flipped_at_any_position_is_refused(kind: str) -> None:
    message, open_ = MESSAGES[kind]
    assert open_(message) is not None
    for position in range(len(message) * 8):
        changed = bytearray(message)
        changed[position // 8] ^= 1 << position % 8
        refused(bytes(changed), open_)


@pytest.mark.parametrize("kind", MESSAGES)
def test_S4_a_message_of_another_length_is_refused(kind: str) -> None:
    message, open_ = MESSAGES[kind]
    for length in range(len(message)):
        refused(message[:length], open_)
        refused(message[length + 1 :], open_)
    for more in (b"\0", message[-16:], message):
        refused(message + more, open_)


@pytest.mark.parametrize("kind", MESSAGES)
def test_S4_another_version_is_refused_whatever_it_was_or_will_be(kind: str) -> None:
    message, open_ = MESSAGES[kind]
    for version in set(range(256)) - {message[0]}:
        assert "no format that this version knows" in refused(bytes([version]) + message[1:], open_)


@pytest.mark.parametrize("kind", MESSAGES)
def test_S4_the_id_of_another_key_is_refused_also_of_one_that_is_there(kind: str) -> None:
    message, open_ = MESSAGES[kind]
    ids = [bytes(4), b"\xff" * 4, *(cipher(key).new_data_key(ACME)[1:5] for key in ENCRYPTION)]
    for key_id in set(ids) - {message[1:5]}:
        refused(message[:1] + key_id + message[5:], open_)


@pytest.mark.parametrize("kind", MESSAGES)
def test_S4_plain_text_does_not_pass(kind: str) -> None:
    _, open_ = MESSAGES[kind]
    for plain in (VALUE, b"", b"\x01", VALUE * 10, b"\x01" + VALUE * 10, bytes(32), bytes(65)):
        message = refused(plain, open_)
        assert plain.decode("latin-1") not in message or not plain.strip(b"\0\x01")


def test_S4_parts_of_two_messages_do_not_make_a_third() -> None:
    one, other = FIELDS.encrypt("f", b"a" * 20), FIELDS.encrypt("f", b"b" * 20)
    for cut in range(1, len(one)):
        mixed = one[:cut] + other[cut:]
        if mixed not in {one, other}:
            refused(mixed, lambda data: FIELDS.decrypt("f", data))


# -- S7: a nonce is used once ----------------------------------------------------------------------


def nonces(messages: list[bytes]) -> set[bytes]:
    return {message[5:17] for message in messages}


def test_S7_a_hundred_thousand_messages_in_eight_threads_have_as_many_nonces() -> None:
    made: list[list[bytes]] = [[] for _ in range(8)]
    start = threading.Barrier(8)

    def work(mine: list[bytes]) -> None:
        start.wait()
        mine.extend(FIELDS.encrypt("f", b"x") for _ in range(12_500))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    messages = [message for mine in made for message in mine]
    assert len(nonces(messages)) == 100_000
    assert all(FIELDS.decrypt("f", message) == b"x" for message in messages[::100])


def test_S7_processes_that_were_forked_share_no_nonce(tmp_path: Path) -> None:
    """The cipher was made, and used, before the fork."""
    program = f"""
from uuid import UUID
from pydantic import SecretStr
from tenancy_core.crypto import TenantCipher
fields = TenantCipher([SecretStr({ENCRYPTION[0]!r})])
fields = fields.open(UUID(int=1), bytes.fromhex({WRAPPED.hex()!r}))
fields.encrypt("f", b"before")
async def work():
    return ",".join(fields.encrypt("f", b"x").hex() for _ in range(1000))
"""
    with crew(4, program, tmp_path) as processes:
        answers = processes.all_at_once("")
    messages = [
        bytes.fromhex(text) for answer in answers for text in answer.split(" ", 1)[1].split(",")
    ]
    assert len(nonces(messages)) == len(messages) == 4000
    assert {FIELDS.decrypt("f", message) for message in messages} == {b"x"}


def test_S7_nobody_chooses_nonces_and_keys_by_seeding_a_generator() -> None:
    made: list[bytes] = []
    for _ in range(2):
        random.seed(4711)
        made += [FIELDS.encrypt("f", b"x"), KEYS.new_data_key(ACME)]
    assert len(nonces(made)) == 4
    assert len({KEYS._unwrap(ACME, wrapped)[0] for wrapped in made[1::2]}) == 2


def test_S7_data_keys_are_wrapped_with_a_nonce_of_their_own() -> None:
    wrapped = [KEYS.new_data_key(ACME) for _ in range(1000)]
    assert len(nonces(wrapped)) == 1000


# -- S1: nothing that is printed shows it ----------------------------------------------------------


def settings(config: Callable[..., TenancyConfig], *keys: str) -> TenancyConfig:
    return config(
        enable_encryption=True,
        encryption_keys=list(keys or ENCRYPTION),
        signing_keys=SIGNING,
        cache_enabled=True,
        database_echo=True,
    )


async def error_of(awaited: Awaitable[object]) -> BaseException:
    with pytest.raises((TenancyError, ValueError)) as caught:
        await awaited
    return caught.value


async def shown_while_it_works(tenancy: Tenancy) -> list[str]:
    """Make tenants with secrets, and return what the objects say about themselves."""
    tenants, parts = tenancy.tenants, tenancy.parts
    await tenants.create("acme", metadata={"a": [Sensitive(CANARY)]})
    acme = await tenants.put_secret("acme", "token", CANARY, actor="me")
    await tenants.create("beta")
    await tenants.put_secret("beta", "token", SecretStr(CANARY))
    token = await tenants.get_secret("acme", "token")
    assert token is not None
    assert token.get_secret_value() == CANARY
    revealed = await tenants.reveal("acme")
    assert revealed["a"][0].reveal() == CANARY
    events = await parts.store.audit(acme.id, limit=100)
    assert events
    ours = [tenancy, parts.signing, parts.cipher, parts.directory, tenants, parts.audit]
    shown = [repr(thing) for thing in (acme, acme.metadata, token, revealed, parts, *ours, *events)]
    for thing in ours:
        with pytest.raises(TypeError) as refusal:
            pickle.dumps(thing)
        shown.append(str(refusal.value))
    return shown


async def shown_while_things_go_wrong(tenancy: Tenancy) -> list[str]:
    """Misuse and attack it, and return the tracebacks."""
    tenants, store = tenancy.tenants, tenancy.parts.store
    acme, beta = await tenants.get("acme"), await tenants.get("beta")
    token = await store.get_secret(acme.id, "token")
    assert token is not None
    shown: list[str] = []
    # Acme's secret under beta's name, whole and cut off.
    for forged in (token, token[:-1], b""):
        async with store.transaction() as transaction:
            await transaction.put_secret(beta.id, "token", forged)
        error = await error_of(tenants.get_secret("beta", "token"))
        assert isinstance(error, DecryptionError)
        shown.append(printed(error, __file__))
    calls = (
        tenants.put_secret("nobody", "token", CANARY),
        tenants.put_secret("acme", "token", CANARY, expected_version=99),
        tenants.put_secret("acme", "no name", CANARY),
        tenants.put_secret("acme", "data-key", SecretStr(CANARY)),
        tenants.create("acme", metadata={"a": Sensitive(CANARY)}),
        tenants.set_metadata("acme", {"a": [Sensitive(CANARY), {"$sealed": "AAAA"}]}),
        tenants.set_metadata("acme", {"a": Sensitive(CANARY), "b": object()}),
    )
    shown += [printed(await error_of(call), __file__) for call in calls]

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        await tenants.get_secret("beta", "token")

    transport = httpx.ASGITransport(TenancyMiddleware(app, tenancy), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        answer = await http.get("/", headers={"X-Tenant-ID": "acme"})
        shown.append(answer.text + repr(answer.headers))
    return shown


async def shown_without_keys(config: TenancyConfig) -> list[str]:
    """Ask for what is encrypted, with other keys or with none, and return the tracebacks."""
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        calls = [tenancy.tenants.get_secret("acme", "token"), tenancy.tenants.reveal("acme")]
        if not config.enable_encryption:
            calls += [
                tenancy.tenants.put_secret("acme", "token", CANARY),
                tenancy.tenants.create("gamma", metadata={"a": Sensitive(CANARY)}),
                tenancy.tenants.set_metadata("acme", {"a": Sensitive(CANARY)}),
            ]
        return [printed(await error_of(call), __file__) for call in calls]


@pytest.mark.anyio
async def test_S1_a_run_in_which_everything_goes_wrong_shows_no_secret(
    make_config: Callable[..., TenancyConfig], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    async with Tenancy(settings(make_config), metadata=Base.metadata) as tenancy:
        shown = await shown_while_it_works(tenancy)
        shown += await shown_while_things_go_wrong(tenancy)
        instance = await tenancy.parts.store.instance_key()
    # A key that was taken away too early, and encryption that was turned off.
    shown += await shown_without_keys(settings(make_config, "another" * 5))
    shown += await shown_without_keys(make_config())
    assert caplog.records
    for text in (*shown, caplog.text):
        assert CANARY not in text
        assert repr(instance)[2:-1] not in text
        assert instance.hex() not in text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path


@pytest.mark.anyio
async def test_S1_a_closed_tenancy_has_forgotten_the_key_of_its_store() -> None:
    store = MemoryTenantStore()
    config = TenancyConfig(database_url="sqlite+aiosqlite:///./data/control.db")
    tenancy = Tenancy(config, store=store)
    async with tenancy:
        keys = tenancy.parts.signing
        assert keys.ring("x")
    assert keys._masters == ()
    assert keys._rings == {}
    key = await store.instance_key()
    holders = [thing for thing in gc.get_referrers(key) if thing is not store.__dict__]
    assert not any(type(thing) is tuple and key in thing for thing in holders)


def variables_of_ours(call: Callable[[], object]) -> str:
    """Return the variables of our frames in the traceback of a call that fails."""
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    frames = [frame for frame, _ in traceback.walk_tb(caught.tb)]
    ours = [frame for frame in frames if "tenancy_core" in frame.f_code.co_filename]
    assert ours
    return "".join(repr(value) for frame in ours for value in frame.f_locals.values())


@pytest.mark.parametrize(
    "call",
    [
        lambda: FIELDS.encrypt("f", VALUE + bytes(MOST_BYTES)),
        lambda: Sensitive([CANARY, object()]),
        lambda: Sensitive({"a": CANARY, 1: CANARY}),
        lambda: Sensitive(CANARY * (MOST_BYTES // len(CANARY))),
        lambda: seal_metadata({"a": Sensitive(CANARY)}, None),
        lambda: seal_metadata({"a": Sensitive(CANARY), "b": object()}, FIELDS),
    ],
    ids=range(6),
)
def test_S1_an_error_keeps_no_value_in_the_variables_of_our_frames(
    call: Callable[[], object],
) -> None:
    assert CANARY not in variables_of_ours(call)


def test_S1_an_error_keeps_no_key_in_the_variables_of_our_frames() -> None:
    keys = opened(MemoryTenantStore(), SIGNING[0])
    signer, (_, key) = keys.signer("x"), keys.ring("x")[0]
    wrong: Any = "no bytes"
    for call in (lambda: signer.sign(wrong), lambda: signer.verify(bytes(36), wrong)):
        assert repr(key)[2:-1] not in variables_of_ours(call)


def test_S1_copies_of_what_holds_a_secret_are_refused() -> None:
    for thing in (KEYS, FIELDS):
        for copied in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="not pickled"):
                copied(thing)


# -- S4, S6 in a Tenancy ---------------------------------------------------------------------------


@pytest.mark.anyio
async def test_S4_a_secret_in_plain_text_in_the_store_is_never_returned(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with Tenancy(settings(make_config), metadata=Base.metadata) as tenancy:
        acme = await tenancy.tenants.create("acme")
        async with tenancy.parts.store.transaction() as transaction:
            await transaction.put_secret(acme.id, "token", b"in plain text")
        with pytest.raises(DecryptionError, match="no format that this version knows"):
            await tenancy.tenants.get_secret("acme", "token")


@pytest.mark.anyio
async def test_S6_keys_that_are_gone_leave_the_rest_of_a_tenant_in_service(
    make_config: Callable[..., TenancyConfig],
) -> None:
    async with Tenancy(settings(make_config), metadata=Base.metadata) as tenancy:
        await tenancy.tenants.create("acme", metadata={"a": Sensitive(1), "b": 2})
    for config in (settings(make_config, "another" * 5), make_config()):
        async with Tenancy(config, metadata=Base.metadata) as tenancy:
            async with tenancy.scope("acme") as tenant:
                assert tenant.metadata["b"] == 2
                assert await read(tenancy) == []
            with pytest.raises(DecryptionError):
                await tenancy.tenants.reveal("acme")


# -- S8 on SQLite, whose only secret is where its files are ----------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        ("no database", BackendUnavailable),
        ("a folder", IsolationError),
        ("gone", IsolationError),
    ],
)
async def test_S8_an_error_of_a_connection_does_not_say_where_the_file_is(
    tmp_path: Path,
    broken: str,
    kind: type[TenancyError],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / CANARY
    config = TenancyConfig(database_url=f"sqlite+aiosqlite:///{folder}/control.db")
    async with Tenancy(config, metadata=Base.metadata) as tenancy:
        acme = await tenancy.tenants.create("acme")
    (file,) = folder.rglob(f"{acme.placement.name}.db")
    for path in file.parent.glob(f"{file.name}*"):
        path.unlink()
    if broken == "a folder":
        file.mkdir()
    elif broken == "no database":
        file.write_bytes(b"no database" * 1000)
    async with Tenancy(config, metadata=Base.metadata) as tenancy, tenancy.scope("acme"):
        with pytest.raises(kind) as caught:
            await read(tenancy)
    error: BaseException | None = caught.value
    while error is not None:
        assert CANARY not in str(error) + repr(error)
        error = error.__cause__ or error.__context__
    ours = [record for record in caplog.records if record.name.startswith("tenancy")]
    assert CANARY not in "".join(record.getMessage() for record in ours)


@pytest.mark.anyio
async def test_S8_nor_does_one_of_the_tenant_store(tmp_path: Path) -> None:
    folder = tmp_path / CANARY
    folder.mkdir()
    (folder / "control.db").write_bytes(b"no database" * 1000)
    config = TenancyConfig(database_url=f"sqlite+aiosqlite:///{folder}/control.db")
    with pytest.raises((DatabaseError, TenancyError), match="no SQLite database") as caught:
        async with Tenancy(config, metadata=Base.metadata):
            pass
    error: BaseException | None = caught.value
    while error is not None:
        assert CANARY not in str(error) + repr(error)
        error = error.__cause__ or error.__context__
