"""Models that several threads build at the same time: each is as if it had been alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from torch import nn
from transformers.utils import logging

from fedsplit.config.run import LoraSection
from fedsplit.split.base import open_base
from fedsplit.split.rows import Rows
from fedsplit.split.segment import Span, build
from fedsplit.testing.models import tiny

THREADS = 4
ROUNDS = 3
LORA = LoraSection(rank=3, alpha=6, targets=("all-linear",))
ROWS = Rows.of([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads change every few instructions, so that what can go wrong between two of them does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def logits_of(folder: Path) -> torch.Tensor:
    """Build the whole of a small model, with its names looked up anew, and run it."""
    base = open_base(str(folder))
    segment = build(base, Span(0, base.num_layers, True, True), task="causal-lm", lora=LORA)
    params = segment.new_params(0)
    with torch.no_grad():
        return segment.logits(ROWS, segment.run(ROWS, None, params), params)


def test_threads_that_build_at_once_get_what_each_would_alone(hasty: None, tmp_path: Path) -> None:
    logging.disable_progress_bar()
    folders = [tiny(tmp_path / str(n), "llama", layers=2 + n % 2, seed=n) for n in range(THREADS)]
    alone = [logits_of(folder) for folder in folders]
    together, register = Barrier(THREADS), nn.Module.register_parameter

    def work(folder: Path) -> list[torch.Tensor]:
        together.wait(timeout=120)
        return [logits_of(folder) for _ in range(ROUNDS)]

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(work, folders))
        # peft patches the class while it works: taken back out of order, every later module would be on meta.
        assert nn.Module.register_parameter is register
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
    for expected, several in zip(alone, found, strict=True):
        assert all(torch.equal(one, expected) for one in several)
