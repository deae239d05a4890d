"""FibecFed on devices, against a naive run and by hand: what travels, stays and rests, and what a crash leaves."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fedsplit import seeds
from fedsplit.data.curriculum import easiest, steps_of
from fedsplit.data.dataset import Dataset
from fedsplit.errors import Timeout
from fedsplit.events import Note, StepDone
from fedsplit.exchange.difficulty import difficulties
from fedsplit.exchange.feed import Feed
from fedsplit.exchange.probing import NeuronFisher, sensitivities
from fedsplit.exchange.rate import clip_factor, learning_rate
from fedsplit.exchange.step import dropout_key, label_tokens
from fedsplit.lora.adapter import ModuleKey, Tensor, flatten, unflatten
from fedsplit.lora.lowrank import LowRank
from fedsplit.method import ClientUpdate, GlobalState
from fedsplit.method.chosen import shared
from fedsplit.method.stored import state_digest, weights_digest
from fedsplit.methods.fedavg import fedavg
from fedsplit.plan.types import ClientPlan
from fedsplit.state.personal import Personal
from fedsplit.testing.faults import Faults
from fedsplit.train.batch import as_torch
from fedsplit.train.feed import reading_of
from fedsplit.train.part import ClientPart
from fedsplit.train.round import run_round
from fedsplit.train.start import first_state
from fedsplit.wire.messages import Evaluate, Finish, Report, Start, Update
from fedsplit_client.fisher import unmoved
from fedsplit_client.own import FISHER, Own
from tests.reference import fibecfed as naive
from tests.run.conftest import Rows, run_file
from tests.run.party import Party, written
from tests.run.processes import Stage, dies_at

MakeRows = Callable[[str], dict[str, Rows]]
Make = Callable[..., Party]
LOCAL = dict.fromkeys("ab", 'topology = "local"')
SETTINGS: dict[str, object] = {
    "method__name": "fibecfed",
    "method.options__rows": 5,
    "method.options__first": 0.5,
    "train__rounds": 3,
    "train__weight_decay": 0.1,
    "lora__dropout": 0.1,
}
"""Rank 3: alpha/r is no power of two, and every way through a part rounds."""


@pytest.fixture(scope="module")
def few(rows: MakeRows) -> dict[str, Rows]:
    found = rows("ab")
    return {"a": found["a"][:22], "b": found["b"][:15]}


@pytest.fixture(scope="module")
def clean(few: dict[str, Rows], tmp_path_factory: pytest.TempPathFactory) -> Party:
    """The run to which nothing happens."""
    run = Party(run_file(LOCAL, **SETTINGS), few, tmp_path_factory.mktemp("clean")).start().finish()
    run.world.close()
    return run


# ---- what travels ----------------------------------------------------------------------------------------------------


def test_layers_that_stay_never_travel(clean: Party) -> None:
    state = clean.keeper.state
    mine, first = shared(state), first_state(clean.base, clean.run).adapter
    assert len(mine) == math.ceil(clean.base.num_layers / 2)
    numbers = sum(part.A_RN.size + part.B_MR.size for key, part in first.items() if key.layer in mine)
    names = {f"{key}/{side}" for key in first if key.layer in mine for side in "AB"}
    for end in clean.ends.values():
        letters = [p for p in end.received if isinstance(p.message, Start | Evaluate | Finish)]
        updates = [p for p in end.sent if isinstance(p.message, Update)]
        assert len(updates) == 3
        for packet in (*letters, *updates):
            chosen = not (isinstance(packet.message, Evaluate) and packet.message.phase == "layers")
            assert set(packet.tensors) == (names if chosen else set())
            assert sum(tensor.nbytes for tensor in packet.tensors.values()) == (4 * numbers if chosen else 0)
    for key, part in state.adapter.items():
        assert (part.A_RN.tobytes() == first[key].A_RN.tobytes()) == (key.layer not in mine)


def test_one_number_a_layer_goes_up_once(clean: Party) -> None:
    scores = {}
    for name, end in clean.ends.items():
        [report] = [p.message for p in end.sent if isinstance(p.message, Report) and p.message.phase == "layers"]
        assert list(report.metrics) == [f"sensitivity/{layer}" for layer in range(clean.base.num_layers)]
        assert report.examples == len(device(clean, name)[1].dataset.train)
        scores[name] = list(report.metrics.values())
    rows = {name: len(device(clean, name)[1].dataset.train) for name in scores}
    assert shared(clean.keeper.state) == naive.global_layers(scores, rows, 0.5)
    [said] = [event.text for event in clean.all(Note) if "layers that all clients share" in event.text]
    assert all(f"{layer} (" in said for layer in shared(clean.keeper.state))


# ---- what is measured ------------------------------------------------------------------------------------------------


def test_neuron_fisher_is_that_of_a_loop_over_rows(clean: Party) -> None:
    """autograd by hand, one row after another, with a B that is not zero."""
    part, feed = device(clean, "a")
    part.load(final(clean, "a"), {})
    rows = [row for row, _ in zip(feed.singly(), range(6), strict=False)]
    fisher = NeuronFisher(part)
    difficulties(part, rows, (0,), each=fisher.add)
    found = fisher.mean()
    named = {name: leaf for name, leaf in part.params.items() if ".lora_B" in name}
    wanted = {name: np.zeros(len(leaf)) for name, leaf in named.items()}
    for index, row in enumerate(rows):
        part.learn(row, 1, (0, index, "difficulty"))
        for name, leaf in named.items():
            assert leaf.grad is not None
            wanted[name] += (leaf.grad.double().numpy() ** 2).sum(axis=1) / len(rows)
        part.drop()
    scale = clean.run.lora.alpha / clean.run.lora.rank
    assert len(found) == len(wanted)
    for key, value in found.items():
        [name] = [name for name in wanted if f".{key.layer}.{key.path}." in name]
        np.testing.assert_allclose(value * scale**2, wanted[name], rtol=1e-6)
        assert (value > 0).all()


def test_sensitivity_is_that_of_the_whole_model(clean: Party) -> None:
    """transformers' own model on the same embeddings, with and without the same noise."""
    part, feed = device(clean, "a")
    part.load(part.drawn(), {})
    [row] = [row for row, _ in zip(feed.singly(), range(1), strict=False)]
    found = sensitivities(part, [row], 0.05, ("key",))
    from transformers import AutoModel

    model = AutoModel.from_pretrained(clean.base.folder, dtype=torch.float32)
    embeddings = model.get_input_embeddings()(as_torch(row).rows.ids_BT)
    noise = torch.from_numpy(
        seeds.generator("key", 0, "sensitivity").standard_normal(tuple(embeddings.shape)).astype(np.float32)
    )
    noise *= 0.05 * embeddings.norm() / noise.norm()
    plain, moved = (layers_of(model, found) for found in (embeddings, embeddings + noise))
    for layer, value in found.items():
        wanted = float((moved[layer] - plain[layer]).norm() / plain[layer].norm())
        assert value == pytest.approx(wanted, rel=1e-3), layer


