"""The unsplit step: stock transformers and peft, nothing of our segments. What ``verify`` compares with."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor
from transformers.utils import logging

from fedsplit.config.run import LoraSection, Task
from fedsplit.split.base import BUILDING, TASK_MODELS, Base
from fedsplit.split.inject import full, peft_config
from fedsplit.split.rows import Rows


class Reference:
    """A whole model with LoRA, as a user of peft would make it."""

    def __init__(
        self, base: Base, task: Task, lora: LoraSection, dtype: torch.dtype, device: torch.device, num_labels: int
    ) -> None:
        self.task, self.family = task, base.family.name
        # The files' own config, untouched by ours; a pad id because transformers wants one for batches.
        config = copy.deepcopy(base.config)
        config.use_cache = False
        if task != "causal-lm":
            config.num_labels = 1 if task == "regression" else num_labels
            config.problem_type = "regression" if task == "regression" else "single_label_classification"
            config.pad_token_id = getattr(config, "pad_token_id", None) or 0
        with BUILDING, _quiet():
            model = TASK_MODELS[task].from_pretrained(
                base.folder, config=config, dtype=dtype, ignore_mismatched_sizes=True
            )
        settings = peft_config(model, base, task, lora)
        if task != "causal-lm":
            settings.modules_to_save = sorted(full(base, task, num_labels))
        with BUILDING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = get_peft_model(model, settings).to(device)
        self.device = device

    def parameters(self) -> dict[str, Tensor]:
        """What trains, by the names of the plain model."""
        return {plain(name): p for name, p in self.model.named_parameters() if p.requires_grad}

    def step(
        self, rows: Rows, labels: Tensor, label_tokens: int, params: Mapping[str, Tensor], *, train: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and the gradient of every trainable tensor, with the values of ``params``."""
        own = self.parameters()
        assert own.keys() == params.keys(), sorted(own.keys() ^ params.keys())
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(params[name])
        self.model.train(train)
        self.model.zero_grad()
        loss = self.loss(rows, labels, label_tokens)
        loss.backward()
        return loss.detach(), {name: parameter.grad for name, parameter in own.items() if parameter.grad is not None}

    def loss(self, rows: Rows, labels: Tensor, label_tokens: int) -> Tensor:
        """The model's own loss, normalised by the label tokens where transformers lets the caller say so."""
        inputs, labels = self.inputs(rows), labels.to(self.device)
        if self.task == "causal-lm":
            inputs["num_items_in_batch"] = label_tokens
        elif any(rows.starts) and self.family in ("bert", "roberta"):
            return self._from_first_token(rows, labels, inputs)
        loss: Tensor = self.model(**inputs, labels=labels).loss
        return loss

    def inputs(self, rows: Rows) -> dict[str, Any]:
        """What a user passes. With left padding that includes positions: by default they count from the padding."""
        if rows.pixels is not None:
            return {"pixel_values": rows.pixels.to(self.device)}
        assert rows.ids_BT is not None
        inputs = {"input_ids": rows.ids_BT, "attention_mask": rows.mask_BT}
        if rows.types_BT is not None:
            inputs["token_type_ids"] = rows.types_BT
        if any(rows.starts) and self.family != "roberta":
            positions = rows.mask_BT.cumsum(1) - 1
            inputs["position_ids"] = positions.masked_fill(rows.mask_BT == 0, 1)
        return {name: value.to(self.device) for name, value in inputs.items()}

    def _from_first_token(self, rows: Rows, labels: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Encoders classify position 0, which left padding fills with a pad: take each sample's first token instead."""
        plain_model: Any = self.model.get_base_model()
        backbone = getattr(plain_model, plain_model.base_model_prefix)
        h_BTD = backbone(**inputs).last_hidden_state
        first_B1D = h_BTD[torch.arange(len(rows.starts)), torch.tensor(rows.starts)].unsqueeze(1)
        if self.family == "roberta":
            logits = plain_model.classifier(first_B1D)
        else:
            logits = plain_model.classifier(plain_model.dropout(backbone.pooler(first_B1D)))
        loss: Tensor = plain_model.loss_function(labels, logits, plain_model.config)
        return loss


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and its report on new heads, which are meant to be new."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def plain(name: str) -> str:
    """A parameter's name without peft's wrappers."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
