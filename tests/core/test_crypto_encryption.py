"""Encryption: a data key for each tenant, wrapped by the configured keys."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from tenancy_core import ConfigurationError, Tenancy, TenancyConfig
from tenancy_core.crypto import FieldCipher, TenantCipher, aesgcm, hkdf
from tenancy_core.crypto.encryption import MOST_BYTES
from tenancy_core.errors import DecryptionError

if TYPE_CHECKING:
    from collections.abc import Callable

ONE, TWO, THREE = ("1" * 32, "2" * 32, "3" * 32)
ACME, BETA = UUID(int=1), UUID(int=2)


def cipher(*keys: str) -> TenantCipher:
    return TenantCipher([SecretStr(key) for key in keys])


WRAPPED = cipher(ONE).new_data_key(ACME)
FIELDS = cipher(ONE).open(ACME, WRAPPED)


# -- what is written down --------------------------------------------------------------------------


def test_the_format_is_what_it_will_always_be() -> None:
    """Opened by hand: what is stored today is decrypted by whatever comes later."""

    def sized(*parts: bytes) -> bytes:
        return b"".join(len(part).to_bytes(8, "big") + part for part in parts)

    def parts(message: bytes) -> tuple[bytes, bytes, bytes, bytes]:
        return message[:1], message[1:5], message[5:17], message[17:]

    version, key_id, nonce, ciphertext = parts(WRAPPED)
    known, key = hkdf.derive(ONE.encode(), b"encryption", b"data keys")
    assert (version, key_id) == (b"\x01", known)
    bound_to = sized(b"\x01", known, ACME.bytes)
    data_key = AESGCM(key).decrypt(nonce, ciphertext, bound_to)
    assert len(data_key) == 32

    version, key_id, nonce, ciphertext = parts(FIELDS.encrypt("naïve", b"value"))
    known, key = hkdf.derive(data_key, b"encryption", b"fields")
    assert (version, key_id) == (b"\x01", known)
    bound_to = sized(b"\x01", known, ACME.bytes, "naïve".encode())
    assert AESGCM(key).decrypt(nonce, ciphertext, bound_to) == b"value"


def test_a_tag_of_any_length_but_16_bytes_is_none() -> None:
    """SP 800-38D allows shorter tags, and a library may take them from the length."""
    message = FIELDS.encrypt("f", b"")
    assert len(message) == 33
    for cut in range(1, 16):
        with pytest.raises(DecryptionError):
            FIELDS.decrypt("f", message[:-cut])


# -- fields ----------------------------------------------------------------------------------------

fields = st.text(max_size=20)


@example("", b"")
@example("\ud800", b"\0")
@given(fields, st.binary(max_size=100))
def test_a_value_comes_back(field: str, value: bytes) -> None:
    message = FIELDS.encrypt(field, value)
    assert FIELDS.decrypt(field, message) == value
    assert len(message) == len(value) + 33
    # Of another process, or after a restart.
    assert cipher(ONE).open(ACME, WRAPPED).decrypt(field, message) == value


@example("", "\0")
@example("a", "A")
@example("é", "e\u0301")
@given(fields, fields)
def test_a_value_is_its_field_s_only(field: str, other: str) -> None:
    message = FIELDS.encrypt(field, b"value")
    if field != other:
        with pytest.raises(DecryptionError, match="another field"):
            FIELDS.decrypt(other, message)


def test_a_value_is_its_tenant_s_only() -> None:
    """Also where both have one data key, which they never have."""
    beta_s = cipher(ONE).open(BETA, cipher(ONE).new_data_key(BETA))
    twin = FieldCipher(BETA, FIELDS._ring)
    message = FIELDS.encrypt("f", b"value")
    for stranger in (beta_s, twin):
        with pytest.raises(DecryptionError):
            stranger.decrypt("f", message)


def test_a_value_of_an_earlier_data_key_is_gone_with_it() -> None:
    """C7: whoever destroys the data key has destroyed every copy of what it encrypted."""
    message = FIELDS.encrypt("f", b"value")
    renewed = cipher(ONE).open(ACME, cipher(ONE).new_data_key(ACME))
    with pytest.raises(DecryptionError, match="its key is none of those"):
        renewed.decrypt("f", message)


def test_a_data_key_is_no_field_and_a_field_no_data_key() -> None:
    with pytest.raises(DecryptionError):
        FIELDS.decrypt("data-key", WRAPPED)
    with pytest.raises(DecryptionError):
        cipher(ONE).open(ACME, FIELDS.encrypt("data-key", bytes(32)))


def test_large_values_have_a_limit_that_is_said() -> None:
    largest = bytes(MOST_BYTES)
    message = FIELDS.encrypt("f", largest)
    assert FIELDS.decrypt("f", message) == largest
    with pytest.raises(ValueError, match="at most 16777216 bytes"):
        FIELDS.encrypt("f", largest + b"\0")
    with pytest.raises(DecryptionError, match="too long"):
        FIELDS.decrypt("f", message + b"\0")


# -- data keys -------------------------------------------------------------------------------------


def test_every_data_key_is_another() -> None:
    keys = cipher(ONE)
    wrapped = [keys.new_data_key(ACME) for _ in range(100)]
    assert len(set(wrapped)) == 100
    found = {keys._unwrap(ACME, one)[0] for one in wrapped}
    assert len(found) == 100
    assert all(len(key) == 32 for key in found)


def test_a_data_key_is_its_tenant_s_only() -> None:
    with pytest.raises(DecryptionError, match=f"data key of tenant {BETA}"):
        cipher(ONE).open(BETA, WRAPPED)


def test_rotation_changes_what_wraps_and_not_what_is_wrapped() -> None:
    message = FIELDS.encrypt("f", b"value")
    assert cipher(ONE).rewrap(ACME, WRAPPED) is None
    rotating = cipher(TWO, ONE)
    assert rotating.open(ACME, WRAPPED).decrypt("f", message) == b"value"
    renewed = rotating.rewrap(ACME, WRAPPED)
    assert renewed is not None
    assert rotating.rewrap(ACME, renewed) is None
    assert cipher(TWO).open(ACME, renewed).decrypt("f", message) == b"value"
    with pytest.raises(DecryptionError, match="TENANCY_ENCRYPTION_KEYS needs every key"):
        cipher(TWO).open(ACME, WRAPPED)
    with pytest.raises(DecryptionError):
        cipher(TWO).rewrap(ACME, WRAPPED)
    with pytest.raises(DecryptionError):
        rotating.rewrap(BETA, WRAPPED)


def test_keys_with_the_same_id_are_all_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id has 32 bits: sooner or later two keys share it, and nobody would find out why."""

    def collide(material: bytes, *label: bytes) -> tuple[bytes, bytes]:
        return b"same", hkdf.derive(material, *label)[1]

    monkeypatch.setattr(aesgcm, "derive", collide)
    keys = cipher(ONE, TWO, THREE)
    for key in (ONE, TWO, THREE):
        wrapped = cipher(key).new_data_key(ACME)
        assert (keys.rewrap(ACME, wrapped) is None) == (key == ONE)
        message = cipher(key).open(ACME, wrapped).encrypt("f", b"value")
        assert keys.open(ACME, wrapped).decrypt("f", message) == b"value"
    with pytest.raises(DecryptionError, match="it was changed"):
        keys.open(ACME, cipher("4" * 32).new_data_key(ACME))


