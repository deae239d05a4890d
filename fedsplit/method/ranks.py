"""Ranks per client, and cutting a global factor to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from fedsplit.errors import ConfigError, Problem
from fedsplit.lora.adapter import ModuleKey
from fedsplit.lora.lowrank import LowRank
from fedsplit.method.parts import Ask, RankRule

Fit = Literal["svd", "slice"]

_REDUCE: dict[str, Callable[[LowRank, int], LowRank]] = {"svd": LowRank.truncate, "slice": LowRank.slice}


def uniform(rank: int | None = None) -> RankRule:
    """One rank for everybody: ``rank``, or what the run file says."""
    if rank is not None:
        _check_rank("ranks.uniform", rank)
    return RankRule("uniform", lambda ask, key: ask.rank if rank is None else rank, LowRank.truncate, equal=True)


def per_device(ranks: Mapping[str, int] | None = None, *, fit: Fit = "svd") -> RankRule:
    """Each device its own rank: from ``ranks`` by client name, else what the plan gives it.

    ``svd``: a client gets the best approximation of its rank (FlexLoRA, arXiv:2402.11505), ``slice``: the leading
    components as they are (HetLoRA, arXiv:2401.06432).
    """
    if fit not in _REDUCE:
        raise ConfigError([Problem("ranks.per_device.fit", repr(fit), " or ".join(map(repr, _REDUCE)))])
    table = dict(ranks or {})
    for client, rank in table.items():
        _check_rank(f"ranks.per_device[{client!r}]", rank)

    def of(ask: Ask, key: ModuleKey) -> int:
        return table.get(ask.client, ask.rank)

    return RankRule("per_device", of, _REDUCE[fit], equal=False)


def _check_rank(path: str, rank: int) -> None:
    if rank < 1:
        raise ConfigError([Problem(path, str(rank), "1 or more")])


from_run_file = uniform()
"""The rank of the run file, for everybody."""
