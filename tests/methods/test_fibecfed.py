"""FibecFed on numbers: which layers and neurons are chosen, against a naive version; what contradicts it is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedsplit.errors import ConfigError, IncompatibleParts, Refused
from fedsplit.exchange.probing import resting
from fedsplit.lora import ModuleKey
from fedsplit.lora.adapter import select
from fedsplit.method import GlobalState, Method, stock
from fedsplit.method.check import check
from fedsplit.method.chosen import SHARED, chosen, name_of, shared, staying, top_scores, usable, wants_scores
from fedsplit.method.curriculum import share
from fedsplit.method.merge import fold_all
from fedsplit.method.shelf import parts_from
from fedsplit.method.stored import pack, state_digest, unpack
from fedsplit.methods.fedavg import fedavg
from fedsplit.methods.fibecfed import fibecfed
from fedsplit.testing.rounds import factors
from fedsplit.train.round import run_round
from tests.methods.cases import SHAPES, start, three
from tests.reference import fibecfed as naive

LAYERS = 7
KEY = next(iter(SHAPES))
ROWS = {"ann": 7, "bob": 30, "cyd": 1}
REPORTS = {name: np.random.default_rng(index).random(LAYERS).tolist() for index, name in enumerate(ROWS)}


def deep() -> GlobalState:
    """A module in each of the layers, and one outside of them."""
    modules = {ModuleKey(layer, "q"): factors(layer, KEY) for layer in range(LAYERS)}
    return GlobalState.first(modules | {ModuleKey(-1, "embed"): factors(99, KEY)})


def reports(**changed: list[float]) -> dict[str, tuple[dict[str, float], int]]:
    return {
        name: ({name_of("sensitivity", layer): value for layer, value in enumerate(scores)}, ROWS[name])
        for name, scores in (REPORTS | changed).items()
    }


def choice(method: Method, state: GlobalState, **changed: list[float]) -> GlobalState:
    everyone, _ = usable(reports(**changed), "sensitivity", state)
    return chosen(state, method, everyone, seed=1)


@pytest.mark.parametrize("part", [0.01, 0.3, 0.5, 1.0])
def test_the_layers_are_those_of_the_naive_version(part: float) -> None:
    method, state = fibecfed(layers=part), deep()
    assert wants_scores(method, state)
    assert staying(method, state) == frozenset(range(LAYERS)), "until there is a choice"
    after = choice(method, state)
    assert shared(after) == naive.global_layers(REPORTS, ROWS, part)
    assert staying(method, after) == frozenset(range(LAYERS)) - shared(after)
    assert not wants_scores(method, after)


def test_equal_scores_take_the_lower_layers() -> None:
    same = {name: [0.5] * LAYERS for name in ROWS}
    assert shared(choice(fibecfed(layers=0.4), deep(), **same)) == {0, 1, 2}


def test_a_report_that_cannot_be_used_does_not_count() -> None:
    bad = {"ann": [0.1] * 6 + [float("nan")], "bob": [0.1] * 3, "cyd": [-0.1] * LAYERS}
    for name, scores in bad.items():
        everyone, others = usable(reports(**{name: scores}), "sensitivity", deep())
        assert others == [name]
        assert set(everyone) == set(ROWS) - {name}


def test_the_choice_outlives_rounds_and_a_stop() -> None:
    method = fibecfed()
    state = GlobalState.first(start().adapter)
    scores = {"ann": ({"sensitivity/0": 0.1, "sensitivity/1": 0.2}, 3)}
    state = chosen(state, method, usable(scores, "sensitivity", state)[0], seed=1)
    assert shared(state) == {1}
    shares = [key for key in SHAPES if key.layer != 0]
    updates = [replace(one, adapter=select(one.adapter, keys=shares), head={}) for one in three()]
    after = run_round(state, updates, method)
    again = unpack(*pack(after))
    assert shared(again) == {1}
    assert state_digest(again) == state_digest(after)
    for key in SHAPES:
        moved = after.adapter[key].B_MR.tobytes() != state.adapter[key].B_MR.tobytes()
        assert moved == (key in shares)
    with pytest.raises(Refused, match=r"module 0/attention.query, of a layer that stays with each client"):
        run_round(state, three(), method)


def test_averaging_is_that_of_the_naive_version() -> None:
    method, state = fibecfed(), replace(start(), head={}, memory={SHARED: np.array([1])})
    shares = {1, -1}
    updates = [
        replace(one, adapter={key: part for key, part in one.adapter.items() if key.layer in shares}, head={})
        for one in three()
    ]
    after = run_round(state, updates, method)
    sent = {one.client: {tuple(key): (p.B_MR, p.A_RN) for key, p in one.adapter.items()} for one in updates}
    before = {tuple(key): (part.B_MR, part.A_RN) for key, part in state.adapter.items()}
    wanted = naive.aggregate(before, sent, {one.client: one.examples for one in updates}, shares)
    for key, part in after.adapter.items():
        b_MR, a_RN = wanted[tuple(key)]
        np.testing.assert_allclose(part.B_MR, b_MR, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(part.A_RN, a_RN, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("part", [0.01, 0.5, 0.9, 1.0])
def test_neurons_at_rest_are_those_of_the_naive_version(part: float) -> None:
    random = np.random.default_rng(5)
    sizes = {ModuleKey(2, "v"): 5, ModuleKey(2, "q"): 11, ModuleKey(4, "q"): 3}
    fisher = {key: np.round(random.random(size), 1) for key, size in sizes.items()}  # with equal ones
    found = resting(fisher, part)
    for layer in (2, 4):
        modules = {key.path: fisher[key].tolist() for key in sizes if key.layer == layer}
        for module, learns in naive.learning_rows(modules, part).items():
            assert np.flatnonzero(~found[ModuleKey(layer, module)]).tolist() == learns


def test_the_share_of_batches_is_that_of_the_naive_version() -> None:
    local = stock.curriculum(0.3, 0.5)
    shares = [share(local, round, 12) for round in range(12)]
    assert shares == pytest.approx([naive.share_of_batches(0.3, 0.5, round, 12) for round in range(12)])
    assert shares == sorted(shares)


WRONG = {
    "layers = top_scores does not go with probe = none": fedavg().but(
        topology=stock.local, layers=top_scores(), personal=stock.keep_layers
    ),
    "probe = sensitivity does not go with layers = every": fedavg().but(probe=stock.sensitivity()),
    "personal = none does not go with layers = top_scores": fibecfed().but(personal=stock.nothing_personal),
    "personal = keep_B does not go with layers = top_scores": fibecfed().but(personal=stock.keep_B),
    "layers = top_scores does not go with topology = planned": fibecfed().but(topology=stock.planned),
    "local = curriculum does not go with topology = u": fibecfed().but(topology=stock.u),
    "layers = top_scores does not go with merge = fold_all": fibecfed().but(merge=fold_all, start=stock.redrawn),
    "mask = neurons does not go with layers = every": fedavg().but(mask=stock.neurons()),
    "mask = topk does not go with personal = keep_layers": fibecfed().but(mask=stock.topk()),
    "local = curriculum does not go with probe = sensitivity": fibecfed().but(probe=stock.sensitivity()),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_contradicts_it_is_refused(said: str) -> None:
    with pytest.raises(IncompatibleParts, match=f"{said}: .*; use "):
        check(WRONG[said])


def test_its_parts_can_be_used_by_any_method() -> None:
    asked = {
        "topology": "local",
        "layers": {"name": "top_scores", "share": 0.25},
        "probe": {"name": "sensitivity", "radius": 0.1},
        "personal": "keep_layers",
    }
    method = fedavg(server_opt="momentum").but(**parts_from(asked))
    check(method)
    check(method.but(mask=stock.neurons(0.3), factors=stock.alternate))
    assert not method.edge


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": 0.0}, "share"),
        ({"neurons": 1.5}, "share"),
        ({"momentum": 1.0}, "momentum"),
        ({"radius": 0.0}, "radius"),
        ({"radius": float("nan")}, "radius: found nan, expected a positive number"),
        ({"radius": float("inf")}, "radius: found inf"),
        ({"rows": 0}, "rows"),
        ({"first": 0.0}, "first"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fibecfed(**options)  # type: ignore[arg-type]
