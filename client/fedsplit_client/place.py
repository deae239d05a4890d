"""A client's place in the run: the plan that it follows, and how it takes up another one between two rounds.

Another plan is taken without asking the owner again when it is the same work and shows the operator no more than what
the owner agreed to (``fedsplit.plan.consent``). Its parts are fetched and loaded; factors come with the next round.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

from fedsplit.errors import FedsplitError, Refused
from fedsplit.events import Emit, Note
from fedsplit.exchange.part import Part
from fedsplit.plan.consent import objection
from fedsplit.plan.options import describe
from fedsplit.plan.types import ClientPlan
from fedsplit.wire.messages import DataSummary, Welcome
from fedsplit_client.session import Offer, Session

Load = Callable[[Offer], Part]
"""Fetches what another offer needs and is not here yet, and loads it."""


class Place:
    """``offer``: what is followed now, with ``part``; the owner agreed to the first one."""

    def __init__(self, session: Session, offer: Offer, data: DataSummary, part: Part, load: Load, emit: Emit) -> None:
        self.offer, self._agreed = offer, offer.plan
        self._session, self._data, self._load, self._emit = session, data, load, emit
        self._part: Part | None = part

    @property
    def part(self) -> Part:
        """The segments that are held now."""
        assert self._part is not None
        return self._part

    def again(self) -> None:
        """After the link was new: hello again, and ready for rounds again.

        :raises Refused: the server now has a plan that the owner would have to be asked about.
        :raises Timeout: no answer for longer than the run's patience.
        """
        now = self._session.again(self.offer)
        if why := objection(self._agreed, self.offer.plan, now.plan, self.offer.run):
            raise Refused(f"the server now has another plan for {now.plan.client}: {why}; join again to see it")
        self._take(now)
        self._session.accept(now, self._data)

    def take(self, welcome: Welcome) -> None:
        """The server offers another plan. Taken, or kept as it is with the reason said to both sides."""
        now = self._session.offered(welcome)
        why = "another base model" if now.base != self.offer.base else ""
        why = why or objection(self._agreed, self.offer.plan, now.plan, self.offer.run)
        if not why:
            why = self._tried(now)
        if why:
            self._say(f"keeps its plan {named(self.offer.plan)}, was offered {named(now.plan)}: {why}", warning=True)
        self._session.accept(self.offer, self._data, keeps=why)

    def _tried(self, now: Offer) -> str:
        """Take the offer; why not, where it cannot be fetched or loaded."""
        before = self.offer
        try:
            self._take(now)
        except FedsplitError as error:
            self._say(str(error), warning=True)
            self._change(before)
            return f"it could not be loaded ({type(error).__name__})"
        return ""

    def _take(self, now: Offer) -> None:
        before, plan = self.offer.plan, now.plan
        if where(before) == where(plan):
            self.offer = now
            return
        self._change(now)
        if plan.absent:
            self._say(f"holds layers {', '.join(map(str, held(plan)))} of {len(plan.layers)} now")
            return
        self._say(f"follows another plan now, {named(plan)} instead of {named(before)}. {plan.exposure}".strip())

    def _change(self, offer: Offer) -> None:
        self._part = None  # the device need not have room for both
        gc.collect()
        self._part, self.offer = self._load(offer), offer

    def _say(self, text: str, *, warning: bool = False) -> None:
        self._emit(Note(client=self.offer.plan.client, text=text, warning=warning))


def where(plan: ClientPlan) -> tuple[object, ...]:
    """What decides which segments a device builds."""
    return plan.topology, plan.cut, plan.checkpoint, plan.absent


def held(plan: ClientPlan) -> list[int]:
    return [layer.layer for layer in plan.layers if layer.place == "client"]


def named(plan: ClientPlan) -> str:
    return describe(plan.topology, plan.cut)
