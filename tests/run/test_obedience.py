"""What a plan says is what the running client does: read the plan, count on the device and on its socket, compare."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fedsplit.config.load import loads
from fedsplit.config.run import ModelSection, RunFile
from fedsplit.errors import PlanError
from fedsplit.events import Note
from fedsplit.exchange.follow import check_plan
from fedsplit.lora.adapter import digest
from fedsplit.plan.card import card
from fedsplit.plan.factors import factor_bytes
from fedsplit.plan.timing import traffic
from fedsplit.plan.types import ClientPlan, Cut, LayerPlan, Topology
from fedsplit.plan.work import Work, as_planned, work_of
from fedsplit.split.lora import keys
from fedsplit.split.span import Absent
from fedsplit.train.batch import as_torch
from fedsplit.train.part import ClientPart
from fedsplit.wire.frames import Packet
from fedsplit.wire.messages import DataSummary, Exchange, Start, Update
from fedsplit_server.planning import Planning
from tests.run.conftest import Rows, run_file
from tests.run.party import LAPTOP, base_of
from tests.run.test_unequal import EXACT, changed
from tests.run.wired import Seen, Wired

HEADER = 288
"""Bytes of a step message's header at most (``plan.traffic``)."""
PLACES = {
    "local": 'topology = "local"',
    "u": 'topology = "u"\ncut = [2, 4]',
    "v": 'topology = "v"\ncut = [2, 6]',
    "w": 'topology = "w"',
}
CLIENTS = dict(zip("abcd", PLACES.values(), strict=True))
RESTING = {"a": {0, 1, 2, 4}, "b": {0, 1, 5}, "c": {0}, "d": set[int]()}
RANKS = {"a": {3: 2, 5: 4}, "b": {4: 1}, "c": {1: 2}, "d": dict.fromkeys(range(6), 2)}
Counts = dict[str, object]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, rows: Callable[[str], dict[str, Rows]]) -> Callable[[str], Wired]:
    """Finished runs of four clients, one a topology, by what is special about their plans."""
    known: dict[str, Wired] = {}

    def make(which: str) -> Wired:
        if which not in known:
            folder = tmp_path_factory.mktemp("run")
            (folder / "mine.py").write_text(EXACT, "utf-8")
            some = {"plan__layers": "fit", "plan__ranks": [4, 2, 1], "lora__rank": 8}
            mixed = {"method__name": f"{folder / 'mine.py'}:sums", **some}
            more = {"16 bits": {"model__dtype": "bfloat16"}, "some layers": mixed}.get(which, {})
            text = run_file(CLIENTS, **{"model__max_length": 8, "lora__dropout": 0.0, **more})
            change = some_layers if which == "some layers" else same
            known[which] = Wired(text, rows("abcd"), folder, change).finish()
        return known[which]

    return make


def same(plan: ClientPlan) -> ClientPlan:
    return plan


def some_layers(plan: ClientPlan) -> ClientPlan:
    """Some layers rest, some have another rank, also of what the server trains for a client."""
    return changed(plan, RESTING[plan.client], RANKS[plan.client])


# ---- what the plan says ----------------------------------------------------------------------------------------------


def planned(plan: ClientPlan, run: Wired) -> Counts:
    """From the plan and the model's config alone, with the planner's own formulas for what moves."""
    model = card(run.base.config.to_dict(), run.run.model.task, 0)
    work = replace(as_planned(work_of(model, run.run), plan), batch=plan.batch, dtype=plan.dtype)
    mine = [layer for layer in plan.layers if layer.place == "client"]
    training = [layer for layer in mine if layer.trains]
    up, down = traffic(work, plan.topology, plan.cut)
    factors_up, factors_down = factor_bytes(work, plan.topology, plan.cut, own_head=False)
    head = plan.topology is not Topology.V
    rest = model.embedding_params + (model.norm_params + model.head_params if head else 0)
    split = plan.topology is not Topology.LOCAL
    return {
        "layers": {layer.layer for layer in mine},
        "trained": {layer.layer: 2 * len(model.adapted((), layer.layer)) for layer in training},
        "rank": {layer.layer: layer.rank for layer in training},
        "numbers": round(sum(layer.density * trained_numbers(work, layer) for layer in training)),
        "weight bytes": sum(layer.bits * model.layer_params for layer in mine) // 8 + rest * mine_bytes(plan),
        "wire": {plan.dtype} if split else set(),
        "step": [(up, down)] * (run.run.train.rounds * run.run.train.steps),
        "factors": (factors_up, factors_down),
    }


