"""A method as a record of parts, the stock parts, the registry and the checks. No torch.

What a file with a method of one's own needs::

    from fedsplit.method import Merged, Method, mean, method, total, uniform
"""

from fedsplit.method.card import Card, Factory, method
from fedsplit.method.check import check
from fedsplit.method.merge import exact, mean, merge_rule, total, weighted_sum
from fedsplit.method.parts import Ask
from fedsplit.method.ranks import per_device, uniform
from fedsplit.method.record import SERVER, ClientUpdate, Fold, GlobalState, Memory, Merged, Method, Phases, phases

__all__ = [
    "SERVER",
    "Ask",
    "Card",
    "ClientUpdate",
    "Factory",
    "Fold",
    "GlobalState",
    "Memory",
    "Merged",
    "Method",
    "Phases",
    "check",
    "exact",
    "mean",
    "merge_rule",
    "method",
    "per_device",
    "phases",
    "total",
    "uniform",
    "weighted_sum",
]
