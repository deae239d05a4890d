"""May those who are here begin? Together they must train every layer as often as ``plan.coverage`` asks.

Devices are planned one by one as they join, each knowing what those before it train. Who is still expected may train
what is missing, so until then it is only said; a run for which all are there and a layer is not trained does not start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedsplit.errors import PlanError
from fedsplit.events import Emit, Note
from fedsplit.plan.types import ClientPlan

Uncovered = Callable[[Sequence[ClientPlan]], str]
"""Which layers these clients train too seldom; empty: none."""
WHAT_HELPS = (
    "Lower plan.coverage, free memory on a device, or let the devices join in another order: each takes what those "
    "before it left"
)


class Muster:
    """Looks at everybody's plans until the run has begun."""

    def __init__(self, uncovered: Uncovered, tell: Emit) -> None:
        self._uncovered, self._tell = uncovered, tell
        self._begun, self._lacking, self._here = False, "", 0

    def incomplete(self, plans: Sequence[ClientPlan]) -> None:
        """More clients are expected: say what is missing so far, once."""
        before, self._here = self._lacking, 0
        self._lacking = "" if self._begun or not plans else self._uncovered(plans)
        if self._lacking not in ("", before):
            self._tell(Note(text=f"so far, {self._lacking}", warning=True))

    def complete(self, plans: Sequence[ClientPlan]) -> bool:
        """Everybody is here: whether the run may begin, or go on. If not, the next ``check`` ends it."""
        self._here = len(plans)
        self._lacking = "" if self._begun else self._uncovered(plans)
        self._begun = not self._lacking
        return self._begun

    def check(self) -> None:
        """:raises PlanError: all are here, and together they train a layer too seldom."""
        if self._here and self._lacking:
            raise PlanError(f"{self._lacking}, and all {self._here} clients are here. {WHAT_HELPS}")
