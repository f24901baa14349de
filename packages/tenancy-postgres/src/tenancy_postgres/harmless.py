"""Whether a statement can leave something on its connection.

The text is judged, for it is all that the server sees; SQLAlchemy has more ways to put words into
it than anybody lists. What is not known to be harmless is taken for harmful, at the price of one
message that cleans the connection.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

__all__ = ["leaves_nothing", "leaves_prepared"]

_READS: Final = re.compile(r"[\s(]*(?:SELECT|WITH|VALUES)\b", re.IGNORECASE)
_QUOTES: Final = re.compile(r"""('(?:[^']|'')*')|"(?:[^"]|"")*\"""")
_UNCLEAR: Final = re.compile(r"""[\\'"]|--|/\*|\$\w*\$""")
_HARMFUL: Final = re.compile(r";|\bINTO\b", re.IGNORECASE)
_CALLED: Final = re.compile(r"(\.\s*)?([^\W\d][\w$]*)\s*\(")
_PREPARED: Final = re.compile(r"\b(?:PREPARE|DEALLOCATE|DISCARD)\b", re.IGNORECASE)

_FUNCTIONS: Final = (
    "abs array_agg avg cast ceil ceiling char_length coalesce concat count date_part date_trunc "
    "dense_rank extract first_value floor greatest json_agg json_build_object jsonb_agg "
    "jsonb_build_object lag last_value lead least length lower ltrim max min mod now nullif rank "
    "replace round row_number rtrim string_agg substr substring sum trim upper"
)
"""They change nothing. ``set_config`` and ``pg_advisory_lock`` are functions too. Without a schema
they are the server's own: the search path is empty where this is asked."""
_WORDS: Final = (
    "all and any array as between bit by case char character conflict decimal distinct else end "
    "except exists filter float from group having ilike in intersect interval is join lateral like "
    "limit materialized not null numeric offset on or order over partition precision recursive row "
    "select similar some symmetric then time timestamp to union using values varchar varying when "
    "where with within"
)
_KNOWN: Final = frozenset(f"{_FUNCTIONS} {_WORDS}".split())


@lru_cache(maxsize=10_000)
def leaves_nothing(statement: str) -> bool:
    """Whether a statement is a query that calls nothing unknown.

    A view is taken for a table: what its definition calls is not seen here.
    """
    if not _READS.match(statement):
        return False
    bare = _without_quotes(statement)
    if bare is None or _HARMFUL.search(bare):
        return False
    return all(not dot and name.lower() in _KNOWN for dot, name in _CALLED.findall(bare))


@lru_cache(maxsize=10_000)
def leaves_prepared(statement: str) -> bool:
    """Whether a text may make or drop prepared statements, of which the driver keeps account."""
    if not _PREPARED.search(statement):
        return False
    bare = _without_quotes(statement)
    return bare is None or _PREPARED.search(bare) is not None


def _without_quotes(statement: str) -> str | None:
    """Return a text without what is quoted in it, or None where that cannot be told for sure.

    From left to right in one go: each kind of quotes may stand inside of the other. Whatever makes
    a quote mean something else, an escape, a comment or a dollar, is left to nobody's guess.
    """
    if "\\" in statement:
        return None
    bare = _QUOTES.sub(lambda quoted: " " if quoted.group(1) else " unknown", statement)
    return None if _UNCLEAR.search(bare) else bare
