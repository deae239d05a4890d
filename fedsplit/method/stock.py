"""Stock parts that hold no arithmetic: who holds what, which factors, how tensors travel. Defaults first."""

from __future__ import annotations

from fedsplit.lora.lowrank import LowRank
from fedsplit.method.parts import (
    Ask,
    Codec,
    FactorRule,
    Factors,
    Groups,
    LayerChoice,
    LayerRule,
    Local,
    Mask,
    Personal,
    Placement,
    Probe,
    Start,
)
from fedsplit.method.values import Memory
from fedsplit.plan.types import Topology

planned = Placement("planned", frozenset(Topology))
"""The planner chooses per client."""
local = Placement("local", frozenset({Topology.LOCAL}))
u = Placement("u", frozenset({Topology.U}))
v = Placement("v", frozenset({Topology.V}))
w = Placement("w", frozenset({Topology.W}))


def _all_layers(ask: Ask) -> LayerChoice:
    everything = frozenset(range(ask.layers))
    return LayerChoice(everything, everything)


every = LayerRule("every", _all_layers)
"""Every layer is held and trained, each on the side that the cut puts it."""

raw = Codec("raw")
"""Little-endian bytes as they are."""

_BOTH = Factors(frozenset({"A", "B"}), frozenset({"A", "B"}))
both = FactorRule("both", lambda round: _BOTH)
"""A and B train together and both are shared."""

no_probe = Probe("none")
backprop = Local("backprop")
"""Plain optimiser steps on shuffled data, gradients by back-propagation."""
dense = Mask("dense")
"""All of the adapter travels."""
one = Groups("one", lambda ask: "all")
"""One adapter for everybody."""
nothing_personal = Personal("none")


def _same(merged: LowRank, memory: Memory) -> LowRank:
    return merged


averaged = Start("averaged", "kaiming_zero", _same)
"""A random (peft's Kaiming-uniform law), B zero; then every round starts from the merged factors (Avg-Initial)."""
