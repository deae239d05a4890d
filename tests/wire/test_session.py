"""One suite drives both ends: whatever one end may send, the other may receive, and both are then in the same state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from fedsplit.errors import LocalProtocolError, RemoteProtocolError
from fedsplit.wire import messages as m
from fedsplit.wire.moves import MOVES, SENDER, legal
from fedsplit.wire.session import Role, Session, State, Verdict

FRESH, REPEAT, STALE = Verdict.FRESH, Verdict.REPEAT, Verdict.STALE


@dataclass
class Pair:
    """Both ends of one connection that loses nothing."""

    client: Session = field(default_factory=lambda: Session(Role.CLIENT))
    server: Session = field(default_factory=lambda: Session(Role.SERVER))

    def say(self, *messages: m.Message) -> Verdict:
        """Each message through both ends; the verdicts and states must agree."""
        verdict = FRESH
        for message in messages:
            sender, receiver = self.ends(message)
            verdict = sender.sent(message)
            assert receiver.received(message) is verdict
            assert self.client.state is self.server.state
            assert (self.client.open_step, self.client.in_flight) == (self.server.open_step, self.server.in_flight)
        return verdict

    def refuse(self, message: m.Message, *words: str) -> None:
        """Illegal at both ends, with the blame where it belongs, and nothing changes."""
        sender, receiver = self.ends(message)
        before = repr(sender), repr(receiver)
        with pytest.raises(LocalProtocolError) as local:
            sender.sent(message)
        with pytest.raises(RemoteProtocolError) as remote:
            receiver.received(message)
        assert (repr(sender), repr(receiver)) == before
        for word in (*words, type(message).__name__):
            assert word in str(local.value)
            assert word in str(remote.value)

    def ends(self, message: m.Message) -> tuple[Session, Session]:
        by_client = SENDER[m.kind_of(message)] is Role.CLIENT
        return (self.client, self.server) if by_client else (self.server, self.client)


def hello() -> m.Hello:
    return m.Hello(client="pi")


def welcome() -> m.Welcome:
    return m.Welcome(run_file=b"", plan=b"", base="")


def start(round: int = 0, era: int = 0) -> m.Start:
    return m.Start(round=round, era=era, steps=9, first_step=0, base_version=0, adapter_version=0)


def at(step: int = 0, micro: int = 0, attempt: int = 0, round: int = 0, era: int = 0) -> dict[str, Any]:
    return {"round": round, "era": era, "step": step, "micro": micro, "attempt": attempt}


def forward(step: int = 0, micro: int = 0, micros: int = 1, train: bool = True, **where: int) -> m.Forward:
    place = at(step, micro, **where)
    return m.Forward(**place, lengths=(3,), starts=(0,), width=3, label_tokens=3, micros=micros, train=train)


def hidden(*where: int, **more: int) -> m.Hidden:
    return m.Hidden(**at(*where, **more), label_tokens=3)


def backward(*where: int, **more: int) -> m.Backward:
    return m.Backward(**at(*where, **more))


def grad(*where: int, **more: int) -> m.Grad:
    return m.Grad(**at(*where, **more))


def prepare(*where: int, **more: int) -> m.Prepare:
    return m.Prepare(**at(*where, **more), squares=(), finite=True, examples=1)


def commit(*where: int, **more: int) -> m.Commit:
    return m.Commit(**at(*where, **more), clip=1.0, rate=1.0)


def abort(*where: int, **more: int) -> m.Abort:
    return m.Abort(**at(*where, **more), reason="non-finite")


def missing(*where: int, **more: int) -> m.Missing:
    return m.Missing(**at(*where, **more))


def update(round: int = 0, era: int = 0) -> m.Update:
    return m.Update(round=round, era=era, base_version=0, examples=1, steps=1)


def joined() -> Pair:
    pair = Pair()
    pair.say(hello(), welcome(), m.Accept())
    return pair


def in_round() -> Pair:
    pair = joined()
    pair.say(start())
    return pair


def whole_step(step: int = 0, **where: int) -> list[m.Message]:
    kinds = (hidden, backward, grad, prepare, commit)
    return [forward(step, **where), *(kind(step, **where) for kind in kinds)]


def test_a_whole_run_is_legal() -> None:
    pair = joined()
    pair.say(m.Evaluate(round=0, phase="before"), forward(train=False), hidden())
    pair.say(m.Report(round=0, phase="before", metrics={}, examples=1))
    for round in range(2):
        pair.say(start(round))
        for step in range(3):
            assert pair.say(*whole_step(step, round=round)) is FRESH
        pair.say(update(round), m.Received(round=round))
        pair.say(m.Evaluate(round=round + 1, phase="round"))
        pair.say(m.Report(round=round + 1, phase="round", metrics={}, examples=1))
    pair.say(m.Finish(round=2, reason="done", metrics={}), m.Bye())
    assert pair.client.state is State.CLOSED


def test_every_cell_of_the_table_for_a_connection() -> None:
    """In every reachable connection state, every kind is legal at both ends exactly when the table says so."""
    paths: dict[State, list[m.Message]] = {
        State.NEW: [],
        State.GREETED: [hello()],
        State.WELCOMED: [hello(), welcome()],
        State.READY: [hello(), welcome(), m.Accept()],
        State.ROUND: [hello(), welcome(), m.Accept(), start()],
        State.UPDATED: [hello(), welcome(), m.Accept(), start(), update()],
        State.FINISHED: [hello(), welcome(), m.Accept(), m.Finish(round=0, reason="", metrics={})],
        State.CLOSED: [hello(), m.Bye()],
        State.BULK: [m.Fetch(asset="w", offset=0, size=1)],
        State.PROBING: [m.Probe(number=7)],
    }
    said: dict[str, m.Message] = {
        "hello": hello(),
        "welcome": welcome(),
        "refuse": m.Refuse(code="", reason=""),
        "accept": m.Accept(),
        "alive": m.Alive(),
        "waiting": m.Waiting(on=(), what=""),
        "bye": m.Bye(),
        "start": start(1),
        "evaluate": m.Evaluate(round=1, phase="round"),
        "finish": m.Finish(round=1, reason="", metrics={}),
        "received": m.Received(round=0),
        "chunk": m.Chunk(asset="w", offset=0),
        "probe": m.Probe(number=8),
    }
    for state, path in paths.items():
        for kind, message in said.items():
            pair = Pair()
            pair.say(*path)
            assert pair.client.state is state
            if (state, kind) in MOVES:
                assert pair.say(message) is FRESH, (state, kind)
                assert pair.client.state is MOVES[state, kind]
            elif not (state is State.CLOSED and kind in ("alive", "bye", "waiting")):
                sender, receiver = pair.ends(message)
                with pytest.raises(LocalProtocolError):
                    sender.sent(message)
                if state is not State.CLOSED:
                    with pytest.raises(RemoteProtocolError):
                        receiver.received(message)


def test_every_cell_of_the_table_for_a_micro_batch() -> None:
    paths: dict[State, list[m.Message]] = {
        State.MICRO_NEW: [],
        State.MICRO_FORWARD: [forward()],
        State.MICRO_HIDDEN: [forward(), hidden()],
        State.MICRO_BACKWARD: [forward(), hidden(), backward()],
        State.MICRO_DONE: [forward(), hidden(), backward(), grad()],
        State.MICRO_MISSING: [forward(), hidden(), backward(), missing()],
    }
    said = {"forward": forward, "hidden": hidden, "backward": backward, "grad": grad, "missing": missing}
    for state, path in paths.items():
        for kind, make in said.items():
            pair = in_round()
            pair.say(*path)
            again = kind == "forward" and state is State.MICRO_MISSING
            message = make(attempt=1) if again else make()
            if (state, kind) in MOVES:
                assert pair.say(message) is FRESH, (state, kind)
            elif any(m.kind_of(earlier) == kind for earlier in path):
                assert pair.say(message) is REPEAT, (state, kind)
            else:
                pair.refuse(message)


def test_every_cell_of_the_table_for_a_step() -> None:
    through = [forward(), hidden(), backward(), grad()]
    paths: dict[State, list[m.Message]] = {
        State.STEP_CLOSED: [],
        State.STEP_OPEN: through,
        State.STEP_PREPARED: [*through, prepare()],
    }
    for state, path in paths.items():
        for message in (prepare(), commit(), abort()):
            pair = in_round()
            pair.say(*path)
            kind = m.kind_of(message)
            if (state, kind) in MOVES:
                assert pair.say(message) is FRESH
            elif kind == "prepare" and state is State.STEP_PREPARED:
                assert pair.say(message) is REPEAT
            else:
                pair.refuse(message)


def test_every_kind_has_a_sender_and_a_place_in_the_table() -> None:
    kinds = {kind for _, kind in MOVES}
    reported = {"report", "update", "fetch"}
    assert kinds >= set(SENDER) - reported
    assert all(legal(state) for state in State if state not in (State.MICRO_DONE, State.LOOK_DONE))


@pytest.mark.parametrize("role", Role)
def test_nobody_may_speak_for_the_other(role: Role) -> None:
    session = Session(role)
    theirs = welcome() if role is Role.CLIENT else hello()
    with pytest.raises(LocalProtocolError, match=f"only a {role.other.value} says that"):
        session.sent(theirs)
    ours = hello() if role is Role.CLIENT else welcome()
    with pytest.raises(RemoteProtocolError, match=f"only a {role.value} says that"):
        session.received(ours)


def test_topology_v_gets_its_gradient_at_once() -> None:
    pair = in_round()
    pair.say(forward(), grad())
    pair.refuse(hidden())
    pair.refuse(backward())
    assert pair.say(prepare(), commit()) is FRESH


def test_several_micro_batches_in_any_order() -> None:
    pair = in_round()
    pair.say(*(forward(micro=i, micros=3) for i in range(3)))
    assert pair.client.in_flight == 3
    pair.say(hidden(0, 2), hidden(0, 0), backward(0, 0), hidden(0, 1), backward(0, 2), grad(0, 2), grad(0, 0))
    pair.refuse(prepare(), "2 of 3")
    pair.say(backward(0, 1), grad(0, 1), prepare(), commit())
    assert pair.client.in_flight == 0
    pair.refuse(forward(1, micro=3, micros=3), "micro-batch 3 of 3")


def test_the_number_of_micro_batches_is_fixed_for_a_step() -> None:
    pair = in_round()
    pair.say(forward(micro=0, micros=2))
    pair.refuse(forward(micro=1, micros=3), "step of 2")


def test_missing_leads_back_to_forward_with_the_next_attempt() -> None:
    pair = in_round()
    pair.say(forward(), hidden(), backward(), missing())
    pair.refuse(backward(attempt=1))
    pair.refuse(forward(attempt=2))
    pair.say(forward(attempt=1), hidden(attempt=1), backward(attempt=1))
    assert pair.server.received(backward(attempt=0)) is STALE
    assert pair.client.received(missing(attempt=0)) is STALE
    pair.say(grad(attempt=1), prepare(), commit())


def test_an_attempt_needs_a_missing_before_it() -> None:
    pair = in_round()
    pair.refuse(forward(attempt=1))
    pair.say(forward())
    pair.refuse(forward(attempt=1))


def test_one_step_at_a_time_and_never_backwards() -> None:
    pair = in_round()
    pair.say(forward(0))
    pair.refuse(forward(1), "step 0 is still open")
    pair.say(hidden(0), backward(0), grad(0), prepare(0), commit(0), *whole_step(1))
    assert pair.server.received(forward(0)) is STALE
    with pytest.raises(LocalProtocolError):
        pair.client.sent(forward(0))


def test_repeats_of_the_last_step_stay_repeats_after_it_closed() -> None:
    pair = in_round()
    step = whole_step()
    pair.say(*step)
    for message in step:
        assert pair.say(message) is REPEAT
    pair.refuse(abort(), "closed by commit")


def test_an_abort_may_cross_what_the_client_sends() -> None:
    """The server gives a step up because another client left; what was on its way to it is harmless."""
    pair = in_round()
    pair.say(forward(micro=0, micros=2), forward(micro=1, micros=2), hidden(0, 0))
    pair.server.sent(abort())
    pair.client.sent(backward(0, 0))
    assert pair.server.received(backward(0, 0)) is REPEAT
    assert pair.client.received(abort()) is FRESH
    assert pair.say(*whole_step(1)) is FRESH


def test_a_new_round_may_cross_an_update() -> None:
    pair = in_round()
    pair.say(*whole_step())
    pair.server.sent(start(1))
    pair.client.sent(update(0))
    assert pair.server.received(update(0)) is STALE
    assert pair.server.sent(m.Received(round=0, late=True)) is FRESH
    assert pair.client.received(start(1)) is FRESH
    assert pair.client.received(m.Received(round=0, late=True)) is FRESH
    assert pair.say(*whole_step(0, round=1), update(1), m.Received(round=1)) is FRESH


def test_a_round_that_begins_again_drops_the_open_step() -> None:
    pair = in_round()
    pair.say(forward(0, 0, 2), forward(0, 1, 2), start(0, era=1))
    assert pair.client.in_flight == 0
    assert pair.server.received(backward(0, 0)) is STALE
    assert pair.client.received(hidden(0, 0)) is STALE
    assert pair.say(*whole_step(0, era=1)) is FRESH


def test_nobody_is_ahead_of_start() -> None:
    pair = in_round()
    pair.refuse(forward(round=1), "has not started")
    pair.refuse(forward(era=1), "has not started")
    pair.refuse(update(1), "has not started")
    joined().refuse(forward(), "before any round")


def test_a_start_that_is_out_of_date() -> None:
    pair = joined()
    pair.say(start(1, 1))
    assert pair.client.received(start(1, 0)) is STALE
    assert pair.client.received(start(0, 5)) is STALE
    assert pair.say(start(1, 1)) is REPEAT


def test_an_update_needs_closed_steps_and_comes_once() -> None:
    pair = in_round()
    pair.say(forward())
    pair.refuse(update(), "step 0 is still open")
    pair.say(hidden(), backward(), grad(), prepare(), abort(), update())
    assert pair.say(update()) is REPEAT
    pair.say(m.Received(round=0))
    assert pair.say(update()) is REPEAT


def test_evaluations_run_beside_and_their_answers_may_be_late() -> None:
    pair = joined()
    looks = [forward(0, micro, train=False) for micro in range(3)]
    pair.say(m.Evaluate(round=0, phase="before"), *looks, hidden(0, 1))
    assert pair.client.received(hidden(0, 1)) is REPEAT
    pair.server.sent(start(0, 7))
    pair.server.sent(m.Alive())
    assert pair.client.received(start(0, 7)) is FRESH
    assert pair.client.received(hidden(0, 0)) is STALE
    assert pair.client.in_flight == 0
    assert pair.server.received(m.Report(round=0, phase="before", metrics={}, examples=1)) is STALE


def test_an_evaluation_is_no_training_step() -> None:
    pair = in_round()
    pair.say(forward())
    pair.refuse(forward(train=False), "same round")
    pair.say(forward(5, train=False), hidden(5))
    pair.refuse(backward(5))
    Pair().refuse(forward(train=False), "nothing to evaluate")


def test_reports_answer_questions() -> None:
    pair = joined()
    pair.refuse(m.Report(round=0, phase="before", metrics={}, examples=1), "no evaluation")
    pair.say(m.Evaluate(round=0, phase="before"))
    assert pair.say(m.Evaluate(round=0, phase="before")) is REPEAT
    report = m.Report(round=0, phase="before", metrics={}, examples=1)
    assert pair.say(report) is FRESH
    assert pair.say(report) is REPEAT
    assert pair.server.received(m.Report(round=0, phase="round", metrics={}, examples=1)) is STALE


def test_a_probe_is_answered_once_and_a_late_answer_is_harmless() -> None:
    pair = Pair()
    assert pair.say(m.Probe(number=1), m.Probed(number=1), m.Probe(number=2)) is FRESH
    assert pair.client.received(m.Probed(number=1)) is STALE
    pair.refuse(m.Probe(number=3), "in state 'measuring the link'")
    with pytest.raises(LocalProtocolError):
        pair.server.sent(m.Probed(number=1))
    # Given up by the client, which goes on to join.
    pair.client.sent(hello())
    assert pair.client.received(m.Probed(number=2)) is STALE
    joined().refuse(m.Probe(number=1))


def test_hello_starts_over_from_anywhere() -> None:
    pair = in_round()
    pair.say(forward(), hidden(), hello(), welcome(), m.Accept(), start())
    assert pair.client.open_step is None
    assert pair.say(*whole_step()) is FRESH


def test_credit_bounds_what_waits_for_an_answer() -> None:
    pair = Pair(Session(Role.CLIENT, credit=3), Session(Role.SERVER, credit=3))
    pair.say(hello(), welcome(), m.Accept(), start())
    pair.say(*(forward(micro=i, micros=9) for i in range(3)))
    pair.refuse(forward(micro=3, micros=9), "3 requests wait")
    assert pair.say(forward(micro=2, micros=9)) is REPEAT
    pair.say(hidden(), forward(micro=3, micros=9))
    pair.refuse(forward(1, train=False), "3 requests wait")


def test_chunks_answer_fetches_within_the_credit() -> None:
    pair = Pair(Session(Role.CLIENT, credit=2), Session(Role.SERVER, credit=2))
    fetches = [m.Fetch(asset="w", offset=i, size=1) for i in range(3)]
    pair.say(fetches[0], fetches[1])
    pair.refuse(fetches[2], "2 chunks")
    assert pair.say(m.Chunk(asset="w", offset=1)) is FRESH
    assert pair.say(m.Chunk(asset="w", offset=1)) is REPEAT
    assert pair.say(fetches[2]) is FRESH
    pair.say(m.Refuse(code="asset", reason=""))
    pair.refuse(hello())


def test_after_our_bye_what_was_on_its_way_is_dropped() -> None:
    pair = joined()
    pair.client.sent(m.Bye())
    assert pair.client.received(start()) is STALE
    with pytest.raises(LocalProtocolError):
        pair.client.sent(m.Accept())
    assert pair.client.sent(hello()) is FRESH


def test_nothing_grows_with_the_number_of_steps() -> None:
    pair = in_round()
    for step in range(200):
        pair.say(*whole_step(step))
    assert len(pair.server._steps._micros) <= 1
    assert not pair.server._looks
