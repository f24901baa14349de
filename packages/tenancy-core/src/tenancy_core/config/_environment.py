"""Reading ``TENANCY_*`` variables from the process, from a ``.env`` file and from secret files."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, Self

from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

from tenancy_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from pydantic_settings import BaseSettings

__all__ = ["PREFIX", "Environment", "is_reserved", "near_miss"]

PREFIX: Final = "TENANCY_"

_RESERVED: Final = frozenset({"TENANCY_APP", "TENANCY_STRICT_ENV", "TENANCY_PLUGINS_BLOCKED"})
_RESERVED_PREFIX: Final = "TENANCY_TEST_"

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"", "0", "false", "no", "off"})


def is_reserved(name: str) -> bool:
    """Whether a variable is read by something else than the settings, and is never a setting."""
    return name in _RESERVED or name.startswith(_RESERVED_PREFIX)


def near_miss(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that ``name`` was probably meant to be."""
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.75)
    return found[0] if found else None


def _why(error: OSError | UnicodeDecodeError) -> str:
    """Say why a file cannot be read.

    The error itself holds what was read, which may be secret: it is neither chained nor a local
    variable where an error is raised.
    """
    return str(error.strerror) if isinstance(error, OSError) else "it is not UTF-8"


class Environment:
    """The ``TENANCY_*`` variables that a configuration was made from.

    A variable of the process wins over the same one in the ``.env`` file. Names are upper-case.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    @classmethod
    def read(cls, settings: type[BaseSettings], env_file: str | Path | None) -> Environment:
        """Read the process's environment and, where it exists, the ``.env`` file.

        Raises:
            ConfigurationError: The file is there and cannot be read.
        """
        values: dict[str, str] = {}
        log_level: str | None = None
        reason: str | None = None
        sources: tuple[EnvSettingsSource, ...] = ()
        try:
            sources = (
                DotEnvSettingsSource(settings, env_file=env_file),
                EnvSettingsSource(settings),
            )
        except (OSError, UnicodeDecodeError) as error:
            reason = _why(error)
        if reason is not None:
            raise ConfigurationError(
                f"The file {env_file} with settings cannot be read: {reason}. "
                "Correct it, or pass env_file=None to ignore it."
            )
        for source in sources:
            for name, value in source.env_vars.items():
                if value is None:
                    continue
                upper = name.upper()
                if upper.startswith(PREFIX):
                    values[upper] = value
                elif upper == "LOG_LEVEL":
                    log_level = value
        if log_level is not None:
            values.setdefault("TENANCY_LOG_LEVEL", log_level)
        return cls(values)

    def __repr__(self) -> str:
        return f"Environment({sorted(self._values)})"

    def __deepcopy__(self, _memo: object) -> Self:
        return self  # immutable

    def __reduce__(self) -> NoReturn:
        raise TypeError("An Environment holds secrets and is not pickled.")

    def get(self, name: str) -> str | None:
        """Return the value of a variable, or None."""
        return self._values.get(name)

    def secret(self, name: str) -> str | None:
        """Return a secret from its variable or from the file that ``<NAME>_FILE`` names.

        Raises:
            ConfigurationError: Both are set, or the file cannot be read.
        """
        path = self._values.get(f"{name}_FILE")
        if path is None:
            return self._values.get(name)
        if name in self._values:
            raise ConfigurationError(f"{name} and {name}_FILE are both set. Remove one of them.")
        try:
            return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = _why(error)
        # The path is not repeated: it may be the secret itself, set under the wrong name.
        raise ConfigurationError(f"The file that {name}_FILE names cannot be read: {reason}.")

    def flag(self, name: str) -> bool:
        """Return a boolean variable; false if it is not set.

        Raises:
            ConfigurationError: It is neither true nor false.
        """
        value = self._values.get(name, "").strip().lower()
        if value in _TRUE:
            return True
        if value in _FALSE:
            return False
        raise ConfigurationError(f"{name} is neither true nor false.")

    def names(self, name: str) -> frozenset[str]:
        """Return a comma-separated variable as a set of names."""
        return frozenset(part.strip() for part in self._values.get(name, "").split(",")) - {""}

    def unread(self, known: Collection[str]) -> dict[str, str | None]:
        """Return the variables that nobody reads, each with the name it was probably meant to be.

        Args:
            known: All variables that the configuration and the installed plugins read.
        """
        return {
            name: near_miss(name, known)
            for name in sorted(self._values)
            if name not in known and not is_reserved(name)
        }