def trained_numbers(work: Work, layer: LayerPlan) -> int:
    sums = work.adapter_params
    return sums[layer.layer + 1] - sums[layer.layer]


def mine_bytes(plan: ClientPlan) -> int:
    return {"float32": 4, "bfloat16": 2}[plan.dtype]


# ---- what the client did ---------------------------------------------------------------------------------------------


def counted(seen: Seen) -> Counts:
    """On the running client: its modules, leaves and optimiser, and every tensor on its socket."""
    part = seen.part
    [start] = {tensor_bytes([packet]) for packet in seen.end.received if isinstance(packet.message, Start)}
    updates = [packet for packet in seen.end.sent if isinstance(packet.message, Update)]
    [update] = {tensor_bytes([packet]) for packet in updates}
    shapes = {name: tensor.shape for name, tensor in updates[-1].tensors.items()}
    return {
        "layers": materialised(part),
        "trained": leaves(part),
        "rank": {int(name.partition("/")[0]): shape[0] for name, shape in shapes.items() if name.endswith("/A")},
        "numbers": sum(int((tensor.numpy() != 0).sum()) for tensor in updates[-1].tensors.values()),
        "weight bytes": weight_bytes(part),
        "wire": {LONG[tensor.dtype] for name, tensor in step_tensors(seen) if name in ("h", "g")},
        "step": [(tensor_bytes(sent), tensor_bytes(got)) for sent, got in steps(seen)],
        "factors": (update, start),
    }


LONG = {"f32": "float32", "bf16": "bfloat16"}


def materialised(part: ClientPart) -> set[int]:
    """Layers whose weights are in memory."""
    return {
        index
        for segment in part._segments
        for index, layer in enumerate(segment.model.get_submodule(segment.layers_path))
        if not isinstance(layer, Absent) and any(weight.numel() for weight in layer.parameters() if not weight.is_meta)
    }


def leaves(part: ClientPart) -> dict[int, int]:
    """Tensors that require a gradient and are in the optimiser, by layer."""
    stepped = part._optimizer.params if part._optimizer is not None else {}
    found: dict[int, int] = {}
    for segment in part._segments:
        for key, names in keys(segment).items():
            for name in names:
                assert (name in part.params) == part.tensors[name].requires_grad == (name in stepped), name
                if name in part.params:
                    found[key.layer] = found.get(key.layer, 0) + 1
    return found


def weight_bytes(part: ClientPart) -> int:
    """Bytes of the frozen weights in memory, each storage once."""
    weights = (weight.untyped_storage() for segment in part._segments for weight in segment.parameters())
    return sum({weight.data_ptr(): weight.nbytes() for weight in weights}.values())


def steps(seen: Seen) -> list[tuple[list[Packet], list[Packet]]]:
    """(sent, received) of every step, in order."""
    found: dict[tuple[int, int], tuple[list[Packet], list[Packet]]] = {}
    for way, packets in enumerate((seen.end.sent, seen.end.received)):
        for packet in packets:
            message = packet.message
            if isinstance(message, Exchange) and message.era:  # 0: a measurement
                found.setdefault((message.round, message.step), ([], []))[way].append(packet)
    if not found:
        return [([], [])] * len(seen.steps)
    return [found[step.round, step.step] for step in seen.steps]


def step_tensors(seen: Seen) -> Iterable[tuple[str, Any]]:
    return ((name, tensor) for both in steps(seen) for way in both for p in way for name, tensor in p.tensors.items())


def tensor_bytes(packets: Iterable[Packet]) -> int:
    return sum(tensor.nbytes for packet in packets for tensor in packet.tensors.values())


