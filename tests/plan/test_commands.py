"""``fedsplit plan`` and ``fedsplit profile`` as a person types them, through the whole command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from fedsplit.cli.main import make_app
from fedsplit.cli.verbs import VERBS
from fedsplit.devices.load import loads
from fedsplit.devices.profile import DeviceProfile
from fedsplit.plan.solve import sealed
from fedsplit.plan.types import Plan

RUN = """
[model]
path = "pydoc-llama"
[policy]
shares_labels = true
[rounds]
clients = 2
[[clients]]
name = "laptop"
device = "laptop_x86_4core"
[[clients]]
name = "zero"
device = "raspberry_pi_zero_2w"
"""
MINILM = RUN.replace('path = "pydoc-llama"', 'path = "folder"\ntask = "classification"\nlabels = ["a", "b"]')


def fedsplit(*args: str, columns: int = 150) -> Any:
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(make_app(VERBS), list(args))


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A run of the shape of MiniLM: its config.json and no weights."""
    (tmp_path / "folder").mkdir()
    config = {
        "model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
        "intermediate_size": 1536, "vocab_size": 30522,
    }  # fmt: skip
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config))
    path = tmp_path / "run.toml"
    path.write_text(MINILM)
    return path


def test_table(run_file: Path) -> None:
    shown = fedsplit("plan", str(run_file), "--server", "server_l4")
    assert shown.exit_code == 0
    for word in (
        "laptop",
        "zero",
        "MB of",
        "server sees",
        "limited by",
        "train",
        "all 6 · r 8",
        "server: server_l4",
        "digest",
    ):
        assert word in shown.output


def test_a_narrow_terminal_shows_the_essentials(run_file: Path) -> None:
    shown = fedsplit("plan", str(run_file), columns=80).output
    assert "train" not in shown.splitlines()[1]
    assert "MB of 279 MB" in shown
    assert max(map(len, shown.partition("up and down")[0].splitlines())) <= 80


def test_json_is_the_plan_with_its_digest(run_file: Path) -> None:
    shown = fedsplit("plan", str(run_file), "--json")
    plan = msgspec.json.decode(shown.output, type=Plan)
    assert sealed(plan).digest == plan.digest
    assert [client.client for client in plan.clients] == ["laptop", "zero"]


def test_explaining_shows_the_arithmetic(run_file: Path) -> None:
    shown = fedsplit("plan", str(run_file), "--explain", "zero").output
    for word in (
        "embedding",
        "adapters, gradients, optimiser",
        "together",
        "sending",
        "candidates",
        "chosen",
        "3 GFLOP/s",
        "memory against time",
    ):
        assert word in shown
    wrong = fedsplit("plan", str(run_file), "--explain", "zer")
    assert wrong.exit_code == 2
    assert "did you mean 'zero'" in wrong.stderr


def test_ranks_that_the_method_cannot_merge(run_file: Path) -> None:
    run_file.write_text(MINILM + '[plan]\nlayers = "fit"\nranks = [4]\n')
    shown = fedsplit("plan", str(run_file))
    assert shown.exit_code == 2
    assert "plan.ranks: found [4] with method 'fedavg'" in " ".join(shown.stderr.split())


def test_a_device_with_less_memory_trains_fewer_layers(run_file: Path) -> None:
    text = MINILM.replace("shares_labels = true", 'topologies = ["local"]')
    text += '[plan]\nlayers = "fit"\ncheckpoint = false\n'
    run_file.write_text(text.replace("raspberry_pi_zero_2w", "laptop_x86_4core"))
    less = ("--what-if", "zero.memory=600MB")
    table = fedsplit("plan", str(run_file), *less)
    assert table.exit_code == 0, table.stderr
    row = next(line for line in table.output.splitlines() if "zero" in line)
    assert " of 6" in row
    assert "memory" in row
    assert "all 6 · r 8" not in row
    narrow = fedsplit("plan", str(run_file), *less, columns=80).output
    assert "train" in narrow.splitlines()[1] + narrow.splitlines()[2]
    shown = fedsplit("plan", str(run_file), "--explain", "zero", *less).output
    for words in ("layers here", "the lowest", "lacks", "not trained here", "within"):
        assert words in shown


def test_what_if_changes_the_answer(run_file: Path) -> None:
    before, after = (
        msgspec.json.decode(fedsplit("plan", str(run_file), "--json", *extra).output, type=Plan).clients[1].estimate
        for extra in ((), ("--what-if", "zero.uplink=1 Mbit/s"))
    )
    assert before is not None
    assert after is not None
    assert after.step_s > before.step_s


