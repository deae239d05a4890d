"""Predicted against measured: the peak of a real process that trains a part of a real pretrained model."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fedsplit.config.run import ModelSection, RunFile, TrainSection
from fedsplit.devices.find import find
from fedsplit.plan.card import card
from fedsplit.plan.memory import client_memory
from fedsplit.plan.types import Cut, Topology
from fedsplit.plan.work import work_of

pytest.importorskip("torch")
pytest.importorskip("peft")

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap's holes were measured with glibc")


@glibc
@pytest.mark.parametrize(
    ("topology", "cut", "rows", "tokens", "keeps", "within"),
    [
        ("local", (6, 6), 8, 96, "all", 0.25),
        ("u", (2, 5), 16, 128, "all", 0.25),
        ("local", (6, 6), 8, 96, "checkpoint", 0.15),
        ("v", (3, 6), 8, 96, "checkpoint", 0.15),
        ("local", (6, 6), 8, 96, "top2", 0.25),
    ],
)
def test_peak_memory(
    minilm: Path, topology: str, cut: tuple[int, int], rows: int, tokens: int, keeps: str, within: float
) -> None:
    script = Path(__file__).with_name("peak.py")
    arguments = [str(minilm), topology, *map(str, cut), str(rows), str(tokens), keeps]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout.splitlines()[-1])["peak_bytes"]

    model = ModelSection(path="minilm", task="classification", labels=("a", "b", "c"), max_length=tokens)
    config = json.loads((minilm / "config.json").read_text())
    work = work_of(card(config, "classification", 3), RunFile(model=model, train=TrainSection(batch=rows)))
    work = replace(work, checkpoint=keeps == "checkpoint", ranks=(0, 0, 0, 0, 8, 8) if keeps == "top2" else ())
    found = client_memory(work, Topology(topology), Cut(*cut)).with_holes(work, find("laptop_x86_4core"))
    predicted = found.total - found.runtime
    assert predicted == pytest.approx(measured, rel=within)
