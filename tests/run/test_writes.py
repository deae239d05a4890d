"""An SD card is written at most once a round: what a client keeps, counted where it reaches the disk."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsplit.state import checkpoints
from tests.run.party import Party

CLASSES: dict[str, object] = {"model__task": "classification", "model__labels": ["short", "long"]}


@pytest.mark.parametrize("head", ["fedavg", "local"])
def test_a_client_writes_its_state_once_a_round(
    party: Callable[..., Party], monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    """Before the first round its measurement, then once a round, and the last measurement."""
    saved: collections.Counter[int] = collections.Counter()
    flushed: dict[int, int] = {}
    flushes = [0]
    real_save, real_fsync = checkpoints.save, os.fsync

    def fsync(descriptor: int) -> None:
        flushes[0] += 1
        real_fsync(descriptor)

    def save(folder: Path, round: int, *rest: object, **how: object) -> object:
        before = flushes[0]
        found = real_save(folder, round, *rest, **how)  # type: ignore[arg-type]
        if "devices" in folder.parts:
            saved[round] += 1
            flushed[round] = flushes[0] - before
        return found

    monkeypatch.setattr(checkpoints, "save", save)
    monkeypatch.setattr(os, "fsync", fsync)
    run = party({"a": 'topology = "u"\ncut = [1, 3]'}, train__rounds=3, evaluate__every=1, model__head=head, **CLASSES)
    assert run.digest
    assert saved == {0: 1, 1: 1, 2: 1, 3: 1 if head == "fedavg" else 2}
    assert max(flushed.values()) <= 5, "arrays, manifest, the folder, its parent and what is aside"