def test_nothing_fits_is_exit_code_3(run_file: Path) -> None:
    shown = fedsplit("plan", str(run_file), "--what-if", "zero.memory=70MB")
    assert shown.exit_code == 3
    assert "no plan for zero fits (binding: memory of the device)" in shown.stderr
    assert "smallest change" in shown.stderr


def test_a_fleet_that_ships(run_file: Path) -> None:
    shown = fedsplit("plan", str(run_file), "--fleet", "home")
    assert shown.exit_code == 0
    assert "zero-hallway" in shown.output


def test_this_machine_when_no_client_is_named(run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_file.write_text(MINILM.partition("[[clients]]")[0])
    monkeypatch.setenv("FEDSPLIT_PROFILE", str(tmp_path / "own.toml"))
    missing = fedsplit("plan", str(run_file))
    assert missing.exit_code == 2
    assert "fedsplit profile" in missing.stderr
    assert fedsplit("profile", "--seconds", "0.5").exit_code == 0
    assert "this-device" in fedsplit("plan", str(run_file)).output


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "folder with a config.json"), ("{", "cannot be read"), ("[]", "expected an object"), ("{}", "model_type")],
)
def test_models_that_are_not_there(run_file: Path, content: str | None, words: str) -> None:
    config = run_file.parent / "folder" / "config.json"
    config.unlink() if content is None else config.write_text(content)
    shown = fedsplit("plan", str(run_file))
    assert shown.exit_code == 2
    assert words in " ".join(shown.stderr.split())


def test_measuring_keeps_a_file_and_showing_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    shown = fedsplit("profile", "--seconds", "0.5", "--name", "bench-box", "--out", str(path))
    assert shown.exit_code == 0
    assert "bench-box" in shown.output
    assert loads(path.read_text()).name == "bench-box"
    decoded = msgspec.json.decode(fedsplit("profile", "show", str(path), "--json").output, type=DeviceProfile)
    assert decoded == loads(path.read_text())


def test_showing_the_shelf() -> None:
    shown = fedsplit("profile", "list", columns=80).output
    assert "raspberry_pi_zero_2w" in shown
    assert "2.1 W" in shown
    assert "raspberry_pi_4_2gb" in fedsplit("profile", "show", "raspberry_pi_4_2gb").output
    assert fedsplit("profile", "show", "raspberry_pi_9").exit_code == 2


@pytest.mark.parametrize(("method", "up", "down"), [("ffa-lora", 0.5, 0), ("fedsa-lora", 0.5, 0.5)])
def test_factors_are_priced_as_the_method_sends_them(run_file: Path, method: str, up: float, down: float) -> None:
    """What is saved: query and value of MiniLM are square, so A and B are equally large."""
    every, fewer = (
        json.loads(fedsplit("plan", str(run_file), "--method", name, "--json").stdout)["clients"][0]
        for name in ("fedavg", method)
    )
    held = sum(layer["place"] == "client" for layer in every["layers"])
    factors, (less, more) = 4 * held * 2 * 8 * (384 + 384), (fewer["estimate"], every["estimate"])
    assert held
    assert more["factors_up_bytes"] - less["factors_up_bytes"] == up * factors
    assert more["factors_down_bytes"] - less["factors_down_bytes"] == down * factors


@pytest.mark.parametrize("method", ["flora", "fibecfed"])
def test_what_needs_torch_is_planned_with_its_memory(run_file: Path, method: str) -> None:
    refused = fedsplit("plan", str(run_file), "--method", method)
    assert refused.exit_code == 3
    for word in ("no plan for zero", "the program itself: 400 MB", f"method '{method}'", "torch", "profiles: zero"):
        assert word in " ".join(refused.stderr.split()), word


def test_devices_with_room_for_torch_are_named(run_file: Path) -> None:
    run_file.write_text(MINILM.replace("raspberry_pi_zero_2w", "android_phone_mid"))
    shown = fedsplit("plan", str(run_file), "--method", "flora", "--json")
    memory = {one["client"]: one["estimate"]["memory_bytes"] for one in json.loads(shown.stdout)["clients"]}
    assert memory["zero"] > 400_000_000
    assert "counted with torch's 400 MB, not with the program without it of their profiles: zero" in shown.stderr
    assert "counted with torch" not in fedsplit("plan", str(run_file), "--method", "fedavg").stderr