@given(st.text(max_size=40), st.text(max_size=40))
def test_two_keys_that_differ_never_open_each_other_s(one: str, other: str) -> None:
    """Whatever their characters: the settings allow ASCII only, a caller may pass anything."""
    keys = [key.encode("utf-8", "ignore").decode() for key in (one, other)]
    wrapped = cipher(keys[0]).new_data_key(ACME)
    if keys[0] == keys[1]:
        cipher(keys[1]).open(ACME, wrapped)
    else:
        with pytest.raises(DecryptionError):
            cipher(keys[1]).open(ACME, wrapped)


def test_ciphers_print_nothing_and_are_not_pickled() -> None:
    for thing in (cipher(ONE), FIELDS):
        assert ONE not in repr(thing) + str(thing)
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(thing)


# -- the package, and the parts of a Tenancy -------------------------------------------------------


def test_there_is_no_cipher_without_a_key() -> None:
    with pytest.raises(ConfigurationError, match="TENANCY_ENCRYPTION_KEYS is missing"):
        TenantCipher([])


def test_a_tenancy_has_a_cipher_while_encryption_is_on(
    make_config: Callable[..., TenancyConfig],
) -> None:
    assert Tenancy(make_config())._built.cipher is None
    config = make_config(enable_encryption=True, encryption_keys=[TWO, ONE])
    found = Tenancy(config)._built.cipher
    assert found is not None
    found.open(ACME, WRAPPED)
    cipher(TWO).open(ACME, found.new_data_key(ACME))


WITHOUT_THE_PACKAGE = """
import sys
sys.modules["cryptography"] = None
from tenancy_core import ConfigurationError, Sensitive, Tenancy, TenancyConfig
url = "sqlite+aiosqlite:///./data/control.db"
Tenancy(TenancyConfig(database_url=url, signing_keys=["k" * 32]))
config = TenancyConfig(database_url=url, enable_encryption=True, encryption_keys=["k" * 32])
try:
    Tenancy(config)
except ConfigurationError as error:
    print(error)
"""


def test_the_package_is_needed_by_encryption_only_and_named_at_start_up() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE], capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        "TENANCY_ENABLE_ENCRYPTION is true and needs the package 'cryptography', which is not "
        "installed or cannot be imported. Run: pip install 'tenancy-core[crypto]'\n"
    )


def test_it_is_not_loaded_while_encryption_is_off() -> None:
    code = (
        "import sys; from tenancy_core import Tenancy, TenancyConfig, Sensitive;"
        "Tenancy(TenancyConfig(database_url='sqlite+aiosqlite:///./data/control.db'));"
        "print('cryptography' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_id_of_a_tenant_may_be_any_uuid() -> None:
    for tenant_id in (UUID(int=0), UUID(int=2**128 - 1), uuid4()):
        keys = cipher(ONE)
        opened = keys.open(tenant_id, keys.new_data_key(tenant_id))
        assert opened.decrypt("f", opened.encrypt("f", b"value")) == b"value"
