"""The cut decides who computes what, never what is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsplit.lora.adapter import flatten
from fedsplit.method.record import GlobalState
from fedsplit.train.start import first_state
from tests.run.party import Party

Make = Callable[..., Party]

PLACES = {
    "local": 'topology = "local"',
    "u first": 'topology = "u"\ncut = [1, 3]',
    "u last": 'topology = "u"\ncut = [2, 5]',
    "v": 'topology = "v"\ncut = [2, 6]',
    "w": 'topology = "w"',
}
MIXED = {"a": PLACES["local"], "b": PLACES["u first"], "c": PLACES["w"], "d": PLACES["v"]}
LOCAL = dict.fromkeys(MIXED, PLACES["local"])
CLASSES: dict[str, object] = {"model__task": "classification", "model__labels": ["short", "long"]}

STEPS: dict[str, dict[str, object]] = {
    "dropout": {"lora__dropout": 0.3},
    "whole batch": {"train__micro_batches": 1, "train__clip": 0.0},
    "schedule": {"train__schedule": "cosine", "train__warmup_steps": 1},
    "bfloat16": {"model__dtype": "bfloat16"},
    "all linear": {"lora__targets": ["q_proj", "o_proj", "down_proj"], "lora__rslora": True},
}


@pytest.mark.parametrize(
    "optimizer", [{"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9}, {"weight_decay": 0.01}]
)
def test_every_topology_gives_the_same_adapter(party: Make, optimizer: Mapping[str, object]) -> None:
    settings = {f"train__{key}": value for key, value in optimizer.items()}
    runs = {place: party({"a": text}, **settings) for place, text in PLACES.items()}
    assert len({run.digest for run in runs.values()}) == 1, {place: run.digest for place, run in runs.items()}
    assert moved(runs["local"])


@pytest.mark.parametrize("settings", STEPS.values(), ids=STEPS)
def test_whatever_the_settings(party: Make, settings: Mapping[str, object]) -> None:
    digests = {place: party({"a": PLACES[place]}, **settings).digest for place in ("local", "u first", "v", "w")}
    assert len(set(digests.values())) == 1, digests


def test_clipping_uses_the_norm_over_both_sides(party: Make) -> None:
    tight: dict[str, object] = {"train__optimizer": "sgd", "train__learning_rate": 1.0, "train__clip": 1e-3}
    digests = {party({"a": PLACES[place]}, **tight).digest for place in ("local", "u last", "v")}
    assert len(digests) == 1
    assert digests != {party({"a": PLACES["local"]}, **{**tight, "train__clip": 0.0}).digest}


def test_classification_trains_its_head_wherever_it_is(party: Make) -> None:
    runs = {place: party({"a": PLACES[place]}, **CLASSES) for place in ("local", "u last", "v")}
    assert len({run.digest for run in runs.values()}) == 1
    first, last = (state.head["score.weight"] for state in (first_state_of(runs["v"]), runs["v"].keeper.best()[0]))
    assert not np.array_equal(first, last)


def test_a_frozen_head_stays(party: Make) -> None:
    runs = {place: party({"a": PLACES[place]}, **CLASSES, model__head="frozen") for place in ("local", "w", "v")}
    assert len({run.digest for run in runs.values()}) == 1
    for run in runs.values():
        last = run.keeper.best()[0]
        assert np.array_equal(first_state_of(run).head["score.weight"], last.head["score.weight"])


def test_own_copies_are_plain_federated_averaging(party: Make) -> None:
    """SplitFed v1: four clients in four topologies, bit for bit what four unsplit clients give."""
    split, plain = party(MIXED, lora__dropout=0.1), party(LOCAL, lora__dropout=0.1)
    assert split.digest == plain.digest
    assert moved(split)


@pytest.mark.parametrize("clients", [2, 4])
def test_a_shared_copy_steps_on_the_union_of_the_batches(party: Make, clients: int) -> None:
    """One plain SGD step of each round, on everybody's rows: federated averaging of single steps is the same step."""
    settings: dict[str, object] = {
        **CLASSES,
        "train__optimizer": "sgd",
        "train__learning_rate": 0.1,
        "train__clip": 0.0,
        "train__steps": 1,
        "train__rounds": 3,
    }
    names = "abcd"[:clients]
    together = party(dict.fromkeys(names, PLACES["w"]), **settings, server__adapters="shared-concat")
    apart = party(dict.fromkeys(names, PLACES["local"]), **settings)
    for name, value in arrays(together).items():
        np.testing.assert_allclose(value, arrays(apart)[name], rtol=0, atol=1e-6, err_msg=name)
    assert moved(together)


@pytest.mark.parametrize("mode", ["shared-concat", "shared-sequential"])
def test_shared_copies_do_not_depend_on_who_is_first(party: Make, mode: str) -> None:
    clients = {"a": PLACES["u first"], "b": PLACES["w"], "c": PLACES["u last"], "d": PLACES["local"]}
    other = {name: clients[name] for name in reversed(clients)}
    settings = {"server__adapters": mode, "lora__dropout": 0.1}
    rows = party(clients, start=False).rows
    first = party(clients, **settings, data=rows)
    second = party(other, **settings, data=rows)
    assert first.digest == second.digest
    assert first.digest != party(clients, **{**settings, "server__adapters": "per-client"}, data=rows).digest


def test_a_small_stash_costs_repeats_not_bits(party: Make) -> None:
    plenty = party({"a": PLACES["u first"], "b": PLACES["w"]})
    scarce = party({"a": PLACES["u first"], "b": PLACES["w"]}, server__stash_bytes=1)
    assert scarce.digest == plenty.digest
    assert scarce.kinds("missing") > 0
    assert plenty.kinds("missing") == 0


def first_state_of(run: Party) -> GlobalState:
    return first_state(run.base, run.run)


def arrays(run: Party) -> dict[str, NDArray[Any]]:
    state = run.keeper.best()[0]
    return {name: np.asarray(value) for name, value in flatten(state.adapter, state.head).items()}


def moved(run: Party) -> bool:
    """Whether every factor B, which begins at zero, has learnt something."""
    return all(np.any(value) for name, value in arrays(run).items() if name.endswith("/B"))
