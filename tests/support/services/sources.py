"""Where this machine gets Debian's packages from, for another release than its own.

The entries are read when they are needed: a mirror, its keys and its options are the machine's.
"""

from __future__ import annotations

import os
import platform
import re
from email import message_from_string
from pathlib import Path
from typing import TYPE_CHECKING, Final

from support.services.errors import ServiceUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

MACHINES: Final = Path("/etc/apt")
COMPONENT: Final = "main"
"""What everybody else's archives seldom have, beside a suite with the name of the release."""
LINE: Final = re.compile(r"deb\s+(?P<place>(?:\[[^]]*\]\s*)?\S+)\s+(?P<suite>\S+)\s+(?P<rest>.+)")


def release_of_machine() -> str | None:
    """Code name of the release that runs here."""
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME")
    except OSError:
        return None


def write_sources(folder: Path, release: str) -> None:
    """Write the machine's entries for another release, in the two formats that apt knows.

    Raises:
        ServiceUnavailableError: There are none to start from.
    """
    written = False
    here = release_of_machine()
    for path in _files() if here else ():
        renew = _renewed_stanzas if path.suffix == ".sources" else _renewed_lines
        if text := "\n".join(renew(path.read_text(errors="replace"), str(here), release)):
            (folder / path.name).write_text(f"{text}\n")
            written = True
    if not written:
        raise ServiceUnavailableError(f"no source of apt here is one of {here}, which runs here")


def _files() -> Iterator[Path]:
    for name in ("sources.list", "sources.list.d/*.list", "sources.list.d/*.sources"):
        yield from sorted(path for path in MACHINES.glob(name) if os.access(path, os.R_OK))


def _renewed_lines(text: str, here: str, release: str) -> Iterator[str]:
    for line in text.splitlines():
        found = LINE.fullmatch(line.partition("#")[0].strip())
        if found and COMPONENT in found["rest"].split():
            for suite in _renewed([found["suite"]], here, release):
                yield f"deb {found['place']} {suite} {COMPONENT}"


def _renewed_stanzas(text: str, here: str, release: str) -> Iterator[str]:
    # Comments may stand between the lines of one field, too.
    lines = [line.rstrip() for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n{2,}", "\n".join(lines).strip("\n")):
        entry = message_from_string(stanza)  # names, colons and continuation lines: as in a mail
        suites = _renewed(entry.get("Suites", "").split(), here, release)
        if (
            suites
            and "deb" in entry.get("Types", "").split()
            and COMPONENT in entry.get("Components", "").split()
            and entry.get("Enabled", "yes").strip().lower() not in {"no", "false", "off", "0"}
        ):
            # What else there is stays: keys, a proxy, whom to trust.
            for name, value in (
                ("Types", "deb"),
                ("Suites", " ".join(suites)),
                ("Components", COMPONENT),
            ):
                entry.replace_header(name, value)
            yield "".join(f"{name}: {value}\n" for name, value in entry.items()).replace(
                ": \n", ":\n"
            )


def _renewed(suites: list[str], here: str, release: str) -> list[str]:
    known = {f"{here}{part}": f"{release}{part}" for part in ("", "-updates", "-security")}
    return [known[suite] for suite in suites if suite in known]
