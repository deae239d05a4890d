"""``fedsplit data check`` and ``fedsplit partition`` as a person meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedsplit import assets
from fedsplit.cli.main import make_app
from fedsplit.cli.verbs import VERBS

FEDSPLIT = make_app(VERBS)


def call(*args: str, code: int = 0) -> str:
    done = CliRunner().invoke(FEDSPLIT, args)
    output = done.output + (done.stderr or "")
    assert done.exit_code == code, output
    return " ".join(output.split()) if code else output


@pytest.fixture
def model() -> str:
    if not (assets.path("pydoc-llama") / "tokenizer.json").is_file():
        pytest.skip("the shipped model has no tokenizer yet")
    return "pydoc-llama"


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    rows = [{"text": f"text {i} " + "word " * (200 if i == 9 else 3), "label": "ab"[i % 2]} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_three_rows_with_the_loss_marked(tmp_path: Path, model: str) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Add {i} and 1.", "completion": f"It is {i + 1}."} for i in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    printed = call("data", "check", str(file), "--model", model)
    assert "JSONL, one object a line, 20 rows" in printed
    assert "reads text = prompt, completion = completion" in printed
    for i in range(3):
        assert f"{file}:{i + 1}\n" in printed
        assert f"⟦It is {i + 1}." in printed
        assert f"⟦Add {i}" not in printed
    assert "18 to train on, 2 held out" in printed
    assert "fits: nothing cut" in printed


def test_truncation_and_labels(labelled: Path, model: str) -> None:
    flags = ("--model", model, "--task", "classification", "--max-length", "64")
    printed = call("data", "check", str(labelled), *flags)
    assert "1 of 40 rows (2.5 %) are longer than 64 tokens" in printed
    assert [line.split()[0] for line in printed.splitlines()[-2:]] == ["a", "b"]
    assert all(line.split()[-1] == "20" for line in printed.splitlines()[-2:])
    made: dict[str, Any] = json.loads(call("data", "check", str(labelled), *flags, "--json"))
    assert made["labels"] == {"a": 20, "b": 20}
    assert made["truncation"]["cut"] == 1
    assert (made["first"][1]["line"], made["first"][1]["label"]) == (2, 1)
    assert made["first"][1]["text"].startswith("text 1 word")


def test_a_run_file_decides(labelled: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    run.write_text(
        '[model]\npath = "pydoc-llama"\ntask = "classification"\nlabels = ["b", "a"]\n'
        '[[clients]]\nname = "x"\ncut=[1, 2]\n'
    )
    made = json.loads(call("data", "check", str(labelled), "--run", str(run), "--json"))
    assert [row["label"] for row in made["first"]] == [1, 0, 1]


def test_without_a_model_rows_are_shown_as_they_are(labelled: Path) -> None:
    printed = call("data", "check", str(labelled), "--task", "classification", "--rows", "1")
    assert "label: a" in printed
    assert "name a --model" in printed


def test_mistakes_have_a_place_and_no_traceback(tmp_path: Path, labelled: Path) -> None:
    file = tmp_path / "broken.jsonl"
    file.write_text('{"text": "x"}\n{"text": }\n')
    assert f"{file}:2: not a JSON object" in call("data", "check", str(file), code=6)
    flags = ("--prompt", "q", "--completion", "label")
    assert 'expected "q"' in call("data", "check", str(labelled), *flags, code=6)
    assert "data.completion" in call("data", "check", str(labelled), "--prompt", "q", code=2)
    assert '"nowhere"' in call("data", "check", str(labelled), "--model", "nowhere", code=2)


def test_partition_then_new_then_check(labelled: Path, tmp_path: Path, model: str) -> None:
    out = tmp_path / "parts"
    printed = call("partition", str(labelled), "--by", "label", "--per-client", "1", "--clients", "2", "-o", str(out))
    assert "40 rows in 2 files" in printed
    assert sorted(file.name for file in out.iterdir()) == [
        "client-0.jsonl",
        "client-0.manifest.json",
        "client-1.jsonl",
        "client-1.manifest.json",
    ]
    run = str(tmp_path / "run.toml")
    call("new", "--model", model, "--task", "classification", "--data", str(out), "-o", run)
    made = json.loads(call("data", "check", str(out / "client-0.jsonl"), "--run", run, "--json"))
    assert list(made["labels"].values()) == [20]


def test_partition_refuses_and_writes_nothing(labelled: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert "one of iid" in call("partition", str(labelled), "--by", "lable", "-o", out, code=2)
    assert "with --field" in call("partition", str(labelled), "--by", "natural", "-o", out, code=6)
    assert not Path(out).exists()
    made = json.loads(call("partition", str(labelled), "--by", "iid", "-o", out, "--json"))
    assert [one["rows"] for one in made["clients"]] == [10, 10, 10, 10]


def test_all_of_it_works_where_torch_is_not_installed(labelled: Path, model: str) -> None:
    code = f"""
import sys
for name in ("torch", "transformers", "peft", "bitsandbytes", "jinja2", "PIL", "pyarrow", "datasets"):
    sys.modules[name] = None
from fedsplit.cli.main import run
run(["data", "check", {str(labelled)!r}, "--model", {model!r}, "--task", "classification", "--max-length", "64"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "1 of 40 rows" in done.stdout
