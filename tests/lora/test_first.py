"""What everybody draws: by name, at any rank the same components; and tensors as what changed since then."""

from __future__ import annotations

import numpy as np

from fedsplit.lora.first import draw, fitted, onto, since

NAME = "layers.0.q_proj.lora_A.default.weight"


def test_a_lower_rank_draws_the_first_components() -> None:
    whole, part = (draw(NAME, (rank, 7), 3, 0.0) for rank in (4, 2))
    np.testing.assert_array_equal(whole[:2], part)
    assert (draw(NAME, (4, 7), 4, 0.0) != whole).all()
    assert np.abs(whole).max() <= 7**-0.5


def test_first_factors_fit_any_rank() -> None:
    """Cut to the first components, and zero beyond what was drawn."""
    first = {"0/q/A": np.arange(6, dtype=np.float32).reshape(2, 3)}
    np.testing.assert_array_equal(fitted(first, {"0/q/A": (1, 3)})["0/q/A"], [[0, 1, 2]])
    np.testing.assert_array_equal(fitted(first, {"0/q/A": (3, 3)})["0/q/A"], [[0, 1, 2], [3, 4, 5], [0, 0, 0]])
    assert fitted(first, {}) == {}


def test_changes_are_undone_and_nothing_named_is_nothing_done() -> None:
    first, now = {"0/q/A": np.float32([[1, 2]])}, {"0/q/A": np.float32([[1.5, 1]])}
    changes = since(first, now)
    np.testing.assert_array_equal(changes["0/q/A"], [[0.5, -1]])
    np.testing.assert_array_equal(onto(first, changes)["0/q/A"], now["0/q/A"])
    assert since({}, now)["0/q/A"] is now["0/q/A"] is onto({}, now)["0/q/A"]