def layers_of(model: torch.nn.Module, embeddings_BTD: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of the layers, caught as they pass: the last of ``hidden_states`` has been through the final norm."""
    found: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda module, given, out: found.append(out[0] if isinstance(out, tuple) else out))
        for layer in model.layers  # type: ignore[union-attr]
    ]
    with torch.no_grad():
        model(inputs_embeds=embeddings_BTD)
    for hook in hooks:
        hook.remove()
    return found


# ---- what is trained -------------------------------------------------------------------------------------------------


def test_the_run_is_that_of_the_naive_version(clean: Party) -> None:
    """Bit for bit: the server's state, and every client's own layers after each round."""
    state, own = naively(clean, neurons=0.5)
    assert weights_digest(state) == weights_digest(clean.keeper.state)
    for name in LOCAL:
        for round in (1, 2, 3):
            assert bits(kept(clean, name, round)) == bits(own[name][round])


def test_neurons_that_rest_keep_their_bits(clean: Party) -> None:
    first = flatten(first_state(clean.base, clean.run).adapter)
    moved, rested = 0, 0
    for name in LOCAL:
        for round in (0, 1, 2):
            before, after = kept(clean, name, round) or first, kept(clean, name, round + 1)
            for key, rows in resting_of(after, 0.5).items():
                old, new = before[f"{key}/B"], after[f"{key}/B"]
                assert new[rows].tobytes() == old[rows].tobytes()
                rested += int(rows.sum())
                moved += int((new[~rows] != old[~rows]).any(axis=1).sum())
                assert (after[f"{key}/A"] != before[f"{key}/A"]).any() or round == 0
    assert rested > 100
    assert moved > 100


def test_bits_survive_the_way_through_a_part(clean: Party) -> None:
    """Scaling by alpha/r and back rounds, so what rests is put back as it was given."""
    part, _ = device(clean, "a")
    random = np.random.default_rng(3)
    given = {
        key: LowRank(random.standard_normal(factors.B_MR.shape, np.float32), factors.A_RN)
        for key, factors in part.drawn().items()
    }
    part.load(given, {})
    rests = {key: np.arange(len(factors.B_MR)) % 2 == 0 for key, factors in given.items()}
    read = part.read()[0]
    assert any((read[key].B_MR != given[key].B_MR)[rows].any() for key, rows in rests.items())
    for key, factors in unmoved(read, given, rests).items():
        assert factors.B_MR[rests[key]].tobytes() == given[key].B_MR[rests[key]].tobytes()
        assert factors.B_MR[~rests[key]].tobytes() == read[key].B_MR[~rests[key]].tobytes()


def test_all_layers_and_neurons_and_rows_is_fedavg_in_a_fixed_order(few: dict[str, Rows], party: Make) -> None:
    settings = {**SETTINGS, "method.options__layers": 1.0, "method.options__neurons": 1.0, "method.options__first": 1.0}
    run = party(LOCAL, data=few, **settings)
    assert shared(run.keeper.state) == set(range(run.base.num_layers))
    state, own = naively(run, neurons=1.0, layers=set(range(run.base.num_layers)), first=1.0)
    assert weights_digest(state) == weights_digest(run.keeper.state)
    assert not any(factors for one in own.values() for factors in one.values())
    assert [round for name in LOCAL for round in (1, 2, 3) if kept(run, name, round)] == []


def test_clients_measure_with_their_own_layers(clean: Party) -> None:
    best = clean.keeper.best()[0]
    for name, result in clean.results.items():
        assert result.after["loss"] < result.before["loss"]
        mine, found = kept(clean, name, best.round), flatten(result.adapter) | result.beside
        assert any(key.startswith(FISHER) for key in mine)
        assert bits({key: found[key] for key in mine}) == bits(mine)
        assert len(found["difficulty"]) == len(device(clean, name)[1].dataset.train)


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "killed", [Faults().crash("report", round=0), Faults().crash("update", round=1)], ids=["choice", "round"]
)
def test_a_server_and_a_client_that_die_leave_no_trace(
    killed: Faults, clean: Party, few: dict[str, Rows], party: Make
) -> None:
    """Before the layers are chosen, and between two rounds."""
    run = party(LOCAL, data=few, **SETTINGS, start=False)
    run.killed(killed, ("start", 2))
    assert state_digest(run.keeper.state) == state_digest(clean.keeper.state)
    for name in LOCAL:
        assert bits(kept(run, name, 3)) == bits(kept(clean, name, 3))


def test_who_was_away_goes_on_with_what_it_left(few: dict[str, Rows], party: Make) -> None:
    run = party(LOCAL, data=few, **SETTINGS, rounds__participation=0.5)
    asked = {name: [p.message.round for p in run.ends[name].sent if isinstance(p.message, Update)] for name in LOCAL}
    assert sorted(round for rounds in asked.values() for round in rounds) == [0, 1, 2]
    for name, rounds in asked.items():
        if rounds:
            assert bits(kept(run, name, 3)) == bits(kept(run, name, rounds[-1] + 1))
        else:
            assert not kept(run, name, 3)


def test_a_client_that_reports_nonsense_is_left_out(few: dict[str, Rows], party: Make, clean: Party) -> None:
    def nonsense(message: object, tensors: object) -> tuple[object, object]:
        if isinstance(message, Report) and message.phase == "layers":
            message = Report(**{name: getattr(message, name) for name in ("run", "client", "round", "phase")},
                             metrics={"sensitivity/0": 1.0}, examples=message.examples)  # fmt: skip
        return message, tensors

    run = party(LOCAL, data=few, **{**SETTINGS, "train__rounds": 1}, start=False)
    run.tamper["b"] = nonsense  # type: ignore[assignment]
    run.start().finish()
    assert [event for event in run.all(Note) if "came from b: the choice is made without" in event.text]
    [report] = [
        p.message for p in clean.ends["a"].sent if isinstance(p.message, Report) and p.message.phase == "layers"
    ]
    assert shared(run.keeper.state) == naive.global_layers({"a": list(report.metrics.values())}, {"a": 1}, 0.5)


def test_where_nobody_reports_the_run_ends(few: dict[str, Rows], party: Make) -> None:
    run = party(LOCAL, data=few, **SETTINGS, start=False)
    for name in LOCAL:
        run.tamper[name] = lambda message, tensors: (
            (Report(round=0, phase="layers", metrics={}, examples=1), tensors)
            if isinstance(message, Report)
            else (message, tensors)
        )
    run.start()
    with pytest.raises(Timeout, match="3 times how sensitive each layer is, and nobody said"):
        run.finish()


@pytest.mark.soak
def test_processes_over_tcp_keep_their_layers(tmp_path: Path, few: dict[str, Rows], clean: Party) -> None:
    """A client is killed in the second round and joins again; its layers come from its disk."""
    data = {name: written(tmp_path / f"{name}.jsonl", found) for name, found in few.items()}
    with Stage(tmp_path, run_file(LOCAL, **SETTINGS), data) as run:
        server, other = run.serve(), run.join("b")
        first = run.join("a", program=dies_at(StepDone, round=1, step=0))
        first.end(expected=-signal.SIGKILL)
        run.join("a").end()
        other.end()
        server.end()
        assert server.finished.digest == clean.digest
        for name in LOCAL:
            [folder] = (run.folder / "devices" / name / "runs").iterdir()
            found = load_file(next((folder / "0003").glob("*.safetensors")))
            for factor, array in kept(clean, name, 3).items():
                assert found[factor].tobytes() == array.tobytes()


# ---- reading runs ----------------------------------------------------------------------------------------------------


def kept(run: Party, name: str, round: int) -> dict[str, Tensor]:
    """What a client has for itself after that round."""
    own = Own(Personal(run.folder / "devices" / name).run(run.run.run.name, client=name), head=False, drawn=dict)
    return own.until(round)


def final(run: Party, name: str) -> dict[ModuleKey, LowRank]:
    """What a client computes with at the end."""
    return dict(run.results[name].adapter)


def device(run: Party, name: str) -> tuple[ClientPart, Feed]:
    """A client's model and rows."""
    part = ClientPart(run.base, plan_of(run, name), run.run)
    feed = Feed.open(run.folder / f"{name}.jsonl", run.run, reading_of(run.base, run.run), name)
    assert isinstance(feed.dataset, Dataset)
    return part, feed


def plan_of(run: Party, name: str) -> ClientPlan:
    member = run.host.roster.get(name)
    assert member is not None
    return member.plan


Owned = dict[str, Tensor]
"""What a client has for itself after a round, by flat name."""


def naively(
    run: Party, *, neurons: float, layers: set[int] | None = None, first: float = 0.5
) -> tuple[GlobalState, dict[str, dict[int, Owned]]]:
    """The same run as one loop, with every layer of every client in one place: (state, what each has, by round)."""
    state = first_state(run.base, run.run)
    mine = set(shared(run.keeper.state)) if layers is None else layers
    devices = {name: device(run, name) for name in LOCAL}
    own: dict[str, dict[int, Owned]] = {name: {0: {}} for name in LOCAL}
    difficulty = {}
    for round in range(run.run.train.rounds):
        updates = []
        for name, (part, feed) in devices.items():
            before = own[name][round]
            given = unflatten(flatten(state.adapter) | {n: a for n, a in before.items() if not n.startswith(FISHER)})[0]
            part.load(given, state.head)
            if round == 0:
                difficulty[name] = difficulties(part, feed.singly(), (run.run.run.seed, name))
            fisher = fisher_of(run, name, part, feed, round, before) if neurons < 1 else {}
            kept = {n: a for n, a in fisher.items() if int(n.removeprefix(FISHER).partition("/")[0]) not in mine}
            g = naive.share_of_batches(first, 0.5, round, run.run.train.rounds)
            adapter, examples = trained(run, name, part, feed, difficulty[name], g, round, resting_of(kept, neurons))
            stays = {n: a for n, a in flatten(adapter).items() if int(n.partition("/")[0]) not in mine}
            for key, rows in resting_of(kept, neurons).items():
                stays[f"{key}/B"][rows] = flatten(given)[f"{key}/B"][rows]
            own[name][round + 1] = stays | kept
            goes = {key: factors for key, factors in adapter.items() if key.layer in mine}
            updates.append(ClientUpdate(client=name, examples=examples, base_version=0, adapter=goes))
        state = run_round(state, updates, fedavg())
    return state, own


def fisher_of(run: Party, name: str, part: ClientPart, feed: Feed, round: int, before: Owned) -> Owned:
    """Of all neurons, as the round begins: over all rows in the first, over five drawn ones later."""
    fisher, seed = NeuronFisher(part), run.run.run.seed
    if round == 0:
        difficulties(part, feed.singly(), (seed, name), each=fisher.add)
    else:
        count = len(feed.dataset.train)
        rows = sorted(seeds.generator(seed, name, round, "probed").permutation(count)[:5].tolist())
        difficulties(part, feed.singly(rows), (seed, name, round), each=fisher.add)
    found = {f"{FISHER}{key}": value for key, value in fisher.mean().items()}
    followed = {n: np.array(naive.follow(before[n].tolist(), found[n].tolist(), 0.9)) for n in found if n in before}
    return found | followed


def trained(
    run: Party,
    name: str,
    part: ClientPart,
    feed: Feed,
    difficulty: np.ndarray,
    g: float,
    round: int,
    rests: dict[str, np.ndarray],
) -> tuple[dict[ModuleKey, LowRank], int]:
    """A round's steps; rows at rest have no gradient, and are put back after each."""
    train, seed = run.run.train, run.run.run.seed
    pool, examples = easiest(difficulty, g, train.batch, seed, name), 0
    leaves = {key: leaf for key in rests for leaf in (leaf_of(part, key),)}
    before = {key: leaf.detach().clone() for key, leaf in leaves.items()}
    for step, chosen in enumerate(steps_of(pool, round * train.steps, train.steps, train.batch)):
        batches = feed._micros(chosen)
        tokens = label_tokens(batches)
        for micro, batch in enumerate(batches):
            part.learn(batch, tokens, dropout_key(seed, name, round * train.steps + step, micro))
            examples += len(batch)
        for key, leaf in leaves.items():
            assert leaf.grad is not None
            leaf.grad[torch.from_numpy(rests[key])] = 0
        rate = learning_rate(train, round * train.steps + step, train.rounds * train.steps)
        part.step(clip_factor(part.squares(), train.clip), rate)
        with torch.no_grad():
            for key, leaf in leaves.items():
                leaf[torch.from_numpy(rests[key])] = before[key][torch.from_numpy(rests[key])]
    return part.read()[0], examples


def leaf_of(part: ClientPart, key: str) -> torch.Tensor:
    layer, _, path = key.partition("/")
    [leaf] = [leaf for name, leaf in part.params.items() if f".{layer}.{path}.lora_B" in name]
    return leaf


def resting_of(own: dict[str, Tensor], share: float) -> dict[str, np.ndarray]:
    """By module: which rows of B rested in the round that left this behind."""
    fisher = {name.removeprefix(FISHER): value for name, value in own.items() if name.startswith(FISHER)}
    found = {}
    for layer in {key.partition("/")[0] for key in fisher}:
        modules = {key: fisher[key].tolist() for key in fisher if key.partition("/")[0] == layer}
        for key, learns in naive.learning_rows(modules, share).items():
            rows = np.ones(len(fisher[key]), np.bool_)
            rows[learns] = False
            found[key] = rows
    return found


def bits(arrays: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in sorted(arrays.items())}
