"""Models, profiles and fleets that cannot be: the commands name everything that is wrong, with its path, at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedsplit.cli.main import make_app
from fedsplit.cli.verbs import VERBS
from fedsplit.devices.find import find
from fedsplit.devices.here import architecture
from fedsplit.devices.load import save
from fedsplit.errors import ConfigError
from fedsplit.plan.card import card

BERT: dict[str, Any] = {
    "model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
    "intermediate_size": 1536, "vocab_size": 30522,
}  # fmt: skip
RUN = """
[model]
path = "folder"
task = "classification"
labels = ["a", "b"]
[[clients]]
name = "laptop"
device = "laptop_x86_4core"
"""
IMPOSSIBLE = """
name = "bad"
arch = "aarch64"
cores = -1
threads = 0
memory_bandwidth_bps = "4 parsec/s"
memory_bytes = "1 GB"
free_memory_bytes = "2 GB"
reserve_bytes = "4 GB"
[flops]
float32 = -1
[link]
up_bps = 0
down_bps = "2 Mbit/s"
"""
KEYS = (
    "cores", "threads", "memory_bandwidth_bps", "free_memory_bytes", "reserve_bytes", "flops.float32", "link.up_bps",
)  # fmt: skip


def refused(*args: str) -> str:
    shown = CliRunner(env={"COLUMNS": "250"}).invoke(make_app(VERBS), list(args))
    assert shown.exit_code in (2, 3), shown.output
    return str(shown.stderr)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run file, a model's config and an impossible profile, in the working directory."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "run.toml").write_text(RUN)
    (tmp_path / "bad.toml").write_text(IMPOSSIBLE)
    config(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(folder: Path, **changes: Any) -> None:
    values = {key: value for key, value in (BERT | changes).items() if value is not ...}
    (folder / "folder" / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("command", [("plan", "run.toml"), ("fit", "folder")])
def test_missing_fields_of_a_model_come_together(folder: Path, command: tuple[str, ...]) -> None:
    config(folder, hidden_size=..., num_attention_heads=..., vocab_size="many", attention_probs_dropout_prob="x")
    text = refused(*command)
    assert "config.json: 4 problems" in text
    assert "hidden_size: found nothing" in text
    assert "num_attention_heads: found nothing" in text
    assert "vocab_size: found 'many'" in text
    assert "attention_probs_dropout_prob: found 'x', expected a number from 0 to 1" in text


@pytest.mark.parametrize(
    ("family", "changes", "path"),
    [
        ("bert", {"max_position_embeddings": "512"}, "max_position_embeddings"),
        ("bert", {"type_vocab_size": -2}, "type_vocab_size"),
        ("bert", {"id2label": [1, 2]}, "id2label"),
        ("bert", {"hidden_dropout_prob": 1.5}, "hidden_dropout_prob"),
        ("llama", {"num_key_value_heads": 5}, "num_key_value_heads"),
        ("llama", {"head_dim": -64}, "head_dim"),
        ("mistral", {"num_key_value_heads": None, "num_attention_heads": 6, "head_dim": 64}, "num_key_value_heads"),
        ("vit", {"image_size": 8}, "patch_size"),
        ("vit", {"image_size": [224]}, "image_size"),
        ("vit", {"num_channels": 0}, "num_channels"),
    ],
)
def test_fields_that_may_be_left_out_are_checked_where_given(family: str, changes: dict[str, Any], path: str) -> None:
    task = {"llama": "causal-lm", "mistral": "causal-lm", "vit": "image-classification"}.get(family, "classification")
    whole = BERT | {"model_type": family, "num_attention_heads": 16}
    assert card(whole, task).family == family
    with pytest.raises(ConfigError) as caught:
        card(whole | changes, task)
    assert [problem.path for problem in caught.value.problems] == [path]


def test_model_devices_server_and_method_come_together(folder: Path) -> None:
    config(folder, hidden_size=...)
    devices = '[[clients]]\nname = "b"\ndevice = "bad.toml"\n[[clients]]\nname = "c"\ndevice = "laptop_x87"\n'
    (folder / "run.toml").write_text(RUN + devices + '[method]\nname = "fedavgg"\n')
    text = refused("plan", "run.toml", "--server", "nobody")
    assert "run.toml: 11 problems" in text
    assert "method.name: found 'fedavgg'" in text
    assert "config.json: hidden_size: found nothing" in text
    assert "--server: found 'nobody'" in text
    for key in KEYS:
        assert f"bad.toml: {key}: found" in text
    assert "clients[2].device: found 'laptop_x87'" in text
    assert "did you mean laptop_x86_4core" in text


@pytest.mark.parametrize("command", [("profile", "show", "bad.toml"), ("fit", "folder", "--device", "bad.toml")])
def test_an_impossible_profile_is_taken_apart_at_once(folder: Path, command: tuple[str, ...]) -> None:
    text = refused(*command)
    assert f"bad.toml: {len(KEYS)} problems" in text
    for key in KEYS:
        assert f"  {key}: found" in text
    assert "'4 parsec/s', expected a number with one of the units" in text
    assert "leave [link] out" in text


def test_a_fleet_is_taken_apart_at_once(folder: Path) -> None:
    (folder / "fleet.toml").write_text(
        """
        [[clients]]
        name = "a"
        device = "bad.toml"
        count = 0
        [[clients]]
        name = "b"
        device = "raspberry_pi_zero_2w"
        reserve_bytes = "40 GB"
        [[clients]]
        name = "c"
        device = "raspberry_pi_zero_2w"
        link = { up_bps = 0, down_bps = "2 parsec" }
        vary = { link = 0.5 }
        """
    )
    text = refused("plan", "run.toml", "--fleet", "fleet.toml")
    assert "fleet.toml: 12 problems" in text
    for path in (
        "clients[0].count", "clients[1].reserve_bytes", "clients[2].link.up_bps", "clients[2].link.down_bps",
        "clients[2].vary.link", *(f"clients[0].{key}" for key in KEYS),
    ):  # fmt: skip
        assert f"{path}: found" in text


def test_a_fleet_of_nobody(folder: Path) -> None:
    (folder / "fleet.toml").write_text('name = "empty"\n')
    assert "clients: found no device" in refused("plan", "run.toml", "--fleet", "fleet.toml")


@pytest.mark.parametrize("command", [("plan", "run.toml"), ("fit", "folder", "--here"), ("profile", "show")])
def test_a_profile_of_another_kind_of_machine_is_warned_of(
    folder: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = find("laptop_x86_4core" if architecture() == "aarch64" else "raspberry_pi_5_8gb")
    monkeypatch.setenv("FEDSPLIT_PROFILE", str(save(other, folder / "own.toml")))
    more = '[[clients]]\nname = "x"\n[[clients]]\nname = "y"\ndevice = "here"\n'
    (folder / "run.toml").write_text(RUN + more)
    shown = CliRunner(env={"COLUMNS": "250"}).invoke(make_app(VERBS), list(command))
    assert shown.exit_code == 0, shown.output
    assert shown.stderr.count("its numbers do not describe this machine") == 1
