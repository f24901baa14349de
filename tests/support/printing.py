"""What becomes of an error that somebody logs."""

from __future__ import annotations

import traceback


def printed(error: BaseException, *files: str) -> str:
    """Return a traceback as error trackers print it: every frame with its variables.

    Args:
        error: With its causes.
        files: Of the test itself, whose frames hold the canary to compare with: left out.
    """
    found = traceback.TracebackException.from_exception(error, capture_locals=True)
    whole: traceback.TracebackException | None = found
    while whole is not None:
        for frame in whole.stack:
            if frame.filename in files:
                frame.locals = None
                # CPython calls the source that it prints differently from 3.13 on.
                for source in {"_line", "_lines"} & set(frame.__slots__):
                    setattr(frame, source, "")
        whole = whole.__cause__ or whole.__context__
    return "".join(found.format())
