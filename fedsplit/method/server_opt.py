"""From the merged tensor to the next global one: replace it, or treat the difference as a gradient.

Source: Hsu et al. 2019 (arXiv:1909.06335, momentum), Reddi et al. 2021 (arXiv:2003.00295, Algorithm 2, FedAdam).
Both act entry by entry, on A, on B and on the head.
"""

from __future__ import annotations

from collections.abc import Mapping

from array_api_compat import array_namespace

from fedsplit.errors import ConfigError, Problem
from fedsplit.lora.lowrank import Array
from fedsplit.method.parts import ServerOpt


def _replace(previous: Array, merged: Array, memory: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
    return merged, {}


replace = ServerOpt("replace", _replace, entrywise=False)
"""The merged tensor is the next one, bit for bit."""


def momentum(learning_rate: float = 1.0, decay: float = 0.9) -> ServerOpt:
    """``v <- decay v + (merged - previous)``, ``next = previous + learning_rate v`` (FedAvgM)."""
    _check("momentum", learning_rate=learning_rate, decay=decay)

    def step(previous: Array, merged: Array, memory: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        delta = merged - previous
        velocity = memory["velocity"] * decay + delta if "velocity" in memory else delta
        return previous + velocity * learning_rate, {"velocity": velocity}

    return ServerOpt("momentum", step)


def fedadam(
    learning_rate: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, adaptivity: float = 1e-3
) -> ServerOpt:
    """``m <- b1 m + (1 - b1) d``, ``v <- b2 v + (1 - b2) d^2``, ``next = previous + lr m / (sqrt(v) + adaptivity)``.

    d = merged - previous; m starts at zero, v at adaptivity^2; no bias correction, as in the paper.
    """
    _check("fedadam", learning_rate=learning_rate, beta1=beta1, beta2=beta2, adaptivity=adaptivity)

    def step(previous: Array, merged: Array, memory: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        delta = merged - previous
        first = delta * (1 - beta1)
        second = delta * delta * (1 - beta2)
        if "first" in memory:
            first = first + memory["first"] * beta1
        second = second + (memory["second"] if "second" in memory else adaptivity**2) * beta2
        root = array_namespace(second).sqrt(second)
        return previous + first / (root + adaptivity) * learning_rate, {"first": first, "second": second}

    return ServerOpt("fedadam", step)


def _check(part: str, **values: float) -> None:
    """Rates and the adaptivity are positive, decays lie in [0, 1)."""
    problems = []
    for name, value in values.items():
        positive = name in ("learning_rate", "adaptivity")
        if not (0 < value < float("inf") if positive else 0 <= value < 1):
            expected = "a positive number" if positive else "at least 0 and below 1"
            problems.append(Problem(f"server_opt.{part}.{name}", repr(value), expected))
    if problems:
        raise ConfigError(problems)
