"""Joining: hello, the server's offer, the owner's consent, and the same again after the link was new."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from fedsplit import __version__
from fedsplit.config.run import RunFile
from fedsplit.devices.profile import DeviceProfile
from fedsplit.devices.units import duration
from fedsplit.errors import Closed, ConfigError, LinkError, PlanError, Refused, RemoteProtocolError, Timeout
from fedsplit.events import Emit, Note
from fedsplit.plan.traffic import Known
from fedsplit.plan.types import ClientPlan
from fedsplit.wire.ends import ClientEnd
from fedsplit.wire.link import JoinLink
from fedsplit.wire.messages import Accept, Asset, Bye, DataSummary, Hello, Refuse, Waiting, Welcome
from fedsplit_client.line import ended

ANSWER_S = 60.0
"""The server plans and hashes files before it answers a first hello, one client after the other."""
SILENT_S = 8.0
"""The owner hears after this long that the server is silent."""
REPEAT_S = 10.0
"""A hello without an answer is said again after this long."""
PREPARE_S = 3600.0
"""The server may prepare files for this device, as long as it goes on saying so; this long at most."""
PREPARED_S = 2.0
"""A server that prepares files is asked again after this long."""
DAMAGED = 3
"""Broken answers to one hello that end the attempt: one may be chance, three are another version or program."""


@dataclass(frozen=True)
class Offer:
    """What the server proposes to this device. ``known``: what the device itself has found out about its part."""

    run: RunFile
    plan: ClientPlan
    base: str
    assets: tuple[Asset, ...]
    round: int
    known: Known = field(default_factory=Known)


class Session:
    """One client's standing with one server. ``patience_s``: how long ``again`` keeps trying."""

    def __init__(
        self,
        end: ClientEnd,
        link: JoinLink,
        name: str,
        profile: DeviceProfile,
        topology: str,
        emit: Emit,
        *,
        backend: str = "torch",
        tag: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._end, self._link, self._name, self._emit = end, link, name, emit
        self._backend, self._tag = backend, tag
        self._profile, self._topology, self._clock = profile.anonymous, topology, clock

    def hello(self) -> Offer:
        """Ask to join.

        :raises Refused: the server said no, and why. :raises PlanError: no plan fits this device.
        :raises ConfigError: a name or invitation that this server does not take.
        :raises RemoteProtocolError: it speaks another protocol version.
        :raises Timeout: it accepted the connection but did not answer.
        """
        hello = Hello(
            client=self._name,
            invite=self._link.invite.hex(),
            software=__version__,
            topology=self._topology,
            backend=self._backend,
            profile=self._profile,
            tag=self._tag,
        )
        return self.offered(self._ask(hello))

    def offered(self, welcome: Welcome) -> Offer:
        """What a welcome offers. :raises RemoteProtocolError: nothing that can be read."""
        try:
            run = msgspec.json.decode(welcome.run_file, type=RunFile)
            plan = msgspec.json.decode(welcome.plan, type=ClientPlan)
        except msgspec.MsgspecError as error:
            raise RemoteProtocolError(f"{self._link.endpoint} sent an offer that is none: {error}") from None
        return Offer(run, plan, welcome.base, welcome.assets, welcome.round)

    def accept(self, offer: Offer, data: DataSummary, *, keeps: str = "") -> None:
        """The owner agreed; from now on the server may start rounds. ``keeps``: why not to a plan offered since."""
        # A connection that is lost now comes back as ``reconnected``, and then everything is said again.
        with suppress(Closed):
            self._end.send(Accept(run=offer.run.run.name, client=self._name, base=offer.base, data=data, keeps=keeps))

    def again(self, offer: Offer) -> Offer:
        """After the link was new: what the server offers now, of the same base model.

        :raises Timeout: no answer for longer than the run's patience.
        """
        begun = self._clock()
        while True:
            self._end.reconnected = False
            try:
                now = self.hello()
                break
            except Timeout as error:
                if self._clock() - begun > offer.run.rounds.patience_s:
                    raise
                self._emit(Note(client=self._name, text=f"{error}; trying again", warning=True))
        if now.base != offer.base:
            raise Refused(f"{self._link.endpoint} now serves another base model; join again")
        return now

    def _ask(self, hello: Hello) -> Welcome:
        first = begun = self._clock()
        said, damaged, told, prepares = -REPEAT_S, 0, False, ""
        while (now := self._clock()) - begun < ANSWER_S:
            if now - begun >= SILENT_S and not told:
                told = True
                self._tell_silence()
            if self._end.reconnected or now - said >= REPEAT_S:
                self._end.reconnected = False
                with suppress(Closed):  # ``receive`` waits for the way back, and gives up in time
                    self._end.send(hello)
                    said = now
            try:
                packet = self._end.receive(1.0)
            except RemoteProtocolError:
                damaged += 1
                if damaged == DAMAGED:
                    raise
                said = -REPEAT_S
                continue
            match packet.message if packet is not None else None:
                case Welcome() as welcome:
                    return welcome
                case Waiting() as waiting:
                    begun, said = self._clock(), self._clock() - REPEAT_S + PREPARED_S
                    if begun - first > PREPARE_S:
                        raise Timeout(f"{self._link.endpoint} prepares for {duration(PREPARE_S)}: {waiting.what}")
                    prepares = self._tell_preparing(waiting.what, prepares)
                case Bye() as bye:
                    raise ended(self._link.endpoint, bye)
                case Refuse(code="protocol") as refuse:
                    damaged += 1
                    if damaged == DAMAGED:
                        raise refused(refuse, self._link.endpoint)
                    said = -REPEAT_S
                case Refuse(code="stale" | "hello-first" | "turn" | "probed"):
                    said = -REPEAT_S  # the answer to something from before this hello
                case Refuse() as refuse:
                    raise refused(refuse, self._link.endpoint)
        raise self._timeout()

    def _tell_silence(self) -> None:
        text = (
            f"{self._link.endpoint} takes the connection but has said nothing for {SILENT_S:.0f} s: it is busy, or it "
            f"hangs; look at the server's terminal. Waiting up to {ANSWER_S:.0f} s"
        )
        self._emit(Note(client=self._name, text=text, warning=True))

    def _tell_preparing(self, what: str, before: str) -> str:
        if what != before:
            self._emit(Note(client=self._name, text=f"waiting for {self._link.endpoint}: {what}"))
        return what

    def _timeout(self) -> Timeout:
        return Timeout(f"{self._link.endpoint} did not answer within {ANSWER_S:.0f} s; look at the server's terminal")


def refused(refuse: Refuse, server: str) -> LinkError | PlanError | ConfigError | RemoteProtocolError:
    """The exception of a refusal, by blame."""
    text = f"{server} refused: {refuse.reason.rstrip('.')}" + (f"; {refuse.fix}" if refuse.fix else "")
    match refuse.code:
        case "no-plan":
            return PlanError(text)
        case "bad-name" | "bad-invite" | "name-taken":
            return ConfigError(text)
        case "protocol":
            return RemoteProtocolError(text)
    return Refused(text)
