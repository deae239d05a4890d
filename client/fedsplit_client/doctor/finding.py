"""One line of what the doctor found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """``check``: what was looked at; ``found``: what it is and means; ``fix``: what to type, where anything is wrong.

    ``warning``: it works, but slowly or not for long; ``problem``: taking part will fail; ``skipped``: and why.
    """

    check: str
    level: Level
    found: str
    fix: str = ""


def problems(findings: Sequence[Finding]) -> int:
    """How many keep this machine from taking part."""
    return sum(finding.level == "problem" for finding in findings)
