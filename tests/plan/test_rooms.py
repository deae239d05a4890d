"""A plan of a method that draws layers says so, and from how many; a model without layers to draw is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from families import config_of
from typer.testing import CliRunner

from fedsplit.cli.main import make_app
from fedsplit.cli.verbs import VERBS
from fedsplit.method.registry import names

RUN = """
[model]
path = "."
dtype = "bfloat16"
max_length = 64
[train]
batch = 2
[[clients]]
name = "large"
device = "laptop_x86_4core"
[[clients]]
name = "small"
device = "small.toml"
[method]
name = "fedra"
"""
SMALL = """
name = "small"
arch = "aarch64"
cores = 4
threads = 4
memory_bandwidth_bps = 5e9
memory_bytes = "1 GB"
free_memory_bytes = "{free} MB"
runtime_bytes = "190 MB"
[flops]
float32 = 1e10
bfloat16 = 1e10
"""
LAYERS = 8


def fedsplit(*args: str) -> Any:
    return CliRunner(env={"COLUMNS": "150"}).invoke(make_app(VERBS), list(args))


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A run of eight layers, of which the small device has room for some."""
    shape = config_of("llama", num_hidden_layers=LAYERS, hidden_size=512, intermediate_size=2048, vocab_size=512)
    (tmp_path / "config.json").write_text(json.dumps(shape))
    (tmp_path / "small.toml").write_text(SMALL.format(free=275))
    (tmp_path / "run.toml").write_text(RUN)
    return tmp_path / "run.toml"


def test_what_is_drawn_is_no_list_of_layers(run_file: Path) -> None:
    plan = json.loads(fedsplit("plan", str(run_file), "--json").stdout)
    large, small = plan["clients"]
    room = sum(layer["place"] == "client" for layer in small["layers"])
    assert 0 < room < LAYERS
    assert sum(layer["place"] == "client" for layer in large["layers"]) == LAYERS
    shown = fedsplit("plan", str(run_file)).output
    assert f"any {room} of {LAYERS} · r 8" in shown
    assert "0–" not in shown
    assert f"layers held of {LAYERS}: large all, small any {room}; which ones is drawn every round" in shown
    assert f"in a round {1 + room / LAYERS:.3g} of 2 clients train a layer" in shown
    explained = fedsplit("plan", str(run_file), "--explain", "small").output
    assert f"any {room} of {LAYERS} layers, drawn anew every round" in explained
    assert "the top one first" not in explained, "no layer is dearer than another"


def test_rooms_that_do_not_reach_are_said(run_file: Path) -> None:
    text = run_file.read_text("utf-8").replace("laptop_x86_4core", "small.toml")
    (run_file.parent / "small.toml").write_text(SMALL.format(free=250))
    run_file.write_text(text, "utf-8")
    plan = json.loads(fedsplit("plan", str(run_file), "--json").stdout)
    rooms = sum(layer["place"] == "client" for client in plan["clients"] for layer in client["layers"])
    assert rooms < LAYERS
    assert f"all rooms together are {rooms}, so that {LAYERS - rooms} layers are not trained" in plan["reasons"][0]


def test_layers_of_several_kinds_are_refused_as_the_server_refuses_them(run_file: Path) -> None:
    (run_file.parent / "config.json").write_text(json.dumps(config_of("gemma3_text", num_hidden_layers=LAYERS)))
    said = fedsplit("plan", str(run_file))
    assert said.exit_code == 2
    assert "model.path: found a model whose layers are full_attention and sliding_attention" in said.output
    assert "expected layers of one kind" in said.output


@pytest.mark.parametrize("topology", ["u", "v", "w"])
def test_a_body_at_the_server_is_refused_with_what_to_take_instead(run_file: Path, topology: str) -> None:
    run_file.write_text(f'[policy]\ntopologies = ["{topology}"]\nshares_labels = true\nexposes_tokens = true\n{RUN}')
    said = fedsplit("plan", str(run_file))
    assert said.exit_code == 2
    assert f"policy.topologies: found {topology}, expected local with method 'fedra'" in said.output
    assert "layers = random_rooms" in said.output
    assert 'take method fedavg, with plan.layers = "fit"' in said.output


@pytest.mark.parametrize("method", names())
@pytest.mark.parametrize("fleet", ["home", "campus", "hospital"])
def test_every_method_plans_every_fleet_or_says_what_it_needs(tmp_path: Path, fleet: str, method: str) -> None:
    (tmp_path / "run.toml").write_text('[model]\npath = "pydoc-llama"\n[policy]\nexposes_tokens = true\n')
    said = fedsplit("plan", str(tmp_path / "run.toml"), "--fleet", fleet, "--method", method)
    assert said.exit_code in (0, 2, 3, 7), said.output
    assert said.exit_code == 0 or said.output.startswith("error: ")
    assert said.exception is None or isinstance(said.exception, SystemExit)
