"""Layers that all clients share and layers that stay with each of them: chosen once, by what all clients measured.

Before the first round every client reports one number a layer (the ``probe`` part). The server takes their mean, by the
rows that each client has, and the layers rule chooses. The choice lies in the memory of the global state from then on,
so that it outlives a stop: nobody is asked again. Until there is one, every layer stays where it is.

Legend: k client, l layer, s_kl what k reported of l, p_k its share of all rows; memory: ``layers/shared`` (layer
numbers), ``layers/scores`` (s_l of those layers that have factors, in their order).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from fedsplit.errors import ConfigError, Problem
from fedsplit.lora.adapter import ModuleKey
from fedsplit.method.parts import Ask, LayerChoice, LayerRule, Stats
from fedsplit.method.record import GlobalState, Method, Phases

SHARED, SCORES = "layers/shared", "layers/scores"
Reports = Mapping[str, tuple[Mapping[str, float], int]]
"""By client: what it measured, by name, and how many rows it has."""


def top_scores(statistic: str = "sensitivity", share: float = 0.5) -> LayerRule:
    """Share the ``share`` of the layers that have the highest score, at least one; equal scores: the lower layer. All
    are trained. Raises ConfigError on a share that is not in (0, 1]."""
    if not 0 < share <= 1:
        raise ConfigError([Problem("layers.top_scores.share", repr(share), "above 0 and at most 1")])

    def choose(ask: Ask) -> LayerChoice:
        everything, scores = frozenset(range(ask.layers)), mean_scores(ask, statistic)
        best = sorted(scores, key=lambda layer: (-scores[layer], layer))[: math.ceil(share * len(scores))]
        return LayerChoice(everything, everything, shares=frozenset(best))

    return LayerRule("top_scores", choose, scores=statistic, share=share)


def mean_scores(ask: Ask, statistic: str) -> dict[int, float]:
    """``sum_k p_k s_kl`` of every layer with factors, summed in the order of the clients' names."""
    rows = sum(float(one["rows"]) for one in ask.everyone.values())
    return {
        layer: math.fsum(
            float(one["rows"]) / rows * float(one[name_of(statistic, layer)]) for _, one in sorted(ask.everyone.items())
        )
        for layer in adapted(ask.shapes)
    }


def name_of(statistic: str, layer: int) -> str:
    """How a report calls a layer's score."""
    return f"{statistic}/{layer}"


def adapted(modules: Iterable[ModuleKey]) -> tuple[int, ...]:
    """The layers that have factors."""
    return tuple(sorted({key.layer for key in modules if key.layer >= 0}))


def wants_scores(method: Method | Phases, state: GlobalState) -> bool:
    """Whether clients have to be asked before anything else."""
    return bool(method.at(state.round).layers.scores) and SHARED not in state.memory


def staying(method: Method | Phases, state: GlobalState) -> frozenset[int]:
    """The layers whose factors never travel: all of them, until there is a choice."""
    if not method.at(state.round).layers.scores:
        return frozenset()
    return frozenset(adapted(state.adapter)) - shared(state)


def shared(state: GlobalState) -> frozenset[int]:
    """The layers that were chosen; none, where nothing was."""
    return frozenset(int(layer) for layer in state.memory.get(SHARED, ()))


def usable(reports: Reports, statistic: str, state: GlobalState) -> tuple[dict[str, Stats], list[str]]:
    """Statistics of those who reported a finite number, 0 or more, of every layer and have rows; who did not."""
    names = [name_of(statistic, layer) for layer in adapted(state.adapter)]
    found: dict[str, Stats] = {}
    for client, (numbers, rows) in sorted(reports.items()):
        mine = [numbers.get(name, math.nan) for name in names]
        if rows > 0 and all(math.isfinite(value) and value >= 0 for value in mine):
            found[client] = dict(zip(names, mine, strict=True)) | {"rows": float(rows)}
    return found, sorted(set(reports) - set(found))


def chosen(state: GlobalState, method: Method | Phases, everyone: Mapping[str, Stats], seed: int) -> GlobalState:
    """The state with the choice in its memory. ``everyone``: at least one client's statistics (``usable``)."""
    rule, layers = method.at(state.round).layers, adapted(state.adapter)
    shapes = {key: part.shape for key, part in state.adapter.items()}
    first = Ask(
        round=state.round, client="", seed=seed, layers=layers[-1] + 1, rank=0, everyone=everyone, shapes=shapes
    )
    shares, scores = rule.choose(first).shares, mean_scores(first, rule.scores)
    picked = sorted(layers if shares is None else shares & frozenset(layers))
    memory = {
        SHARED: np.array(picked, np.int64),
        SCORES: np.array([scores[layer] for layer in layers], np.float64),
    }
    return replace(state, memory={**state.memory, **memory})
