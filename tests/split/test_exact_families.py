"""The split step is the unsplit step of stock transformers and peft, to the last bit: every family, every cut."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from fedsplit.config.run import LoraSection
from fedsplit.errors import ConfigError
from fedsplit.split.base import open_base
from fedsplit.split.verify import VerifyRow, cases, compare, verify
from fedsplit.testing.models import FAMILIES, tiny

LAYERS = 3
EVERY_CUT = list(itertools.combinations_with_replacement(range(LAYERS + 1), 2))
FEW_CUTS = [(0, LAYERS), (1, 2)]
ALL_LINEAR = LoraSection(rank=5, alpha=20, targets=("all-linear",))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def run(folder: Path, lora: LoraSection, cuts: list[tuple[int, int]] = EVERY_CUT) -> list[VerifyRow]:
    """Every cut for the family's first task, a few for the others, each with both sides of padding."""
    base, rows = open_base(str(folder)), []
    first = next(iter(base.family.heads))
    for case in cases(base, lora, torch.float32, torch.device("cpu")):
        rows += compare(case, cuts if case.task == first else FEW_CUTS)
    return rows


def assert_exact(rows: list[VerifyRow]) -> None:
    assert rows
    wrong = [row for row in rows if not (row.exact and row.loss_equal and row.max_difference == 0)]
    assert not wrong, wrong


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cut_equals_the_unsplit_step(family: str, tmp_path: Path) -> None:
    rows = run(tiny(tmp_path, family, layers=LAYERS), ALL_LINEAR)
    assert {row.cut for row in rows} == set(EVERY_CUT)
    assert {row.padding for row in rows} == ({"none"} if family == "vit" else {"left", "right"})
    assert_exact(rows)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "bert"])
def test_dropout_under_one_generator(family: str, tmp_path: Path) -> None:
    rates = {
        "gpt2": {"resid_pdrop": 0.2, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
        "bert": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1, "classifier_dropout": 0.3},
    }.get(family, {"attention_dropout": 0.2})
    lora = LoraSection(rank=5, dropout=0.15)
    assert_exact(run(tiny(tmp_path, family, layers=LAYERS, **rates), lora, [(0, 3), (1, 2), (3, 3)]))


@pytest.mark.parametrize("tied", [False, True])
def test_tied_and_untied_heads(tied: bool, tmp_path: Path) -> None:
    assert_exact(run(tiny(tmp_path, "qwen2", tie_word_embeddings=tied), LoraSection(rank=7), [(0, 3), (2, 3)]))


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("lm_head", "o_proj"), ("embed_tokens", "down_proj")])
def test_any_module_may_be_adapted(targets: tuple[str, ...], tmp_path: Path) -> None:
    folder = tiny(tmp_path, "llama", tie_word_embeddings=False)
    lora = LoraSection(rank=5, alpha=7, rslora=True, targets=targets)
    base = open_base(str(folder))
    case = next(iter(cases(base, lora, torch.float32, torch.device("cpu"))))
    assert_exact(compare(case, FEW_CUTS))


def test_half_precision_matches_peft_with_its_f32_factors(tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path, "llama", dtype=torch.bfloat16)))
    rows = [
        row for c in cases(base, LoraSection(), torch.bfloat16, torch.device("cpu")) for row in compare(c, [(1, 2)])
    ]
    assert_exact(rows)


def test_real_pretrained_llama(shared: Path) -> None:
    base = open_base(str(shared / "models" / "stories260k"))
    cuts = [(0, 5), (1, 3), (2, 2), (5, 5)]
    for case in cases(base, LoraSection(), torch.float32, torch.device("cpu")):
        assert_exact(compare(case, cuts if case.task == "causal-lm" else cuts[:1]))


def test_real_pretrained_bert_with_its_dropout(minilm: Path) -> None:
    base = open_base(str(minilm))
    assert base.config.hidden_dropout_prob == 0.1
    assert_exact(verify(base, cuts=[(0, 6), (1, 5), (3, 3)]))


def test_a_wrong_segment_is_noticed(tmp_path: Path) -> None:
    """The comparison itself can fail: a base whose one weight differs is not the reference's."""
    folder = tiny(tmp_path / "a", "llama")
    other = open_base(str(tiny(tmp_path / "b", "llama", seed=1)))
    base = open_base(str(folder))
    case = next(iter(cases(base, LoraSection(), torch.float32, torch.device("cpu"))))
    for name, stored in list(base.checkpoint.tensors.items()):
        if name == "model.layers.1.self_attn.k_proj.weight":
            base.checkpoint.tensors[name] = other.checkpoint.tensors[name]
            assert stored.shape == other.checkpoint.tensors[name].shape
    (row,) = compare(case, [(1, 2)])
    assert not row.exact
    assert row.max_difference > 1e-6


def test_verify_says_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected all or one of llama"):
        verify(family="mamba")
    with pytest.raises(ConfigError, match=r"layers \[2, 9\) are not within"):
        verify(open_base(str(tiny(tmp_path, "bert"))), cuts=[(2, 9)])
