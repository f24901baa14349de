"""What goes wrong between a test and the server it asked for."""

from __future__ import annotations


class ServiceUnavailableError(RuntimeError):
    """No server of this kind can be had here; the sentence says what was tried."""


class StartError(RuntimeError):
    """A server is there, and does not run; the sentence ends with its log."""
