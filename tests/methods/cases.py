"""Methods under test; the rounds they are tested on ship with the package (``fedsplit.testing.rounds``)."""

from __future__ import annotations

from fedsplit.method import Method, per_device, phases, stock
from fedsplit.method.merge import exact, exact_up_to, fold_all
from fedsplit.method.registry import discover
from fedsplit.method.server_opt import fedadam, momentum
from fedsplit.method.weights import uniform
from fedsplit.methods.splitfed import splitfed
from fedsplit.testing.rounds import SHAPES, Case, effective, factors, head, products, start, three, trajectory, update

__all__ = [
    "SHAPES",
    "Case",
    "all_cases",
    "effective",
    "factors",
    "head",
    "products",
    "start",
    "three",
    "trajectory",
    "update",
]


def all_cases() -> list[Case]:
    """Every registered method, and stock parts that no registered method uses by itself."""
    registered = [Case(name, factory()) for name, factory in sorted(discover().factories.items())]
    plain = Method()
    composed = [
        Case("uniform-weights", plain.but(weights=uniform)),
        Case("momentum", plain.but(server_opt=momentum())),
        Case("fedadam", plain.but(server_opt=fedadam())),
        Case("exact", plain.but(merge=exact)),
        Case("exact-per-device", plain.but(merge=exact, ranks=per_device())),
        Case("exact-up-to", plain.but(merge=exact_up_to(7), ranks=per_device())),
        Case("splitfed-v3", splitfed("v3")),
        Case("only-B-momentum", plain.but(factors=stock.only_B, server_opt=momentum())),
        Case("alternate-adam", plain.but(factors=stock.alternate, server_opt=fedadam())),
        Case("fold-then-average", phases({0: plain.but(merge=fold_all, start=stock.redrawn), 2: plain})),
        Case("phases", phases({0: plain, 1: plain.but(server_opt=momentum())})),
    ]
    return registered + composed
