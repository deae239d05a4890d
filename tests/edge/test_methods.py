"""Which registered methods a device without torch can follow, and what one that cannot is told."""

from __future__ import annotations

from fedsplit.method.record import Method
from fedsplit.method.registry import build, cards


def test_a_method_says_why_it_needs_torch() -> None:
    methods = {card.name: build(card.name) for card in cards()}
    reasons = {name: method.needs_torch for name, method in methods.items() if isinstance(method, Method)}
    assert "changes the base weights" in reasons["flora"]
    assert "other layers every round" in reasons["fedra"]
    assert "mask = neurons" in reasons["fibecfed"]
    for card in cards():
        assert card.edge == (not reasons.get(card.name, "")), card.name
