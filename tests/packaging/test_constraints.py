"""The pinned set: every dependency is pinned once, within the range that pyproject.toml promises."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
BUILD_ONLY = {"build", "hatchling", "datasets"}
"""Not part of what is tested: build tools, and a reader that is optional in the tests too."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert len({canonicalize_name(name) for name, _ in rows}) == len(rows)
    return {canonicalize_name(name): version for name, version in rows}


def requirements(project: dict[str, Any]) -> list[Requirement]:
    listed = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    return [one for one in map(Requirement, listed) if one.name != "fedsplit"]


def test_every_dependency_is_pinned_within_its_range(project: dict[str, Any], pins: dict[str, str]) -> None:
    for one in requirements(project):
        name = canonicalize_name(one.name)
        if name not in BUILD_ONLY:
            assert name in pins, one
            assert one.specifier.contains(pins[name]), f"{name} {pins[name]} is outside {one}"


def test_every_dependency_has_a_lower_bound(project: dict[str, Any]) -> None:
    assert not [str(one) for one in requirements(project) if ">=" not in str(one.specifier)]


def test_the_base_stays_small(project: dict[str, Any]) -> None:
    base = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    assert not base & {"torch", "transformers", "peft", "bitsandbytes", "scipy", "pandas", "onnx", "onnxruntime"}


def test_no_index_and_no_local_build_in_the_pins() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert "+" not in text
