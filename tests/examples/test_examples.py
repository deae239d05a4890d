"""Every script of examples/ runs, and what it prints is what it promises."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMBERED = sorted(path.name for path in EXAMPLES.glob("[0-9]*.py"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def printed(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def changes(text: str) -> list[tuple[float, float]]:
    """Every ``before -> after``."""
    return [(float(before), float(after)) for before, after in re.findall(r"([\d.]+) -> ([\d.]+)", text)]


def test_one_split_step_equals_the_unsplit_one(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed("01_one_split_step.py", capsys)
    assert "equal in every bit: True" in out
    found = re.search(r"(\d+) of (\d+) equal in every bit", out)
    assert found
    assert found[1] == found[2] == "24"  # six layers, query and value, A and B


def test_a_fleet_is_planned_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    refused, planned, slow = re.split(r"^\d\. .*$", printed("02_plan_a_fleet.py", capsys), flags=re.MULTILINE)[1:]
    assert "no plan for zero-hallway fits (binding: memory of the device)" in refused
    for device in ("laptop", "phone", "pi-desk", "pi-kitchen"):
        assert re.search(rf"{device}: topology u, layers 1 to \d+ on the server", planned)
    assert planned.count("the fastest of") == 4
    seconds = re.search(r"pi-kitchen: ([\d.]+) s a step becomes ([\d.]+) s", slow)
    assert seconds
    assert float(seconds[2]) > float(seconds[1])


def test_planning_needs_no_torch() -> None:
    code = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'transformers', 'peft', 'bitsandbytes']))\n"
        f"runpy.run_path({str(EXAMPLES / '02_plan_a_fleet.py')!r}, run_name='__main__')\n"
    )
    command = [sys.executable, "-c", "import sys\nsys.path[:0] = " + repr(sys.path) + "\n" + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "pi-kitchen" in done.stdout


def test_four_clients_learn_and_peft_loads_what_they_learned(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed("03_four_clients.py", capsys)
    rows = re.findall(r"^(\w+) joined: topology (\w+), cut \((\d, \d)\)", out, flags=re.MULTILINE)
    assert rows == [("json", "local", "6, 6"), ("email", "u", "1, 6"), ("http", "v", "1, 6"), ("asyncio", "w", "0, 6")]
    assert "all rounds done" in out
    assert "with peft" in out
    found = changes(out)
    assert len(found) == 5  # four perplexities, one loss
    assert all(after < before for before, after in found)
    assert all(after < 0.6 * before for before, after in found[:4])


def test_a_method_in_ten_lines(capsys: pytest.CaptureFixture[str]) -> None:
    source = (EXAMPLES / "04_a_method_in_ten_lines.py").read_text("utf-8")
    body = source[source.index("def agreement") : source.index("RUN = ")]
    assert sum(bool(line.strip()) for line in body.splitlines()) <= 10
    out = printed("04_a_method_in_ten_lines.py", capsys)
    assert "agreement merges (1 1 1), (1 1 1) and (4 -8 4) to [1. 1. 1.]" in out
    found = changes(out)
    assert len(found) == 3
    assert all(after < before for before, after in found)


def test_hidden_states_are_read_back(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["05_what_can_be_read_back.py", "pydoc-llama", "0", "5"])
    rows = re.findall(r"^ +(\d) +(\d+)%", printed("05_what_can_be_read_back.py", capsys), flags=re.MULTILINE)
    shares = {int(layers): int(percent) for layers, percent in rows}
    assert shares[0] == 100
    assert 50 < shares[5] < 100  # deep in the model most of it can still be read: docs/privacy.md says so


def test_the_list_names_every_script() -> None:
    listed = re.findall(r"^\| \[([^\]]+)\]", (EXAMPLES / "README.md").read_text("utf-8"), flags=re.MULTILINE)
    assert listed == NUMBERED
