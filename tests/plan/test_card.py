"""Model cards: parameter counts and shapes equal those of the real models of transformers, for every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from families import CONFIGS, config_of, tasks_of

from fedsplit.errors import ConfigError
from fedsplit.plan.card import card, check_rank, check_targets
from fedsplit.plan.families import FAMILIES
from fedsplit.plan.model import ModelCard, lora_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

AUTO = {
    "causal-lm": "AutoModelForCausalLM",
    "classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
}
CASES = [(name, task) for name in CONFIGS for task in tasks_of(name)]


def real(name: str, task: str, **changes: Any) -> Any:
    """The model itself, without memory for its weights."""
    values = config_of(name, **changes)
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values, num_labels=5)
    with torch.device("meta"):
        return getattr(transformers, AUTO[task]).from_config(config)


def distinct(parameters: Any) -> int:
    return sum({id(p): p.numel() for p in parameters}.values())


@pytest.mark.parametrize(("name", "task"), CASES)
def test_counts_equal_the_real_model(name: str, task: str) -> None:
    model, found = real(name, task), card(config_of(name), task, 0 if task == "causal-lm" else 5)
    layers = model.get_submodule(found.layer_prefix)
    assert found.params == distinct(model.parameters())
    assert found.layer_params == distinct(layers[0].parameters())
    assert len(layers) == found.num_layers


@pytest.mark.parametrize("name", [name for name in CONFIGS if "causal-lm" in tasks_of(name)])
def test_kinds_of_layers_are_those_of_the_real_config(name: str) -> None:
    values = config_of(name, **{"n_layer" if name.startswith("gpt2") else "num_hidden_layers": 7})
    found = set(card(values).kinds)
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    really = set(getattr(config, "layer_types", None) or ())
    assert found == (really if len(really) > 1 else set())
    assert bool(found) == name.startswith(("gemma2", "gemma3"))


def test_every_family_that_can_be_split_can_be_planned() -> None:
    split = pytest.importorskip("fedsplit.split.families", reason="needs peft")
    assert set(FAMILIES) == set(split.MODEL_TYPES)
    assert {config_of(name)["model_type"] for name in CONFIGS} == set(FAMILIES)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_projections_are_named_and_shaped_like_the_real_ones(name: str, task: str) -> None:
    found = card(config_of(name), task, 5 if task != "causal-lm" else 0)
    layer = real(name, task).get_submodule(f"{found.layer_prefix}.1")
    shapes = {}
    for path, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.ndim == 2:
            transposed = type(module).__name__ == "Conv1D"
            shapes[path] = tuple(reversed(weight.shape)) if transposed else tuple(weight.shape)
    assert {linear.path: (linear.out, linear.inp) for linear in found.linears} == shapes


@pytest.mark.parametrize("name", ["llama", "gemma", "gemma2", "gemma3_text", "gpt2", "bert", "vit"])
@pytest.mark.parametrize("targets", [(), "all-linear"])
def test_adapters_have_as_many_parameters_as_pefts(name: str, targets: Any) -> None:
    peft = pytest.importorskip("peft")
    task = tasks_of(name)[0]
    found = card(config_of(name), task, 5 if task != "causal-lm" else 0)
    model = real(name, task)
    names = "all-linear" if targets else list(found.default_targets)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=names, task_type=None))
    chosen = ("all-linear",) if targets else ()
    wanted = sum(lora_params(found.adapted(chosen, layer), 3) for layer in range(found.num_layers))
    mine = [p.numel() for n, p in tuned.named_parameters() if "lora_" in n and found.layer_prefix in n]
    assert sum(mine) == wanted


def test_minilm_and_stories_from_their_own_files(minilm: Path, shared: Path) -> None:
    bert = card(json.loads((minilm / "config.json").read_text()), "classification", 4)
    # 90,868,376 bytes of safetensors are 22.7 M float32 parameters and their header, without a classifier.
    assert bert.params - 4 * (384 + 1) == 22_713_216
    llama = card(json.loads((shared / "models" / "stories260k" / "config.json").read_text()))
    assert (llama.params, llama.kv_heads, llama.head_dim, llama.tied) == (260_032, 4, 8, True)


def test_a_large_vocabulary_is_no_surprise() -> None:
    config = config_of("llama") | {
        "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 8192, "vocab_size": 128_256, "tie_word_embeddings": True, "dtype": "bfloat16",
    }  # fmt: skip
    found = card(config)
    assert found.params == 1_235_814_400
    assert found.stored_bits == 16


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        card({"model_type": "bert", "hidden_size": -96, "num_hidden_layers": "3"}, "causal-lm", -1)
    paths = {problem.path for problem in caught.value.problems}
    assert paths == {
        "model.task", "model.labels", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "vocab_size",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "lama"}, "nearest supported family is llama"),
        ({}, "one of llama, qwen2"),
        (config_of("llama") | {"num_attention_heads": 7}, "divisor of the hidden size"),
    ],
)
def test_unusable_configs_name_the_way_out(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        card(config)


def test_targets_follow_pefts_rule() -> None:
    found = card(config_of("llama"))
    assert [linear.path for linear in found.adapted(("mlp.up_proj",), 0)] == ["mlp.up_proj"]
    only = ("model.layers.2.self_attn.q_proj",)
    assert [len(found.adapted(only, layer)) for layer in range(3)] == [0, 0, 1]
    check_targets(found, only)
    with pytest.raises(ConfigError, match=r"lora.targets\[1\].*did you mean 'q_proj'"):
        check_targets(found, ("v_proj", "q_prj"))


def test_a_rank_beyond_a_module_is_refused_with_that_module() -> None:
    found = card(config_of("llama"))
    sizes = {linear.path: min(linear.out, linear.inp) for linear in found.linears}
    largest = sizes["self_attn.k_proj"]
    assert largest < sizes["self_attn.q_proj"]
    check_rank(found, ("q_proj", "k_proj"), largest, (largest,))
    with pytest.raises(ConfigError, match=rf"lora.rank: found {largest + 1}, expected at most {largest}; self_attn.k_"):
        check_rank(found, ("q_proj", "k_proj"), largest + 1)
    with pytest.raises(ConfigError, match=r"plan.ranks\[1\]"):
        check_rank(found, ("k_proj",), 1, (1, largest + 1))
    check_rank(found, ("q_proj",), largest + 1)


def test_a_card_survives_json() -> None:
    import msgspec

    found = card(config_of("qwen3"))
    assert msgspec.json.decode(msgspec.json.encode(found), type=ModelCard) == found
