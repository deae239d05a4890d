"""The public Python API: every name arrives on first use, and none is shadowed by a module of the same name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fedsplit

NAMES = sorted(set(fedsplit.__all__) - {"__version__"})


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_documented(name: str) -> None:
    pytest.importorskip("torch", reason="some public functions need torch")
    found = getattr(fedsplit, name)
    assert callable(found)
    assert found.__doc__
    assert name in (fedsplit.__doc__ or "")


def test_no_package_can_take_the_place_of_a_public_name() -> None:
    package = Path(fedsplit.__file__).parent
    assert not [name for name in NAMES if (package / name).exists() or (package / f"{name}.py").exists()]


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="serve"):
        fedsplit.tarin  # noqa: B018


def test_dir_lists_them_before_they_are_imported() -> None:
    code = "import sys, fedsplit; print(*dir(fedsplit)); assert 'torch' not in sys.modules"
    cwd = Path(fedsplit.__file__).parents[1]
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True, timeout=240
    )
    assert set(NAMES) <= set(shown.stdout.split())
