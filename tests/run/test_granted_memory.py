"""``policy.max_server_bytes`` where the server loads: what is granted beyond the weights is the stash's."""

from __future__ import annotations

import pytest

from fedsplit.config.load import loads
from fedsplit.errors import OutOfMemory, PlanError
from fedsplit.split.base import open_base
from fedsplit_server.serve import _check_model, engine_of
from tests.run.conftest import run_file


def test_the_stash_gets_what_the_weights_leave() -> None:
    run = loads(run_file({"a": ""}, policy__max_server_bytes=40_000_000))
    base = open_base(run.model.path)
    free = engine_of(loads(run_file({"a": ""})), base, "cpu", 0)
    engine = engine_of(run, base, "cpu", 0)
    loaded = [
        part for name, part in engine.segment.model.named_parameters() if "lora_" not in name and not part.is_meta
    ]
    weights = sum(part.nbytes for part in loaded)
    assert free.stash.budget_bytes == run.server.stash_bytes
    assert engine.stash.budget_bytes == 40_000_000 - weights


def test_weights_beyond_the_grant_are_refused_before_loading() -> None:
    run = loads(run_file({"a": ""}, policy__max_server_bytes=1000))
    with pytest.raises(
        OutOfMemory, match=r"policy\.max_server_bytes allows 0 MB; raise it, or raise policy\.min_front"
    ):
        engine_of(run, open_base(run.model.path), "cpu", 0)


def test_a_front_as_deep_as_the_model_is_refused_at_the_start() -> None:
    run = loads(run_file({"a": ""}, policy__min_front=12))
    with pytest.raises(PlanError, match=r"policy\.min_front: found 12"):
        _check_model(run, open_base(run.model.path))
