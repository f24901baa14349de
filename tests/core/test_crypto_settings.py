"""The settings of keys: what is refused, in words that name the setting and never the value."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tenancy_core import ConfigurationError, TenancyConfig
from tenancy_core.config._later import LATER

if TYPE_CHECKING:
    from pathlib import Path

URL = "sqlite+aiosqlite:///./data/control.db"
CANARY = "canary-4f1d9c"
ONE, TWO = f"{CANARY}-{'1' * 32}", f"{CANARY}-{'2' * 32}"
MAKE_ONE = 'python -c "import secrets; print(secrets.token_urlsafe(32))"'


def refusal(**settings: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        TenancyConfig(**{"database_url": URL, **settings})
    assert CANARY not in str(caught.value)
    return str(caught.value)


def revealed(keys: Any) -> list[str]:
    return [key.get_secret_value() for key in keys]


def test_keys_are_secrets_in_their_order() -> None:
    config = TenancyConfig(
        database_url=URL, enable_encryption=True, encryption_keys=[TWO, ONE], signing_keys=ONE[::-1]
    )
    assert revealed(config.encryption_keys) == [TWO, ONE]
    assert revealed(config.signing_keys) == [ONE[::-1]]
    assert TenancyConfig(database_url=URL).signing_keys == ()
    assert TenancyConfig(database_url=URL).encryption_keys == ()


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        (ONE, [ONE]),
        (f" {ONE} , {TWO} ", [ONE, TWO]),
        (f'["{ONE}", "{TWO}"]', [ONE, TWO]),
        (f"{ONE},instance", [ONE, "instance"]),
        ("instance", ["instance"]),
        ("~" * 32, ["~" * 32]),
    ],
)
def test_signing_keys_may_be_written_like_this(given: str, keys: list[str]) -> None:
    assert revealed(TenancyConfig(database_url=URL, signing_keys=given).signing_keys) == keys


SETTINGS = ("signing_keys", "encryption_keys")


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("short", ["", CANARY, "k" * 31, "Instance"])
def test_a_short_key_is_refused(name: str, short: str) -> None:
    message = refusal(**{name: [ONE, short], "enable_encryption": name == "encryption_keys"})
    assert message == (
        f"TENANCY_{name.upper()} holds a key (number 2) that is shorter than 32 characters; "
        f"make one with {MAKE_ONE}."
    )


def test_only_signing_has_a_key_in_the_store() -> None:
    assert "number 1" in refusal(encryption_keys="instance", enable_encryption=True)


UNFIT = {
    "beyond ASCII": CANARY + "ä" * 32,
    "composed or not": CANARY + "e\u0301" * 32,
    "a space": f"{CANARY} {'k' * 32}",
    "a tab": f"{CANARY}\t{'k' * 32}",
    "a line break: one key per line": f"{ONE}\n{TWO}",
    "NUL": f"{ONE}\0",
    "bytes of the environment that are no UTF-8": f"{ONE}\udcff",
    "a space at its end": f"{ONE} ",
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("what", UNFIT)
def test_a_key_is_printable_ascii(name: str, what: str) -> None:
    message = refusal(**{name: [UNFIT[what]], "enable_encryption": name == "encryption_keys"})
    assert message == (
        f"TENANCY_{name.upper()} holds a key (number 1) that is not printable ASCII without "
        "spaces; write keys one after another with commas between them, and make one with "
        f"{MAKE_ONE}."
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_a_key_is_there_once(name: str) -> None:
    message = refusal(**{name: [ONE, TWO, ONE], "enable_encryption": name == "encryption_keys"})
    assert message == f"TENANCY_{name.upper()} holds a key twice; remove one of the two."


def test_the_store_s_key_is_named_once() -> None:
    assert "twice" in refusal(signing_keys="instance,instance")


def test_a_secret_is_for_one_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    # The other settings of jwt_secret are not what is looked at here.
    monkeypatch.delitem(LATER, "jwt_secret", raising=False)
    encrypting = {"enable_encryption": True, "encryption_keys": [TWO, ONE]}
    jwt = {
        "jwt_secret": ONE,
        "resolution_strategy": "jwt",
        "jwt_audience": "notes",
        "jwt_issuer": "https://id.example",
    }
    issuer = {"issuer": "https://id.example", "audience": "notes", "secret": ONE}
    issuers = {"resolution_strategy": "jwt", "jwt_issuers": [issuer]}
    for settings, one, other in (
        ({**encrypting, "signing_keys": [ONE]}, "ENCRYPTION_KEYS", "SIGNING_KEYS"),
        ({**jwt, "signing_keys": [TWO, ONE]}, "SIGNING_KEYS", "JWT_SECRET"),
        ({**jwt, **encrypting}, "ENCRYPTION_KEYS", "JWT_SECRET"),
        ({**issuers, "signing_keys": [ONE]}, "SIGNING_KEYS", "JWT_ISSUERS"),
    ):
        assert refusal(**settings) == (
            f"TENANCY_{one} and TENANCY_{other} hold the same secret. Use one for one thing only: "
            f"make another with {MAKE_ONE}."
        )


def test_S6_encryption_without_keys_does_not_start() -> None:
    message = refusal(enable_encryption=True)
    assert message == (
        "TENANCY_ENABLE_ENCRYPTION is true and TENANCY_ENCRYPTION_KEYS is missing: nothing is "
        f"stored in plain text instead. Make a key with {MAKE_ONE}."
    )


def test_S6_keys_without_encryption_do_not_start() -> None:
    for settings in ({}, {"enable_encryption": False}):
        message = refusal(encryption_keys=ONE, **settings)
        assert message.startswith(
            "TENANCY_ENCRYPTION_KEYS is set and TENANCY_ENABLE_ENCRYPTION is not: nothing would be "
            "encrypted."
        )


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("empty", ["", " ", ",", "[]", ()])
def test_S6_keys_that_are_set_and_empty_do_not_start(name: str, empty: Any) -> None:
    """An empty variable would else mean the default: no encryption, or the key in the store."""
    message = refusal(**{name: empty})
    assert message == (
        f"TENANCY_{name.upper()} is set and holds no key. Remove it, or make a key with {MAKE_ONE}."
    )


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_keys_come_from_a_file(
    name: str, end: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_bytes(f"{ONE},{TWO}{end}".encode())
    monkeypatch.setenv(f"TENANCY_{name.upper()}_FILE", str(file))
    if name == "encryption_keys":
        monkeypatch.setenv("TENANCY_ENABLE_ENCRYPTION", "true")
    config = TenancyConfig.from_env(database_url=URL)
    assert revealed(getattr(config, name)) == [ONE, TWO]


MALFORMED = {
    "too short": CANARY,
    "half a list": f'["{CANARY}',
    "no list of texts": f'["{ONE}", ["{CANARY}"]]',
    "an object in a list": f'[{{"{CANARY}": 1}}]',
    "a number": "[1]",
    "lines": f"{ONE}\n{TWO}",
    "a byte order mark": f"\ufeff{ONE}",
    "twice": f"{ONE},{ONE}",
    "empty": "",
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("what", MALFORMED)
@pytest.mark.parametrize("where", ["argument", "variable", "file"])
def test_S2_malformed_keys_name_the_setting_and_not_the_value(
    name: str, what: str, where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"database_url": URL, "enable_encryption": True}
    if name != "encryption_keys":
        arguments["encryption_keys"] = "another-one-of-32-characters-and-more"
    if where == "argument":
        arguments[name] = MALFORMED[what]
    elif where == "variable":
        monkeypatch.setenv(f"TENANCY_{name.upper()}", MALFORMED[what])
    else:
        file = tmp_path / CANARY
        file.write_text(MALFORMED[what])
        monkeypatch.setenv(f"TENANCY_{name.upper()}_FILE", str(file))
    with pytest.raises(ConfigurationError) as caught:
        TenancyConfig.from_env(**arguments)
    message = str(caught.value)
    assert re.match(rf"TENANCY_{name.upper()}\b", message)
    assert CANARY not in message
    assert "111" not in message
    assert caught.value.__context__ is None
