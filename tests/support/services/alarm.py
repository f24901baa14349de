"""A timer that wakes a selector to the microsecond: ``epoll_wait`` rounds up to milliseconds."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Final

_CLOCK_MONOTONIC: Final = 1  # what time.monotonic() reads
_TFD_NONBLOCK_CLOEXEC: Final = os.O_NONBLOCK | os.O_CLOEXEC
_TFD_TIMER_ABSTIME: Final = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """A file descriptor (Linux' timerfd) that is readable from a moment on."""

    def __init__(self) -> None:
        # Python has os.timerfd_create from 3.13 on.
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._number = self._checked(
            self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK_CLOEXEC)
        )
        self._when: float | None = None

    def fileno(self) -> int:
        """Return the descriptor, for a selector."""
        return self._number

    def set(self, when: float | None) -> None:
        """Go off at this moment of ``time.monotonic()``, or never."""
        if when == self._when:
            return
        # All zeros disarm it, so that a moment in the past must not become that.
        moment = 0 if when is None else max(int(when * 1e9), 1)
        value = _Itimerspec(_Timespec(0, 0), _Timespec(*divmod(moment, 10**9)))
        self._checked(
            self._libc.timerfd_settime(self._number, _TFD_TIMER_ABSTIME, ctypes.byref(value), None)
        )
        self._when = when

    def clear(self) -> None:
        """Take note that it went off."""
        if self._when is not None and self._when <= time.monotonic():
            self.set(None)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._number)

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result
