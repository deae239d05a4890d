"""The link to a server, measured before anything is asked of it: probes over the connection that the hello will use.

One probe is on its way at a time and each has a deadline; a server that is measuring another device's link is asked
again for a while. What cannot be measured is said and left out: joining does not fail for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

from msgspec.structs import replace

from fedsplit.devices.load import load, save
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.devices.units import duration, rate
from fedsplit.errors import Closed, FedsplitError, LinkError, Refused, RemoteProtocolError, Timeout
from fedsplit.events import Emit, Note
from fedsplit.probe.link import HIGH_PERCENT, LOW_PERCENT, measure_link, noise, steady
from fedsplit.wire import WireTensor
from fedsplit.wire.ends import ClientEnd
from fedsplit.wire.link import JoinLink
from fedsplit.wire.messages import Bye, Probe, Probed, Refuse
from fedsplit_client.line import ended
from fedsplit_client.session import refused

ANSWER_S = 8.0
"""A probe that has not been answered after this long never counts: the link, or the server, stands still."""
TURN_S = 10.0
"""How long a device waits while others measure."""
AGAIN_S = 0.3
SECONDS = 1.5

Clock = Callable[[], float]
Sleep = Callable[[float], None]


class Gauge:
    """An exchange of payloads with one server. ``busy``: it said that it computes for others meanwhile; ``software``:
    its version, empty where it does not tell."""

    def __init__(
        self, end: ClientEnd, link: JoinLink, *, clock: Clock = time.monotonic, sleep: Sleep = time.sleep
    ) -> None:
        self._end, self._link, self._clock, self._sleep = end, link, clock, sleep
        self._noise = noise()
        self._number = 0
        self.busy = False
        self.software = ""

    def __call__(self, up: int, down: int) -> None:
        """Send ``up`` bytes and receive ``down``.

        :raises Timeout: no answer in time. :raises Closed: the connection was lost. :raises Refused: not now.
        :raises ConfigError: the invitation is not this server's.
        """
        self._number += 1
        probe = Probe(number=self._number, invite=self._link.invite.hex(), back=down)
        self._end.send(probe, {"data": WireTensor.of(self._noise[:up])})
        self._answer()

    def _answer(self) -> None:
        until = self._clock() + ANSWER_S
        while (left_s := until - self._clock()) > 0:
            packet = self._end.receive(left_s)
            if self._end.down_s > 0 or self._end.reconnected:
                raise Closed(f"the connection to {self._link.endpoint} was lost while its link was measured")
            match packet.message if packet is not None else None:
                case Probed(number=self._number) as probed:
                    self.busy, self.software = probed.busy, probed.software
                    return
                case Bye() as bye:
                    raise ended(self._link.endpoint, bye)
                case Refuse(code="turn") as refuse:
                    raise Turn(f"{self._link.endpoint}: {refuse.reason}")
                case Refuse() as refuse:
                    raise refused(refuse, self._link.endpoint)
        raise Timeout(f"{self._link.endpoint} did not answer a probe within {ANSWER_S:.0f} s")

    def begin(self) -> None:
        """Take the turn, waiting for it a while. Raises as a call."""
        until = self._clock() + TURN_S
        while True:
            try:
                return self(1, 1)
            except Turn:
                if self._clock() > until:
                    raise
                self._sleep(AGAIN_S)


class Turn(Refused):
    """Another device measures; ask again."""


def measured_link(end: ClientEnd, link: JoinLink, seconds: float = SECONDS) -> Link:
    """The link to the server at the other end. Raises as ``Gauge``."""
    gauge = Gauge(end, link)
    gauge.begin()
    found = measure_link(gauge, seconds, percent=HIGH_PERCENT if gauge.busy else LOW_PERCENT)
    return replace(found, source=f"measured to {link.endpoint} on {date.today().isoformat()}")


def told_link(end: ClientEnd, link: JoinLink, name: str, emit: Emit, seconds: float = SECONDS) -> Link | None:
    """As ``measured_link``, with a word about it; None, and a warning, where it could not be measured.

    Raises ConfigError where the invitation is not this server's.
    """
    emit(Note(client=name, text=f"measuring the link to {link.endpoint}, a second or two"))
    try:
        found = measured_link(end, link, seconds)
    except (LinkError, RemoteProtocolError) as error:
        emit(Note(client=name, text=f"the link was not measured: {error}", warning=True))
        return None
    emit(Note(client=name, text=f"the link to {link.endpoint}: {describe(found)}"))
    return found


def describe(link: Link) -> str:
    """For a reader: ``20 Mbit/s up, 50 Mbit/s down, 12 ms one way``."""
    return f"{rate(link.up_bps)} up, {rate(link.down_bps)} down, {duration(link.latency_s)} one way"


def with_link(
    end: ClientEnd, link: JoinLink, profile: DeviceProfile, name: str, emit: Emit, *, keep: Path | None
) -> DeviceProfile:
    """``profile`` with the link as measured now. Raises as ``told_link``.

    Unchanged where measuring is not possible, and where somebody gave a profile that has a link (``keep`` is None).

    What differs from the last measurement only by noise is left as it was, so that a second start gets the same plan.
    ``keep``: the file of this machine's own profile, which is told.
    """
    if keep is None and profile.link is not None:
        return profile
    moved = end.up_bytes, end.down_bytes
    found = told_link(end, link, name, emit)
    end.up_bytes, end.down_bytes = moved  # the run's bytes are those of its price
    if found is None:
        return profile
    found = steady(profile.link, found)
    if keep is not None and found != profile.link:
        try:
            save(replace(load(keep), link=found), keep)
        except FedsplitError as error:
            emit(Note(client=name, text=f"the link was measured but not kept: {error}", warning=True))
    return replace(profile, link=found)
