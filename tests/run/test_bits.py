"""From the solver to the socket: clients hold their frozen matrices in the bits of their plan, the server its body in
those of the run file, and what they learn together is what one process learns with the same matrices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fedsplit.config.load import loads
from fedsplit.errors import PlanError
from fedsplit.exchange.follow import check_plan
from fedsplit.lora.adapter import digest
from fedsplit.plan.bits import torch_bytes
from fedsplit.plan.card import card
from fedsplit.plan.types import ClientPlan
from fedsplit.wire.messages import DataSummary
from fedsplit_server.planning import Planning
from fedsplit_server.serve import engine_of
from tests.run.conftest import Rows, run_file
from tests.run.party import LAPTOP, base_of
from tests.run.test_obedience import PLACES, TIGHT, weight_bytes
from tests.run.wired import Wired

BODY = 'topology = "u"\ncut = [2, 4]'


def with_bits(width: int) -> Callable[[ClientPlan], ClientPlan]:
    """The plan with the client's own layers in ``width`` bits."""

    def change(plan: ClientPlan) -> ClientPlan:
        layers = [
            msgspec.structs.replace(one, bits=width if one.place == "client" else one.bits) for one in plan.layers
        ]
        return msgspec.structs.replace(plan, layers=tuple(layers))

    return change


def test_a_device_short_of_memory_holds_the_bits_that_the_planner_chose(
    rows: Callable[[str], dict[str, Rows]], tmp_path: Path
) -> None:
    text = run_file({"a": PLACES["local"]}, **TIGHT, plan__bits=[8, 4])
    base, long = base_of("pydoc-llama"), [row for row in rows("a")["a"] if len(str(row["text"])) > 200]
    planning = Planning(loads(text), base)
    whole = planning("a", LAPTOP, DataSummary(train_examples=0), "")
    assert whole.estimate is not None
    device = msgspec.structs.replace(LAPTOP, free_memory_bytes=int((whole.estimate.memory_bytes - 1_200_000) / 0.9) + 1)
    seen = Wired(text, {"a": long}, tmp_path, devices={"a": device}).finish().clients["a"]
    bits = [layer.bits for layer in seen.plan.layers]
    assert all(layer.trains for layer in seen.plan.layers)
    assert min(bits) < 32
    model = card(base.config.to_dict(), "causal-lm", 0)
    rest = 4 * (model.embedding_params + model.norm_params + model.head_params)
    assert weight_bytes(seen.part) == sum(torch_bytes(model, 4, width) for width in bits) + rest


def test_a_split_run_in_four_bits_is_the_unsplit_one(rows: Callable[[str], dict[str, Rows]], tmp_path: Path) -> None:
    """One client: what comes out of front, body and tail on two machines is what the whole model alone learns."""
    learned = {}
    for name, place in {"split": BODY, "local": PLACES["local"], "w": PLACES["w"]}.items():
        settings = {"plan__layers": "fit", "plan__bits": [4], "server__bits": 4, "model__max_length": 16}
        folder = tmp_path / name
        folder.mkdir()
        run = Wired(run_file({"a": place}, **settings), rows("a"), folder, with_bits(4)).finish()
        learned[name] = digest(run.state.adapter)
        assert learned[name] != digest(run.first.adapter)
    assert len(set(learned.values())) == 1, learned
    folder = tmp_path / "full"
    folder.mkdir()
    full = Wired(run_file({"a": PLACES["local"]}, model__max_length=16), rows("a"), folder).finish()
    assert digest(full.state.adapter) not in learned.values()


def test_the_body_takes_the_bytes_of_its_bits() -> None:
    base = base_of("pydoc-llama")
    model = card(base.config.to_dict(), "causal-lm", 0)
    for width in (32, 16, 8, 4):
        run = loads(run_file({"a": BODY}, server__bits=width, policy__shares_labels=False))
        engine = engine_of(run, base, "cpu", 0)
        span = engine.segment.span
        assert engine.segment.parameter_bytes == (span.hi - span.lo) * torch_bytes(model, 4, width)


def test_a_plan_with_bits_that_the_run_file_does_not_allow_is_refused() -> None:
    run = loads(run_file({"a": PLACES["local"]}, plan__layers="fit", plan__bits=[8]))
    base = base_of("pydoc-llama")
    plan = Planning(run, base)("a", LAPTOP, DataSummary(train_examples=1), "")
    check_plan(with_bits(8)(plan), run, base.num_layers)
    with pytest.raises(PlanError, match=r"found weights of 4 bits, expected 32 as in model\.dtype = float32 or 8"):
        check_plan(with_bits(4)(plan), run, base.num_layers)
