"""What a plan is: per client, who holds and trains which layer, and what that is predicted to cost."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct, structs

from fedsplit.plan.travel import Moved


class Topology(StrEnum):
    """Who holds which segment (docs/topologies.md)."""

    LOCAL = "local"
    U = "u"
    V = "v"
    W = "w"


class Cut(Struct, frozen=True, array_like=True):
    """Front = layers [0, c1), body = [c1, c2), tail = [c2, L)."""

    c1: int
    c2: int

    @property
    def has_body(self) -> bool:
        return self.c1 < self.c2


ABSENT = "none"
"""The place of a layer that a client's model leaves out."""


class LayerPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One decoder layer of one client: ``place`` is ``client``, ``server`` or ``none`` (left out)."""

    layer: int
    place: str
    trains: bool = True
    rank: int = 8
    bits: int = 32
    density: float = 1.0


class Estimate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Predicted cost on the device: peak memory, disk, one optimiser step, bytes a step up and down, joules a step.

    ``row_tokens``: tokens of a row that the bytes of a step rest on; ``hidden_bytes``: of a step, the hidden
    states in one direction; ``factors_…``: what travels once a round;
    ``usual_step_s``: of a step whose computing is not as slow as in the slowest tenth, 0: the same as ``step_s``.
    """

    memory_bytes: int
    disk_bytes: int
    step_s: float
    up_bytes: int
    down_bytes: int
    energy_j: float = 0.0
    server_memory_bytes: int = 0
    server_step_s: float = 0.0
    row_tokens: float = 0.0
    hidden_bytes: int = 0
    factors_up_bytes: int = 0
    factors_down_bytes: int = 0
    start_bytes: int = 0
    """Of ``factors_down_bytes``, what comes when a round begins, where a method's mask thins it; 0: all."""
    fold_bytes: int = 0
    """What the method puts into the base comes down once, beside the factors, after every round."""
    usual_step_s: float = 0.0

    @property
    def round_down_bytes(self) -> int:
        """Of the factors, what comes down in a round without a measurement."""
        return (self.start_bytes or self.factors_down_bytes) + self.fold_bytes

    def with_factors(self, before: Moved, after: Moved) -> Estimate:
        """The same estimate where factors take ``after`` and not ``before``, heads aside."""
        return structs.replace(
            self,
            factors_up_bytes=self.factors_up_bytes + after.up - before.up,
            factors_down_bytes=self.factors_down_bytes + after.whole - before.whole,
            start_bytes=self.start_bytes and self.start_bytes + after.start - before.start,
        )

    @property
    def median_step_s(self) -> float:
        """What half of the steps take at most: to compare with what was measured."""
        return self.usual_step_s or self.step_s


class ClientPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One client's job. ``wire_up`` and ``wire_down`` name the codec of hidden states (``fedsplit.wire.codecs``),
    ``grad_up`` and ``grad_down`` that of their gradients.

    ``checkpoint``: its layers keep their inputs alone and are computed again on the way back. ``steps``: local steps of
    a round where it has time for more than the run file's (``plan.slack``); 0: as many as that says. ``density_down``,
    ``density_up``: shares of the factors' entries that travel, where there is time for more than the method's mask
    leaves; 0: as many as that.
    """

    client: str
    topology: Topology
    cut: Cut
    layers: tuple[LayerPlan, ...]
    batch: int
    micro_batches: int = 1
    checkpoint: bool = False
    steps: int = 0
    density_down: float = 0.0
    density_up: float = 0.0
    wire_up: str = "raw"
    wire_down: str = "raw"
    grad_up: str = "raw"
    grad_down: str = "raw"
    dtype: str = "float32"
    estimate: Estimate | None = None
    binding: str = ""
    exposure: str = ""
    reasons: tuple[str, ...] = ()

    @property
    def absent(self) -> frozenset[int]:
        """Layers that this client's model leaves out."""
        return frozenset(layer.layer for layer in self.layers if layer.place == ABSENT)


class Plan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The plan of one round for all clients; ``digest`` hashes everything else."""

    round: int
    clients: tuple[ClientPlan, ...]
    seed: int
    digest: str = ""
    reasons: tuple[str, ...] = ()
