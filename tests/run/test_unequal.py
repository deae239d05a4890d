"""Clients that train other layers, and clients of other ranks, over sockets: against a naive reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fedsplit.data.batches import Batch
from fedsplit.devices.profile import DeviceProfile
from fedsplit.events import Measured
from fedsplit.plan.types import ClientPlan
from fedsplit.testing.faults import Faults
from fedsplit.train.batch import as_torch
from fedsplit.train.exported import model_folder
from fedsplit.wire.messages import DataSummary
from fedsplit_server.planning import Planning
from tests.reference import fedavg, unequal
from tests.run.conftest import Rows, run_file
from tests.run.party import Party
from tests.run.test_recovery import crashed_server
from tests.run.wired import Seen, Wired

SGD: dict[str, object] = {
    "train__optimizer": "sgd",
    "train__learning_rate": 0.5,
    "train__clip": 0.0,
    "lora__rank": 8,
    "lora__alpha": 16.0,
}
LAYERS = range(6)
EXACT = '''
from fedsplit.method import Method, exact, method, per_device


@method(paper="none", title="Exact")
def sums() -> Method:
    """The sum of the products; every device its own rank."""
    return Method(merge=exact, ranks=per_device())
'''


def changed(plan: ClientPlan, resting: set[int], ranks: dict[int, int]) -> ClientPlan:
    layers = tuple(
        msgspec.structs.replace(one, trains=one.layer not in resting, rank=ranks.get(one.layer, one.rank))
        for one in plan.layers
    )
    return msgspec.structs.replace(plan, layers=layers)


def oracle(
    run: Wired, resting: dict[str, set[int]], ranks: dict[str, dict[int, int]], exact: bool
) -> tuple[unequal.Pairs, dict[object, np.ndarray]]:
    """The global factors and products after all rounds, from the clients' rows alone."""
    lora = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    pairs = {key: (part.B_MR, part.A_RN) for key, part in run.first.adapter.items()}
    dense = {key: (b @ a).astype(np.float64) for key, (b, a) in pairs.items()}
    steps = run.run.train.steps
    for round in range(run.run.train.rounds):
        updates = []
        for name, seen in sorted(run.clients.items()):
            start = unequal.cut(pairs, dense, ranks[name]) if exact else pairs
            fed = [[as_batch(one) for one in step] for step in seen.feed.train(round * steps, steps)]
            rows = sum(len(ids) for step in fed for ids, _, _ in step)
            folder = Path(model_folder(run.run.model.path))
            rate = run.run.train.learning_rate
            updates.append((rows, unequal.trained(folder, lora, ranks[name], resting[name], start, fed, rate)))
        dense = fedavg.ideal(updates, pairs)
        pairs = pairs if exact else fedavg.average_factors(updates, pairs)
    return pairs, dense


def as_batch(arrays: Batch) -> unequal.Batch:
    batch = as_torch(arrays)
    assert batch.rows.ids_BT is not None
    return batch.rows.ids_BT, batch.rows.mask_BT, batch.labels


@pytest.fixture
def wired(tmp_path: Path, rows: Callable[[str], dict[str, Rows]]) -> Callable[..., Wired]:
    def make(
        clients: dict[str, str], resting: dict[str, set[int]], ranks: dict[str, dict[int, int]], **more: object
    ) -> Wired:
        text = run_file(clients, **{**SGD, **more})
        change = lambda plan: changed(plan, resting[plan.client], ranks[plan.client])  # noqa: E731
        return Wired(text, rows("".join(clients)), tmp_path, change).finish()

    return make


@pytest.mark.parametrize(
    "place", ['topology = "local"', 'topology = "u"\ncut = [5, 6]', 'topology = "u"\ncut = [1, 4]']
)
def test_one_trains_the_upper_layers_and_one_all(wired: Callable[..., Wired], place: str) -> None:
    """Whoever did not train a layer has no say in it, and its frozen factors take part in its forward pass."""
    below = {0, 1, 2, 3} if "1, 4" not in place else {0}
    resting = {"a": below, "b": set()}
    ranks = {name: dict.fromkeys(LAYERS, 8) for name in "ab"}
    run = wired({"a": place, "b": 'topology = "w"'}, resting, ranks)
    expected, _ = oracle(run, resting, ranks, exact=False)
    for key, part in run.state.adapter.items():
        np.testing.assert_allclose(part.B_MR, expected[key][0], rtol=0, atol=1e-6, err_msg=str(key))
        np.testing.assert_allclose(part.A_RN, expected[key][1], rtol=0, atol=1e-6, err_msg=str(key))
        assert np.abs(part.B_MR).max() > 1e-3


