"""The owner's word while a run goes on: what may be done now, until when not, and when to go.

Asked between rounds, between steps and while waiting. A short disturbance (heat, other programs) is sat out where the
client is; a longer one, and hours that are known beforehand, end the connection: the server hears how long it will be
and the client comes back by itself (``fedsplit_client.pauses``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from fedsplit.devices.limits import Limits, span
from fedsplit.devices.units import size
from fedsplit.errors import FedsplitError, OutOfMemory, Refused
from fedsplit.events import Emit, Note
from fedsplit.plan.types import ClientPlan
from fedsplit_client.sensors import Sensors
from fedsplit_client.uploads import Uploads

LOOK_S = 1.0
"""Between two looks at anything that costs a call of the system."""
SAT_OUT_S = 60.0
"""A disturbance that lasts longer ends the connection."""
BUSY, QUIET = 0.5, 0.3
"""Of the machine: other programs that take more are given way to, until they take less than the latter."""
COOLER_C = 5.0
BACK_SOON_S, BACK_SOMETIME_S = 3600.0, 12 * 3600.0
"""What a server is told where nobody knows: cooled down, mains again."""
LATE_S = 120.0
"""It takes a while to dial and to load."""
LEAVE = "leave"
"""The file in a run's folder that says so (``fedsplit leave``)."""


@dataclass(frozen=True)
class Pause:
    """``why`` nothing may be done now, ``until`` when (None: unknown). ``brief``: may be over in a moment."""

    why: str
    until: datetime | None = None
    back_s: float = BACK_SOMETIME_S
    brief: bool = False

    def __str__(self) -> str:
        return f"{self.why}; until {self.until:%Y-%m-%d %H:%M}" if self.until is not None else self.why


class Paused(FedsplitError):
    """Not now. The client goes away and comes back."""

    def __init__(self, pause: Pause) -> None:
        super().__init__(str(pause))
        self.pause = pause


class Left(FedsplitError):
    """The owner ended this device's part (``fedsplit leave``). The state is kept."""

    exit_code = 0


