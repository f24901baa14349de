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
_UNCLEAR: Final = re.compile(r"[;\\]|--|/\*|\$\w*\$|\bINTO\b", re.IGNORECASE)
_TEXTS: Final = re.compile(r"'(?:[^']|'')*'")
_QUOTED: Final = re.compile(r'"(?:[^"]|"")*"')
_CALLED: Final = re.compile(r"(\.\s*)?([^\W\d][\w$]*)\s*\(")
_PREPARED: Final = re.compile(r"(?:^|;)\s*(?:PREPARE|DEALLOCATE|DISCARD)\b", re.IGNORECASE)

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
    bare = _QUOTED.sub(" unknown", _TEXTS.sub(" ", statement))
    if _UNCLEAR.search(bare) or "\\" in statement:
        return False
    return all(not dot and name.lower() in _KNOWN for dot, name in _CALLED.findall(bare))


def leaves_prepared(statement: str) -> bool:
    """Whether a text makes or drops prepared statements, of which the driver keeps account."""
    return _PREPARED.search(statement) is not None
