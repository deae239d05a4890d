"""A base model on disk: its config, its family and which tensors its files hold. Nothing is loaded here.

A folder may be partial (a device holds the tensors of its segments only, written by ``loader.write_subset``): what is
absent is an error only for a segment that needs it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import threading
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from fedsplit import assets
from fedsplit.config.run import Task
from fedsplit.errors import ConfigError
from fedsplit.split.checkpoint import Checkpoint, Stored, open_checkpoint
from fedsplit.split.families import Family, check_task, family_of

TASK_MODELS: dict[Task, Any] = {
    "causal-lm": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "image-classification": AutoModelForImageClassification,
}
DOWNLOADS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "preprocessor_config.json",
    "model.safetensors.index.json",
)
"""What a model folder may hold besides weights that a device needs."""

IDENTITY = "fedsplit.base"
"""Metadata key of a partial file: the identity of the whole model it was cut from."""

BUILDING = threading.RLock()
"""Held while a model is put together: torch's default dtype and, by peft, ``nn.Module`` itself are patched for the
whole process meanwhile, so that another thread's parameters would land on meta."""

# Keys of a config that say nothing about what the weights compute.
_INCIDENTAL = {
    *("_name_or_path", "architectures", "dtype", "id2label", "label2id", "problem_type", "torch_dtype"),
    *("transformers_version", "use_cache"),
}


@dataclass(frozen=True, eq=False)
class Base:
    """``config`` is a transformers config; ``checkpoint`` the table of stored tensors by their names in the files."""

    config: Any
    family: Family
    folder: Path
    checkpoint: Checkpoint
    identity: str
    """64 hex digits: equal for equal weights, however they are sharded. A part carries the whole's identity."""
    loaded: weakref.WeakValueDictionary[tuple[object, ...], nn.Parameter] = field(
        default_factory=weakref.WeakValueDictionary, repr=False
    )
    """Frozen weights in use: segments of one process that need the same tensor share it."""
    packed: weakref.WeakValueDictionary[tuple[object, ...], Any] = field(
        default_factory=weakref.WeakValueDictionary, repr=False
    )
    """The same for matrices in fewer bits (``fewbits.Packed``)."""
    _names: dict[tuple[Task, int], Names] = field(default_factory=dict, repr=False)

    @property
    def num_layers(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    def files(self) -> list[str]:
        """Names in ``folder`` of config, tokenizer and weights: all that a device may download."""
        present = [name for name in DOWNLOADS if (self.folder / name).is_file()]
        return present + [str(path.relative_to(self.folder)) for path in self.checkpoint.files]

    def skeleton(self, task: Task, num_labels: int | None = None, attention: str | None = None) -> Any:
        """The whole task model without memory (meta tensors). ``attention``: ``sdpa``, ``eager`` or the model's own."""
        check_task(self.family, task, str(self.folder))
        config = copy.deepcopy(self.config)
        config.use_cache = False
        if task != "causal-lm":
            config.num_labels = self.labels(task, num_labels)
            config.problem_type = "regression" if task == "regression" else "single_label_classification"
        chosen = {} if attention is None else {"attn_implementation": attention}
        with BUILDING, torch.device("meta"):
            model = TASK_MODELS[task].from_config(config, dtype=torch.float32, **chosen)
        return model.eval().requires_grad_(False)

    def labels(self, task: Task, num_labels: int | None) -> int:
        """Width of the head of a classification task."""
        return 1 if task == "regression" else num_labels or int(self.config.num_labels)

    def names(self, task: Task, num_labels: int | None = None) -> Names:
        """Every parameter of the task model and where it is stored."""
        key = (task, 0 if task == "causal-lm" else self.labels(task, num_labels))
        with BUILDING:
            if key not in self._names:
                self._names[key] = _resolve(self, self.skeleton(task, num_labels))
            return self._names[key]


@dataclass(frozen=True)
class Names:
    """``shapes`` of all parameters by module name; ``stored``: the checkpoint's name of those it holds."""

    prefix: str
    shapes: dict[str, tuple[int, ...]]
    stored: dict[str, str]


def open_base(path: str) -> Base:
    """Open a local folder, a model that ships (``pydoc-llama``, ``minilm``), or a hub id (config, tokenizer, weights).

    Raises ConfigError: nothing there, no safetensors, an unsupported family (names the supported ones), or a tensor
    whose shape contradicts the config (named).
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        folder = assets.path(path) if path in assets.NAMES else _download(path)
    family = family_of(_model_type(folder), str(folder))
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from None
    checkpoint = open_checkpoint(folder)
    base = Base(config, family, folder, checkpoint, _identity(folder, checkpoint))
    base.names(next(iter(family.heads)))
    return base


def _model_type(folder: Path) -> str:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{folder}: found no config.json, expected a model folder as save_pretrained writes it"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON ({error}); restore the model's own config") from None
    return str(config.get("model_type", "")) if isinstance(config, dict) else ""


def _download(name: str) -> Path:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ConfigError(f"model.path: found no folder {name}, expected a model folder or a hub id such as org/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[*DOWNLOADS, "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"model.path: found neither a folder {name} nor a hub model of that name ({reason}); "
            "check the spelling, the network, or download the model to a folder first"
        ) from None


def _resolve(base: Base, model: nn.Module) -> Names:
    """Match the checkpoint's names with the model's: old names, and the backbone's prefix there or not."""
    prefix = str(model.base_model_prefix)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    stored: dict[str, str] = {}
    for original in base.checkpoint.tensors:
        name = original
        for pattern, replacement in base.family.renames:
            name = re.sub(pattern, replacement, name)
        for candidate in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
            if candidate in shapes:
                stored.setdefault(candidate, original)
                break
    _tie(base, prefix, shapes, stored)
    _check_shapes(base, prefix, shapes, stored)
    return Names(prefix, shapes, stored)


def _tie(base: Base, prefix: str, shapes: dict[str, tuple[int, ...]], stored: dict[str, str]) -> None:
    """Where the config ties head and embedding and the files hold one of them, it stands for both."""
    head, matrix = "lm_head.weight", f"{prefix}.{base.family.vocabulary}"
    if head in shapes and base.config.tie_word_embeddings:
        for absent, present in ((head, matrix), (matrix, head)):
            if absent not in stored and present in stored:
                stored[absent] = stored[present]


def _check_shapes(base: Base, prefix: str, shapes: dict[str, tuple[int, ...]], stored: dict[str, str]) -> None:
    for name, original in list(stored.items()):
        found, expected = base.checkpoint.tensors[original].shape, shapes[name]
        if found == expected:
            continue
        if not name.startswith(f"{prefix}.") and name != "lm_head.weight":
            # A head for another number of labels: a new one is drawn instead.
            del stored[name]
            continue
        raise ConfigError(
            f"{base.checkpoint.tensors[original].file}: tensor {original} has shape {found}, config.json says "
            f"{expected}; weights and config are of different models"
        )


def _identity(folder: Path, checkpoint: Checkpoint) -> str:
    if carried := checkpoint.metadata.get(IDENTITY):
        return carried
    config = json.loads((folder / "config.json").read_text("utf-8"))
    essentials = {key: value for key, value in config.items() if key not in _INCIDENTAL}
    digest = hashlib.sha256(json.dumps(essentials, sort_keys=True).encode())
    for name in sorted(checkpoint.tensors):
        stored: Stored = checkpoint.tensors[name]
        digest.update(f"{name}:{stored.dtype}:{stored.shape}:".encode())
        digest.update(stored.sample())
    return digest.hexdigest()
