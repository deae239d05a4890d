"""``fedsplit fit`` from a config.json alone, through the whole command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedsplit.cli.main import make_app
from fedsplit.cli.verbs import VERBS
from fedsplit.devices.find import names

LLAMA_1B = {
    "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192, "vocab_size": 128256,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip


def fedsplit(*args: str) -> Any:
    return CliRunner(env={"COLUMNS": "150"}).invoke(make_app(VERBS), list(args))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_1B), encoding="utf-8")
    return path


def test_the_whole_shelf(config: Path) -> None:
    found = fedsplit("fit", str(config), "--json")
    assert found.exit_code == 0, found.output
    answers = json.loads(found.stdout)
    by_name = {answer["device"]: answer for answer in answers["devices"]}
    assert set(by_name) == {name for name in names() if not name.startswith("server_")}
    assert answers["params"] == 128256 * 2048 + 16 * 60_821_504 + 2048
    assert by_name["raspberry_pi_zero_2w"]["plan"] is None
    assert "memory of the device" in by_name["raspberry_pi_zero_2w"]["reason"]
    for answer in by_name.values():
        if answer["plan"]:
            assert answer["plan"]["estimate"]["memory_bytes"] <= answer["budget_bytes"]
    assert by_name["desktop_gpu"]["plan"]["topology"] == "local"


def test_a_folder_and_its_file_say_the_same_and_people_can_read_it(config: Path) -> None:
    one, other = (fedsplit("fit", str(path), "--device", "desktop_gpu") for path in (config, config.parent))
    assert one.exit_code == other.exit_code == 0
    assert one.output.splitlines()[1:] == other.output.splitlines()[1:]
    assert "1,235.8 M parameters in 16 layers" in one.output
    assert "1 of 1 devices could join" in one.output


def test_why_a_device_cannot_join(config: Path) -> None:
    found = fedsplit("fit", str(config), "--device", "raspberry_pi_zero_2w")
    assert found.exit_code == 0
    assert "does not fit" in found.output
    assert "smallest change" in found.output


def test_a_shorter_row_needs_less(config: Path) -> None:
    def memory(length: int) -> int:
        found = fedsplit("fit", str(config), "--device", "desktop_gpu", "--length", str(length), "--json")
        return int(json.loads(found.stdout)["devices"][0]["plan"]["estimate"]["memory_bytes"])

    assert memory(32) < memory(128)


@pytest.mark.parametrize(
    ("text", "args", "says"),
    [
        ("[1]", (), "expected an object"),
        ("{", (), "cannot be read"),
        ('{"model_type": "llama"}', (), "num_hidden_layers"),
        (json.dumps(LLAMA_1B), ("--task", "chess"), "causal-lm"),
        (json.dumps(LLAMA_1B), ("--device", "raspberry_pi_5"), "did you mean raspberry_pi_5"),
        (json.dumps(LLAMA_1B), ("--device", "desktop_gpu", "--here"), "drop one"),
    ],
)
def test_bad_input(config: Path, text: str, args: tuple[str, ...], says: str) -> None:
    config.write_text(text, encoding="utf-8")
    found = fedsplit("fit", str(config), *args)
    assert found.exit_code not in (0, 1), found.output
    assert says in found.output
    assert "Traceback" not in found.output


def test_no_torch(config: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'peft', 'bitsandbytes'): sys.modules[name] = None\n"
        "from typer.testing import CliRunner\n"
        "from fedsplit.cli.main import make_app\n"
        "from fedsplit.cli.verbs import VERBS\n"
        "found = CliRunner().invoke(make_app(VERBS), sys.argv[1:])\n"
        "print(found.output); sys.exit(found.exit_code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "fit", str(config)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "devices could join" in done.stdout
