"""A layer computed twice is the layer computed once: loss and gradients to the last bit, masks included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedsplit.config.run import LoraSection, ModelSection, RunFile
from fedsplit.plan.types import ClientPlan, Cut, LayerPlan, Topology
from fedsplit.split.base import Base, open_base
from fedsplit.split.rows import Rows
from fedsplit.split.segment import Dropout, Segment, Span, build
from fedsplit.split.stash import GraphMeter
from fedsplit.split.verify import Case, cases, sent, trainables
from fedsplit.testing.models import FAMILIES, tiny
from fedsplit.train.part import ClientPart

LORA = LoraSection(rank=5, targets=("all-linear",), dropout=0.15)
CUTS = [(0, 3), (1, 2), (3, 3)]
RATES = {
    "gpt2": {"resid_pdrop": 0.2, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
    "bert": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1},
    "roberta": {"hidden_dropout_prob": 0.2},
    "vit": {"hidden_dropout_prob": 0.2},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def step(case: Case, cut: tuple[int, int], params: dict[str, Tensor], checkpoint: bool) -> Tensor:
    """Front, body, tail and back, all three with or without keeping what is inside a layer."""
    spans = [Span(0, cut[0], embeds=True), Span(*cut), Span(cut[1], 3, heads=True)]
    remote, masks = replace(case.rows, ids_BT=None, types_BT=None, pixels=None), Dropout((1, "pi", 4))
    out: list[Tensor] = []
    given: list[Tensor] = []
    for span in spans:
        rows = case.rows if span.embeds else remote
        h = None if span.embeds else sent(out[-1], rows).requires_grad_()
        given += [] if h is None else [h]
        out.append(case.segment(span).run(rows, h, params, dropout=masks, checkpoint=checkpoint))
    tail = case.segment(spans[-1])
    loss = tail.loss(remote, out[-1], case.labels, case.label_tokens, params, dropout=masks)
    loss.backward()
    for h_out, h_in in ((out[1], given[1]), (out[0], given[0])):
        if h_out.requires_grad:
            assert h_in.grad is not None
            h_out.backward(sent(h_in.grad, remote))
    return loss.detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_cut_with_dropout(family: str, tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path, family, layers=3, **RATES.get(family, {"attention_dropout": 0.2}))))
    case = next(iter(cases(base, LORA, torch.float32, torch.device("cpu"))))
    values = trainables(case.segment(Span(0, 3, True, True)))
    for cut in CUTS:
        once, twice = (
            {name: value.detach().clone().requires_grad_() for name, value in values.items()} for _ in range(2)
        )
        before = torch.get_rng_state()
        assert torch.equal(step(case, cut, once, False), step(case, cut, twice, True))
        for name, value in once.items():
            other = twice[name].grad
            assert value.grad is not None, name
            assert other is not None, name
            assert torch.equal(value.grad, other), (name, cut)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return open_base(str(tiny(tmp_path_factory.mktemp("llama"), "llama", attention_dropout=0.3)))


@pytest.fixture(scope="module")
def whole(base: Base) -> Segment:
    return build(base, Span(0, 3, True, True), task="causal-lm", lora=LORA)


ROWS = Rows.of([[5, 6, 7, 8, 9], [10, 11, 12]])


def gradients(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.grad for name, value in params.items() if value.grad is not None}


def test_others_use_the_segment_before_the_way_back(whole: Segment) -> None:
    """Another client's factors are bound, and dropout is off, when a layer is computed again."""
    mine, wanted = trainables(whole), trainables(whole)
    others = {name: value + 1 for name, value in trainables(whole).items()}
    whole.run(ROWS, None, wanted, dropout=Dropout((1,))).square().sum().backward()
    first = whole.run(ROWS, None, mine, dropout=Dropout((1,)), checkpoint=True)
    with torch.no_grad():
        whole.run(ROWS, None, others)
    first.square().sum().backward()
    assert all(torch.equal(grad, gradients(wanted)[name]) for name, grad in gradients(mine).items())
    assert gradients(mine).keys() == gradients(wanted).keys()


def test_masks_from_torch_s_own_generator(whole: Segment) -> None:
    found = []
    for checkpoint in (False, True):
        params = trainables(whole)
        torch.manual_seed(5)
        whole.run(ROWS, None, params, checkpoint=checkpoint).square().sum().backward()
        found.append((gradients(params), torch.rand(1)))
    (once, after), (twice, after_twice) = found
    assert all(torch.equal(grad, twice[name]) for name, grad in once.items())
    assert torch.equal(after, after_twice)


def saved(part: ClientPart, rows: Rows) -> int:
    """Bytes that the front keeps for backward."""
    frozen = {value.untyped_storage().data_ptr() for value in (*part.first.parameters(), *part.params.values())}
    with GraphMeter(frozen) as meter:
        part.front(rows, Dropout((1,)))
    return meter.nbytes


def test_a_plan_s_client_keeps_inputs_alone(base: Base) -> None:
    layers = tuple(LayerPlan(layer=layer, place="client") for layer in range(3))
    kept = []
    for checkpoint in (False, True):
        plan = ClientPlan(
            client="c", topology=Topology.LOCAL, cut=Cut(3, 3), layers=layers, batch=2, checkpoint=checkpoint
        )
        part = ClientPart(base, plan, RunFile(model=ModelSection(path="x"), lora=LORA))
        part.params = trainables(part.first)
        kept.append(saved(part, ROWS))
    hidden_bytes = 4 * 2 * 5 * base.hidden_size
    assert 3 * hidden_bytes <= kept[1] < 4 * hidden_bytes
    assert kept[0] > 5 * kept[1]
