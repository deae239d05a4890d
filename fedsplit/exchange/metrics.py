"""Metrics from sums, so that they do not depend on how the rows were cut into batches.

Counts are integers and sums of floats are exact (Shewchuk's partials, ``ExactSum``), hence any order and any grouping
of ``add`` gives the same bits. NumPy only; logits arrive as arrays, from torch, onnxruntime or a server.

    B batch, C classes
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from fedsplit.config.run import Task
from fedsplit.errors import DataError
from fedsplit.exchange.selection import HIGHER_IS_BETTER, better

TOKEN_WEIGHTED = frozenset({"loss", "perplexity", "token_accuracy"})


class ExactSum:
    """A running sum without rounding. J. R. Shewchuk, "Adaptive precision floating-point arithmetic" (1997)."""

    def __init__(self) -> None:
        self._partials: list[float] = []
        self._special = 0.0

    def add(self, values: Iterable[float]) -> None:
        """Add all ``values``; NaN and infinities are kept apart and win."""
        for value in values:
            if math.isfinite(value):
                self._add(value)
            else:
                self._special += value

    def _add(self, value: float) -> None:
        kept = 0
        for partial in self._partials:
            big, small = (value, partial) if abs(value) >= abs(partial) else (partial, value)
            value = big + small
            lost = small - (value - big)
            if lost:
                self._partials[kept] = lost
                kept += 1
        self._partials[kept:] = [value]

    def value(self) -> float:
        """The sum, rounded once."""
        return self._special if self._special != 0.0 else math.fsum(self._partials)

    def fraction(self) -> Fraction:
        """The sum, not rounded; only of finite values."""
        return sum(map(Fraction, self._partials), Fraction())


class Classification:
    """``accuracy``, ``macro_f1`` (over the classes that occur, as label or as prediction) and ``loss`` per row."""

    def __init__(self, classes: int) -> None:
        self.classes, self.examples = classes, 0
        self._hits = np.zeros(classes, np.int64)
        self._labels = np.zeros(classes, np.int64)
        self._guesses = np.zeros(classes, np.int64)
        self._loss, self._loss_known = ExactSum(), True

    def add(self, logits_BC: ArrayLike, labels_B: ArrayLike, loss_sum: float | None = None) -> None:
        """One batch; ``loss_sum`` is summed over its rows, None where it is not known.

        Raises DataError when a label is out of range.
        """
        guesses_B = np.asarray(logits_BC).reshape(-1, self.classes).argmax(axis=1)
        labels = np.asarray(labels_B).reshape(-1)
        if labels.size and not 0 <= labels.min() <= labels.max() < self.classes:
            found = f"labels {labels.min()} to {labels.max()}"
            raise DataError(f"found {found}, expected 0 to {self.classes - 1}; mend model.labels or the data")
        self.examples += labels.size
        self._labels += np.bincount(labels, minlength=self.classes)
        self._guesses += np.bincount(guesses_B, minlength=self.classes)
        self._hits += np.bincount(labels[guesses_B == labels], minlength=self.classes)
        self._loss_known &= loss_sum is not None
        self._loss.add([float(loss_sum or 0.0)])

    def result(self) -> dict[str, float]:
        """NaN where no row was seen."""
        occurs = (self._labels + self._guesses) > 0
        f1 = 2 * self._hits[occurs] / (self._labels + self._guesses)[occurs]
        known = {"loss": _ratio(self._loss.value(), self.examples)} if self._loss_known else {}
        return {
            "accuracy": _ratio(int(self._hits.sum()), self.examples),
            "macro_f1": _ratio(math.fsum(f1), f1.size),
            **known,
        }


class LanguageModel:
    """``loss`` per label token, ``perplexity`` = e^loss, ``token_accuracy`` where known; ``tokens``, their weight."""

    def __init__(self) -> None:
        self.examples, self.tokens, self._hits = 0, 0, 0
        self._hits_known = True
        self._loss = ExactSum()

    def add(self, loss_sum: float, tokens: int, *, examples: int, hits: int | None = None) -> None:
        """One batch: the loss summed over its ``tokens`` label tokens; ``hits`` of them were guessed right."""
        self.examples += examples
        self.tokens += tokens
        self._loss.add([float(loss_sum)])
        self._hits += hits or 0
        self._hits_known &= hits is not None

    def result(self) -> dict[str, float]:
        """NaN where no label token was seen."""
        loss = _ratio(self._loss.value(), self.tokens)
        known = {"token_accuracy": _ratio(self._hits, self.tokens)} if self._hits_known and self.tokens else {}
        return {"loss": loss, "perplexity": _exp(loss), "tokens": float(self.tokens), **known}


class Regression:
    """``mse`` and ``pearson`` (NaN when either side is constant); ``loss`` is the mean squared error, too."""

    def __init__(self) -> None:
        self.examples = 0
        self._sums = {name: ExactSum() for name in ("x", "y", "xx", "yy", "xy", "error")}

    def add(self, guesses_B: ArrayLike, targets_B: ArrayLike) -> None:
        """One batch of float32 values; their products are exact in float64."""
        x, y = (np.asarray(values, np.float32).reshape(-1).astype(np.float64) for values in (guesses_B, targets_B))
        self.examples += x.size
        parts = {"x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y, "error": (x - y) ** 2}
        for name, values in parts.items():
            self._sums[name].add(values.tolist())

    def result(self) -> dict[str, float]:
        """NaN where no row was seen."""
        mse = _ratio(self._sums["error"].value(), self.examples)
        return {"mse": mse, "pearson": self._pearson() if math.isfinite(mse) else math.nan, "loss": mse}

    def _pearson(self) -> float:
        n = self.examples
        x, y, xx, yy, xy = (self._sums[name].fraction() for name in ("x", "y", "xx", "yy", "xy"))
        spread_x, spread_y = n * xx - x * x, n * yy - y * y
        if spread_x <= 0 or spread_y <= 0:
            return math.nan
        together = n * xy - x * y
        return math.copysign(math.sqrt(together * together / (spread_x * spread_y)), together)


@dataclass(frozen=True)
class Combined:
    """What many clients' reports say together. ``worst_client`` names, per metric, who is worst off."""

    everyone: dict[str, float] = field(default_factory=dict)
    mean: dict[str, float] = field(default_factory=dict)
    worst: dict[str, float] = field(default_factory=dict)
    worst_client: dict[str, str] = field(default_factory=dict)
    examples: int = 0

    def flat(self) -> dict[str, float]:
        """One mapping: ``accuracy``, ``mean_client_accuracy``, ``worst_client_accuracy`` ..."""
        flat = dict(self.everyone)
        flat |= {f"mean_client_{name}": value for name, value in self.mean.items()}
        return flat | {f"worst_client_{name}": value for name, value in self.worst.items()}


