"""What clients get that would wait is what they do: steps and ranks, on the device and on the server, and it counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from msgspec import structs

from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.events import Note, StepDone
from fedsplit.lora.adapter import unflatten
from fedsplit.lora.sparse import VALUES
from fedsplit.plan.types import ClientPlan
from fedsplit.testing.faults import Faults
from fedsplit.train.exported import model_folder
from fedsplit.train.feed import open_feed
from fedsplit.train.start import first_state
from fedsplit.wire.ends import Tensors
from fedsplit.wire.frames import Packet
from fedsplit.wire.messages import Hello, Message, Start, Update, Welcome
from tests.reference import fedavg, unequal
from tests.run.party import LAPTOP, Party, Tamper
from tests.run.test_recovery import crashed_server
from tests.run.test_unequal import EXACT, as_batch

Make = Callable[..., Party]
SLOW = structs.replace(LAPTOP, flops={"float32": 1e6})
"""A step of it takes so long that the others could do hundreds: they do four times as many."""
CLIENTS = {"a": 'topology = "u"\ncut = [1, 4]', "b": 'topology = "local"', "c": 'topology = "local"'}
FEW, MANY = 1, 4
SETTINGS: dict[str, object] = {
    "train__optimizer": "sgd",
    "train__learning_rate": 0.5,
    "train__clip": 0.0,
    "train__micro_batches": 1,
    "train__steps": FEW,
    "evaluate__clients": False,
    "lora__rank": 3,
    "lora__alpha": 6.0,
}


def slow_device(message: Message, tensors: Tensors) -> tuple[Message, Tensors]:
    """The device says that it is slow."""
    return (structs.replace(message, profile=SLOW) if isinstance(message, Hello) else message), tensors


def slack_run(party: Make, slack: str, clients: dict[str, str] = CLIENTS, **settings: object) -> Party:
    """``a`` and ``b`` would wait for ``c``."""
    run = party(clients, start=False, **{**SETTINGS, "plan__slack": slack, **settings})
    run.tamper = {"c": slow_device}
    return run


def oracle(run: Party, steps: dict[str, int]) -> unequal.Pairs:
    """The factors after all rounds, from the clients' rows alone."""
    lora = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
    pairs = {key: (one.B_MR, one.A_RN) for key, one in first_state(run.base, run.run).adapter.items()}
    layers, folder = dict.fromkeys(range(6), 3), Path(model_folder(run.run.model.path))
    for round in range(run.run.train.rounds):
        updates = []
        for name, count in steps.items():
            feed = open_feed(run.folder / f"{name}.jsonl", run.run, run.base, name)
            fed = [[as_batch(one) for one in step] for step in feed.train(round * count, count)]
            rows = sum(len(ids) for step in fed for ids, _, _ in step)
            rate = run.run.train.learning_rate
            updates.append((rows, unequal.trained(folder, lora, layers, set(), pairs, fed, rate)))
        pairs = fedavg.average_factors(updates, pairs)
    return pairs


def asked(run: Party, name: str) -> list[tuple[int, int]]:
    """(steps, first step) of every round that a client was told to begin."""
    starts = (packet.message for packet in run.ends[name].received)
    return [(one.steps, one.first_step) for one in starts if isinstance(one, Start)]


def test_more_steps_are_taken_and_weigh_as_many_rows(party: Make) -> None:
    run = slack_run(party, "steps").start().finish()
    steps = {"a": MANY, "b": MANY, "c": FEW}
    for name, count in steps.items():
        assert asked(run, name) == [(count, 0), (count, count)]
        done = [event.step for event in run.all(StepDone) if event.client == name and event.loss is not None]
        assert done == [*range(count), *range(count)]
        updates = [packet.message for packet in run.ends[name].sent if isinstance(packet.message, Update)]
        assert [(one.steps, one.examples) for one in updates] == [(count, 4 * count)] * 2
    expected = oracle(run, steps)
    for key, part in run.keeper.state.adapter.items():
        np.testing.assert_allclose(part.B_MR, expected[key][0], rtol=0, atol=1e-6, err_msg=str(key))
        np.testing.assert_allclose(part.A_RN, expected[key][1], rtol=0, atol=1e-6, err_msg=str(key))
        assert np.abs(part.B_MR).max() > 1e-3
    assert any("2 of 3 devices get another plan; plan" in note.text for note in run.all(Note))


