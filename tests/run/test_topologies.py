"""The cut decides who computes what, never what is computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.run.party import Party

PLACES = {
    "local": 'topology = "local"',
    "u first": 'topology = "u"\ncut = [1, 3]',
    "u last": 'topology = "u"\ncut = [2, 4]',
    "v": 'topology = "v"\ncut = [2, 6]',
    "w": 'topology = "w"',
}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_topology_gives_the_same_adapter(party: Callable[..., Party], optimizer: str) -> None:
    digests = {place: party({"a": text}, train__optimizer=optimizer).digest for place, text in PLACES.items()}
    assert len(set(digests.values())) == 1, digests
