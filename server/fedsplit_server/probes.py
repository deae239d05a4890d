"""Answers to devices that measure their link: one at a time, a bounded number of bytes, only with the invitation.

Two devices that measure at once would each find half of the server's link, so they take turns; and a run that goes on
beside it is disturbed by one packet of a mebibyte at a time. Owns no socket and no clock.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from fedsplit import __version__
from fedsplit.probe.link import noise
from fedsplit.wire import WireTensor
from fedsplit.wire.messages import Probe, Probed, Refuse

MOST_BYTES = 9 * 2**20
"""Each way of one connection: the 8 MiB that a device may use to measure, and what it spends to get there."""
MOST_PROBES = 400
TURN_S = 20.0
"""A turn ends after this long, …"""
IDLE_S = 3.0
"""… or, when another device asks, after this long without a probe: several times what one takes on a slow link."""
_REMEMBERED = 1024

Answer = tuple[Probed | Refuse, Mapping[str, WireTensor]]


@dataclass
class _Turn:
    identity: bytes
    since_s: float
    last_s: float
    count: int = 0
    up_bytes: int = 0
    down_bytes: int = 0


class Probes:
    """``invite``: what a probe must bring, as a hello."""

    def __init__(self, invite: str) -> None:
        self._invite = invite
        self._turn: _Turn | None = None
        self._had: deque[bytes] = deque(maxlen=_REMEMBERED)
        self._noise = noise()

    def answer(self, identity: bytes, probe: Probe, up_bytes: int, now: float, *, busy: bool) -> Answer:
        """What to send back. ``up_bytes``: of the probe's payload; ``busy``: the server computes for others."""
        refusal = self._refusal(identity, probe, up_bytes, now)
        if refusal is not None:
            return refusal, {}
        assert self._turn is not None
        self._turn.count += 1
        self._turn.up_bytes += up_bytes
        self._turn.down_bytes += probe.back
        self._turn.last_s = now
        return Probed(number=probe.number, busy=busy, software=__version__), {
            "data": WireTensor.of(self._noise[: probe.back])
        }

    def over(self, identity: bytes) -> None:
        """This connection has said something else: the next device may measure."""
        if self._turn is not None and self._turn.identity == identity:
            self._had.append(identity)
            self._turn = None

    def _refusal(self, identity: bytes, probe: Probe, up_bytes: int, now: float) -> Refuse | None:
        if not hmac.compare_digest(probe.invite.encode(), self._invite.encode()):
            return Refuse(code="bad-invite", reason="the key in the join line is not this run's", fix="copy it again")
        turn = self._turn
        if turn is not None and (
            now - turn.since_s > TURN_S or (turn.identity != identity and now - turn.last_s > IDLE_S)
        ):
            self.over(turn.identity)
            turn = None
        if identity in self._had:
            return Refuse(code="probed", reason="this connection has had its turn", fix="measure again by a new one")
        if turn is None:
            turn = self._turn = _Turn(identity, now, now)
        if turn.identity != identity:
            return Refuse(code="turn", reason="another device measures its link", fix="ask again in a moment")
        if (
            turn.count >= MOST_PROBES
            or turn.up_bytes + up_bytes > MOST_BYTES
            or turn.down_bytes + probe.back > MOST_BYTES
        ):
            return Refuse(code="probed", reason=f"a connection may send {MOST_PROBES} probes and {MOST_BYTES} bytes")
        return None
