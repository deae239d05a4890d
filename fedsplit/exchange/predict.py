"""Asking a fine-tuned model: class probabilities, a number, or a continuation; whatever computes the logits.

Legend: B samples, C classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsplit.config.run import Task
from fedsplit.data.batches import Batch
from fedsplit.data.tokenizer import Encode

Logits = Callable[[Batch], NDArray[np.float32]]
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
        logits_C = self.logits(asked(ids))[0]
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
            logits_V = self.logits(asked(ids[-self._max_length :]))[0]
            chosen = int(logits_V.argmax())
            if chosen == self._encode.eos_id:
                break
            ids.append(chosen)
        whole, given = self._encode.decode(ids), self._encode.decode(prompt)
        return whole[len(given) :] if whole.startswith(given) else self._encode.decode(ids[len(prompt) :])


def asked(ids: Sequence[int]) -> Batch:
    """One text without a label."""
    return Batch(
        ids_BT=np.array([ids], np.int64),
        lengths=(len(ids),),
        starts=(0,),
        width=len(ids),
        labels=np.zeros((1, 0), np.int64),
        label_tokens=0,
    )
