"""Clients that said they go: for good, or for a while, because their owner's limits say so. Who waits for them?

With a quorum nobody does. Without one everybody is needed: who said when it comes back has until then, and the usual
time from then on; who said that it does not come back is waited for like one whose connection was lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedsplit.config.run import RoundsSection
from fedsplit_server.roster import Member, Roster
from fedsplit_server.rounds import OpenMeasure, OpenRound

AWAY_S = 25 * 3600.0
"""The longest absence that is waited for: until a device's day, or its night, comes round again."""


def needed(roster: Roster, rounds: RoundsSection) -> int:
    """Clients that a round takes: those of the run file; with a quorum, less those who took part and went."""
    gone = sum(member.dropped_out for member in roster) if rounds.quorum else 0
    return max(rounds.quorum, rounds.clients - gone)


def is_complete(opened: OpenRound, roster: Roster) -> bool:
    """Nobody is missing, or, with a quorum, only such as said that they go."""
    missing = opened.missing()
    members = [roster.get(name) for name in missing]
    return not missing or (opened.has_quorum and all(member is not None and member.dropped_out for member in members))


def wait_for(member: Member, open: Sequence[OpenRound | OpenMeasure | None], usual_s: float) -> None:
    """Without a quorum: until ``member`` comes back, and the usual time for what it has to do then."""
    for one in open:
        if one is not None and member.name in one.missing():
            one.deadline_s = max(one.deadline_s, member.back_by + usual_s)


def hurry(opened: OpenRound, roster: Roster, usual_s: float, now: float) -> None:
    """One that was away is back, perhaps early: the usual time from now, or from when the others come back."""
    others_s = max((member.back_by for member in roster if member.name in opened.missing()), default=-math.inf)
    opened.deadline_s = max(min(opened.deadline_s, now + usual_s), others_s + usual_s)