class Owner:
    """``sent``: bytes that the connection has sent so far. ``limits`` may be none; leaving is possible always."""

    def __init__(
        self,
        limits: Limits | None,
        sensors: Sensors,
        uploads: Uploads,
        emit: Emit,
        name: str,
        sat_out_s: float = SAT_OUT_S,
    ) -> None:
        self.limits = limits or Limits()
        self.sensors = sensors
        self._uploads, self._emit, self._name, self._sat_out_s = uploads, emit, name, sat_out_s
        self._sent: Callable[[], int] = lambda: 0
        self._counted = 0
        self._folder: Path | None = None
        self._looked_s = float("-inf")
        self._tired: set[str] = set()
        self._round_bytes = 0
        self._held: Pause | None = None

    # ---- what the client tells ----------------------------------------------------------------------------------

    def dialled(self, sent: Callable[[], int]) -> None:
        """A connection stands; ``sent``: bytes that it has sent."""
        self._sent, self._counted = sent, 0

    def in_run(self, folder: Path) -> None:
        """The run's folder on this device, where the word to leave would lie; an old one is void."""
        if self._folder is None:
            (folder / LEAVE).unlink(missing_ok=True)
        self._folder = folder

    def check(self, plan: ClientPlan, round_up_bytes: int) -> None:
        """Before anything is loaded.

        :raises OutOfMemory: the plan takes more than the owner allows, whatever the server thinks.
        :raises Refused: one round of it sends more up than a whole day may.
        """
        self._round_bytes = round_up_bytes
        need, allowed = plan.estimate.memory_bytes if plan.estimate is not None else 0, self.limits.max_memory_bytes
        if allowed and need > allowed:
            fix = "ask the operator for another cut, or raise --max-memory"
            raise OutOfMemory("the plan", need, allowed, fix, limit="you allow")
        self._check_day()

    def _check_day(self) -> None:
        allowed = self.limits.upload_per_day_bytes
        if allowed and self._round_bytes > allowed:
            raise Refused(
                f"one round sends {size(self._round_bytes)} up, you allow {size(allowed)} a day; raise "
                "--upload-per-day, or ask the operator for fewer steps a round"
            )

    # ---- what the client asks -----------------------------------------------------------------------------------

    def before_round(self) -> None:
        """The round that begins has room in what is left of today. Raises Paused, Left, Refused."""
        self._count()
        self._keep_count()
        self.between_steps()
        left = self.limits.upload_per_day_bytes - self._uploads.total()
        if self.limits.upload_per_day_bytes and self._round_bytes > left:
            self._check_day()
            what = f"a round sends {size(self._round_bytes)} up, {size(max(0, left))} are left"
            self._held = self._until_midnight(what)
            raise Paused(self._held)

    def after_round(self, up_bytes: int) -> None:
        """What a round has really sent is what the next one is expected to send."""
        self._round_bytes = max(self._round_bytes, up_bytes)

    def between_steps(self) -> None:
        """Heat and other programs are sat out here for a while. Raises Paused, Left."""
        self._count()
        pause = self._look()
        if pause is None:
            return
        if pause.brief and self._sat_out(pause):
            return
        raise Paused(pause)

    def waiting(self) -> None:
        """While nothing is computed only what is no matter of a moment counts. Raises Paused, Left."""
        pause = self._look()
        if pause is not None and not pause.brief:
            raise Paused(pause)

    def close(self) -> None:
        """Count the rest, and keep it."""
        self._count()
        self._keep_count()

    def now(self) -> Pause | None:
        """Why not now; None where everything may go on. Raises Left."""
        if self._folder is not None and (self._folder / LEAVE).exists():
            (self._folder / LEAVE).unlink(missing_ok=True)
            raise Left("left, as `fedsplit leave` said; the state is kept, `fedsplit join` takes part again")
        return self._kept() or self._hours() or self._mains() or self._budget() or self._heat() or self._others()

    # ---- limits -------------------------------------------------------------------------------------------------

    def _kept(self) -> Pause | None:
        """What ended the connection lasts as long as was said."""
        if self._held is not None and self._held.until is not None and self.sensors.now() >= self._held.until:
            self._held = None
        return self._held

    def _hours(self) -> Pause | None:
        found = span(self.limits.between)
        if found is None:
            return None
        now, (begin, end) = self.sensors.now(), found
        time = now.time()
        inside = begin <= time < end if begin < end else time >= begin or time < end
        if inside:
            return None
        until = datetime.combine(now.date(), begin)
        until += timedelta(days=until <= now)
        return Pause(f"outside of the hours {self.limits.between}", until, (until - now).total_seconds() + LATE_S)

    def _mains(self) -> Pause | None:
        if not self.limits.only_on_mains:
            return None
        battery = self.sensors.battery()
        self._unknown("mains or battery", battery)
        return Pause("on battery, until it is on mains again") if battery else None

    def _budget(self) -> Pause | None:
        allowed = self.limits.upload_per_day_bytes
        if not allowed or self._uploads.total() < allowed:
            return None
        return self._until_midnight(f"{size(self._uploads.total())} were sent up today")

    def _until_midnight(self, what: str) -> Pause:
        now = self.sensors.now()
        until = datetime.combine(now.date() + timedelta(days=1), datetime.min.time())
        why = f"{what}, of {size(self.limits.upload_per_day_bytes)} a day"
        return Pause(why, until, (until - now).total_seconds() + LATE_S)

    def _heat(self) -> Pause | None:
        most = self.limits.max_temperature_c
        if not most:
            return None
        celsius = self.sensors.celsius()
        self._unknown("the temperature", celsius)
        if celsius is None or celsius <= most - (COOLER_C if "heat" in self._tired else 0.0):
            self._tired.discard("heat")
            return None
        self._tired.add("heat")
        return Pause(f"{celsius:.0f} °C, until it is {COOLER_C:.0f} below {most:g} °C", None, BACK_SOON_S, brief=True)

    def _others(self) -> Pause | None:
        if not self.limits.pause_when_busy:
            return None
        share = self.sensors.others()
        if share <= (QUIET if "others" in self._tired else BUSY):
            self._tired.discard("others")
            return None
        self._tired.add("others")
        return Pause(f"other programs take {share:.0%} of this machine", None, BACK_SOON_S, brief=True)

    def _unknown(self, what: str, value: object) -> None:
        if value is None and what not in self._tired:
            self._tired.add(what)
            self._say(f"this machine does not tell {what}: that limit cannot be kept", warning=True)

    # ---- clock --------------------------------------------------------------------------------------------------

    def _look(self) -> Pause | None:
        now_s = self.sensors.clock()
        if now_s - self._looked_s < LOOK_S:
            return None
        self._looked_s = now_s
        return self.now()

    def _sat_out(self, pause: Pause) -> bool:
        """Wait where we are; False where it takes too long."""
        self._say(f"pauses: {pause}")
        until_s = self.sensors.clock() + self._sat_out_s
        while self.sensors.clock() < until_s:
            self.sensors.sleep(LOOK_S)
            found = self.now()
            if found is None:
                self._say("goes on")
                return True
            if not found.brief:
                raise Paused(found)
        return False

    def _keep_count(self) -> None:
        """Once a round, and only where it is asked for: an SD card does not like to be written."""
        if self.limits.upload_per_day_bytes:
            self._uploads.keep()

    def _count(self) -> None:
        sent = self._sent()
        self._uploads.add(sent - self._counted)
        self._counted = sent

    def _say(self, text: str, *, warning: bool = False) -> None:
        self._emit(Note(client=self._name, text=text, warning=warning))
