"""What gets installed: the wheel's contents, a wheel and an editable install that work, an sdist that builds."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import fedsplit

ROOT = Path(__file__).parents[2]
CHECK = """
import fedsplit, fedsplit_server, fedsplit_client, fedsplit.assets
from importlib.metadata import version
from pathlib import Path
assert version("fedsplit") == fedsplit.__version__
package = Path(fedsplit.__file__).parent
profiles = [package / "device_profiles", package.parent / "device_profiles"]
assert any(sorted(folder.glob("*.toml")) for folder in profiles if folder.is_dir()), profiles
assert (fedsplit.assets.path("pydoc-llama") / "config.json").is_file()
print(package.parent)
"""

pytestmark = pytest.mark.install
pytest.importorskip("hatchling", reason="building needs hatchling: pip install 'fedsplit[dev]'")


def build(kind: str, source: Path, out: Path) -> Path:
    """Build ``wheel`` or ``sdist`` of ``source`` without a network, and return the file."""
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out), cwd=source)
    return next(out.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


def run(*command: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """The Python of a new environment that borrows our dependencies but not our own install."""
    run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv"), cwd=tmp_path)
    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / ("python.exe" if os.name == "nt" else "python")
    site = Path(run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    # A path in a .pth file is added without reading the .pth files in it: our editable install stays out.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_wheel_holds_what_runs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"fedsplit", "fedsplit_server", "fedsplit_client", f"fedsplit-{fedsplit.__version__}.dist-info"}
    assert any(name.startswith("fedsplit/device_profiles/") and name.endswith(".toml") for name in names)
    assert "fedsplit/assets/pydoc_llama/model.safetensors" in names
    assert "fedsplit/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert not [name for name in names if "__pycache__" in name or "test_" in name]
    assert wheel.stat().st_size < 8_000_000


def test_an_installed_wheel_works(wheel: Path, fresh: Path, tmp_path: Path) -> None:
    run(str(fresh), "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", str(wheel), cwd=tmp_path)
    assert Path(run(str(fresh), "-c", CHECK, cwd=tmp_path).strip()).is_relative_to(tmp_path)
    assert fedsplit.__version__ in run(str(fresh.with_name("fedsplit")), "--version", cwd=tmp_path)


def test_an_editable_install_works(fresh: Path, tmp_path: Path) -> None:
    install = ("-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--editable", str(ROOT))
    run(str(fresh), *install, cwd=tmp_path)
    assert Path(run(str(fresh), "-c", CHECK, cwd=tmp_path).strip()) == ROOT
    assert fedsplit.__version__ in run(str(fresh.with_name("fedsplit")), "--version", cwd=tmp_path)


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", ROOT, tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build("wheel", next(tmp_path.glob("fedsplit-*/")), tmp_path / "out")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())
