"""Segments as the engine uses them: many clients on one copy, sub-ranges of layers, masks by seed, first values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedsplit.config.run import LoraSection
from fedsplit.errors import InternalError
from fedsplit.split.base import Base, open_base
from fedsplit.split.lora import read, write
from fedsplit.split.rows import Rows
from fedsplit.split.segment import Dropout, Segment, Span, build
from fedsplit.split.verify import trainables
from fedsplit.testing.models import tiny

ROWS = Rows.of([[5, 6, 7, 8, 9], [10, 11, 12]])
LORA = LoraSection(rank=5, targets=("all-linear",))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    torch.set_num_threads(1)
    return open_base(str(tiny(tmp_path_factory.mktemp("llama"), "llama", attention_dropout=0.3)))


@pytest.fixture(scope="module")
def whole(base: Base) -> Segment:
    return build(base, Span(0, 3, True, True), task="causal-lm", lora=LORA)


def gradients(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in params.items() if value.grad is not None}


def step(segments: list[tuple[Segment, tuple[int, int]]], params: dict[str, Tensor], dropout: Dropout) -> Tensor:
    h = None
    for segment, layers in segments:
        h = segment.run(ROWS, h, params, layers=layers, dropout=dropout)
    assert h is not None
    assert ROWS.ids_BT is not None
    labels = torch.where(ROWS.mask_BT.bool(), ROWS.ids_BT, -100)
    loss = segments[-1][0].loss(ROWS, h, labels, 6, params, dropout=dropout)
    loss.backward()
    return loss.detach()


def test_masks_by_seed_do_not_depend_on_the_cut(base: Base, whole: Segment) -> None:
    params = trainables(whole)
    reference = step([(whole, (0, 3))], params, Dropout((1, "pi", 4)))
    wanted = gradients(params)
    before = torch.get_rng_state()
    for c1, c2 in [(0, 0), (1, 2), (0, 3), (3, 3)]:
        spans = [Span(0, c1, embeds=True), Span(c1, c2), Span(c2, 3, heads=True)]
        parts = [(build(base, s, task="causal-lm", lora=LORA), (s.lo, s.hi)) for s in spans]
        own = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
        assert torch.equal(step(parts, own, Dropout((1, "pi", 4))), reference)
        assert all(torch.equal(own[name].grad, grad) for name, grad in wanted.items())
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(step([(whole, (0, 3))], trainables(whole), Dropout((1, "pi", 5))), reference)


def test_every_layer_has_masks_of_its_own() -> None:
    drawn = []
    for parts, layer in [((1,), -1), ((1,), 0), ((1,), 1), ((2,), 0)]:
        Dropout(parts).seed(layer, torch.device("cpu"))
        drawn.append(tuple(torch.rand(3).tolist()))
    assert len(set(drawn)) == 4


def test_no_masks_without_gradients(whole: Segment) -> None:
    params = trainables(whole)
    with torch.no_grad():
        assert torch.equal(whole.run(ROWS, None, params), whole.run(ROWS, None, params))
        drawn = whole.run(ROWS, None, params, train=True)
        assert not torch.equal(drawn, whole.run(ROWS, None, params, train=False))
    assert torch.equal(whole.run(ROWS, None, params, train=False), whole.run(ROWS, None, params, train=False))


def test_a_wide_segment_serves_narrower_cuts(whole: Segment) -> None:
    params = trainables(whole)
    with torch.no_grad():
        h = whole.run(ROWS, None, params, layers=(0, 1))
        h = whole.run(ROWS, h, params, layers=(1, 1))
        h = whole.run(ROWS, h, params, layers=(1, 3))
        assert torch.equal(h, whole.run(ROWS, None, params))


def test_clients_of_different_rank_take_turns_on_one_copy(base: Base, whole: Segment) -> None:
    """The graph of one client is not disturbed by the factors of the next."""
    adapter, _ = read(trainables(whole), whole)
    narrow = {key: type(f)(f.B_MR[:, :2], f.A_RN[:2]) for key, f in adapter.items()}
    alone = {}
    for name, factors in (("a", adapter), ("b", narrow)):
        params = write(factors, {}, whole)
        whole.run(ROWS, None, params, train=False).square().sum().backward()
        alone[name] = gradients(params)
    first, second = write(adapter, {}, whole), write(narrow, {}, whole)
    h_first = whole.run(ROWS, None, first, train=False)
    h_second = whole.run(ROWS, None, second, train=False)
    h_first.square().sum().backward()
    h_second.square().sum().backward()
    for params, name in ((first, "a"), (second, "b")):
        assert all(torch.equal(grad, alone[name][key]) for key, grad in gradients(params).items())


def test_micro_batches_with_the_step_s_label_count_add_up(whole: Segment) -> None:
    samples = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14], [15, 16, 17, 18, 19, 20]]
    total = sum(len(s) - 1 for s in samples)

    def grads(batches: list[list[list[int]]]) -> dict[str, Tensor]:
        params = trainables(whole)
        for batch in batches:
            rows = Rows.of(batch)
            assert rows.ids_BT is not None
            labels = torch.where(rows.mask_BT.bool(), rows.ids_BT, -100)
            h = whole.run(rows, None, params, train=False)
            whole.loss(rows, h, labels, total, params, train=False).backward()
        return gradients(params)

    together, apart = grads([samples]), grads([samples[:1], samples[1:3], samples[3:]])
    assert all(torch.allclose(together[k], apart[k], rtol=1e-4, atol=1e-6) for k in together)


def test_packed_labels_are_the_same_labels(whole: Segment) -> None:
    params = trainables(whole)
    for side in ("right", "left"):
        rows = Rows.of([[5, 6, 7, 8, 9], [10, 11, 12]], side=side)
        assert rows.ids_BT is not None
        padded = torch.where(rows.mask_BT.bool(), rows.ids_BT, -100)
        h = whole.run(rows, None, params, train=False)
        one = whole.loss(rows, h, padded, 6, params, train=False)
        other = whole.loss(rows, h, torch.tensor([5, 6, 7, 8, 9, 10, 11, 12]), 6, params, train=False)
        assert torch.equal(one, other)


def test_first_values_belong_to_the_name_not_to_the_cut(base: Base, whole: Segment) -> None:
    part = build(base, Span(1, 2), task="causal-lm", lora=LORA)
    all_params, some = whole.new_params(7), part.new_params(7)
    assert some
    assert all(torch.equal(all_params[name], value) for name, value in some.items())
    assert all(value.is_leaf and value.requires_grad for value in some.values())
    name = "model.layers.1.mlp.down_proj.lora_A.default.weight"
    assert float(some[name].detach().abs().max()) <= 34**-0.5
    assert float(some[name].detach().std()) == pytest.approx(34**-0.5 / 3**0.5, rel=0.15)
    assert not any(value.any() for key, value in some.items() if "lora_B" in key)
    assert not torch.equal(part.new_params(8)[name], some[name])
    assert not torch.equal(all_params[name], all_params[name.replace("layers.1", "layers.2")])


def test_ranks_of_single_layers(base: Base) -> None:
    segment = build(base, Span(0, 3), task="causal-lm", lora=LoraSection(rank=4), ranks={0: 0, 2: 9})
    shapes = segment.shapes()
    assert not any(".layers.0." in name for name in shapes)
    assert shapes["model.layers.1.self_attn.q_proj.lora_A.default.weight"] == (4, 24)
    assert shapes["model.layers.2.self_attn.v_proj.lora_B.default.weight"] == (12, 9)
    assert build(base, Span(0, 1), task="causal-lm", lora=LORA, ranks={0: 0}).shapes() == {}


def test_a_frozen_head_comes_along_without_training(base: Base) -> None:
    tail = build(base, Span(3, 3, heads=True), task="classification", num_labels=4, train_head=False)
    assert tail.trainable_names() == []
    assert not tail.new_params(0)["score.weight"].requires_grad


def test_what_a_segment_lacks_is_an_error_of_ours(base: Base) -> None:
    body = build(base, Span(1, 2), task="causal-lm", lora=LORA)
    h = torch.zeros(2, 5, 24)
    for call in (
        lambda: body.run(ROWS, None, body.new_params(0)),
        lambda: body.run(ROWS, h, {}),
        lambda: body.run(ROWS, h, body.new_params(0), layers=(0, 1)),
        lambda: body.logits(ROWS, h, {}),
    ):
        with pytest.raises(InternalError):
            call()


@pytest.fixture(autouse=True)
def fresh_generator() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def test_sentence_pairs_reach_the_embedding(tmp_path: Path) -> None:
    segment = build(open_base(str(tiny(tmp_path, "bert"))), Span(0, 0, embeds=True), task="classification")
    types = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]])
    pairs = Rows(ROWS.ids_BT, ROWS.lengths, ROWS.starts, ROWS.width, types_BT=types)
    plain, typed = segment.run(ROWS, None, {}), segment.run(pairs, None, {})
    assert torch.equal(plain == typed, (types == 0).unsqueeze(-1).expand(2, 5, 24))
