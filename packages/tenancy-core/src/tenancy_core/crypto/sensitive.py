"""Values of a tenant's metadata that are encrypted before anything else sees them.

The record then holds ciphertext only, and so does every cache, log and backup of it.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, cast, final

from tenancy_core.crypto.encryption import MOST_BYTES
from tenancy_core.errors import DecryptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenancy_core.crypto.encryption import FieldCipher

__all__ = ["SEALED", "Sensitive", "reveal_metadata", "seal_metadata"]

SEALED: Final = "$sealed"
"""The one key of the JSON object that stands for an encrypted value."""

_MOST_LEVELS: Final = 100
_FIELD: Final = "metadata"


@final
class Sensitive:
    """Marks a JSON value of a tenant's metadata: it is stored encrypted and never printed.

    Immutable. Two are equal if their values are the same JSON.

    Args:
        value: What can be written as JSON: a text, number, boolean, None, list or dict.

    Raises:
        ValueError: It is something else, or longer than 16 MiB.
    """

    __slots__ = ("_json",)

    _json: str

    def __init__(self, value: Any) -> None:  # noqa: ANN401 - JSON has no closed type
        text, problem = "", ""
        try:
            text = json.dumps(_walk(value, _refuse), sort_keys=True)
        except ValueError as error:
            problem = str(error)
        # Error trackers print the local variables of every frame.
        del value
        if len(text) > MOST_BYTES:
            text, problem = "", f"A sensitive value has at most {MOST_BYTES} bytes."
        if problem:
            raise ValueError(problem)
        object.__setattr__(self, "_json", text)

    def reveal(self) -> Any:  # noqa: ANN401 - JSON has no closed type
        """Return the value: a fresh copy at every call."""
        return json.loads(self._json)

    def __repr__(self) -> str:
        return "Sensitive(…)"

    def __eq__(self, other: object) -> bool:
        return self._json == other._json if isinstance(other, Sensitive) else NotImplemented

    def __hash__(self) -> int:
        return hash((Sensitive, self._json))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        del value
        raise AttributeError(f"A Sensitive cannot be changed ({name}); make another one.")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"A Sensitive cannot be changed ({name}); make another one.")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("A Sensitive is not pickled: its value would be readable in the pickle.")


def seal_metadata(
    metadata: Mapping[str, Any],
    cipher: FieldCipher | None,
    *,
    current: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return metadata as it is stored: each :class:`Sensitive` encrypted, at whatever depth.

    Args:
        metadata: JSON values and ``Sensitive`` ones, as the application gives them.
        cipher: Of the tenant; None while encryption is off.
        current: The stored metadata that this replaces. A sealed value that it has at the same
            place is kept, so that ``{**tenant.metadata, "a": 1}`` changes ``a`` only.

    Returns:
        A new dict in which each ``Sensitive`` is ``{"$sealed": "<base64>"}``.

    Raises:
        ValueError: There is a ``Sensitive`` and encryption is off; or a key ``$sealed`` that is
            not from ``current``; or something that is no JSON value; or more than 100 levels.
    """
    kept: dict[str, Any] = {}
    if current is not None:

        def remember(value: Any, path: str) -> Any:  # noqa: ANN401 - JSON
            kept[path] = value
            return value

        _walk(current, remember)

    def seal(value: Any, path: str) -> Any:  # noqa: ANN401 - JSON has no closed type
        if not isinstance(value, Sensitive):
            if path in kept and kept[path] == value:
                return dict(value)
            raise ValueError(
                f"Metadata holds a key {SEALED!r}, which is kept for encrypted values. Pass what "
                "the tenant has at that place, or the value itself as Sensitive(…)."
            )
        if cipher is None:
            raise ValueError(
                "Metadata holds a Sensitive value, and encryption is off: it is not stored in "
                "plain text. Set TENANCY_ENABLE_ENCRYPTION=true and TENANCY_ENCRYPTION_KEYS."
            )
        sealed = cipher.encrypt(path, _text(value).encode())
        return {SEALED: b64encode(sealed).decode()}

    result: dict[str, Any] = _walk(metadata, seal)
    return result


