"""What failed, in the log: where, and without the text that a driver gave it."""

from __future__ import annotations

import logging
from traceback import format_tb

from tenancy_core.errors import TenancyError

__all__ = ["log_failure"]

_log = logging.getLogger("tenancy")


def log_failure(error: Exception, message: str, *values: object) -> None:
    """Log an error with its traceback.

    Its text is left out unless it is ours: a driver may have put a URL or data into it.

    Args:
        error: What was raised.
        message: What could not be done, as for ``logging``.
        *values: For the message.
    """
    name = type(error).__name__
    told = f"{name}: {error}" if isinstance(error, TenancyError) else name
    _log.error(f"{message} (%s)\n%s", *values, told, "".join(format_tb(error.__traceback__)))
