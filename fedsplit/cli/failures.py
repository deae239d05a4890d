"""The error of a child process, raised in its parent as if it were the parent's own: same words, same exit code."""

from __future__ import annotations

import signal

from fedsplit.errors import ConfigError, DataError, FedsplitError, LinkError, PlanError, ProtocolError

_BY_CODE: dict[int, type[FedsplitError]] = {
    kind.exit_code: kind for kind in (ConfigError, PlanError, LinkError, ProtocolError, DataError)
}


def failure(who: str, code: int, said: str) -> FedsplitError:
    """What to raise when ``who`` ended with ``code`` (negative: by that signal) after writing ``said`` to stderr."""
    if code < 0:
        return LinkError(
            f"{who} was killed by {_signal(-code)}{_guess(-code)}" + (f":\n{said.strip()}" if said else "")
        )
    text = f"{who} failed: {said.strip().removeprefix('error: ') or f'exit status {code}'}"
    if code in _BY_CODE:
        return _BY_CODE[code](text)
    error = FedsplitError(text)
    error.exit_code = code
    return error


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _guess(number: int) -> str:
    return " (systems do that when memory runs out)" if number == 9 else ""
