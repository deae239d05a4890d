"""The cut decides who computes what, never what is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsplit.lora.adapter import flatten
from fedsplit.method.record import GlobalState
from fedsplit.testing.faults import Faults
from fedsplit.train.start import first_state
from fedsplit.wire.messages import Update
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


def test_everybody_keeps_a_head_of_its_own(party: Make) -> None:
    """The heads differ at the end, the server has none of them, and a client that comes back still has its own."""
    own: dict[str, object] = {**CLASSES, "policy__shares_labels": False, "model__head": "local", "evaluate__every": 1}
    whole, split = (party(dict.fromkeys("ab", PLACES[place]), **own) for place in ("local", "w"))
    heads = {name: result.head["score.weight"] for name, result in split.results.items()}
    first = first_state_of(split).head["score.weight"]
    assert whole.digest == split.digest
    assert not np.array_equal(heads["a"], heads["b"])
    for name, head in heads.items():
        assert np.array_equal(whole.results[name].head["score.weight"], head)
        assert not np.array_equal(head, first)
        sent = [p for p in split.ends[name].sent if isinstance(p.message, Update)]
        assert sent
        assert not any("score.weight" in key for packet in sent for key in packet.tensors)
    assert np.array_equal(split.keeper.best()[0].head["score.weight"], first)


def test_a_head_of_its_own_survives_its_process(party: Make) -> None:
    own: dict[str, object] = {**CLASSES, "policy__shares_labels": False, "model__head": "local"}
    clients = dict.fromkeys("ab", PLACES["u first"])
    clean, run = party(clients, **own), party(clients, **own, start=False)
    run.server_faults = Faults()
    run.faults.crash("prepare", client="a", round=1)
    run.start()
    run.world.run(until=lambda: run.actors["a"].done)
    run.dealers["a"].cut()
    run.join("a")
    run.finish()
    assert run.digest == clean.digest
    assert np.array_equal(run.results["a"].head["score.weight"], clean.results["a"].head["score.weight"])


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
    clients = {"a": PLACES["u first"], "b": PLACES["w"], "c": PLACES["v"], "d": PLACES["local"]}
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


def test_a_method_from_a_file_beside_the_run_file(party: Make, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HALF, "utf-8")
    plain, half = party({"a": PLACES["w"]}), party({"a": PLACES["w"]}, method__name=f"{tmp_path / 'mine.py'}:half")
    assert half.digest != plain.digest


HALF = '''
from fedsplit.method import Merged, Method, mean, merge_rule, method


@method(paper="none", title="Half")
def half() -> Method:
    """Half of the average."""

    @merge_rule()
    def merge(parts, p_K, memory):
        return Merged(mean(parts, p_K) * 0.5)

    return Method(merge=merge)
'''


def first_state_of(run: Party) -> GlobalState:
    return first_state(run.base, run.run)


def arrays(run: Party) -> dict[str, NDArray[Any]]:
    state = run.keeper.best()[0]
    return {name: np.asarray(value) for name, value in flatten(state.adapter, state.head).items()}


def moved(run: Party) -> bool:
    """Whether every factor B, which begins at zero, has learnt something."""
    return all(np.any(value) for name, value in arrays(run).items() if name.endswith("/B"))
