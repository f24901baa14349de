"""Which paths are served without a tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ExcludedPaths"]

_NEVER = (b".", b"..")


class ExcludedPaths:
    """Matches whole segments: ``/health`` excludes ``/health/live`` and not ``/healthcare``.

    Attributes:
        prefixes: What every excluded path starts with; a cheap first test, for
            ``bytes.startswith``.
    """

    __slots__ = ("_paths", "prefixes")

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = tuple(dict.fromkeys(path.encode("ascii") for path in paths))
        self.prefixes = self._paths

    def match(self, raw_path: bytes) -> bool:
        """Whether an application-relative raw path is excluded.

        A path with ``.`` or ``..`` segments or an encoded slash never is: proxies, servers and
        frameworks disagree on what it means.
        """
        if not raw_path.startswith(self._paths):
            return False
        lowered = raw_path.lower()
        if b"%2f" in lowered or b"%2e" in lowered or b"%5c" in lowered or b"\\" in lowered:
            return False
        if any(segment in _NEVER for segment in raw_path.split(b"/")):
            return False
        return any(
            raw_path == path
            # The root excludes itself and not everything below it.
            or (path != b"/" and raw_path.startswith(path + b"/"))
            for path in self._paths
        )
