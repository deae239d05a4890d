"""Asking a fine-tuned model: class probabilities, a number, or a continuation; the body here or elsewhere.

Legend: B samples, T tokens, D model width, C classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsplit.config.run import LoraSection, RunFile, Task
from fedsplit.data.tokenizer import Encode
from fedsplit.plan.types import ClientPlan, Cut, Topology
from fedsplit.split.base import Base
from fedsplit.split.rows import Rows
from fedsplit.train.exported import Exported
from fedsplit.train.part import ClientPart

Logits = Callable[[Rows], NDArray[np.float32]]
"""Rows to (B, C), or for language models (B, V) at each sample's last token."""


@dataclass(frozen=True)
class Prediction:
    """``scores`` by class name, best first; or ``value``; or ``text``, the continuation."""

    scores: dict[str, float] | None = None
    value: float | None = None
    text: str | None = None


class Predictor:
    """Turns texts into predictions with whatever computes the ``logits``."""

    def __init__(self, task: Task, labels: Sequence[str], max_length: int, encode: Encode, logits: Logits) -> None:
        self._task, self._labels, self._max_length = task, labels, max_length
        self._encode, self.logits = encode, logits

    def __call__(self, text: str, tokens: int = 40) -> Prediction:
        """``tokens``: how many a language model adds at most."""
        if self._task == "causal-lm":
            return Prediction(text=self._continue(text, tokens))
        ids = self._encode.encode(text, max_length=self._max_length).ids
        logits_C = self.logits(Rows.of([ids], pad=self._encode.pad_id))[0]
        if self._task == "regression":
            return Prediction(value=float(logits_C[0]))
        shares = np.exp(logits_C - logits_C.max())
        shares /= shares.sum()
        best = np.argsort(-shares, kind="stable")
        return Prediction(scores={self._labels[int(i)]: float(shares[i]) for i in best})

    def _continue(self, text: str, tokens: int) -> str:
        """Greedy; the whole text is run again for every token, and only the last ``max_length`` tokens of it."""
        prompt = self._encode.encode(text).ids
        prompt = prompt[:-1] if prompt and prompt[-1] == self._encode.eos_id else prompt
        ids = list(prompt)
        for _ in range(tokens):
            logits_V = self.logits(Rows.of([ids[-self._max_length :]], pad=self._encode.pad_id))[0]
            chosen = int(logits_V.argmax())
            if chosen == self._encode.eos_id:
                break
            ids.append(chosen)
        whole, given = self._encode.decode(ids), self._encode.decode(prompt)
        return whole[len(given) :] if whole.startswith(given) else self._encode.decode(ids[len(prompt) :])


def local_logits(base: Base, exported: Exported, device: str = "cpu") -> Logits:
    """The whole model here, with an exported adapter."""
    card = exported.card
    run = bare_run(card.task, card.labels, exported.rank, sorted({key.path for key in exported.adapter}))
    whole = Cut(base.num_layers, base.num_layers)
    plan = ClientPlan(client="here", topology=Topology.LOCAL, cut=whole, layers=(), batch=1)
    part = ClientPart(base, plan, run, device)
    part.load(exported.adapter, exported.head)

    def logits(rows: Rows) -> NDArray[np.float32]:
        with torch.no_grad():
            return last_logits(part, rows, part.first.run(rows, None, part.tensors))

    return logits


def last_logits(part: ClientPart, rows: Rows, h_BTD: Tensor) -> NDArray[np.float32]:
    """Logits of the client's own head as float32, for language models at each sample's last token."""
    return at_last(part.task, rows, part.last.logits(rows, h_BTD, part.tensors))


def at_last(task: Task, rows: Rows, logits: Tensor) -> NDArray[np.float32]:
    if task == "causal-lm":
        logits = logits[torch.arange(logits.shape[0]), rows.last_B.to(logits.device)]
    found: NDArray[Any] = logits.float().cpu().numpy()
    return found


def bare_run(task: Task, labels: Sequence[str], rank: int, targets: Sequence[str]) -> RunFile:
    """The few settings that building a model for prediction needs; factors come with their scale inside."""
    from fedsplit.config.run import ModelSection

    model = ModelSection(path="", task=task, labels=tuple(labels))
    return RunFile(model=model, lora=LoraSection(rank=rank, alpha=float(rank), targets=tuple(targets)))
