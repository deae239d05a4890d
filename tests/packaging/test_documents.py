"""The documents and the files beside the code: links lead somewhere, scripts parse, commands exist."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fedsplit.cli.verbs import VERBS

ROOT = Path(__file__).parents[2]
SKIPPED = {"runs", "build", "dist"}
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in SKIPPED for part in path.relative_to(ROOT).parts)
)


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", DOCUMENTS, ids=where)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [link for link in targets if link and "://" not in link and not (path.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=where)
def test_every_command_shown_is_a_verb(path: Path) -> None:
    names = {verb.name for verb in VERBS}
    shown = re.findall(r"(?:^|`)fedsplit ([a-z][a-z-]*)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(shown) <= names


def test_ci_runs_make_test() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert script.rstrip().endswith("make test")


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")
def test_the_install_script_parses_and_refuses_unknown_options() -> None:
    script = str(ROOT / "client" / "install.sh")
    subprocess.run(["sh", "-n", script], check=True, timeout=240)
    for args, word in ((["--nope"], "--nope"), (["--extra", "everything"], "everything")):
        done = subprocess.run(["sh", script, *args], capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 2
        assert word in done.stderr


@pytest.mark.parametrize("unit", ["server/fedsplit-server.service", "client/fedsplit-client.service"])
def test_services_start_a_verb_and_stop_like_ctrl_c(unit: str) -> None:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys are case sensitive
    parser.read(ROOT / unit, encoding="utf-8")
    service = parser["Service"]
    assert service["KillSignal"] == "SIGINT"
    assert service["SuccessExitStatus"] == "130"
    verb = service["ExecStart"].split("fedsplit ")[1].split()[0]
    assert verb in {"serve", "join"}


def test_the_container_copies_what_exists() -> None:
    lines = (ROOT / "server" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    sources = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert sources
    assert all((ROOT / source).exists() for source in sources)
