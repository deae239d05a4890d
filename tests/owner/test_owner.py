"""The owner's limits on a clock and sensors of the test: what may go on, what waits, until when, what is counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedsplit.devices.limits import Limits
from fedsplit.errors import Closed, OutOfMemory, Refused
from fedsplit.events import Event, Note
from fedsplit.plan.types import ClientPlan, Cut, Estimate, Topology
from fedsplit_client.owner import LEAVE, Left, Owner, Paused
from fedsplit_client.pauses import with_pauses
from fedsplit_client.sensors import Others, Sensors, hottest
from fedsplit_client.uploads import Uploads

DAY = datetime(2026, 11, 21)


@dataclass
class Here:
    """One device: everything that its sensors tell, and what happens while it sleeps."""

    folder: Path
    at: datetime = DAY + timedelta(hours=12)
    battery: bool | None = False
    others: float = 0.0
    celsius: float | None = 40.0
    sent: int = 0
    events: list[Event] = field(default_factory=list)
    meanwhile: list[Callable[[], None]] = field(default_factory=list)

    def sensors(self) -> Sensors:
        return Sensors(
            lambda: self.at, lambda: (self.at - DAY).total_seconds(), self.sleep, lambda: self.battery,
            lambda: self.others, lambda: self.celsius,
        )  # fmt: skip

    def sleep(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        if self.meanwhile:
            self.meanwhile.pop(0)()

    def owner(self, **limits: Any) -> Owner:
        uploads = Uploads(self.folder, lambda: self.at.date())
        owner = Owner(Limits(**limits), self.sensors(), uploads, self.events.append, "pi")
        owner.dialled(lambda: self.sent)
        return owner

    def later(self, **values: Any) -> None:
        self.at += timedelta(seconds=10)
        for name, value in values.items():
            setattr(self, name, value)

    @property
    def said(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note)]


@pytest.fixture
def here(tmp_path: Path) -> Here:
    folder = tmp_path / "joined" / "one"
    folder.mkdir(parents=True)
    return Here(folder)


@pytest.mark.parametrize(
    ("between", "hour", "opens"),
    [("22:00-06:00", 12, 22), ("22:00-06:00", 23, None), ("22:00-06:00", 0, None), ("22:00-06:00", 6, 22),
     ("08:00-17:00", 12, None), ("08:00-17:00", 17, 32), ("08:00-17:00", 5, 8), ("00:00-24:00", 5, None)],
)  # fmt: skip
def test_hours(here: Here, between: str, hour: int, opens: int | None) -> None:
    if between == "00:00-24:00":
        between = ""
    here.at = DAY + timedelta(hours=hour)
    pause = here.owner(between=between).now()
    if opens is None:
        assert pause is None
        return
    assert pause is not None
    assert pause.until == DAY + timedelta(hours=opens)
    assert pause.back_s == pytest.approx((opens - hour) * 3600, abs=300)


def test_a_window_that_closes_ends_the_connection_between_steps_and_while_waiting(here: Here) -> None:
    owner = here.owner(between="08:00-17:00")
    owner.between_steps()
    here.later(at=DAY + timedelta(hours=17))
    with pytest.raises(Paused, match="outside of the hours 08:00-17:00; until 2026-11-22 08:00"):
        owner.between_steps()
    here.later()
    with pytest.raises(Paused):
        owner.waiting()


def test_on_battery(here: Here) -> None:
    owner = here.owner(only_on_mains=True)
    assert owner.now() is None
    here.later(battery=True)
    pause = owner.now()
    assert pause is not None
    assert pause.until is None
    here.later(battery=None)
    assert owner.now() is None
    assert owner.now() is None
    assert [text for text in here.said if "does not tell" in text] == here.said, "said once"
    assert len(here.said) == 1


def test_heat_is_sat_out_where_we_are_and_ends_five_degrees_lower(here: Here) -> None:
    owner = here.owner(max_temperature_c=75.0)
    here.later(celsius=80.0)
    cooling = [lambda value=value: setattr(here, "celsius", value) for value in (74.0, 71.0, 70.0)]
    here.meanwhile = [*cooling]
    before = here.at
    owner.between_steps()
    assert (here.at - before).total_seconds() == 3, "71 °C is not yet cool"
    assert here.said[-1] == "goes on"


def test_other_programs_that_stay_end_the_connection(here: Here) -> None:
    owner = here.owner(pause_when_busy=True)
    here.later(others=0.9)
    owner.waiting()  # nothing is computed while waiting
    here.later()
    with pytest.raises(Paused, match="90%") as caught:
        owner.between_steps()
    assert caught.value.pause.brief
    here.others = 0.4
    assert owner.now() is not None, "not quiet yet"
    here.others = 0.2
    assert owner.now() is None


def test_uploads_are_counted_across_clients_restarts_and_midnight(here: Here) -> None:
    owner = here.owner(upload_per_day_bytes=1000)
    here.sent = 600
    owner.between_steps()
    owner.close()
    here.sent = 0
    again = here.owner(upload_per_day_bytes=1000)
    assert again.now() is None
    here.sent = 401
    with pytest.raises(Paused, match="until 2026-11-22 00:00"):
        again.between_steps()
    again.close()
    beside = here.folder.parent / "two"
    beside.mkdir()
    here.sent = 0
    other = Here(beside, here.at).owner(upload_per_day_bytes=1000)
    assert other.now() is not None, "the limit is the device's, not a client's"
    here.at = DAY + timedelta(days=1)
    assert again.now() is None
    assert here.owner(upload_per_day_bytes=1000).now() is None


def test_a_round_begins_only_where_it_fits_into_the_day(here: Here) -> None:
    owner = here.owner(upload_per_day_bytes=1000)
    owner.check(plan(memory=1), 400)
    owner.before_round()
    here.sent = 500  # the plan had said 400
    owner.after_round(500)
    here.later()
    owner.before_round()
    here.sent = 900
    here.later()
    with pytest.raises(Paused, match="a round sends 500 B up, 100 B are left"):
        owner.before_round()
    assert owner.now() is not None, "it stays away although 100 B are left"
    here.at = DAY + timedelta(days=1)
    assert owner.now() is None
    here.later()
    owner.before_round()
    with pytest.raises(Refused, match="--upload-per-day"):
        owner.check(plan(memory=1), 1001)


def test_a_plan_that_takes_too_much_memory_is_refused_before_it_is_loaded(here: Here) -> None:
    owner = here.owner(max_memory_bytes=400)
    owner.check(plan(memory=400), 0)
    with pytest.raises(OutOfMemory, match="--max-memory"):
        owner.check(plan(memory=401), 0)


def test_no_limit_never_pauses_and_touches_no_disk(here: Here) -> None:
    owner = Owner(None, here.sensors(), Uploads(here.folder, lambda: here.at.date()), here.events.append, "pi")
    owner.before_round()
    owner.waiting()
    owner.close()
    assert not list(here.folder.iterdir())


def test_the_word_to_leave_is_heard_and_an_old_one_is_void(here: Here) -> None:
    owner = here.owner()
    (here.folder / LEAVE).touch()
    owner.in_run(here.folder)
    owner.between_steps()
    (here.folder / LEAVE).touch()
    here.later()
    with pytest.raises(Left):
        owner.waiting()
    assert not (here.folder / LEAVE).exists()


def test_going_away_and_coming_back(here: Here) -> None:
    """Two pauses, a server that is just starting again, and the end; every reason is said once."""
    owner = here.owner(between="08:00-17:00")
    turns: list[Callable[[], str]] = []

    def closes() -> str:
        here.at = here.at.replace(hour=17)
        owner.between_steps()
        raise AssertionError("it went on")

    def restarting() -> str:
        raise Closed("nothing answers")

    turns = [closes, restarting, restarting, lambda: "done"]
    here.at = DAY + timedelta(hours=7)
    result = with_pauses(owner, lambda: turns.pop(0)(), pytest.fail, here.events.append, "pi", lambda: 60.0)
    assert result == "done"
    assert here.at.date() == DAY.date() + timedelta(days=1)
    assert [text for text in here.said if text.startswith("waits")] == [
        "waits: outside of the hours 08:00-17:00; until 2026-11-21 08:00",
        "waits: outside of the hours 08:00-17:00; until 2026-11-22 08:00",
    ]


def test_who_leaves_while_away_tells_the_server(here: Here) -> None:
    owner = here.owner(only_on_mains=True)
    owner.in_run(here.folder)
    told: list[str] = []

    def once() -> str:
        here.later(battery=True)
        here.meanwhile = [lambda: None, (here.folder / LEAVE).touch]
        owner.between_steps()
        raise AssertionError("it went on")

    with pytest.raises(Left):
        with_pauses(owner, once, lambda: told.append("bye"), here.events.append, "pi", lambda: 60.0)
    assert told == ["bye"]


def test_the_real_sensors_answer(tmp_path: Path) -> None:
    assert 0.0 <= Others()() <= 1.0
    (tmp_path / "thermal_zone0").mkdir()
    (tmp_path / "thermal_zone0" / "temp").write_text("61500\n")
    found = hottest(tmp_path)
    assert found is not None
    assert found > 0


def plan(memory: int) -> ClientPlan:
    cost = Estimate(memory_bytes=memory, disk_bytes=0, step_s=1.0, up_bytes=0, down_bytes=0, energy_j=0.0)
    return ClientPlan(
        client="pi", topology=Topology.LOCAL, cut=Cut(1, 1), layers=(), batch=1, micro_batches=1, estimate=cost
    )
