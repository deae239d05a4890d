"""What ``fedsplit join`` does once its arguments are read: the question, the view, the result.

Nothing here imports the library of the command line, and what draws tables only when there is one to draw: a device
without torch trains in a process that has little else in memory (``fedsplit.cli.lean``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fedsplit.cli.interrupts import if_interrupted
from fedsplit.cli.output import line, view
from fedsplit.events import Event, Finished, Measured, RoundStarted

if TYPE_CHECKING:
    from fedsplit_client.join import Joined
    from fedsplit_client.session import Offer
    from fedsplit_client.wish import Wish

WithIt = Callable[["Wish"], None]
BEGUN = "no round was trained here yet; what was fetched is kept, and the same command goes on from there"
"""What is true from the owner's yes to the first round."""


def take_part(
    wish: Wish,
    *,
    out: Path | None,
    yes: bool,
    json: bool,
    said: tuple[Event, ...] = (),
    hand_over: WithIt | None = None,
) -> None:
    """From a wish to the last word. ``said``: what there is to say before anything else. ``hand_over``: as in the
    client; the terminal is left as it was before.

    Raises as ``fedsplit_client.join.take_part``, and Interrupted. Whoever said `fedsplit leave` sees that it was done,
    and a service sees no failure.
    """
    from fedsplit_client import join as client
    from fedsplit_client.heap import give_back
    from fedsplit_client.owner import Left

    with ExitStack() as stack:
        stage = Stage(stack, yes=yes, json=json)
        stack.enter_context(if_interrupted(lambda: stage.kept))
        if wish.agreed is not None:
            stage.begin(wish.agreed)
        for event in said:
            stage.emit(event)
        try:
            over = None if hand_over is None else stage.closing(hand_over)
            joined = client.take_part(wish, stage.agree, stage.emit, hand_over=over)
        except Left as left:
            stack.close()
            line(str(left), error=json)
            return
        stage.emit(_finished(joined))
    give_back()
    if out is not None:
        client.save(joined, out)
    if not json:
        _report(joined)


class Stage:
    """The question first and the view after it: a live view and a prompt cannot share a terminal."""

    def __init__(self, stack: ExitStack, *, yes: bool, json: bool) -> None:
        self._views, self._yes, self._json = stack.enter_context(ExitStack()), yes, json
        self._emit = self._views.enter_context(view("joining", json, live=False))
        self._title = ""
        self.kept = "nothing was joined, and nothing of your data was sent"
        """What is true when it is interrupted now."""

    def emit(self, event: Event) -> None:
        if isinstance(event, RoundStarted | Measured):
            self.kept = "finished rounds are saved; the same command goes on from there"
        if self._title:
            # Not before there is something to see: another process may be the one that shows it.
            title, self._title = self._title, ""
            self._emit = self._views.enter_context(view(title, self._json))
        self._emit(event)

    def agree(self, offer: Offer, path: str) -> bool:
        """Show what is asked of this device, then ask its owner."""
        from fedsplit.cli.cards import ask, show_plan
        from fedsplit.plan.traffic import run_traffic

        if not self._json:
            show_plan(offer.plan, run_traffic(offer.plan, offer.run, offer.known))
        if not ask(f"Train on {path} with this plan?", yes=self._yes):
            return False
        self.begin(offer)
        return True

    def begin(self, offer: Offer) -> None:
        """The owner has agreed."""
        self.kept = BEGUN
        self._title = f"{offer.plan.client} in {offer.run.run.name}"

    def closing(self, hand_over: WithIt) -> WithIt:
        """``hand_over`` when nothing is shown here any more; shown again should it return."""

        def closed(wish: Wish) -> None:
            self._views.close()
            hand_over(wish)
            self._emit = self._views.enter_context(view("joining", self._json, live=False))

        return closed


def _finished(joined: Joined) -> Finished:
    result = joined.result
    return Finished(
        client=joined.plan.client,
        round=result.round,
        reason=result.reason,
        before=result.before,
        after=result.after,
        up_bytes=joined.up_bytes,
        down_bytes=joined.down_bytes,
    )


def _report(joined: Joined) -> None:
    from fedsplit.cli.cards import AccuracyRow, accuracy_table

    result = joined.result
    shared = sorted(result.before.keys() & result.after.keys() - {"tokens"})
    for metric in shared:
        row = AccuracyRow(joined.plan.client, result.before[metric], None, result.after[metric])
        accuracy_table([row], metric)
    line(f"done: {result.reason}. Sent {joined.up_bytes / 1e6:,.1f} MB, received {joined.down_bytes / 1e6:,.1f} MB.")
    line(f"The factors you hold are kept in {joined.folder}")
