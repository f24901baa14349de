"""Rules for the keys of encryption and signing. No message repeats a key or says its length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pydantic import SecretStr

__all__ = ["INSTANCE_KEY", "check_apart", "check_encryption", "check_filled", "check_keys"]

INSTANCE_KEY: Final = "instance"
"""In ``signing_keys``, this word stands for the key that is in the tenant store."""

_LEAST: Final = 32
_MAKE_ONE: Final = 'python -c "import secrets; print(secrets.token_urlsafe(32))"'


def check_keys(keys: Sequence[SecretStr], *, words: Collection[str] = ()) -> None:
    """Check each key of a setting.

    Args:
        keys: Those of one setting, in its order.
        words: What may stand there instead of a key.

    Raises:
        ValueError: One is too short or not plain ASCII, or one is there twice.
    """
    for number, key in enumerate(keys, 1):
        problem = _problem(key, words)
        if problem:
            raise ValueError(f"holds a key (number {number}) that {problem}")
    if len({key.get_secret_value() for key in keys}) != len(keys):
        raise ValueError("holds a key twice; remove one of the two")


def _problem(key: SecretStr, words: Collection[str]) -> str:
    text = key.get_secret_value()
    if text in words:
        return ""
    # Beyond ASCII the same letters may be other bytes on another machine.
    if not all("!" <= char <= "~" for char in text):
        return (
            "is not printable ASCII without spaces; write keys one after another with commas "
            f"between them, and make one with {_MAKE_ONE}"
        )
    if len(text) < _LEAST:
        return f"is shorter than {_LEAST} characters; make one with {_MAKE_ONE}"
    return ""


def check_filled(settings: Mapping[str, Sequence[SecretStr]], given: Collection[str]) -> None:
    """Refuse a setting that is given and empty: a variable or a file that was not filled.

    Args:
        settings: Variable → its keys.
        given: The variables that are set.

    Raises:
        ValueError: One is set and holds no key.
    """
    for variable, keys in settings.items():
        if variable in given and not keys:
            raise ValueError(
                f"{variable} is set and holds no key. Remove it, or make a key with {_MAKE_ONE}"
            )


def check_apart(settings: Mapping[str, Sequence[SecretStr]]) -> None:
    """Refuse one secret in two settings: who has learned it there would have it here.

    Args:
        settings: Variable → its secrets.

    Raises:
        ValueError: Two of them have one in common.
    """
    owners: dict[str, str] = {}
    clash: tuple[str, str] | None = None
    for variable, secrets in settings.items():
        for secret in secrets:
            owner = owners.setdefault(secret.get_secret_value(), variable)
            if owner != variable:
                clash = (owner, variable)
    # Error trackers print the local variables of every frame.
    owners.clear()
    if clash is not None:
        raise ValueError(
            f"{clash[0]} and {clash[1]} hold the same secret. Use one for one thing only: make "
            f"another with {_MAKE_ONE}"
        )


def check_encryption(*, enabled: bool, keys: Sequence[SecretStr]) -> None:
    """Refuse encryption without keys, and keys without encryption.

    Raises:
        ValueError: One is there without the other.
    """
    if enabled and not keys:
        raise ValueError(
            "TENANCY_ENABLE_ENCRYPTION is true and TENANCY_ENCRYPTION_KEYS is missing: nothing is "
            f"stored in plain text instead. Make a key with {_MAKE_ONE}"
        )
    if keys and not enabled:
        raise ValueError(
            "TENANCY_ENCRYPTION_KEYS is set and TENANCY_ENABLE_ENCRYPTION is not: nothing would "
            "be encrypted. Set it to true, or remove the keys"
        )
