"""A device's kept profile learns from a run, and the next plan counts on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from fedsplit.config.run import ClientSection, ModelSection, RoundsSection, RunFile
from fedsplit.devices.find import find, own
from fedsplit.devices.load import load, save
from fedsplit.errors import ConfigError
from fedsplit.events import Event, Note
from fedsplit.plan.card import card
from fedsplit.plan.correction import PROGRAM_LEAST, learnt, smoothed
from fedsplit.plan.model import ModelCard
from fedsplit.plan.solve import solve
from fedsplit.plan.types import ClientPlan
from fedsplit.split.base import open_base
from fedsplit.train.exported import model_folder
from fedsplit.wire.messages import DataSummary
from fedsplit_client.cost import Taken
from fedsplit_client.learn import learn
from fedsplit_client.session import Offer

ALONE = ClientSection(name="a", topology="local")
RUN = RunFile(model=ModelSection(path="pydoc-llama"), rounds=RoundsSection(clients=1), clients=(ALONE,))
LAPTOP = replace(find("laptop_x86_4core"), layer_overhead_s=1e-4)
BASE = open_base(model_folder("pydoc-llama"))


def model() -> ModelCard:
    return card(BASE.config.to_dict())


def plan_of(profile: object) -> ClientPlan:
    return solve(model(), {"a": profile}, RUN).clients[0]  # type: ignore[dict-item]


def test_factors_move_half_way_and_stay_in_bounds() -> None:
    assert smoothed(1.0, 4.0) == pytest.approx(2.0)
    assert smoothed(4.0, 0.25) == pytest.approx(1.0)
    assert smoothed(1.0, 1e9) == pytest.approx(2.0)
    factor = 1.0
    for _ in range(20):
        factor = smoothed(factor, 1e9)
    assert factor == pytest.approx(4.0, rel=1e-4)
    assert factor <= 4.0


def test_what_is_measured_again_and_again_is_what_is_planned() -> None:
    plan = plan_of(LAPTOP)
    assert plan.estimate is not None
    truth_s, truth_bytes = 3 * plan.estimate.step_s, plan.estimate.memory_bytes + 200_000_000
    profile = LAPTOP
    for _ in range(12):
        profile = learnt(profile, model(), RUN, plan, None, device_s=truth_s, peak_bytes=truth_bytes)
    again = plan_of(profile.corrected)
    assert again.estimate is not None
    assert again.estimate.step_s == pytest.approx(truth_s, rel=0.01)
    assert again.estimate.memory_bytes == pytest.approx(truth_bytes, rel=0.01)
    assert profile.flops == LAPTOP.flops


def test_what_was_not_measured_changes_nothing() -> None:
    assert learnt(LAPTOP, model(), RUN, plan_of(LAPTOP), None, device_s=0.0) == LAPTOP


def test_a_client_corrects_its_kept_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(LAPTOP, tmp_path / "own.toml")
    monkeypatch.setenv("FEDSPLIT_PROFILE", str(path))
    plan, said = plan_of(LAPTOP), list[Event]()
    assert plan.estimate is not None
    offer = Offer(run=RUN, plan=plan, base="", assets=(), round=0)
    data = DataSummary(train_examples=8, tokens_mean=0.0, tokens_max=0)
    step = Taken(seconds=9.0, own_s=4 * plan.estimate.step_s, up_bytes=0, down_bytes=0)
    learn(path, offer, BASE.config.to_dict(), data, [step] * 2, said.append)
    assert load(path) == LAPTOP
    learn(path, offer, BASE.config.to_dict(), data, [step] * 3, said.append)
    assert load(path).time_factor == pytest.approx(2.0, rel=0.01)
    assert own().flops["float32"] == pytest.approx(LAPTOP.flops["float32"] / load(path).time_factor)
    assert own().time_factor == 1.0
    assert [isinstance(event, Note) and event.text.startswith("learnt for the next plan") for event in said] == [True]


def test_a_profile_learns_from_the_program_that_it_was_measured_with(tmp_path: Path) -> None:
    """A device that computed without torch took a quarter of torch's memory: that says nothing of torch."""
    path, plan = save(LAPTOP, tmp_path / "own.toml"), plan_of(LAPTOP)
    offer = Offer(run=RUN, plan=plan, base="", assets=(), round=0)
    data = DataSummary(train_examples=8, tokens_mean=0.0, tokens_max=0)
    step = Taken(seconds=9.0, own_s=4.0, up_bytes=0, down_bytes=0)
    learn(path, offer, BASE.config.to_dict(), data, [step] * 3, lambda event: None, edge=True)
    assert load(path) == LAPTOP


def test_a_program_does_not_shrink() -> None:
    """A plan whose other terms were too high must not make the next model's plan too low."""
    profile, plan = LAPTOP, plan_of(LAPTOP)
    for _ in range(9):
        profile = learnt(profile, model(), RUN, plan, None, device_s=0.0, peak_bytes=1)
    assert profile.memory_factor == PROGRAM_LEAST


def test_an_impossible_factor_is_said(tmp_path: Path) -> None:
    path = save(replace(LAPTOP, time_factor=9.0), tmp_path / "own.toml")
    with pytest.raises(ConfigError, match=r"time_factor.*found 9.*0\.25 to 4"):
        load(path)
