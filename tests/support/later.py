"""A wall clock that is wound forward."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any


class Later(datetime):
    """Takes the place of ``datetime`` in a module; ``by`` says how much later it is there."""

    by = timedelta()

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.now(tz) + cls.by
