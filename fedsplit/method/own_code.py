"""Code of one's own that fails while fedsplit runs it: what it may raise, and in which line it did."""

from __future__ import annotations

import traceback
from pathlib import Path

FAILURES = (Exception, SystemExit)
"""It may raise anything; one that leaves with ``sys.exit`` must not end the verb as if all were done."""


def line_in(file: str, error: BaseException) -> int | None:
    """The line of the last call in ``file``; None where no call was."""
    frames = traceback.extract_tb(error.__traceback__) if file else []
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == Path(file).resolve()]
    return lines[-1] if lines else None
