"""Who counts in a round: quorum, deadlines, late and refused updates, draws, early stopping, aborted steps."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensor

from fedsplit.errors import ConfigError, Refused, Timeout
from fedsplit.events import Note, RoundClosed, RoundStarted
from fedsplit.testing.faults import Faults
from fedsplit.wire import Packet
from fedsplit.wire.ends import Tensors
from fedsplit.wire.messages import Abort, Backward, Forward, Message, Received, Update
from fedsplit.wire.tensors import WireTensor
from tests.run.party import Party

Make = Callable[..., Party]
U, W, LOCAL = 'topology = "u"\ncut = [1, 3]', 'topology = "w"', 'topology = "local"'
THREE = {"a": U, "b": W, "c": LOCAL}


def test_a_slow_client_is_late_and_the_others_go_on(party: Make, reference: Make) -> None:
    run = party(THREE, rounds__quorum=2, rounds__deadline_s=50.0, start=False)
    run.slow["c"] = 40.0
    run.start().finish()
    closed = run.all(RoundClosed)
    assert [(event.arrived, event.late, event.committed) for event in closed] == [(("a", "b"), ("c",), True)] * 2
    assert any(isinstance(p.message, Received) and p.message.late for p in run.ends["c"].received)
    assert any("too late" in event.text for event in run.all(Note) if event.client == "c")
    only = party({"a": U, "b": W}, data=run.rows)
    assert run.digest == only.digest


def test_a_round_without_quorum_leaves_the_state_and_names_who_is_missing(party: Make) -> None:
    run = party(THREE, rounds__deadline_s=50.0, start=False)
    run.slow["c"] = 40.0
    before = run.start().digest
    with pytest.raises(Timeout, match=r"round 1 failed 3 times: 2 of 3 updates at the deadline; missing: c.*--resume"):
        run.finish()
    assert run.digest == before
    assert [event.committed for event in run.all(RoundClosed)] == [False] * 3


def test_clients_that_never_come(party: Make) -> None:
    run = party({"a": U}, rounds__clients=2, rounds__patience_s=20.0, start=False).start()
    with pytest.raises(Timeout, match=r"waited 20 s for clients: 1 of 2 are here.*--resume"):
        run.finish()


def test_partial_participation_is_drawn_from_the_seed(party: Make) -> None:
    clients = dict.fromkeys("abcd", W)
    settings = {"rounds__participation": 0.5, "train__rounds": 4, "train__steps": 1}
    draws = [[event.clients for event in server_events(party(clients, **settings))] for _ in range(2)]
    assert draws[0] == draws[1]
    assert {len(names) for names in draws[0]} == {2}
    assert len(set(draws[0])) > 1


def test_training_stops_early_and_keeps_the_best(party: Make) -> None:
    run = party({"a": W}, train__rounds=6, train__learning_rate=30.0, evaluate__every=1, evaluate__patience=2)
    closed = len(run.all(RoundClosed))
    assert closed < 6
    assert run.host.course.reason == "no better perplexity for 2 evaluations"
    best, metrics = run.keeper.best()
    assert best.round == closed - 2
    assert run.results["a"].round == best.round
    assert metrics["perplexity"] == pytest.approx(run.results["a"].after["perplexity"])


@pytest.mark.parametrize("wrong", ["not finite", "another shape", "one too many"])
def test_a_wrong_update_costs_its_sender_only(party: Make, wrong: str) -> None:
    def tamper(message: Message, tensors: Tensors) -> tuple[Message, Tensors]:
        return (message, broken(tensors, wrong)) if isinstance(message, Update) else (message, tensors)

    run = party(THREE, start=False)
    run.tamper["c"] = tamper
    run.start().finish()
    assert [event.late for event in run.all(RoundClosed)] == [("c",)] * 2
    notes = [event.text for event in run.all(Note) if event.client == "c"]
    assert any("left out of round 1: the update of c" in text for text in notes)
    assert any("the server left our update out" in text for text in notes)
    assert run.digest == party({"a": U, "b": W}, data=run.rows).digest


def test_nobody_sends_anything_usable(party: Make) -> None:
    """The rounds are held, the state stays, the run ends."""
    run = party({"a": U}, start=False)
    run.tamper["a"] = lambda m, t: (m, broken(t, "not finite")) if isinstance(m, Update) else (m, t)
    before = run.start().digest
    run.finish()
    assert (run.digest, run.keeper.state.round) == (before, 2)


def test_an_aborted_step_leaves_no_trace(party: Make, texts: list[str]) -> None:
    """A gradient that is not finite: both sides drop the step, free its memory, and go on."""
    equally_long: list[dict[str, object]] = [{"text": text} for text in texts if len(text) > 250]
    alive: list[int] = []

    def tamper(message: Message, tensors: Tensors) -> tuple[Message, Tensors]:
        if isinstance(message, Forward) and message.train and message.micro == 0:
            end = run.ends["a"]
            end.sent = [Packet(packet.message) for packet in end.sent]  # ours, and not to be counted
            alive.append(live_bytes())
        if isinstance(message, Backward) and message.step == 1 and message.micro == 1:
            return message, {"g": WireTensor.of(np.full_like(tensors["g"].numpy(), np.nan))}
        return message, tensors

    settings = {"train__optimizer": "sgd", "train__steps": 4, "train__rounds": 1, "evaluate__clients": False}
    run = party({"a": U}, **settings, data={"a": equally_long}, start=False)
    run.tamper["a"] = tamper
    run.start().finish()
    aborts = [p.message for p in run.ends["a"].received if isinstance(p.message, Abort)]
    assert [(abort.step, abort.reason) for abort in aborts] == [(1, "non-finite gradient")]
    [update] = [p.message for p in run.ends["a"].sent if isinstance(p.message, Update)]
    assert update.examples == 3 * 4
    assert len(alive) == 4
    # After a committed step its replies are still kept for repeats; after an aborted one nothing is.
    assert alive[1] == alive[3]
    assert alive[2] < alive[1]


def test_hidden_states_of_another_width_are_refused_and_the_others_finish(party: Make) -> None:
    def tamper(message: Message, tensors: Tensors) -> tuple[Message, Tensors]:
        if isinstance(message, Forward):
            h_ND = tensors["h"].numpy()
            return message, {"h": WireTensor.of(np.ascontiguousarray(h_ND[:, :-1]))}
        return message, tensors

    run = party({"a": U, "b": W}, rounds__quorum=1, rounds__clients=1, evaluate__clients=False, start=False)
    run.tamper["a"] = tamper
    run.world.tolerated.add("a")
    run.start().finish()
    assert isinstance(run.actors["a"].error, Refused)
    assert "expected f32 of (tokens, 112)" in str(run.actors["a"].error)
    assert run.results["b"].round == 2


def test_another_device_under_a_taken_name_is_turned_away(party: Make, reference: Make) -> None:
    run = party({"a": U, "b": W}, start=False)
    run.world.tolerated.add("intruder")
    run.start()
    run.world.run(until=lambda: len(run.all(RoundStarted)) > 2)
    run.join("a", owner="intruder")
    run.finish()
    error = run.actors["intruder"].error
    assert isinstance(error, ConfigError)
    assert "another device is in this run as 'a'; choose another name with --name" in str(error)
    assert run.digest == reference({"a": U, "b": W}).digest


def test_an_update_that_was_received_is_not_counted_twice(party: Make, reference: Make) -> None:
    faults = Faults().drop("received", times=3)
    run = party({"a": U, "b": W}, faults=faults)
    faults.check()
    assert run.digest == reference({"a": U, "b": W}).digest


def broken(tensors: Tensors, how: str) -> Tensors:
    name, tensor = next(iter(tensors.items()))
    values = tensor.numpy().copy()
    match how:
        case "not finite":
            values.flat[0] = np.inf
            return {**tensors, name: WireTensor.of(values)}
        case "another shape":
            return {**tensors, name: WireTensor.of(np.ascontiguousarray(values[:-1]))}
    return {**tensors, "99/of_nobody/A": WireTensor.of(values)}


def server_events(run: Party) -> list[RoundStarted]:
    return [event for event in run.all(RoundStarted) if not event.client]


def live_bytes() -> int:
    """Bytes of all torch tensors that are alive in this process, each storage once."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        # Not isinstance: it asks lazy modules, which then warn. What torch keeps of an export has no storage.
        if issubclass(type(thing), torch.Tensor) and not issubclass(type(thing), FakeTensor):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())
