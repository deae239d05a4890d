"""client/install.sh: what it refuses and says, what it installs, and that it takes away only what it brought."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "client" / "install.sh"
UNIT = ROOT / "client" / "fedsplit-client.service"
PYTHONS = ("python3", "python3.13", "python3.12", "python3.11")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell is needed")
Install = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def install(tmp_path: Path, home: Path) -> Install:
    """Runs the script in that home; ``stubs``: commands that say something else than on this machine."""

    def run(*words: str, timeout: float = 60, **stubs: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, lines in stubs.items():
            for one in PYTHONS if name == "python" else (name,):
                (folder / one).write_text(f"#!/bin/sh\n{lines}\n")
                (folder / one).chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHON")}
        environment = {**kept, "HOME": str(home), "PATH": f"{folder}:{os.environ['PATH']}"}
        command = ["sh", str(SCRIPT), *words]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout, check=False, cwd=tmp_path
        )

    return run


@pytest.mark.parametrize(
    ("stubs", "said"),
    [
        ({"uname": "echo armv7l"}, r"32-bit system \(armv7l\).*Raspberry Pi OS Lite \(64-bit\)"),
        ({"uname": "echo riscv64"}, r"Found the processor riscv64; expected aarch64 or x86_64"),
        ({"uname": "echo aarch64", "python": 'case "$2" in *calcsize*) echo 32;; *) echo 3.11;; esac'}, "are 32-bit"),
        ({"python": "echo 3.9"}, r"3\.11, 3\.12 or 3\.13 is needed, found: 3\.9"),
        ({"python": "exit 1"}, "found: none"),
        (
            {"python": 'case "$2" in *calcsize*) echo 64;; *ensurepip*) exit 1;; *) echo 3.12;; esac'},
            "apt install python3-venv",
        ),
        ({"df": "echo head; echo / 9 9 204800 9 /"}, r"needs about 500 MB, and 200 MB are free.*--dir"),
        ({"date": "echo 1970"}, r"The clock says"),
    ],
)
def test_what_is_not_fit_is_told_with_what_to_do(install: Install, stubs: dict[str, str], said: str) -> None:
    done = install("--extra", "edge", **stubs)
    assert done.returncode == 1, done.stdout
    assert re.search(said, done.stderr, re.DOTALL), done.stderr
    assert "Installing" not in done.stdout


def test_wrong_words_are_refused_and_help_helps(install: Install) -> None:
    assert install("--extra", "gpu").returncode == 2
    assert "unknown option --fast" in install("--fast").stderr
    assert "--uninstall" in install("--help").stdout


@pytest.mark.parametrize("words", [(), ("--uninstall",)])
def test_a_folder_of_somebody_else_is_left_alone(install: Install, home: Path, words: tuple[str, ...]) -> None:
    (home / "photos").mkdir()
    (home / "photos" / "one.jpg").write_text("x")
    done = install("--dir", str(home / "photos"), *words)
    assert done.returncode == 1
    assert "holds something else" in done.stderr
    assert (home / "photos" / "one.jpg").exists()


def test_shellcheck_finds_nothing() -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", str(SCRIPT)], check=True, timeout=240)


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    text = re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text("utf-8"))
    (tmp_path / UNIT.name).write_text(text)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    command = ["systemd-analyze", "verify", "--user", str(tmp_path / UNIT.name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.install
@pytest.mark.soak
def test_the_lean_set_is_installed_twice_works_and_goes_away(install: Install, home: Path) -> None:
    """With the wheels of this machine, from the index that pip uses; about a minute."""
    for words in (("--extra", "edge", "--service"), ("--extra", "edge")):
        done = install(*words, timeout=600)
        assert done.returncode == 0, done.stderr
        assert "onnxruntime  1" in done.stdout, "doctor looked at what was installed"
    place, command = home / ".local" / "share" / "fedsplit", home / ".local" / "bin" / "fedsplit"
    lines = (ROOT / "client" / "edge-packages.txt").read_text("utf-8").splitlines()
    wanted = {line for line in lines if not line.startswith("#")} | {"fedsplit", "pip"}
    python = str(place / "bin" / "python")
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    names = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in listed.stdout.splitlines()}
    assert names - {"setuptools"} == wanted
    assert not (place / "tmp").exists()
    settings = home / ".config" / "fedsplit" / "client.env"
    assert settings.stat().st_mode & 0o077 == 0, "the join line in it is a password"
    shown = subprocess.run([str(command), "--version"], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("fedsplit ")
    done = install("--uninstall")
    assert done.returncode == 0, done.stderr
    assert not place.exists()
    assert not command.is_symlink()
    assert settings.exists()
