"""What rounds showed about a device, as factors that correct its profile for the next plan of the same run.

Computing: seconds a step of the device's own work, measured / predicted. Link: a step's waiting holds the transfer, the
server's work and its work for others, and the device cannot tell them apart. So the transfer took at most all of the
waiting, and at least the waiting without all the time in which the server was busy; the prediction is corrected only
when it lies outside of that. Where micro-batches overlap, transfers hide behind computing: there a link is never found
to be faster. Factors are moving averages of logarithms, so that twice and half as long weigh alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from msgspec import structs

from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.plan.question import Question, server_of, step_as_planned
from fedsplit.plan.timing import ASSUMED_LINK, Times, step_times
from fedsplit.plan.types import ClientPlan

NEWEST = 0.7
"""Weight of the newest round."""
MOST = 16.0
"""A factor stays between 1 / MOST and MOST: beyond that the profile is another machine's, or the measurement is odd."""
DIGITS = 3


@dataclass(frozen=True, kw_only=True)
class Step:
    """One round's cost a step: seconds, of them the device's own work, and seconds in which the server was busy."""

    step_s: float
    device_s: float
    busy_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Correction:
    """Times the seconds that the profile as it was sent would give: of computing, and of the link."""

    time: float = 1.0
    link: float = 1.0

    def of(self, profile: DeviceProfile) -> DeviceProfile:
        """The profile with the factors in its numbers."""
        slower = structs.replace(profile, time_factor=self.time, memory_factor=1.0).corrected
        link = profile.link or ASSUMED_LINK
        if self.link == 1.0:
            return slower
        up_bps, down_bps = link.up_bps / self.link, link.down_bps / self.link
        return structs.replace(
            slower, link=Link(up_bps=up_bps, down_bps=down_bps, latency_s=link.latency_s * self.link)
        )

    def after(self, predicted: Times, step: Step) -> Correction:
        """Moved by one round. ``predicted``: from the profile as it was sent, for the plan that was followed."""
        time, link = self.time, self.link
        if step.device_s > 0 and predicted.device > 0:
            time = _averaged(time, step.device_s / predicted.device)
        wire_s, waited_s = predicted.up + predicted.down + predicted.latency, step.step_s - step.device_s
        if wire_s > 0 and waited_s > 0:
            least_s = max(0.0, waited_s - step.busy_s)
            most_s = math.inf if predicted.overlap else waited_s
            told_s = min(max(wire_s * link, least_s), most_s)
            link = _averaged(link, told_s / wire_s)
        return replace(self, time=time, link=link)


def predicted(question: Question, plan: ClientPlan) -> Times:
    """Seconds of a step of ``plan``, cause by cause, on ``question.device``."""
    work = step_as_planned(question, plan)
    return step_times(
        work,
        plan.topology,
        plan.cut,
        question.device,
        server_of(question),
        threads=question.threads,
        share=question.share,
        link_share=question.link_share,
    )


def _averaged(before: float, seen: float) -> float:
    bounded = min(MOST, max(1 / MOST, seen))
    return float(f"{math.exp((1 - NEWEST) * math.log(before) + NEWEST * math.log(bounded)):.{DIGITS}g}")
