"""What findings have in common: statements to run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["listed", "to_run"]

_SHOWN = 10
"""Most things of a kind that a finding names."""


def to_run(who: str, statements: Iterable[str]) -> str:
    """Return a remedy that is run, a statement in each line.

    Args:
        who: May run them: ``a superuser``.
        statements: Without semicolons.
    """
    return f"Run, as {who}:\n" + "\n".join(f"{line};" for line in dict.fromkeys(statements))


def listed(names: Iterable[str]) -> str:
    """Return names with commas, and how many more there are."""
    given = [*names]
    more = len(given) - _SHOWN
    return ", ".join(given[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
