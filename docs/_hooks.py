"""For mkdocs: docstrings name things as ``:class:`~room.Name```, and pages show the name."""  # noqa: INP001 - no package

from __future__ import annotations

import re


def on_page_content(html: str, **_: object) -> str:
    """Take the roles of reStructuredText out of a rendered page."""
    return re.sub(r":(?:class|func|meth|mod):<code>~?(?:[\w.]*\.)?", "<code>", html)
