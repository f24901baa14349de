"""Why a token does not hold."""

from __future__ import annotations

__all__ = ["Rejected"]


class Rejected(Exception):
    """A token does not hold.

    The reason is one of ours, never a part of the token: it goes to the log. The client is told the
    same in every case.
    """
