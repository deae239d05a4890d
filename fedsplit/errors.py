"""The exception tree, by blame: who is wrong, what was expected, what to do.

    FedsplitError
    ├─ ConfigError          a file or a flag is wrong: every problem with its path
    ├─ PlanError            nothing fits: the binding constraint and what would make it fit
    │  └─ IncompatibleParts two parts of a method contradict each other
    ├─ LinkError            the world failed
    │  ├─ Timeout           a deadline passed; the message says whom we waited for
    │  ├─ Closed            the other side went away
    │  ├─ Lost              the other side no longer holds what we refer to
    │  └─ Refused           the other side answered no
    ├─ ProtocolError        LocalProtocolError (we) | RemoteProtocolError (they)
    ├─ DataError            a data file or row is wrong: file, line, what was expected
    ├─ OutOfMemory          need and have, in bytes
    ├─ MissingExtra         an optional dependency is absent: the pip line that adds it
    └─ InternalError        we are wrong

Every class carries the exit status of the command line (``docs/exit-codes.md``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class FedsplitError(Exception):
    """Base of everything fedsplit raises on purpose."""

    exit_code = 1


class Problem(NamedTuple):
    """One thing that is wrong, with the way out."""

    path: str
    found: str
    expected: str
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.path}: found {self.found}, expected {self.expected}"
        return f"{text}; {self.fix}" if self.fix else text


class ConfigError(FedsplitError):
    """A file or a flag is wrong. Carries all problems at once."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | str, source: str = "") -> None:
        self.problems = () if isinstance(problems, str) else tuple(problems)
        self.source = source
        where = f"{source}: " if source else ""
        if isinstance(problems, str):
            text = where + problems
        elif len(self.problems) == 1:
            text = where + str(self.problems[0])
        else:
            lines = "\n".join(f"  {problem}" for problem in self.problems)
            text = f"{where}{len(self.problems)} problems\n{lines}"
        super().__init__(text)


class PlanError(FedsplitError):
    """No plan satisfies the constraints."""

    exit_code = 3


class IncompatibleParts(PlanError):
    """Two parts of a method contradict each other."""


class LinkError(FedsplitError):
    """The world between two processes failed."""

    exit_code = 4


class Timeout(LinkError):
    """A deadline passed."""


class Closed(LinkError):
    """The other side went away."""


class Lost(LinkError):
    """The other side no longer holds the state we refer to; repeat from the forward pass."""


class Refused(LinkError):
    """The other side answered no."""


class ProtocolError(FedsplitError):
    """The rules of the wire were broken."""

    exit_code = 5


class LocalProtocolError(ProtocolError):
    """We were about to break the rules."""


class RemoteProtocolError(ProtocolError):
    """The other side broke the rules."""


class DataError(FedsplitError):
    """A data file or row is wrong."""

    exit_code = 6

    def __init__(self, message: str, file: str = "", line: int | None = None) -> None:
        self.file, self.line = file, line
        place = f"{file}:{line}: " if line is not None else f"{file}: " if file else ""
        super().__init__(place + message)


class OutOfMemory(FedsplitError):
    """A job does not fit in memory. ``limit``: whose ``have_bytes`` they are, where it is not the machine's memory."""

    exit_code = 7

    def __init__(
        self, what: str, need_bytes: int, have_bytes: int, fix: str = "", *, limit: str = "this machine has"
    ) -> None:
        self.need_bytes, self.have_bytes = need_bytes, have_bytes
        text = f"out of memory: {what} needs {need_bytes / 1e6:,.0f} MB, {limit} {have_bytes / 1e6:,.0f} MB"
        super().__init__(f"{text}; {fix}" if fix else text)


class MissingExtra(FedsplitError):
    """An optional dependency is not installed."""

    exit_code = 8

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed; add it with: pip install 'fedsplit[{extra}]'")


class InternalError(FedsplitError):
    """We are wrong. Please report it."""

    exit_code = 70
