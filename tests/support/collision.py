"""Two tenants whose derived names are equal, found by a search for a collision of the hash.

Their ids have the same 48 bits of SHA-256, and their identifiers differ behind the part that fits
into a name. Nobody meets such a pair by chance; somebody who chooses ids might.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

FIRST_ID: Final = UUID("10101010-1010-4000-8000-9f5accebcbbb")
SECOND_ID: Final = UUID("10101010-1010-4000-8000-a0a571ad3819")

FIRST_IDENTIFIER: Final = "a" * 43 + "bbbbb"
SECOND_IDENTIFIER: Final = "a" * 43 + "ccccc"
