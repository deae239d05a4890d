"""What backprop keeps: the closed forms equal what saved-tensor hooks count in stock transformers and peft."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
from families import config_of

from fedsplit.plan.card import card
from fedsplit.plan.work import Work

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

B, T, R = 3, 40, 5
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "gpt2", "bert", "roberta", "vit")
DROPOUTS = {
    "gpt2": ("attn_pdrop", "resid_pdrop"),
    "bert": ("attention_probs_dropout_prob", "hidden_dropout_prob"),
    "roberta": ("attention_probs_dropout_prob", "hidden_dropout_prob"),
    "vit": ("attention_probs_dropout_prob", "hidden_dropout_prob"),
}


def config(name: str, layers: int, dropout: float) -> dict[str, Any]:
    depth = {"n_layer" if name == "gpt2" else "num_hidden_layers": layers}
    return config_of(name) | dict.fromkeys(DROPOUTS.get(name, ("attention_dropout",)), dropout) | depth


def saved_elements(name: str, layers: int, dropout: float, dtype: Any, lora: dict[str, Any] | None) -> float:
    """Elements that one forward pass keeps, weights not counted, each storage once."""
    values = config(name, layers, dropout)
    made = transformers.AutoConfig.for_model(values.pop("model_type"), **values, num_labels=5)
    made._attn_implementation = "eager" if name == "gemma2" else "sdpa"  # scores with a cap have no fused form
    kind = {"bert": "SequenceClassification", "roberta": "SequenceClassification", "vit": "ImageClassification"}
    model = getattr(transformers, f"AutoModelFor{kind.get(name, 'CausalLM')}").from_config(made).to(dtype).train()
    if lora is not None:
        model = peft.inject_adapter_in_model(peft.LoraConfig(r=R, **lora), model)
    own = set()
    for key, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in key)
        own.add(parameter.untyped_storage().data_ptr())
    own |= {buffer.untyped_storage().data_ptr() for buffer in model.buffers()}
    found: dict[int, tuple[int, Any]] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = model(**inputs(name, dtype))
    del output
    return sum(size for size, _ in found.values()) / torch.finfo(dtype).bits * 8


def inputs(name: str, dtype: Any) -> dict[str, Any]:
    if name == "vit":
        return {"pixel_values": torch.randn(B, 3, 32, 32, dtype=dtype, requires_grad=True)}
    mask = torch.ones(B, T, dtype=torch.long)
    mask[0, 30:] = 0
    return {"inputs_embeds": torch.randn(B, T, 96, dtype=dtype, requires_grad=True), "attention_mask": mask}


def per_layer(name: str, dropout: float, dtype: Any, lora: dict[str, Any] | None) -> float:
    """Of one layer, for one token: the difference of two depths leaves embedding and head out."""
    tokens = B * (17 if name == "vit" else T)
    deep, shallow = (saved_elements(name, layers, dropout, dtype, lora) for layers in (3, 2))
    return (deep - shallow) / tokens


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_frozen_layer(name: str, dtype: str) -> None:
    found = card(config(name, 3, 0.0), "image-classification" if name == "vit" else task(name), 5)
    tokens = 17 if name == "vit" else T
    predicted = found.kept_elements(tokens, half=dtype == "bfloat16")
    assert predicted == pytest.approx(per_layer(name, 0.0, getattr(torch, dtype), None), rel=0.01)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gemma3_text", "gpt2", "bert", "vit"])
def test_frozen_layer_with_dropout(name: str) -> None:
    found = card(config(name, 3, 0.1), "image-classification" if name == "vit" else task(name), 5)
    predicted = found.kept_elements(17 if name == "vit" else T)
    assert predicted == pytest.approx(per_layer(name, 0.1, torch.float32, None), rel=0.02)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_adapters(name: str, every: bool, dropout: float) -> None:
    found = card(config(name, 3, 0.0), task(name), 5)
    targets = [linear.path.rsplit(".", 1)[-1] for linear in found.linears] if every else list(found.default_targets)
    if name == "bert" and every:
        targets = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    work = Work(
        card=found, batch=B, tokens=T, typical=T, valid=T, rank=R, targets=("all-linear",) if every else (),
        lora_dropout=dropout,
    )  # fmt: skip
    lora = {"target_modules": sorted(set(targets)), "lora_dropout": dropout}
    measured = per_layer(name, 0.0, torch.float32, lora) - per_layer(name, 0.0, torch.float32, None)
    assert work.adapter_kept[1] == pytest.approx(measured, rel=0.02)


def test_float32_adapters_on_a_bfloat16_base_keep_their_own_inputs() -> None:
    found = card(config("llama", 3, 0.0))
    work = Work(card=found, batch=B, tokens=T, typical=T, valid=T, rank=8, dtype="bfloat16")
    # The survey of section 0.3 of the planner's notes: 4.1 units of D for query and value.
    assert work.adapter_kept[1] / found.hidden == pytest.approx(4 + 4 * 8 / 96, rel=0.01)
    assert replace(work, half_adapters=True).adapter_kept[1] < work.adapter_kept[1] / 3


def task(name: str) -> str:
    return "classification" if name in ("bert", "roberta") else "causal-lm"
