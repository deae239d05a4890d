"""On a CUDA device: the split step is the unsplit one within a stated tolerance, and whole runs equal those of a CPU.

Exact equality is promised on a CPU only. On a GPU the attention's backward pass adds in no fixed order, so that even
the unsplit step does not repeat its own bits.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsplit
from fedsplit.cli.verify import ON_GPU
from fedsplit.config.load import loads
from fedsplit.config.run import LoraSection
from fedsplit.errors import ConfigError, OutOfMemory
from fedsplit.split.base import open_base
from fedsplit.split.engine import BackwardJob, Engine, ForwardJob
from fedsplit.split.rows import Rows
from fedsplit.split.segment import Span, build
from fedsplit.split.verify import verify
from fedsplit.testing.models import FAMILIES

pytestmark = pytest.mark.gpu

WHOLE_RUN = 2e-3
"""Largest difference of a factor after six steps of gradient descent at a rate of 0.1, CPU against GPU."""


@pytest.mark.parametrize("family", FAMILIES)
def test_split_equals_unsplit(family: str, cuda: str) -> None:
    rows = verify(None, [(0, 3), (1, 2), (2, 2)], family, cuda)
    assert rows
    wrong = [row for row in rows if not row.max_difference <= ON_GPU["float32"]]
    assert not wrong, wrong


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "vit"])
def test_split_equals_unsplit_in_bf16(family: str, cuda: str) -> None:
    rows = verify(None, [(0, 3), (1, 2)], family, cuda, "bfloat16")
    assert rows
    wrong = [row for row in rows if not row.max_difference <= ON_GPU["bfloat16"]]
    assert not wrong, wrong


def test_the_verb_says_what_it_found(cuda: str) -> None:
    command = [sys.executable, "-m", "fedsplit", "verify", "--device", cuda, "--cuts", "0:6,2:4", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["rows"]) == 12
    assert all(row["passes"] for row in found["rows"])


@pytest.mark.parametrize("topology", ["local", "u", "v", "w"])
def test_a_run_on_the_gpu_ends_like_one_on_the_cpu(topology: str, cuda: str, train: Callable[..., Any]) -> None:
    here, there = train("cpu", "cpu", topology), train(cuda, cuda, topology)
    assert there.joined.plan.topology == topology
    assert there.tensors.keys() == here.tensors.keys()
    moved = max(float(np.abs(value).max()) for name, value in here.tensors.items() if "lora_B" in name)
    assert moved > 5 * WHOLE_RUN  # B starts at zero: a run that trained nothing would be equal, too
    worst = max(float(np.abs(there.tensors[name] - value).max()) for name, value in here.tensors.items())
    assert worst <= WHOLE_RUN


def test_a_body_on_the_gpu_serves_a_device_without_one(cuda: str, train: Callable[..., Any]) -> None:
    here, there = train("cpu", "cpu", "u"), train(cuda, "cpu", "u")
    worst = max(float(np.abs(there.tensors[name] - value).max()) for name, value in here.tensors.items())
    assert worst <= WHOLE_RUN


def test_a_run_in_bf16_learns(cuda: str, train: Callable[..., Any]) -> None:
    done = train(cuda, cuda, "u", dtype="bfloat16", optimizer="adamw")
    assert all(np.isfinite(value).all() for value in done.tensors.values())
    assert done.joined.result.after["perplexity"] < done.joined.result.before["perplexity"]


def run_text(folder: Path) -> str:
    return f'[run]\ndir = "{folder.as_posix()}"\n[model]\npath = "pydoc-llama"\n[server]\nport = 0\n'


def test_a_budget_that_is_too_small_refuses_before_loading(cuda: str, tmp_path: Path) -> None:
    before = torch.cuda.memory_allocated(cuda) if cuda != "cpu" else 0
    with pytest.raises(OutOfMemory, match="the body needs") as refused:
        fedsplit.serve(loads(run_text(tmp_path / "run")), device=cuda, memory_bytes=20_000_000)
    assert refused.value.have_bytes == 20_000_000
    assert refused.value.need_bytes > 2_000_000_000
    assert (torch.cuda.memory_allocated(cuda) if cuda != "cpu" else 0) == before


def test_the_flag_refuses_with_a_documented_code(cuda: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(run_text(tmp_path / "run"), "utf-8")
    command = [sys.executable, "-m", "fedsplit", "serve", str(path), "--device", cuda, "--gpu-memory", "20MB"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == OutOfMemory.exit_code
    assert "stash_bytes" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_device_that_is_not_there(cuda: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found cuda:99, this machine has"):
        fedsplit.serve(loads(run_text(tmp_path / "run")), device="cuda:99")


def test_memory_returns_after_every_step(cuda: str) -> None:
    if cuda == "cpu":
        pytest.skip("measured with torch's CUDA allocator")
    base = open_base("pydoc-llama")
    body = build(base, Span(1, 5), task="causal-lm", lora=LoraSection(), device=cuda)
    engine, params = Engine(body, stash_bytes=100_000_000), body.new_params(0)
    rows = Rows(None, (64,) * 8, (0,) * 8, 64)
    used = []
    for step in range(12):
        key = ("one", 0, 0, step, 0)
        h_ND = torch.randn(rows.tokens, base.hidden_size, generator=torch.Generator().manual_seed(step)).to(cuda)
        [out_ND] = engine.forward([ForwardJob(key=key, rows=rows, h_ND=h_ND, layers=(1, 5), params=params)])
        engine.backward([BackwardJob(key=key, g_ND=torch.ones_like(out_ND))])
        for value in params.values():
            value.grad = None
        del h_ND, out_ND
        used.append(torch.cuda.memory_allocated(cuda))
    assert len(set(used[2:])) == 1, list(itertools.pairwise(used))
