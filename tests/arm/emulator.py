"""A Raspberry Pi's processor and its Python on this machine: qemu-user, Debian's arm64 Python 3.11, aarch64 wheels.

Everything is fetched once, about 155 MB, from Debian and the package index that pip uses, and unpacked into a folder of
its own (``FEDSPLIT_ARM_CACHE``, by default ``fedsplit/arm`` in the user's cache folder); nothing is installed on this
machine and no rights are needed. qemu comes from Debian 13: the 7.2 of Debian 12 crashes in onnxruntime 1.25 and later.
The Python is that of Raspberry Pi OS 12, the packages are those of ``client/edge-packages.txt`` at the tested versions,
so what runs here is what ``client/install.sh`` puts on a device.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

ROOT = Path(__file__).parents[2]
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR = "http://deb.debian.org/debian"
GUEST = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6", "libgomp1")
LISTS = (ROOT / "client" / "edge-packages.txt", ROOT / "constraints.txt")
PLATFORMS = ("manylinux_2_36", "manylinux_2_28", "manylinux_2_27", "manylinux_2_26", "manylinux_2_17", "manylinux2014")
CPU = "cortex-a72"
"""The processor of a Raspberry Pi 4, without the dot-product instructions that newer ones have."""


class Unavailable(Exception):
    """Why nothing can be emulated here."""


@dataclass(frozen=True)
class Emulated:
    """``python``: the words before the arguments of the emulated Python; ``site``: its packages."""

    python: tuple[str, ...]
    site: Path

    def environment(self, **more: str) -> dict[str, str]:
        """For a process of it: our source and its packages, nothing of this machine's."""
        paths = [self.site, ROOT, ROOT / "server", ROOT / "client"]
        kept = {name: os.environ[name] for name in ("HOME", "PATH", "FEDSPLIT_PROFILE") if name in os.environ}
        own = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        # Compiling under emulation takes seconds, and this machine's own bytecode is nobody else's.
        return {**kept, **own, "PYTHONPYCACHEPREFIX": str(self.site.with_name("bytecode")), **more}

    def run(self, *words: str, timeout: float = 240.0) -> str:
        """What ``python WORDS`` prints; the test fails when it fails."""
        command = [*self.python, *words]
        done = subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, f"{words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def emulated() -> Emulated:
    """Fetch what is not here yet, saying so. On an ARM machine its own Python runs the same packages.

    :raises Unavailable: not Linux, no apt, no Debian keys, or no network.
    """
    cache = Path(os.environ.get("FEDSPLIT_ARM_CACHE") or platformdirs.user_cache_path("fedsplit") / "arm")
    cache.mkdir(parents=True, exist_ok=True)
    if platform.machine() == "aarch64":
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return Emulated((sys.executable, "-s"), _site(cache, version))
    if not (sys.platform == "linux" and shutil.which("apt-get") and shutil.which("dpkg-deb") and KEYRING.is_file()):
        raise Unavailable("an ARM processor, or Linux with apt-get, dpkg-deb and Debian's archive keys, is needed")
    host = _printed("dpkg", "--print-architecture")
    qemu = _unpacked(cache / "qemu", "trixie", host, ("qemu-user",), only="usr/bin/qemu-aarch64")
    qemu /= "usr/bin/qemu-aarch64"
    guest = _unpacked(cache / "python", "bookworm", "arm64", GUEST)
    libraries = f"LD_LIBRARY_PATH={guest}/usr/lib/aarch64-linux-gnu"
    python = (str(qemu), "-cpu", CPU, "-L", str(guest), "-E", libraries, str(guest / "usr" / "bin" / "python3.11"))
    return Emulated((*python, "-s"), _site(cache, "3.11"))


def _unpacked(folder: Path, suite: str, architecture: str, packages: Iterable[str], *, only: str = "") -> Path:
    """The files of Debian packages and of all they need below one folder; or ``only`` one file, without their needs.

    Through an apt that shares nothing with this machine's own.
    """
    if folder.is_dir():
        return folder
    say(f"fetching {', '.join(packages)} ({architecture}) from Debian {suite}")
    work = folder.with_name(f"{folder.name}.apt")
    shutil.rmtree(work, ignore_errors=True)
    for part in ("state/lists/partial", "cache/archives/partial", "files"):
        (work / part).mkdir(parents=True)
    (work / "state" / "status").touch()
    (work / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n")
    settings = {
        "APT::Architecture": architecture, "APT::Architectures": architecture, "Dir::State": f"{work}/state",
        "Dir::State::status": f"{work}/state/status", "Dir::Cache": f"{work}/cache", "Acquire::Languages": "none",
        "Dir::Etc::sourcelist": f"{work}/sources.list", "Dir::Etc::sourceparts": "-", "Dir::Etc::preferencesparts": "-",
        "APT::Sandbox::User": _printed("id", "-un"),
    }  # fmt: skip
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in settings.items())]
    install = [*apt, "install", "--yes", "--no-install-recommends", "--download-only", *packages]
    _do([*apt, "update"], work)
    _do([*apt, "download", *packages] if only else install, work / "cache" / "archives")
    for archive in sorted((work / "cache" / "archives").glob("*.deb")):
        _do(["dpkg-deb", "-x", str(archive), str(work / "files")], work)
    for path in (work / "files").rglob("*") if only else ():
        if path.is_file() and path != work / "files" / only:
            path.unlink()
    (work / "files").rename(folder)
    shutil.rmtree(work)
    return folder


def _site(cache: Path, version: str) -> Path:
    """The packages that ``client/install.sh`` installs, for aarch64, unpacked."""
    key = hashlib.sha256(b"".join(path.read_bytes() for path in LISTS) + version.encode()).hexdigest()[:16]
    folder = cache / f"site-{key}"
    if folder.is_dir():
        return folder
    say("fetching the aarch64 wheels of client/edge-packages.txt")
    work = cache / f"wheels-{key}"
    shutil.rmtree(work, ignore_errors=True)
    where = [f"--platform={name}_aarch64" for name in PLATFORMS]
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
        *("--only-binary=:all:", f"--python-version={version}", *where, "--dest", str(work / "wheels")),
        *("--requirement", str(LISTS[0]), "--constraint", str(LISTS[1])),
    ]
    work.mkdir()
    _do(command, work)
    for wheel in sorted((work / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work / "site")
    (work / "site").rename(folder)
    shutil.rmtree(work)
    return folder


def _do(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]}: {error}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise Unavailable(f"{command[0]} ended with {done.returncode}: {''.join(last)}")


def _printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def say(what: str) -> None:
    """What takes a while; shown by ``pytest -s``, and so by ``make test-arm``."""
    print(f"[arm] {what}", flush=True)
