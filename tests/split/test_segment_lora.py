"""Adapters in and out of torch, and out to plain peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers.utils import logging

from fedsplit.config.run import LoraSection
from fedsplit.errors import ConfigError
from fedsplit.lora.adapter import ModuleKey, digest
from fedsplit.lora.lowrank import LowRank
from fedsplit.split.base import TASK_MODELS, open_base
from fedsplit.split.lora import keys, read, save_peft, write
from fedsplit.split.rows import Rows
from fedsplit.split.segment import Segment, Span, build
from fedsplit.split.verify import trainables
from fedsplit.testing.models import FAMILIES, IMAGE, default_task, tiny

ROWS = Rows.of([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def segment_of(folder: Path, lora: LoraSection, num_labels: int | None = None) -> Segment:
    base = open_base(str(folder))
    task = default_task(str(base.config.model_type))
    return build(base, Span(0, base.num_layers, True, True), task=task, num_labels=num_labels, lora=lora)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_adapter_is_plain_peft(family: str, tmp_path: Path) -> None:
    lora = LoraSection(rank=5, alpha=20, targets=("all-linear",))
    segment = segment_of(tiny(tmp_path / "base", family), lora, num_labels=4)
    params = trainables(segment)
    adapter, head = read(params, segment)
    save_peft(adapter, head, segment.base, lora, tmp_path / "adapter", task=segment.task)
    rows = Rows.images(torch.randn(2, *IMAGE), 10) if family == "vit" else ROWS
    labels = {} if segment.task == "causal-lm" else {"num_labels": 4, "ignore_mismatched_sizes": True}
    model: Any = TASK_MODELS[segment.task].from_pretrained(segment.base.folder, **labels)
    tuned = PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval()
    inputs = {"pixel_values": rows.pixels} if family == "vit" else {"input_ids": rows.ids_BT}
    with torch.no_grad():
        expected = tuned(**inputs).logits
        found = segment.logits(rows, segment.run(rows, None, params), params)
    assert torch.equal(found, expected)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_modules_of_different_rank_and_absent_layers_export(tmp_path: Path) -> None:
    lora = LoraSection(rank=4, alpha=6, rslora=True, targets=("q_proj", "down_proj"))
    segment = segment_of(tiny(tmp_path / "base", "llama"), lora)
    random = np.random.default_rng(0)
    adapter = {}
    for rank, (key, (a, b)) in enumerate(keys(segment).items(), 2):
        m, n = segment.shapes()[b][0], segment.shapes()[a][1]
        if key != ModuleKey(1, "mlp.down_proj"):
            adapter[key] = LowRank(
                random.normal(size=(m, rank)).astype("f4"), 0.1 * random.normal(size=(rank, n)).astype("f4")
            )
    save_peft(adapter, {}, segment.base, lora, tmp_path / "adapter")
    model: Any = TASK_MODELS["causal-lm"].from_pretrained(segment.base.folder)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    merged = PeftModel.from_pretrained(model, str(tmp_path / "adapter")).merge_and_unload().state_dict()
    for key in keys(segment):
        name = f"model.layers.{key.layer}.{key.path}.weight"
        delta = torch.from_numpy(adapter[key].B_MR @ adapter[key].A_RN) if key in adapter else torch.zeros(())
        assert torch.allclose(merged[name] - plain[name], delta.expand_as(plain[name]), atol=1e-5)


@pytest.mark.parametrize("targets", [("wte",), ("c_attn", "c_fc")])
def test_embeddings_and_transposed_weights_export(targets: tuple[str, ...], tmp_path: Path) -> None:
    lora = LoraSection(rank=5, alpha=20, targets=targets)
    segment = segment_of(tiny(tmp_path / "base", "gpt2", tie_word_embeddings=False), lora)
    params = trainables(segment)
    adapter, _ = read(params, segment)
    save_peft(adapter, {}, segment.base, lora, tmp_path / "adapter")
    model: Any = TASK_MODELS["causal-lm"].from_pretrained(segment.base.folder)
    tuned = PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        assert torch.equal(
            segment.logits(ROWS, segment.run(ROWS, None, params), params), tuned(input_ids=ROWS.ids_BT).logits
        )
    widths = {key.path: (factors.B_MR.shape[0], factors.A_RN.shape[1]) for key, factors in adapter.items()}
    expected = {"transformer.wte": (24, 53), "attn.c_attn": (72, 24), "mlp.c_fc": (34, 24)}
    assert widths == {path: shape for path, shape in expected.items() if path.rpartition(".")[2] in targets}


def test_keys_are_global_and_scaled(tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path, "bert", layers=4)))
    body = build(base, Span(2, 4), task="classification", lora=LoraSection(rank=4, alpha=6))
    found = keys(body)
    assert [str(key) for key in found] == [
        f"{layer}/attention.self.{name}" for layer in (2, 3) for name in ("query", "value")
    ]
    assert [body.scale(rank) for rank in (4, 1, 3)] == [1.5, 6.0, 2.0]
    stable = build(base, Span(2, 4), task="classification", lora=LoraSection(rank=4, alpha=6, rslora=True))
    assert [stable.scale(rank) for rank in (4, 1, 9)] == [3.0, 6.0, 2.0]
    params = trainables(body)
    adapter, head = read(params, body)
    a, b = found[ModuleKey(2, "attention.self.query")]
    factors = adapter[ModuleKey(2, "attention.self.query")]
    assert np.array_equal(factors.A_RN, params[a].detach().numpy())
    assert np.allclose(factors.B_MR, 1.5 * params[b].detach().numpy())
    assert head == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_factors_of_another_rank_scale_as_peft_built_for_that_rank(family: str, tmp_path: Path) -> None:
    """A client may have another rank than the segment was built with: alpha / r follows its factors."""
    folder, labels = tiny(tmp_path / "base", family), 4
    lora = LoraSection(rank=5, alpha=20, targets=("all-linear",))
    wide = segment_of(folder, lora, num_labels=labels)
    own = segment_of(folder, msgspec.structs.replace(lora, rank=2), num_labels=labels)
    params = trainables(own)
    rows = Rows.images(torch.randn(2, *IMAGE), 10) if family == "vit" else ROWS
    outputs = [segment.logits(rows, segment.run(rows, None, params), params) for segment in (own, wide)]
    assert torch.equal(*outputs)
    for (key, one), other in zip(read(params, own)[0].items(), read(params, wide)[0].values(), strict=True):
        assert np.array_equal(one.B_MR, other.B_MR), key


def test_out_and_in_again_is_the_identity(tmp_path: Path) -> None:
    segment = segment_of(tiny(tmp_path, "roberta"), LoraSection(rank=8, alpha=16))
    params = trainables(segment)
    adapter, head = read(params, segment)
    back = write(adapter, head, segment)
    assert back.keys() == params.keys()
    assert all(torch.equal(back[name], value) for name, value in params.items())
    assert digest(*read(back, segment)) == digest(adapter, head)
    back["classifier.dense.weight"].data.add_(1)
    assert torch.equal(params["classifier.dense.weight"], torch.from_numpy(head["classifier.dense.weight"]))


def test_parts_of_an_adapter_fit_parts_of_a_segment(tmp_path: Path) -> None:
    segment = segment_of(tiny(tmp_path, "llama"), LoraSection(rank=5))
    adapter, _ = read(trainables(segment), segment)
    some = {key: factors for key, factors in adapter.items() if key.layer == 1}
    params = write(some, {}, segment)
    assert len(params) == 2 * len(some) == 4
    assert read(params, segment)[0].keys() == some.keys()
    assert write({ModuleKey(9, "self_attn.q_proj"): next(iter(some.values()))}, {}, segment) == {}


def test_factors_of_another_model_are_refused(tmp_path: Path) -> None:
    segment = segment_of(tiny(tmp_path, "llama"), LoraSection())
    wrong = {ModuleKey(0, "self_attn.q_proj"): LowRank(np.zeros((24, 2), "f4"), np.zeros((2, 23), "f4"))}
    with pytest.raises(ConfigError, match=r"found a factor of shape \(2, 23\), this model needs \(2, 24\)"):
        write(wrong, {}, segment)
