"""The option ``server_opt`` of methods that leave the server's optimiser open, with its learning rate."""

from __future__ import annotations

from typing import Literal

from fedsplit.errors import ConfigError, Problem
from fedsplit.method.parts import ServerOpt
from fedsplit.method.server_opt import fedadam, momentum, replace


def named(
    name: Literal["replace", "momentum", "fedadam"], learning_rate: float | None, *, adam_rate: float = 0.01
) -> ServerOpt:
    """What a method's options ``server_opt`` and ``server_learning_rate`` say. ``adam_rate``: that of ``fedadam`` where
    none is given; of ``momentum`` it is 1. Raises ConfigError on a rate that nothing takes."""
    if name == "momentum":
        return momentum(1.0 if learning_rate is None else learning_rate)
    if name == "fedadam":
        return fedadam(adam_rate if learning_rate is None else learning_rate)
    if learning_rate is not None:
        problem = Problem(
            "method.options.server_learning_rate",
            f"{learning_rate} with server_opt = 'replace'",
            "none: the average replaces the factors",
            "remove it, or set server_opt to 'momentum' or 'fedadam'",
        )
        raise ConfigError([problem])
    return replace
