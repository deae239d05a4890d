"""``fedsplit new``: from flags and from answers typed at a terminal; what it writes loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsplit.cli.main import make_app
from fedsplit.cli.verbs import VERBS
from fedsplit.config.load import load
from fedsplit.config.run import ClientSection

FEDSPLIT = make_app(VERBS)


def call(*args: str, code: int = 0) -> str:
    done = CliRunner().invoke(FEDSPLIT, args)
    output = " ".join((done.output + (done.stderr or "")).split())
    assert done.exit_code == code, output
    return output


@pytest.fixture
def clients(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    folder.mkdir()
    for name, label in (("pi", "spam"), ("mac", "ham")):
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": "x", "label": label}) + "\n")
        (folder / f"{name}.manifest.json").write_text("{}")
    return folder


def test_from_flags(tmp_path: Path) -> None:
    out = tmp_path / "run.toml"
    printed = call("new", "--model", "pydoc-llama", "--task", "causal-lm", "--clients", "2", "-o", str(out))
    assert "fedsplit serve" in printed
    run = load(out)
    assert (run.model.path, run.model.task, run.rounds.clients) == ("pydoc-llama", "causal-lm", 2)


def test_a_folder_of_client_files(tmp_path: Path, clients: Path) -> None:
    out = tmp_path / "here" / "run.toml"
    call("new", "--model", "minilm", "--task", "classification", "--data", str(clients), "-o", str(out))
    assert 'data = "../parts/mac.jsonl"' in out.read_text()
    run = load(out)
    assert run.model.labels == ("ham", "spam")
    assert run.clients == (
        ClientSection(name="mac", data=str((clients / "mac.jsonl").resolve())),
        ClientSection(name="pi", data=str((clients / "pi.jsonl").resolve())),
    )
    assert run.rounds.clients == 2


def test_labels_from_ids(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "x", "label": 2, "label_name": "c"}\n{"text": "x", "label": 0, "label_name": "a"}\n')
    out = tmp_path / "run.toml"
    flags = ("--model", "minilm", "--task", "classification", "--data", str(file), "-o", str(out))
    printed = call("new", *flags, "--clients", "3")
    assert load(out).model.labels == ("a", "1", "c")
    assert "fedsplit partition" in printed
    call("new", *flags, "--labels", "x, y, z", "--force")
    assert load(out).model.labels == ("x", "y", "z")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "2 problems --model: found nothing"),
        (("--model", "x", "--task", "classify"), "--task: found classify, expected one of causal-lm"),
        (("--model", "x", "--task", "classification"), "--labels: found nothing"),
        (("--model", "x", "--task", "causal-lm", "--data", "none"), "--data: found no file or folder none"),
        (("--model", "x", "--task", "causal-lm", "--clients", "-1"), "--clients: found -1"),
        (("--model", "x", "--task", "causal-lm", "--name", "a/b"), "run.name"),
    ],
)
def test_flags_that_are_refused(tmp_path: Path, flags: tuple[str, ...], words: str) -> None:
    out = tmp_path / "run.toml"
    assert words in call("new", *flags, "-o", str(out), code=2)
    assert not out.exists()


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "run.toml"
    out.write_text("mine")
    printed = call("new", "--model", "x", "--task", "causal-lm", "-o", str(out), code=2)
    assert "--force" in printed
    assert out.read_text() == "mine"


def test_more_files_than_clients(tmp_path: Path, clients: Path) -> None:
    flags = ("--model", "x", "--task", "causal-lm", "--data", str(clients), "--clients", "5")
    assert "2, the number of data files" in call("new", *flags, "-o", str(tmp_path / "r.toml"), code=2)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_three_questions(tmp_path: Path) -> None:
    import pty

    out = tmp_path / "run.toml"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "fedsplit", "new", "-o", str(out)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ) as process:
        os.close(theirs)
        os.write(ours, b"pydoc-llama\n\n4\n")
        assert process.wait(timeout=240) == 0
    printed = os.read(ours, 100_000).decode()
    os.close(ours)
    assert printed.count("?") == 3
    assert load(out).rounds.clients == 4
    assert load(out).model.task == "causal-lm"


def test_schemas_are_printed() -> None:
    for kind, title in (("run", "RunFile"), ("profile", "DeviceProfile"), ("plan", "Plan")):
        assert json.loads(CliRunner().invoke(FEDSPLIT, ["schema", kind]).output)["title"] == title
    assert "one of run, profile, plan" in call("schema", "rnu", code=2)
