"""Which checkpoint is the best, and when to stop: decided by one validation metric alone, never by test rows.

Values in, values out: the caller feeds the metric of each evaluation and keeps the returned record.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fedsplit.config.run import Task
from fedsplit.errors import ConfigError, Problem

HIGHER_IS_BETTER = {
    "accuracy": True,
    "macro_f1": True,
    "token_accuracy": True,
    "pearson": True,
    "loss": False,
    "perplexity": False,
    "mse": False,
}
"""Every metric that ``fedsplit.exchange.metrics`` computes."""

DEFAULT: dict[Task, str] = {
    "causal-lm": "perplexity",
    "classification": "accuracy",
    "image-classification": "accuracy",
    "regression": "mse",
}


def metric_of(task: Task, asked: str = "") -> str:
    """The metric that chooses: ``asked`` (``evaluate.metric`` of the run file) or the task's own.

    Raises ConfigError when nothing is known about ``asked``.
    """
    name = asked or DEFAULT[task]
    higher_is_better(name)
    return name


def higher_is_better(metric: str) -> bool:
    """Raises ConfigError when nothing is known about ``metric``."""
    if metric not in HIGHER_IS_BETTER:
        known = f"one of {', '.join(HIGHER_IS_BETTER)}"
        raise ConfigError([Problem("evaluate.metric", repr(metric), known, "leave it empty for the task's own")])
    return HIGHER_IS_BETTER[metric]


def better(metric: str, new: float, old: float) -> bool:
    """Whether ``new`` beats ``old``. NaN beats nothing, anything beats NaN, equal does not beat."""
    if math.isnan(new):
        return False
    if math.isnan(old):
        return True
    return new > old if higher_is_better(metric) else new < old


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The best evaluation so far, ``best_round`` None before the first; ``since`` counts those without a better one."""

    metric: str
    best_round: int | None = None
    best: float = math.nan
    since: int = 0

    def seen(self, round: int, value: float) -> Selection:
        """The record after one more evaluation; the earlier round wins a tie."""
        if better(self.metric, value, self.best):
            return replace(self, best_round=round, best=value, since=0)
        return replace(self, since=self.since + 1)

    def stop(self, patience: int) -> bool:
        """Whether ``patience`` evaluations in a row brought nothing better (0: never stops)."""
        return patience > 0 and self.since >= patience
