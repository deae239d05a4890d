"""Bytes of one client's factors in a round, for a step and a cut: what ``travel`` says, counted in layers."""

from __future__ import annotations

from collections.abc import Sequence

from fedsplit.plan.memory import trained_params
from fedsplit.plan.travel import Entries, Moved, mean, most
from fedsplit.plan.types import Cut, Topology
from fedsplit.plan.work import Work, held


def factor_entries(work: Work, topology: Topology, cut: Cut, *, own_head: bool) -> Entries:
    """What the client holds and trains: what the forward pass needs comes down, trained or not, what trains goes up.

    ``own_head``: every client keeps its own head, which never goes up.
    """
    card, parts = work.card, held(topology, cut, work.card.num_layers)
    heads = card.task != "causal-lm" and topology is not Topology.V
    goes_up = heads and work.trains_head and not own_head
    a_held, a_trained = (_sum(sums, parts) for sums in work.rows_params)
    trained = trained_params(work, topology, cut) - (card.head_trained if heads and work.trains_head else 0)
    return Entries(
        held=(a_held, _sum(work.factor_params, parts) - a_held),
        trained=(a_trained, trained - a_trained),
        layers=max(1, sum(len(part) for part in parts)),
        head_down=card.head_trained if heads else 0,
        head_up=card.head_trained if goes_up else 0,
        fold=sum(work.folded(layer) for part in parts for layer in part) if work.travels.folds else 0,
    )


def factor_bytes(work: Work, topology: Topology, cut: Cut, *, own_head: bool) -> tuple[int, int]:
    """(up, down) bytes of the round that moves most: what a limit has to hold for."""
    found = most(work.travels, factor_entries(work, topology, cut, own_head=own_head))
    return found.up, found.down


def round_factors(work: Work, topology: Topology, cut: Cut, *, own_head: bool) -> Moved:
    """Bytes of one round, in the mean over the run."""
    return mean(work.travels, factor_entries(work, topology, cut, own_head=own_head))


def _sum(sums: Sequence[int], parts: Sequence[range]) -> int:
    return sum(sums[part.stop] - sums[part.start] for part in parts)
