"""What is wrong with the flags themselves is said at once: before a server is dialled or this machine is measured."""

from __future__ import annotations

from fedsplit.config.name import NAME, RULE
from fedsplit.errors import ConfigError, Problem
from fedsplit.plan.types import Topology


def check(*, name: str, topology: str, tag: str = "") -> None:
    """``topology`` empty: as planned.

    :raises ConfigError: no client name, no topology, no tag; all at once.
    """
    problems = []
    if not NAME.fullmatch(name):
        problems.append(Problem("--name", f"{name!r}, which is no client name", RULE))
    if topology not in ("", *Topology):
        problems.append(Problem("--topology", repr(topology), f"one of {', '.join(Topology)}"))
    if tag and not NAME.fullmatch(tag):
        problems.append(Problem("--tag", repr(tag), RULE))
    if problems:
        raise ConfigError(problems)
