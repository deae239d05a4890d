"""The picture of a plan: its bars are the plan's numbers, its file is what was asked for."""

from __future__ import annotations

import json
import struct
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fedsplit.cli.main import make_app
from fedsplit.cli.plan import machines, model_card
from fedsplit.cli.plan_lanes import COLOURS, LANES, TOP
from fedsplit.cli.plan_picture import Picture, picture
from fedsplit.cli.plan_plot import DPI, WIDTH_IN, draw
from fedsplit.cli.verbs import VERBS
from fedsplit.config.load import load
from fedsplit.plan.fleet import balanced
from fedsplit.plan.question import questions
from fedsplit.plan.solve import solve
from fedsplit.plan.types import Plan

needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="draws: pip install 'fedsplit[plot]'")

RUN = """
[run]
name = "mail"
[model]
path = "folder"
task = "classification"
labels = ["a", "b"]
[rounds]
clients = 2
"""
CONFIG = {
    "model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
    "intermediate_size": 1536, "vocab_size": 30522,
}  # fmt: skip


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(json.dumps(CONFIG))
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    return path


def planned(run_file: Path, fleet: str, most: int = 40) -> tuple[Plan, Picture]:
    run = load(run_file)
    card = model_card(run, run_file.parent)
    devices, server = machines(run, run_file.parent, fleet, "")
    plan = solve(card, devices, run, server=server)
    return plan, picture(plan, balanced(questions(card, devices, run, server=server)), most=most)


def test_bars_add_up_to_the_plan(run_file: Path) -> None:
    plan, found = planned(run_file, "home")
    costs = {client.client: client.estimate for client in plan.clients}
    assert {bar.name for bar in found.bars} == costs.keys()
    for bar in found.bars:
        cost = costs[bar.name]
        assert cost is not None
        assert bar.step_s == pytest.approx(cost.step_s, rel=1e-9)
        assert bar.used_bytes == cost.memory_bytes
        assert bar.share <= 1
    assert [bar.step_s for bar in found.bars] == sorted((bar.step_s for bar in found.bars), reverse=True)
    assert found.slowest_s == found.bars[0].step_s


def test_a_large_fleet_is_shown_by_kind_of_device(run_file: Path) -> None:
    plan, found = planned(run_file, "campus", most=10)
    assert found.grouped
    assert sum(bar.count for bar in found.bars) == len(plan.clients) == 30
    steps = {c.client: c.estimate.step_s for c in plan.clients if c.estimate}
    laptops = [step for name, step in steps.items() if name.startswith("laptop")]
    row = next(bar for bar in found.bars if bar.name == "laptop_x86_4core")
    assert row.count == len(laptops) == 12
    assert row.step_s == pytest.approx(sum(laptops) / 12)
    low, high = row.spread_share
    assert low < row.share < high
    assert found.slowest_s == pytest.approx(max(steps.values()))


@needs_matplotlib
def test_what_is_drawn_are_these_numbers(run_file: Path) -> None:
    _, found = planned(run_file, "home")
    time_axes, memory_axes = draw(found).axes
    filled = [patch for patch in memory_axes.patches if patch.get_width() != 100]
    for row, bar in enumerate(found.bars):
        mine = [p.get_width() for p in filled if round(p.get_y() + p.get_height() / 2) == row]
        assert sum(mine) == pytest.approx(100 * bar.share)
        for resource, (cause, _, offset, _) in LANES.items():
            spent = sum(busy.end - busy.start for busy in bar.lane if busy.stage.resource is resource)
            assert drawn_s(time_axes, row - TOP + offset, cause) == pytest.approx(spent)
    words = {text.get_text() for axes in (time_axes, memory_axes) for text in axes.texts}
    assert {"zero-hallway", "pi-kitchen", "server", *(bar.plan for bar in found.bars)} <= words
    assert {"the device computes", "sending", "free: the slowest is awaited"} <= {
        text.get_text() for text in time_axes.get_legend().get_texts()
    }


def drawn_s(axes: Any, top: float, cause: str) -> float:
    """Seconds of all blocks of a colour in one lane."""
    red_green_blue = tuple(int(COLOURS[cause][at : at + 2], 16) / 255 for at in (1, 3, 5))
    total = 0.0
    for collection in axes.collections:
        if tuple(collection.get_facecolor()[0][:3]) == pytest.approx(red_green_blue):
            boxes = [path.get_extents() for path in collection.get_paths()]
            total += sum(box.width for box in boxes if box.y0 == pytest.approx(top))
    return total


def test_lanes_are_the_plan_s_causes(run_file: Path) -> None:
    """Each resource is as busy as the plan says; two micro-batches at once make a step shorter than planned."""
    plan, found = planned(run_file, "home")
    assert all(bar.lane for bar in found.bars)
    for bar in found.bars:
        busy_s = {
            cause: sum(b.end - b.start for b in bar.lane if b.stage.resource is resource)
            for resource, (cause, *_) in LANES.items()
        }
        # The bars keep the causes' proportions.
        whole = sum(busy_s.values())
        told = {cause: bar.seconds[cause] for cause in busy_s}
        for cause, seconds in busy_s.items():
            assert seconds / whole == pytest.approx(told[cause] / sum(told.values()), abs=1e-9)
        assert 0.5 * bar.step_s <= bar.lane_s <= bar.step_s * (1 + 1e-9)
    assert sum(bar.served for bar in found.bars) <= 1 + 1e-6
    assert len(plan.clients) == len(found.bars)


@needs_matplotlib
def test_every_name_and_label_stays_inside_the_picture(run_file: Path) -> None:
    run_file.write_text(RUN.replace("mail", "a-name-that-is-as-long-as-names-may-be"))
    _, found = planned(run_file, "thousand")
    figure = draw(found)
    figure.draw_without_rendering()
    assert len(found.bars) == 9
    for axes in figure.axes:
        for text in (*axes.texts, *axes.get_legend().get_texts()):
            box = text.get_window_extent()
            assert box.x0 >= 0, text.get_text()
            assert box.x1 <= figure.bbox.x1, text.get_text()


def fedsplit(*args: str) -> Result:
    return CliRunner(env={"COLUMNS": "150"}).invoke(make_app(VERBS), list(args))


@needs_matplotlib
def test_the_file_is_a_png_of_the_size_of_the_fleet(run_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.png"
    shown = fedsplit("plan", str(run_file), "--fleet", "home", "--plot", str(out), "--json")
    assert shown.exit_code == 0
    assert len(json.loads(shown.stdout)["clients"]) == 5
    raw = out.read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", raw[16:20])[0] == WIDTH_IN * DPI
    assert fedsplit("plan", str(run_file), "--fleet", "home", "--plot", str(out)).exit_code == 0
    assert out.read_bytes() == raw


@pytest.mark.parametrize(("name", "words"), [("plan.bmp", ".png, .svg, .pdf"), ("none/plan.png", "make it first")])
def test_places_that_cannot_be_drawn_to(run_file: Path, tmp_path: Path, name: str, words: str) -> None:
    shown = fedsplit("plan", str(run_file), "--fleet", "home", "--plot", str(tmp_path / name))
    assert shown.exit_code == 2
    assert words in " ".join(shown.stderr.split())


def test_without_matplotlib_the_extra_is_named(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    shown = fedsplit("plan", str(run_file), "--fleet", "home", "--plot", "plan.png")
    assert shown.exit_code == 8
    assert "fedsplit[plot]" in " ".join(shown.stderr.split())