def test_a_killed_server_asks_for_as_many_steps_again(party: Make) -> None:
    """AdamW with a schedule and dropout: both sides of a cut, and a round that is repeated, have the same draws."""
    settings: dict[str, object] = {
        "train__optimizer": "adamw",
        "train__learning_rate": 0.01,
        "train__schedule": "cosine",
        "lora__dropout": 0.1,
    }
    two = {name: CLIENTS[name] for name in "ac"}
    clean = slack_run(party, "steps", two, **settings).start().finish()
    run = slack_run(party, "steps", two, **settings)
    crashed_server(run, Faults().crash("commit", round=1, step=FEW + 2))
    assert run.digest == clean.digest
    local = slack_run(party, "steps", dict.fromkeys("ac", 'topology = "local"'), **settings)
    assert local.start().finish().digest == clean.digest


def test_a_larger_rank_is_trained_and_summed(party: Make, tmp_path: Path) -> None:
    """In the layers that the client holds; what the server trains for ``a`` keeps the run's rank."""
    (tmp_path / "mine.py").write_text(EXACT, "utf-8")
    run = slack_run(party, "rank", method__name=f"{tmp_path / 'mine.py'}:sums", plan__ranks=[6])
    run.start().finish()
    ranks, last = {"a": 6, "b": 6, "c": 3}, {}
    for name, rank in ranks.items():
        sent = [packet for packet in run.ends[name].sent if isinstance(packet.message, Update)]
        for packet in sent:
            adapter, _ = unflatten({key: tensor.numpy() for key, tensor in packet.tensors.items()})
            assert {part.rank for part in adapter.values()} == {rank}
        last[name] = adapter
    for key, part in run.keeper.state.adapter.items():
        if key.layer in (1, 2, 3):
            assert part.rank == 3 + 6 + 3
            continue
        assert part.rank == 6 + 6 + 3
        mean = sum(np.asarray(one[key].dense(), dtype=np.float64) for one in last.values()) / 3
        np.testing.assert_allclose(part.dense(), mean, rtol=0, atol=1e-6, err_msg=str(key))
        assert np.abs(mean).max() > 1e-4


def test_denser_masks_are_what_travels(party: Make) -> None:
    """Of two that would wait one has a link for all entries and one for some: non-zeros on the link are the plan's."""
    narrow = structs.replace(LAPTOP, link=Link(up_bps=80.0, down_bps=1e8, latency_s=0.0))
    slow = structs.replace(LAPTOP, flops={"float32": 2e6})
    settings = {**SETTINGS, "plan__slack": "density", "plan__robust": False, "train__rounds": 2}
    settings |= {"method__name": "flasc", "method.options__down": 0.25, "method.options__up": 0.02}
    run = party(dict.fromkeys("abc", 'topology = "local"'), start=False, **settings)
    run.tamper = {"b": profile_of(narrow), "c": profile_of(slow)}
    run.start().finish()
    shares = {}
    for name, end in run.ends.items():
        offers = [packet.message for packet in end.received if isinstance(packet.message, Welcome)]
        plan = msgspec.json.decode(offers[-1].plan, type=ClientPlan)
        shares[name] = plan.density_down, plan.density_up
        start, update = (
            [packet for packet in (*end.received, *end.sent) if isinstance(packet.message, kind)][-1]
            for kind in (Start, Update)
        )
        assert plan.estimate
        assert nbytes(start) == plan.estimate.start_bytes, name
        assert nbytes(update) == plan.estimate.factors_up_bytes, name
        entries = plan.estimate.factors_down_bytes // 4
        asked_for = plan.density_up or 0.02
        if asked_for < 1:
            assert start.message.sends == update.tensors[VALUES].shape[0] == int(entries * asked_for), name
    assert shares["a"] == (1.0, 1.0)
    assert shares["c"] == (0.0, 0.0)
    assert 0.02 < shares["b"][1] < 1
    assert shares["b"][0] >= 0.25
    assert run.keeper.state.round == 2


def nbytes(packet: Packet) -> int:
    return sum(tensor.numpy().nbytes for tensor in packet.tensors.values())


def profile_of(profile: DeviceProfile) -> Tamper:
    """The device says that it is this one."""
    return lambda message, tensors: (
        structs.replace(message, profile=profile) if isinstance(message, Hello) else message,
        tensors,
    )