def reveal_metadata(metadata: Mapping[str, Any], cipher: FieldCipher | None) -> dict[str, Any]:
    """Return metadata as the application gave it: the reverse of :func:`seal_metadata`.

    Encrypted values come back as :class:`Sensitive`, so that they are not printed, and are
    encrypted again when the result is stored.

    Args:
        metadata: As it is stored.
        cipher: Of the tenant; None while encryption is off.

    Raises:
        DecryptionError: An encrypted value is not this tenant's, not from this place, or was
            changed; or there is one, and encryption is off.
    """

    def reveal(value: Any, path: str) -> Any:  # noqa: ANN401 - JSON has no closed type
        if isinstance(value, Sensitive):
            return value
        if cipher is None:
            raise DecryptionError(
                "Metadata holds an encrypted value, and encryption is off. Set "
                "TENANCY_ENABLE_ENCRYPTION=true and TENANCY_ENCRYPTION_KEYS."
            )
        found = _parsed(cipher.decrypt(path, _sealed(value)))
        if found is None:
            raise DecryptionError("Metadata holds an encrypted value that is no JSON inside.")
        return found

    result: dict[str, Any] = _walk(metadata, reveal)
    return result


def _text(value: Sensitive) -> str:
    return value._json  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # one room


def _parsed(text: bytes) -> Sensitive | None:
    # A function of its own that raises nothing: the errors of json hold what was read.
    try:
        return Sensitive(json.loads(text))
    except (RecursionError, ValueError):
        return None


def _sealed(value: Mapping[str, Any]) -> bytes:
    """Return the ciphertext of a sealed object in its one form; empty for any other."""
    text: object = value[SEALED] if len(value) == 1 else None
    try:
        data = b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        return b""
    return data if b64encode(data).decode() == text else b""


def _walk(
    value: Any,  # noqa: ANN401 - JSON has no closed type
    special: Callable[[Any, str], Any],
    path: str = _FIELD,
    levels: int = _MOST_LEVELS,
) -> Any:  # noqa: ANN401 - as above
    """Copy a JSON value; ``special`` says what becomes of what is sensitive or sealed.

    A path has ``/name`` for a member and ``#3`` for an item. Both signs, and ``~``, are escaped in
    names, so that two places never have one path.
    """
    if not levels:
        raise ValueError(f"A JSON value has at most {_MOST_LEVELS} levels here.")
    if isinstance(value, Sensitive):
        return special(value, path)
    if isinstance(value, Mapping):
        members = cast("Mapping[object, Any]", value)
        if SEALED in members:
            return special(members, path)
        return {
            name: _walk(member, special, f"{path}/{_escaped(name)}", levels - 1)
            for name, member in members.items()
        }
    if isinstance(value, (list, tuple)):
        items = cast("Sequence[Any]", value)
        return [
            _walk(item, special, f"{path}#{index}", levels - 1) for index, item in enumerate(items)
        ]
    if (
        value is None
        or isinstance(value, (str, int))
        or (isinstance(value, float) and isfinite(value))
    ):
        return value
    raise ValueError(
        f"There is a {type(value).__name__} that is no JSON value: use a text, a finite number, "
        "a boolean, None, a list or a dict."
    )


def _escaped(name: object) -> str:
    # A lone half of a surrogate pair may meet the other half in JSON and be another name then.
    if not isinstance(name, str) or any("\ud800" <= char <= "\udfff" for char in name):
        raise ValueError("There is a name in a JSON object that is no text of Unicode characters.")
    return name.replace("~", "~0").replace("/", "~1").replace("#", "~2")


def _refuse(value: Any, path: str) -> NoReturn:  # noqa: ANN401 - JSON has no closed type
    del value, path
    raise ValueError(
        f"A sensitive value is JSON without a Sensitive and without a key {SEALED!r} in it."
    )