def combine(reports: Mapping[str, tuple[Mapping[str, float], int]]) -> Combined:
    """Merge ``{client: (metrics, examples)}``; clients without examples are left out.

    ``everyone``: as if all rows were one set, exactly so for accuracy, loss, mse and perplexity (the exponential of
    the token-weighted mean loss); macro_f1 and pearson do not add up, there it is the mean weighted by examples.
    ``mean``: every client counts the same. ``worst``: the unluckiest client.
    """
    used = {client: report for client, report in sorted(reports.items()) if report[1] > 0}
    names = sorted({name for metrics, _ in used.values() for name in metrics if name in HIGHER_IS_BETTER})
    combined = Combined(examples=sum(examples for _, examples in used.values()))
    for name in names:
        values = {client: metrics[name] for client, (metrics, _) in used.items() if name in metrics}
        weights = [_weight(name, *used[client]) for client in values]
        combined.everyone[name] = _weighted(name, list(values.values()), weights)
        combined.mean[name] = _sum(values.values()) / len(values)
        worst = _worst(name, values)
        combined.worst[name], combined.worst_client[name] = values[worst], worst
    return combined


Meter = Classification | LanguageModel | Regression


def meter(task: Task, classes: int = 0) -> Meter:
    """The accumulator of a task; ``classes`` for classification."""
    if task == "causal-lm":
        return LanguageModel()
    return Regression() if task == "regression" else Classification(classes)


def _weight(name: str, metrics: Mapping[str, float], examples: int) -> float:
    return metrics.get("tokens", float(examples)) if name in TOKEN_WEIGHTED else float(examples)


def _weighted(name: str, values: list[float], weights: list[float]) -> float:
    if name == "perplexity":
        return _exp(_weighted("loss", [math.log(v) if v > 0 else math.nan for v in values], weights))
    return _ratio(_sum(v * w for v, w in zip(values, weights, strict=True)), _sum(weights))


def _worst(name: str, values: Mapping[str, float]) -> str:
    worst = next(iter(values))
    for client, value in values.items():
        if better(name, values[worst], value):
            worst = client
    return worst


def _sum(values: Iterable[float]) -> float:
    total = ExactSum()
    total.add(values)
    return total.value()


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
