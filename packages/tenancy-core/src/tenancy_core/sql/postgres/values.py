"""What is said of any parameter of a URL that has a wrong value, without the value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenancy_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["require_once", "wrong_value"]


def require_once(query: Mapping[str, Any], setting: str) -> None:
    """Refuse parameters that are given more than once.

    Args:
        query: Parameters of which each has one value.
        setting: The variable that the URL comes from.

    Raises:
        ConfigurationError: One is there twice.
    """
    for name, value in query.items():
        if not isinstance(value, str):
            raise ConfigurationError(
                f"The URL in {setting} has the parameter {name} twice. Remove one."
            )


def wrong_value(setting: str, name: str, allowed: str) -> ConfigurationError:
    """Return the error for a value that a parameter cannot have.

    Args:
        setting: The variable that the URL comes from.
        name: Of the parameter.
        allowed: What it can have.
    """
    return ConfigurationError(
        f"The parameter {name} of the URL in {setting} has a value that it cannot have; it is "
        f"{allowed}."
    )