# ---- the same? -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["32 bits", "16 bits", "some layers"])
@pytest.mark.parametrize("name", CLIENTS)
def test_the_client_does_what_its_plan_says(runs: Callable[[str], Wired], which: str, name: str) -> None:
    run = runs(which)
    seen = run.clients[name]
    assert seen.plan.topology.value == dict(zip(CLIENTS, PLACES, strict=True))[name]
    assert counted(seen) == planned(seen.plan, run)
    if which != "some layers":
        cost = seen.plan.estimate
        assert cost is not None
        assert (cost.up_bytes, cost.down_bytes) == counted(seen)["step"][0]  # type: ignore[index]
        assert (cost.factors_up_bytes, cost.factors_down_bytes) == counted(seen)["factors"]


@pytest.mark.parametrize("which", ["32 bits", "some layers"])
@pytest.mark.parametrize("name", "bcd")
def test_the_socket_carries_the_tensors_and_headers_within_their_bound(
    runs: Callable[[str], Wired], which: str, name: str
) -> None:
    seen = runs(which).clients[name]
    for step, (sent, received) in zip(seen.steps, steps(seen), strict=True):
        for moved, packets in ((step.up_bytes, sent), (step.down_bytes, received)):
            assert 0 < moved - tensor_bytes(packets) <= HEADER * len(packets)


def test_nothing_is_kept_or_sent_below_the_lowest_layer_that_trains(runs: Callable[[str], Wired]) -> None:
    """b's front rests: it runs without a graph, and the server sends no gradient for it; one of c's layers does not."""
    run = runs("some layers")
    b, c = run.clients["b"], run.clients["c"]
    [batches] = b.feed.train(0, 1)
    assert not b.part.front(as_torch(batches[0]).rows).requires_grad
    assert c.part.front(as_torch(batches[0]).rows).requires_grad
    gradients = {name: sum("g" in packet.tensors for packet in run.clients[name].end.received) for name in "bc"}
    assert gradients == {"b": 0, "c": 8}


def layer(number: int, **values: Any) -> Callable[[ClientPlan], ClientPlan]:
    """The plan with one layer changed."""

    def change(plan: ClientPlan) -> ClientPlan:
        layers = list(plan.layers)
        layers[number] = msgspec.structs.replace(layers[number], **values)
        return msgspec.structs.replace(plan, layers=tuple(layers))

    return change


def plan_with(**values: Any) -> Callable[[ClientPlan], ClientPlan]:
    return lambda plan: msgspec.structs.replace(plan, **values)


MUTATIONS: Mapping[str, tuple[str, Callable[[ClientPlan], ClientPlan]]] = {
    "layers": ("b", layer(1, place="server")),
    "trained": ("b", layer(4, trains=False)),
    "rank": ("b", layer(5, rank=2)),
    "numbers": ("b", layer(4, density=0.5)),
    "weight bytes": ("b", layer(4, bits=16)),
    "wire": ("c", plan_with(dtype="bfloat16")),
    "step": ("d", plan_with(batch=5)),
    "factors": ("a", layer(2, rank=2)),
}


@pytest.mark.parametrize("count", MUTATIONS)
def test_another_plan_than_that_which_was_followed_shows(runs: Callable[[str], Wired], count: str) -> None:
    run, (name, mutate) = runs("32 bits"), MUTATIONS[count]
    seen = run.clients[name]
    says, does = planned(mutate(seen.plan), run), counted(seen)
    assert says[count] != does[count]


@pytest.mark.parametrize(
    ("disobey", "words"),
    [
        (layer(0, trains=False), r"no tensor for 0/self_attn\.q_proj/A"),
        (layer(5, trains=True), "expected no such tensor"),
    ],
)
def test_the_server_refuses_the_update_of_a_client_that_does_not_obey(
    rows: Callable[[str], dict[str, Rows]], tmp_path: Path, disobey: Callable[[ClientPlan], ClientPlan], words: str
) -> None:
    text = run_file({"a": PLACES["u"]}, model__max_length=8)
    run = Wired(text, rows("a"), tmp_path, layer(5, trains=False), disobey).finish()
    notes = [event.text for event in run.events if isinstance(event, Note) and event.client == "a"]
    assert any(re.search(f"left out of round 1: the update of a has .*{words}", text) for text in notes), notes
    assert digest(run.state.adapter) == digest(run.first.adapter)


