"""What a whole run moves between one client and its server, by cause: the price that is shown before anybody agrees.

    training    = steps · tensors of a step · tokens of a row / tokens that the plan assumed
    measuring   = measurements · held-out rows · the body's input up and its output down
    factors     = down with every Start, Evaluate and Finish, up with every Update
    headers     = HEADER_BYTES or LETTER_BYTES a message, within these
    base model  = what has to be downloaded first

Left out: what is repeated after a lost connection, and the few bytes that say "still here".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsplit.config.run import RunFile
from fedsplit.plan.given import steps_of
from fedsplit.plan.types import ClientPlan, Estimate, Topology

HEADER_BYTES = 150
"""A step message's header (measured: 118 to 288)."""
LETTER_BYTES = 1000
"""That of a message with a client's factors, which lists them (measured: 719 to 1,517 with 16 to 26 tensors)."""


@dataclass(frozen=True)
class Moved:
    """Bytes of both directions."""

    up_bytes: int = 0
    down_bytes: int = 0

    def __add__(self, other: Moved) -> Moved:
        return Moved(self.up_bytes + other.up_bytes, self.down_bytes + other.down_bytes)


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the device knows of its own rows and disk. ``row_tokens``: mean, 0 as long as nothing was tokenised."""

    eval_rows: int = 0
    row_tokens: float = 0.0
    download_bytes: int = 0
    rounds_done: int = 0


@dataclass(frozen=True, kw_only=True)
class RunTraffic:
    """``assumed_tokens``: every row was taken to be this long, which is the longest; 0 where lengths are known."""

    steps: int
    measurements: int
    training: Moved
    measuring: Moved
    factors: Moved
    download_bytes: int
    assumed_tokens: int

    @property
    def total(self) -> Moved:
        return self.training + self.measuring + self.factors + Moved(0, self.download_bytes)


def run_traffic(plan: ClientPlan, run: RunFile, known: Known) -> RunTraffic:
    """The rounds from ``known.rounds_done`` on, this client taking part in the share ``rounds.participation`` of them.

    The plan must have an estimate.
    """
    cost = plan.estimate
    assert cost is not None
    rounds = range(known.rounds_done, run.train.rounds)
    taken = math.ceil(run.rounds.participation * len(rounds))
    steps, looks = taken * steps_of(plan, run), _measurements(run, rounds) if known.eval_rows else 0
    share = known.row_tokens / cost.row_tokens if known.row_tokens and cost.row_tokens else 1.0
    split = plan.topology is not Topology.LOCAL
    return RunTraffic(
        steps=steps,
        measurements=looks,
        training=_times(steps, _step(plan, cost, share)) if split else Moved(),
        measuring=_times(looks, _look(plan, cost, share, run, known.eval_rows)) if split else Moved(),
        factors=Moved(
            taken * (cost.factors_up_bytes + LETTER_BYTES) + looks * HEADER_BYTES,
            taken * (cost.start_bytes or cost.factors_down_bytes)
            + (looks + 1) * cost.factors_down_bytes
            + len(rounds) * cost.fold_bytes
            + (taken + looks + 1) * LETTER_BYTES,
        ),
        download_bytes=known.download_bytes,
        assumed_tokens=0 if known.row_tokens or not split else round(cost.row_tokens),
    )


def round_up_bytes(plan: ClientPlan, run: RunFile) -> int:
    """Bytes that one round of ``plan`` sends up, rows as long as the plan assumed; 0 for a plan without an estimate."""
    cost = plan.estimate
    if cost is None:
        return 0
    headers = steps_of(plan, run) * headers_up(plan.topology, plan.micro_batches)
    return steps_of(plan, run) * cost.up_bytes + headers + cost.factors_up_bytes + LETTER_BYTES


def headers_up(topology: Topology, micro_batches: int) -> int:
    """Bytes a step besides its tensors: forward, and backward where the tail is here, a micro-batch; then Prepare."""
    if topology is Topology.LOCAL:
        return 0
    return HEADER_BYTES * (micro_batches * (1 if topology is Topology.V else 2) + 1)


def _measurements(run: RunFile, rounds: range) -> int:
    """One before the first round, then every ``evaluate.every`` rounds and after the last."""
    if not run.evaluate.clients:
        return 0
    every = run.evaluate.every
    named = [done for done in range(rounds.start + 1, rounds.stop + 1) if every > 0 and done % every == 0]
    last = int(bool(rounds) and rounds.stop not in named)
    return int(rounds.start == 0) + len(named) + last


def _step(plan: ClientPlan, cost: Estimate, share: float) -> Moved:
    headers = headers_up(plan.topology, plan.micro_batches)
    return Moved(round(cost.up_bytes * share) + headers, round(cost.down_bytes * share) + headers)


def _look(plan: ClientPlan, cost: Estimate, share: float, run: RunFile, rows: int) -> Moved:
    """One pass over the held-out rows: what a step sends forward; in ``v`` labels beside it, a loss and scores back."""
    headers = HEADER_BYTES * math.ceil(rows / run.evaluate.batch)
    sees_labels = plan.topology is Topology.V
    crossing = cost.up_bytes if sees_labels else cost.hidden_bytes or cost.up_bytes / 2
    forward = round(crossing * share * rows / plan.batch)
    return Moved(forward + headers, headers + (0 if sees_labels else forward))


def _times(count: int, moved: Moved) -> Moved:
    return Moved(count * moved.up_bytes, count * moved.down_bytes)