def test_ranks_8_4_and_2_are_summed_exactly(wired: Callable[..., Wired], tmp_path: Path) -> None:
    """On the device (local, u) and in the server's copies (u, w), with the scale of each rank."""
    (tmp_path / "mine.py").write_text(EXACT, "utf-8")
    resting = {name: set[int]() for name in "abc"}
    ranks = {
        "a": dict.fromkeys(LAYERS, 8),
        "b": {layer: 4 if layer < 3 else 2 for layer in LAYERS},
        "c": dict.fromkeys(LAYERS, 4),
    }
    clients = {"a": 'topology = "u"\ncut = [1, 3]', "b": 'topology = "local"', "c": 'topology = "w"'}
    method = {"method__name": f"{tmp_path / 'mine.py'}:sums", "plan__ranks": [4, 2], "plan__layers": "fit"}
    run = wired(clients, resting, ranks, **method)
    _, expected = oracle(run, resting, ranks, exact=True)
    for key, part in run.state.adapter.items():
        np.testing.assert_allclose(part.dense(), expected[key], rtol=0, atol=1e-6, err_msg=str(key))
        assert np.abs(expected[key]).max() > 1e-3
    assert {part.rank for key, part in run.state.adapter.items() if key.layer < 3} == {16}
    assert finals(run.clients["b"]) == ranks["b"]


PLACES = ['topology = "local"', 'topology = "u"\ncut = [2, 4]', 'topology = "v"\ncut = [1, 6]', 'topology = "w"']
MIXED = {"a": dict.fromkeys(LAYERS, 8), "b": {layer: 4 if layer < 3 else 2 for layer in LAYERS}}


def mixed(make: Callable[..., Party], folder: Path, place: str, **settings: object) -> Party:
    """Two clients of unequal ranks in one topology, not started yet."""
    (folder / "mine.py").write_text(EXACT, "utf-8")
    some = {"plan__layers": "fit", "plan__ranks": [4, 2], "lora__rank": 8}
    method = {"method__name": f"{folder / 'mine.py'}:sums", **some}
    run = make({"a": place, "b": place}, start=False, **method, **settings)
    planning = Planning(run.run, run.base)

    def planner(name: str, profile: DeviceProfile, data: DataSummary, topology: str) -> ClientPlan:
        return changed(planning(name, profile, data, topology), set(), MIXED[name])

    run.planner = planner
    return run


def test_unequal_ranks_give_the_same_bits_wherever_they_are(party: Callable[..., Party], tmp_path: Path) -> None:
    """AdamW, clipping, measurements: a rank is the client's, whoever computes its layers."""
    settings: dict[str, object] = {"evaluate__every": 1, "train__rounds": 2}
    runs = [mixed(party, tmp_path, place, **settings).start().finish() for place in PLACES]
    assert len({run.digest for run in runs}) == 1
    ranks = {key.layer: part.rank for key, part in runs[0].keeper.state.adapter.items()}
    assert ranks == {layer: 12 if layer < 3 else 10 for layer in LAYERS}
    metrics = [run.all(Measured)[-1].metrics["perplexity"] for run in runs]
    assert metrics == pytest.approx([metrics[0]] * len(runs), rel=1e-6)


def test_a_grown_rank_survives_the_server(party: Callable[..., Party], tmp_path: Path) -> None:
    """The checkpoint keeps the global rank; the next round cuts the same factors from it."""
    clean = mixed(party, tmp_path, PLACES[1]).start().finish()
    run = mixed(party, tmp_path, PLACES[1])
    crashed_server(run, Faults().crash("commit", round=1, step=1))
    assert run.digest == clean.digest


def finals(seen: Seen) -> dict[int, int]:
    """The rank of every layer that the client got at the end."""
    assert seen.result is not None
    return {key.layer: part.rank for key, part in seen.result.adapter.items()}