@pytest.mark.parametrize("head", ["fedavg", "frozen", "local"])
def test_heads_travel_as_they_are_priced(rows: Callable[[str], dict[str, Rows]], tmp_path: Path, head: str) -> None:
    """A head that stays, or is everybody's own, does not go up; every head comes down to whoever holds one."""
    settings = {"model__head": head, "policy__shares_labels": head != "local", **CLASSES}
    clients = {name: text for name, text in CLIENTS.items() if head != "local" or name != "c"}
    run = Wired(run_file(clients, **settings), rows("".join(clients)), tmp_path).finish()
    for seen in run.clients.values():
        cost, does = seen.plan.estimate, counted(seen)
        assert cost is not None
        assert (cost.factors_up_bytes, cost.factors_down_bytes) == does["factors"]
        assert sum(name.startswith("score") for name in seen.part.params) == (
            head != "frozen" and seen.plan.topology is not Topology.V
        )


CLASSES: dict[str, object] = {
    "model__task": "classification",
    "model__labels": ["short", "long"],
    "model__max_length": 8,
    "train__rounds": 1,
}
TIGHT: dict[str, object] = {
    "model__max_length": 32,
    "train__batch": 1,
    "train__micro_batches": 1,
    "lora__rank": 8,
    "plan__layers": "fit",
    "plan__checkpoint": False,
}


@pytest.mark.parametrize(("place", "trained"), [(PLACES["local"], {4, 5}), ('topology = "u"\ncut = [3, 4]', {5})])
def test_a_device_short_of_memory_trains_the_layers_that_the_planner_chose(
    rows: Callable[[str], dict[str, Rows]], tmp_path: Path, place: str, trained: set[int]
) -> None:
    """From the solver to the socket: nothing here is made by hand, and the estimate's bytes are those that moved."""
    text, long = run_file({"a": place}, **TIGHT), [row for row in rows("a")["a"] if len(str(row["text"])) > 200]
    full = Planning(loads(text), base_of("pydoc-llama"))("a", LAPTOP, DataSummary(train_examples=0), "")
    assert full.estimate is not None
    need = full.estimate.memory_bytes - 1_200_000
    device = msgspec.structs.replace(LAPTOP, free_memory_bytes=int(need / 0.9) + 1)
    run = Wired(text, {"a": long}, tmp_path, devices={"a": device}).finish()
    seen = run.clients["a"]
    says, does = planned(seen.plan, run), counted(seen)
    assert does == says
    assert set(leaves(seen.part)) == trained
    cost = seen.plan.estimate
    assert cost is not None
    assert (cost.factors_up_bytes, cost.factors_down_bytes) == does["factors"]
    assert {(cost.up_bytes, cost.down_bytes)} == set(does["step"])  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (layer(0, place="server"), r"found layers \[1, 4, 5\] on the device, expected \[0, 1, 4, 5\] for u \(2, 4\)"),
        (layer(0, bits=4), "found weights of 4 bits, expected 32"),
        (layer(0, density=0.5), "found density 0.5, expected 1.0"),
        (layer(0, rank=0), "found rank 0 in layer 0, which trains"),
        (plan_with(wire_up="int8"), "found wire codec int8 up, expected raw"),
        (plan_with(grad_down="int8"), "found wire codec int8 of gradients down, expected raw beside raw"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused(change: Callable[[ClientPlan], ClientPlan], words: str) -> None:
    places = ["server" if 2 <= index < 4 else "client" for index in range(6)]
    layers = tuple(LayerPlan(layer=index, place=place) for index, place in enumerate(places))
    plan = ClientPlan(client="a", topology=Topology.U, cut=Cut(2, 4), layers=layers, batch=4)
    run = RunFile(model=ModelSection(path="pydoc-llama"))
    check_plan(plan, run, 6)
    with pytest.raises(PlanError, match=words):
        check_plan(change(plan), run, 6)
