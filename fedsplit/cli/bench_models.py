"""What the benches train: a random model of a given shape with a tokenizer of made-up words, and rows that fill it.

Written with transformers, so that the model is a folder like any other. Every text is longer than a row, so every row
is full and a step's shape is exactly the one asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from fedsplit.config.run import Task
from fedsplit.errors import ConfigError, Problem
from fedsplit.seeds import generator
from fedsplit.testing.models import default_task, tiny

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {"vocab_size": 4096},
    # The dropout that BERT is published with.
    "bert": {"vocab_size": 30522, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
}
"""What differs from a small random model of the family. A small vocabulary, because the head is never split."""
LABELS = ("a", "b", "c", "d", "e", "f")
WORDS = 512
HEADS = 6


def write_model(folder: Path, family: str, *, hidden: int = 384, layers: int = 6) -> Path:
    """A random model of ``family`` with 6 heads and an inner width as published (8/3 or 4 times the hidden one).

    Raises ConfigError for another family than Llama and BERT.
    """
    if family not in FAMILIES:
        raise ConfigError([Problem("--families", repr(family), f"some of {', '.join(FAMILIES)}")])
    inner = hidden * 8 // 3 if family == "llama" else hidden * 4
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": HEADS}
    if family == "llama":
        sizes |= {"num_key_value_heads": HEADS, "head_dim": hidden // HEADS}
    changes = {**sizes, "max_position_embeddings": 512, **FAMILIES[family]}
    disable_progress_bar()
    tiny(folder, family, layers=layers, num_labels=len(LABELS), **changes)
    write_tokenizer(folder)
    return folder


def model_and_task(name: str, folder: Path, *, hidden: int = 384, layers: int = 6) -> tuple[str, Task]:
    """A random model for the name of a family, written into ``folder``; anything else is a model to classify with."""
    if name in FAMILIES:
        return str(write_model(folder / name, name, hidden=hidden, layers=layers)), task_of(name)
    return name, "classification"


def write_rows(path: Path, task: Task, tokens: int, count: int, seed: int = 0) -> Path:
    """``count`` rows of more than ``tokens`` random words each."""
    random = generator(seed, "bench rows")
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = {"text": " ".join(f"w{word}" for word in random.integers(0, WORDS, tokens + 8))}
            if task == "classification":
                row["label"] = LABELS[number % len(LABELS)]
            file.write(json.dumps(row) + "\n")
    return path


def task_of(family: str) -> Task:
    """Llama learns to continue, BERT to classify."""
    return default_task(family)


def write_tokenizer(folder: Path) -> None:
    """Made-up words w0, w1, … as ``tokenizer.json``, as transformers writes it."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = {word: number for number, word in enumerate([*special, *(f"w{i}" for i in range(WORDS))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(str(folder))
