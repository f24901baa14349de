"""Conditions of policies in one form, whoever wrote them down.

The server keeps a parsed condition and prints it in its own way: parentheses, ``::text`` behind
literals, an alias for what a subquery selects. A function in quotes is none of the server's own:
``"nullif"(…)`` is somebody's, where ``NULLIF(…)`` is a word of the language
(https://github.com/postgres/postgres/blob/master/src/backend/utils/adt/ruleutils.c). All else it
leaves as it was, so two conditions are compared by what remains without that.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["normal_form"]

_TOKEN: Final = re.compile(
    r"""
      (?P<literal>'(?:[^']|'')*')
    | (?P<function>"(?:[^"]|"")*"(?=\s*\())
    | (?P<quoted>"(?:[^"]|"")*")
    | (?P<dropped>[()\s]+ | ::\s*(?:text|character\ varying)\b | \bpg_catalog\.)
    | (?P<word>\w+)
    | (?P<sign>::|<>|[^\w\s()'"])
    """,
    re.VERBOSE | re.IGNORECASE,
)
_ALIAS: Final = "as"


def normal_form(condition: str | None) -> tuple[str, ...]:
    """Return the parts of a condition that make a difference; nothing where there is none."""
    parts: list[str] = []
    aliased = False
    for match in _TOKEN.finditer(condition or ""):
        text = match.group()
        if match.lastgroup == "dropped":
            continue
        if match.lastgroup == "quoted":
            text = text[1:-1].replace('""', '"')
        elif match.lastgroup == "word":
            text = text.lower()
        if aliased:
            aliased = False
            continue
        if text == _ALIAS and match.lastgroup == "word":
            aliased = True
            continue
        parts.append(text)
    return tuple(parts)
