"""SplitFed v3: every client's part is its own and never travels, the server's copies are averaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsplit.errors import ConfigError, IncompatibleParts
from fedsplit.lora.adapter import ModuleKey, flatten
from fedsplit.method import stock
from fedsplit.method.check import check
from fedsplit.method.merge import fold_all
from fedsplit.method.stored import state_digest
from fedsplit.methods.splitfed import splitfed
from fedsplit.state.personal import Personal
from fedsplit.testing.faults import Faults
from fedsplit.train.exported import model_folder
from fedsplit.train.exporting import export
from fedsplit.wire.messages import Evaluate, Finish, Start, Update
from tests.reference import fedavg, unequal
from tests.run.conftest import Rows, run_file
from tests.run.party import Party
from tests.run.test_unequal import SGD, as_batch
from tests.run.wired import Wired

Make = Callable[..., Party]
CLIENTS = {"a": 'topology = "u"\ncut = [1, 3]', "b": 'topology = "v"\ncut = [2, 6]', "c": 'topology = "w"'}
OWN = {"a": {0, 3, 4, 5}, "b": {0, 1}, "c": set[int]()}
"""The layers on each device."""
V3: dict[str, object] = {"method__name": "splitfed", "method.options__version": "v3"}


def oracle(run: Wired) -> tuple[unequal.Pairs, dict[str, unequal.Pairs]]:
    """(global factors, each client's own) after all rounds, from whole unsplit models and the clients' rows alone."""
    lora = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    everyone = {key: (part.B_MR, part.A_RN) for key, part in run.first.adapter.items()}
    own: dict[str, unequal.Pairs] = {name: {} for name in run.clients}
    steps, folder = run.run.train.steps, Path(model_folder(run.run.model.path))
    for round in range(run.run.train.rounds):
        updates = []
        for name, seen in sorted(run.clients.items()):
            fed = [[as_batch(one) for one in step] for step in seen.feed.train(round * steps, steps)]
            rows = sum(len(ids) for step in fed for ids, _, _ in step)
            start = everyone | own[name]
            ranks = dict.fromkeys(range(6), 8)
            after = unequal.trained(folder, lora, ranks, set(), start, fed, run.run.train.learning_rate)
            own[name] |= {key: pair for key, pair in after.items() if key[0] in OWN[name]}
            updates.append((rows, {key: pair for key, pair in after.items() if key[0] not in OWN[name]}))
        everyone = fedavg.average_factors(updates, everyone)
    return everyone, own


def test_it_is_what_a_naive_version_gives(tmp_path: Path, rows: Callable[[str], dict[str, Rows]]) -> None:
    """Unlike cuts: a layer is averaged over those for whom the server holds it."""
    run = Wired(run_file(CLIENTS, **SGD, **V3), rows("abc"), tmp_path).finish()
    everyone, own = oracle(run)
    for key, part in run.state.adapter.items():
        np.testing.assert_allclose(part.B_MR, everyone[key][0], rtol=0, atol=1e-6, err_msg=str(key))
        np.testing.assert_allclose(part.A_RN, everyone[key][1], rtol=0, atol=1e-6, err_msg=str(key))
        trained = any(key.layer not in layers for layers in OWN.values())
        assert trained == bool(np.abs(part.B_MR).max() > 1e-3)
    for name, pairs in own.items():
        result = run.clients[name].result
        assert result is not None
        assert {key.layer for key in result.adapter} == OWN[name]
        for key, (b, a) in pairs.items():
            np.testing.assert_allclose(result.adapter[ModuleKey(*key)].B_MR, b, rtol=0, atol=1e-6, err_msg=name)
            np.testing.assert_allclose(result.adapter[ModuleKey(*key)].A_RN, a, rtol=0, atol=1e-6, err_msg=name)
    assert (own["a"][0, "self_attn.q_proj"][0] != own["b"][0, "self_attn.q_proj"][0]).any()


def test_no_factor_travels_and_a_crash_leaves_no_trace(party: Make, reference: Make) -> None:
    settings: dict[str, object] = {**V3, "train__rounds": 3, "evaluate__every": 1, "data__eval_fraction": 0.3}
    clean = reference(CLIENTS, **settings)
    for name, end in clean.ends.items():
        letters = [p for p in (*end.received, *end.sent) if isinstance(p.message, Start | Evaluate | Finish | Update)]
        assert sum(isinstance(packet.message, Update) for packet in letters) == 3
        assert not any(packet.tensors for packet in letters), name
        cost = next(one.plan.estimate for one in clean.host.roster if one.name == name)
        assert cost is not None
        assert (cost.factors_down_bytes, cost.factors_up_bytes) == (0, 0)
    run = party(CLIENTS, **settings, start=False)
    run.killed(Faults().crash("update", round=1, client="b"), ("commit", 2))
    assert state_digest(run.keeper.state) == state_digest(clean.keeper.state)
    for name in CLIENTS:
        assert kept(run, name) == kept(clean, name)
    assert all(one.after["loss"] < one.before["loss"] for one in clean.results.values())
    with pytest.raises(ConfigError, match="every client has"):
        export(run.folder / "run", run.folder / "adapter")


def test_one_client_is_v1(party: Make) -> None:
    """Nobody to average with: the same factors, wherever they are kept."""
    settings: dict[str, object] = {"train__rounds": 2, "lora__dropout": 0.1}
    both = [
        party({"a": CLIENTS["a"]}, **settings, **{**V3, "method.options__version": version}) for version in ("v1", "v3")
    ]
    v1, v3 = ({**flatten(one.keeper.state.adapter), **flatten(one.results["a"].adapter)} for one in both)
    assert {name: array.tobytes() for name, array in v1.items()} == {name: a.tobytes() for name, a in v3.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"personal": stock.nothing_personal}, "personal = none does not go with layers = at_server"),
        ({"topology": stock.planned}, r"topology = planned does not go with layers = at_server.*use topology = split"),
        ({"merge": fold_all, "start": stock.redrawn}, "layers = at_server does not go with merge = fold_all"),
    ],
)
def test_what_does_not_go_with_it_is_refused(change: dict[str, Any], said: str) -> None:
    check(splitfed("v3"))
    check(splitfed("v3").but(topology=stock.split("shared-sequential")))
    with pytest.raises(IncompatibleParts, match=said):
        check(splitfed("v3").but(**change))


def kept(run: Party, name: str) -> dict[str, bytes]:
    """A client's own factors, on its disk after the last round."""
    one = Personal(run.folder / "devices" / name).run(run.run.run.name, client=name).load()
    arrays = one.arrays if one is not None else {}
    assert {int(key.split("/")[0]) for key in arrays} == OWN[name]
    return {key: array.tobytes() for key, array in arrays.items()}
