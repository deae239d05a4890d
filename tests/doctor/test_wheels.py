"""Packages that kill, hang or fail are reported by a process that lives on; fakes of them lie in a folder of paths."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsplit.cli.main import make_app
from fedsplit.cli.verbs import VERBS
from fedsplit_client.doctor.finding import Finding, problems
from fedsplit_client.doctor.wheels import WHEELS, Wheel, backend, try_wheel
from tests.waiting import LIMIT_S

BY_NAME = {wheel.name: wheel for wheel in WHEELS}
KILLS = "import os, signal\nos.kill(os.getpid(), signal.{})\n"


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder before all others on the path of child processes."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    ("number", "words"),
    [("SIGILL", "illegal instruction on this CPU (it has no avx2)"), ("SIGSEGV", "crashes (SIGSEGV)"),
     ("SIGKILL", "memory runs out")],
)  # fmt: skip
def test_a_package_that_dies_is_reported_with_the_way_out(fakes: Path, number: str, words: str) -> None:
    (fakes / "torch.py").write_text(KILLS.format(number))
    found = try_wheel(BY_NAME["torch"], ["avx2"], deadline_s=LIMIT_S)
    assert found.level == "problem"
    assert words in found.found
    assert "pip uninstall torch" in found.fix
    assert "fedsplit[edge]" in found.fix


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_one_that_dies_when_it_computes_first(fakes: Path) -> None:
    """It imports well: illegal instructions often come later."""
    (fakes / "torch.py").write_text("import os, signal\ndef ones(*a, **k): os.kill(os.getpid(), signal.SIGILL)\n")
    assert "illegal instruction" in try_wheel(BY_NAME["torch"], deadline_s=LIMIT_S).found


def test_one_that_hangs_is_stopped_at_its_deadline(fakes: Path) -> None:
    (fakes / "torch.py").write_text("import time\ntime.sleep(600)\n")
    found = try_wheel(BY_NAME["torch"], deadline_s=0.5)
    assert found.level == "problem"
    assert "hangs" in found.found


def test_one_that_raises_or_computes_wrongly(fakes: Path) -> None:
    (fakes / "torch.py").write_text("raise ImportError('libgomp.so.1: cannot open shared object file')\n")
    assert "libgomp.so.1" in try_wheel(BY_NAME["torch"], deadline_s=LIMIT_S).found
    wrong = try_wheel(Wheel("json", "assert json.loads('1') == 2"), deadline_s=LIMIT_S)
    assert wrong.level == "problem"
    assert "AssertionError" in wrong.found


def test_an_absent_package_is_a_problem_only_where_it_is_needed() -> None:
    needed = try_wheel(Wheel("fedsplit_has_no_such", "pass"), deadline_s=LIMIT_S)
    assert needed.level == "problem"
    assert "pip install" in needed.fix
    assert try_wheel(Wheel("fedsplit_has_no_such", "pass", "edge"), deadline_s=LIMIT_S).level == "skipped"


def test_a_package_that_lacks_another_is_broken_not_absent(fakes: Path) -> None:
    (fakes / "torch.py").write_text("import fedsplit_has_no_such\n")
    assert try_wheel(BY_NAME["torch"], deadline_s=LIMIT_S).level == "problem"


@pytest.mark.parametrize("name", ["numpy", "zmq", "msgspec", "safetensors", "tokenizers", "psutil", "onnxruntime"])
def test_real_packages_work(name: str) -> None:
    found = try_wheel(BY_NAME[name])
    assert found.level == "ok", found


def test_the_backend_is_what_works() -> None:
    works = {name: Finding(check=name, level="ok", found="1.0 works") for name in ("torch", "onnxruntime")}
    dead = Finding(check="torch", level="problem", found="torch dies")
    absent = Finding(check="torch", level="skipped", found="is not installed")
    assert backend(list(works.values())).found.startswith("torch")
    for torch in (dead, absent):
        assert "edge runtime" in backend([torch, works["onnxruntime"]]).found
        assert backend([torch]).level == "problem"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_the_command_survives_a_dead_package_and_ends_with_1(
    fakes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSPLIT_PROFILE", str(tmp_path / "none.toml"))
    few = tuple(wheel for wheel in WHEELS if wheel.name in ("numpy", "torch"))
    monkeypatch.setattr("fedsplit_client.doctor.survey.WHEELS", few)
    for name in ("torch", "numpy"):
        (fakes / f"{name}.py").write_text(KILLS.format("SIGILL"))
    link = "fedsplit://127.0.0.1:1/?unencrypted"
    done = CliRunner().invoke(make_app(VERBS), ["doctor", link, "--json", "--state", str(tmp_path / "state")])
    assert done.exit_code == 1, done.output
    found = {one["check"]: one for one in json.loads(done.output)["findings"]}
    assert "illegal instruction" in found["torch"]["found"]
    assert found["backend"]["level"] == "problem"
    assert found["server"]["level"] == found["limits"]["level"] == "skipped", "numpy is needed to look at them"
    assert json.loads(done.output)["problems"] == problems([Finding(**one) for one in found.values()])
