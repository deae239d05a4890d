"""Joining: hello, the server's offer, the owner's consent, and the same again after the link was new."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from fedsplit import __version__
from fedsplit.config.run import RunFile
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import ConfigError, LinkError, PlanError, Refused, RemoteProtocolError, Timeout
from fedsplit.events import Emit, Note
from fedsplit.plan.types import ClientPlan
from fedsplit.wire.ends import ClientEnd
from fedsplit.wire.link import JoinLink
from fedsplit.wire.messages import Accept, Asset, DataSummary, Hello, Message, Refuse, Welcome

ANSWER_S = 60.0
"""The server plans and hashes files before it answers a first hello."""


@dataclass(frozen=True)
class Offer:
    """What the server proposes to this device."""

    run: RunFile
    plan: ClientPlan
    base: str
    assets: tuple[Asset, ...]
    round: int


class Session:
    """One client's standing with one server."""

    def __init__(
        self, end: ClientEnd, link: JoinLink, name: str, profile: DeviceProfile, topology: str, emit: Emit
    ) -> None:
        self._end, self._link, self._name, self._emit = end, link, name, emit
        self._profile, self._topology = profile, topology

    def hello(self) -> Offer:
        """Ask to join.

        :raises Refused: the server said no, and why. :raises PlanError: no plan fits this device.
        :raises Timeout: it accepted the connection but did not answer.
        """
        hello = Hello(
            client=self._name,
            invite=self._link.invite.hex(),
            software=__version__,
            topology=self._topology,
            profile=self._profile,
        )
        welcome = self._ask(hello)
        if not isinstance(welcome, Welcome):
            raise RemoteProtocolError(f"{self._link.endpoint} answered hello with {type(welcome).__name__}")
        try:
            run = msgspec.json.decode(welcome.run_file, type=RunFile)
            plan = msgspec.json.decode(welcome.plan, type=ClientPlan)
        except msgspec.MsgspecError as error:
            raise RemoteProtocolError(f"{self._link.endpoint} sent an offer that is none: {error}") from None
        return Offer(run, plan, welcome.base, welcome.assets, welcome.round)

    def accept(self, offer: Offer, data: DataSummary) -> None:
        """The owner agreed; from now on the server may start rounds."""
        self._end.send(Accept(run=offer.run.run.name, client=self._name, base=offer.base, data=data))

    def again(self, offer: Offer, data: DataSummary) -> None:
        """After the link was new: the same job, or an error when the server now offers another."""
        while True:
            self._end.reconnected = False
            try:
                now = self.hello()
                break
            except Timeout as error:
                self._emit(Note(client=self._name, text=f"{error}; trying again", warning=True))
        if now.base != offer.base:
            raise Refused(f"{self._link.endpoint} now serves another base model; join again")
        if now.plan != offer.plan:
            raise Refused(f"{self._link.endpoint} now has another plan for {self._name}; join again to see it")
        self.accept(now, data)

    def _ask(self, message: Message) -> Message:
        self._end.send(message)
        for _ in range(int(ANSWER_S)):
            packet = self._end.receive(1.0)
            if self._end.reconnected:
                self._end.reconnected = False
                self._end.send(message)
            if packet is None:
                continue
            if isinstance(packet.message, Refuse):
                raise refused(packet.message, self._link.endpoint)
            if isinstance(packet.message, Welcome):
                return packet.message
        raise Timeout(f"{self._link.endpoint} did not answer within {ANSWER_S:.0f} s")


def refused(refuse: Refuse, server: str) -> LinkError | PlanError | ConfigError:
    """The exception of a refusal, by blame."""
    text = f"{server} refused: {refuse.reason}" + (f"; {refuse.fix}" if refuse.fix else "")
    if refuse.code == "no-plan":
        return PlanError(text)
    return ConfigError(text) if refuse.code in ("bad-name", "bad-invite", "name-taken") else Refused(text)
