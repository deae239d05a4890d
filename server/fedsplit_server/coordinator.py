"""The run as a state machine: who is alive, which round is open, what has arrived. Messages in, messages out.

It owns no socket and reads no clock (``now`` is an argument), so tests drive it directly. Phases:

    LOBBY ──enough clients──▶ MEASURE before ──▶ TRAIN ──all or quorum──▶ MEASURE ──▶ TRAIN … ──▶ DONE
      ▲                                           │ deadline without quorum: the state stays as it was
      └───────────────────────────────────────────┘
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from fedsplit import seeds
from fedsplit.config.run import RunFile
from fedsplit.errors import RemoteProtocolError, Timeout
from fedsplit.events import Emit, Event, Joined, Left, Note, RoundClosed, RoundStarted, StepDone
from fedsplit.events import Waiting as WaitingEvent
from fedsplit.lora.adapter import unflatten
from fedsplit.method.record import ClientUpdate, GlobalState
from fedsplit.wire import Packet
from fedsplit.wire.messages import (
    Accept,
    Alive,
    Bye,
    Commit,
    Exchange,
    Forward,
    Hello,
    Received,
    Refuse,
    Report,
    Update,
    Waiting,
    Welcome,
)
from fedsplit_server import letters
from fedsplit_server.admission import Admission
from fedsplit_server.desk import Desk, Opened, Out
from fedsplit_server.inference import Inference
from fedsplit_server.roster import Member, Roster
from fedsplit_server.rounds import OpenMeasure, OpenRound

FAREWELL_S = 30.0
PROBE_S = 3.0


class Phase(StrEnum):
    LOBBY = "lobby"
    MEASURE = "measure"
    TRAIN = "train"
    DONE = "done"


@dataclass(frozen=True)
class Verdict:
    """What a measurement means for the run: its numbers, and whether to stop."""

    metrics: dict[str, float]
    stop: str = ""


class Rules(Protocol):
    """What the coordinator does not decide itself: merging, judging, keeping (``fedsplit_server.keeper``)."""

    state: GlobalState

    def close_round(self, opened: OpenRound, updates: list[ClientUpdate], now: float) -> list[str]: ...
    def judge(self, measured: OpenMeasure) -> Verdict: ...
    def best(self) -> tuple[GlobalState, dict[str, float]]: ...
    def record(self, event: Event) -> None: ...


class Coordinator:
    """Drives one run to its end. ``era`` starts above every earlier start of this run directory."""

    def __init__(
        self,
        run: RunFile,
        rules: Rules,
        admission: Admission,
        roster: Roster,
        desk: Desk,
        inference: Inference,
        *,
        base: str,
        emit: Emit,
        now: float,
        era: int = 0,
        measured_before: bool = False,
        keep_open: bool = False,
    ) -> None:
        self.phase = Phase.DONE if keep_open else Phase.LOBBY
        self._keep_open = keep_open
        self.reason = ""
        self._run, self._rules, self._admission, self._roster = run, rules, admission, roster
        self._desk, self._inference, self._base, self._emit = desk, inference, base, emit
        self._era = era
        self._round: OpenRound | None = None
        self._measure: OpenMeasure | None = None
        self._measured_before = measured_before
        self._since, self._step_started = now, dict[str, float]()
        self._probed = now
        self._use_global()

    @property
    def finished(self) -> bool:
        if self._keep_open:
            return False
        return self.phase is Phase.DONE and all(m.finished or not m.here for m in self._roster)

    # ---- messages ------------------------------------------------------------------------------------------------

    def handle(self, identity: bytes, public_key: str, packet: Packet, now: float) -> list[Out]:
        """Answer one message. What a client may not send is answered with Refuse and changes nothing."""
        message = packet.message
        if isinstance(message, Hello):
            return self._hello(identity, public_key, message, now)
        member = self._roster.at(identity)
        if member is None or member.public_key != public_key:
            refusal = Refuse(code="hello-first", reason="this connection has not said hello", fix="join again")
            return [Out(message.client, refusal, identity=identity)]
        member.last_seen, member.here = now, True
        try:
            return self._from_member(member, packet, now)
        except RemoteProtocolError as error:
            return [Out(member.name, Refuse(code="stale", reason=str(error), fix="join again"))]

    def _from_member(self, member: Member, packet: Packet, now: float) -> list[Out]:
        match packet.message:
            case Accept() as accept:
                return self._accept(member, accept, now)
            case Forward(train=False):
                return [self._inference.answer(member.name, letters.seat(member), packet)]
            case Exchange():
                return self._exchange(member, packet, now)
            case Update() as update:
                return self._update(member, update, packet, now)
            case Report() as report:
                return self._report(member, report, now)
            case Bye() as bye:
                return self._bye(member, bye.reason, now)
            case Alive():
                return self._waiting(member)
            case other:
                raise RemoteProtocolError(f"a client does not send {type(other).__name__}")

    def _hello(self, identity: bytes, public_key: str, hello: Hello, now: float) -> list[Out]:
        returning = self._roster.get(hello.client)
        outs = []
        if returning is not None and returning.ready:
            outs = self._desk.leave(hello.client)
        answer = self._admission.hello(identity, public_key, hello, now, self._rules.state.round)
        if isinstance(answer, Welcome):
            return [*outs, Out(hello.client, answer)]
        return [Out(hello.client, answer, identity=identity)]

    def _accept(self, member: Member, accept: Accept, now: float) -> list[Out]:
        if accept.base != self._base:
            raise RemoteProtocolError(f"{member.name} holds another base model ({accept.base}); ours is {self._base}")
        member.ready = True
        if accept.data is not None:
            member.data = accept.data
        cut = member.plan.cut
        self._tell(Joined(client=member.name, topology=member.plan.topology.value, cut=(cut.c1, cut.c2)))
        match self.phase:
            case Phase.DONE:
                return [letters.finish(member, self.reason, *self._rules.best())]
            case Phase.TRAIN if self._round is not None and member.name in self._round.missing():
                return self._back_in_round(member, now)
            case Phase.MEASURE if self._measure is not None and member.name in self._measure.missing():
                return [letters.evaluate(member, self._measure, self._rules.state)]
            case Phase.LOBBY:
                return self._advance(now)
            case _:
                return []

    def _back_in_round(self, member: Member, now: float) -> list[Out]:
        """A client that was lost starts its round again; a shared copy has its steps inside, so then all do."""
        assert self._round is not None
        if self._run.server.adapters != "per-client" and member.held_by_server is not None:
            return self._open_round(now, self._round.participants)
        if member.held_by_server is not None:
            state = self._rules.state
            self._desk.rejoin(member.name, letters.seat(member), state.adapter, state.head)
        return [letters.start(member, self._opened(), self._rules.state)]

    def _exchange(self, member: Member, packet: Packet, now: float) -> list[Out]:
        outs = self._desk.handle(member.name, packet)
        for out in outs:
            if isinstance(out.message, Commit):
                self._step_done(out.name, out.message, now)
        return outs

    def _step_done(self, name: str, commit: Commit, now: float) -> None:
        started = self._step_started.get(name, self._since)
        self._step_started[name] = now
        self._tell(
            StepDone(
                client=name,
                round=commit.round,
                step=commit.step,
                steps=self._run.train.steps,
                loss=None,
                seconds=now - started,
            )
        )

    def _update(self, member: Member, update: Update, packet: Packet, now: float) -> list[Out]:
        opened = self._round
        if opened is None or (update.round, update.era) != (opened.round, opened.era):
            return [Out(member.name, Received(round=update.round, late=True))]
        if update.base_version != self._rules.state.base_version:
            raise RemoteProtocolError(f"{member.name} trained on base version {update.base_version}, not this run's")
        adapter, head = unflatten({name: tensor.numpy() for name, tensor in packet.tensors.items()})
        opened.updates[member.name] = ClientUpdate(
            client=member.name,
            examples=update.examples,
            base_version=update.base_version,
            adapter=adapter,
            head=head,
        )
        outs = [Out(member.name, Received(round=update.round))]
        return outs + (self._close_round(now) if not opened.missing() else [])

    def _report(self, member: Member, report: Report, now: float) -> list[Out]:
        measure = self._measure
        if measure is None or (report.round, report.phase) != (measure.round, measure.phase):
            return []
        measure.reports[member.name] = (report.metrics, report.examples)
        return self._close_measure(now) if not measure.missing() else []

    def _bye(self, member: Member, reason: str, now: float) -> list[Out]:
        member.finished = self.phase is Phase.DONE
        member.here, member.ready = False, False
        self._tell(Left(client=member.name, reason=reason or "left"))
        return self._desk.leave(member.name) + self._without(member, now)

    # ---- time ----------------------------------------------------------------------------------------------------

    def lost(self, name: str, now: float) -> list[Out]:
        """A message to ``name`` could not be delivered: it is gone until it says hello again."""
        member = self._roster.get(name)
        if member is None or not member.here:
            return []
        member.here = False
        self._tell(Left(client=name, reason="connection lost"))
        return self._desk.leave(name) + self._without(member, now)

    def tick(self, now: float) -> list[Out]:
        """Deadlines and probes; call at least once a second.

        :raises Timeout: the clients that the run needs did not come within ``rounds.patience_s``.
        """
        match self.phase:
            case Phase.LOBBY if now - self._since > self._run.rounds.patience_s:
                have, need = len(self._roster.ready()), self._run.rounds.clients
                raise Timeout(
                    f"waited {self._run.rounds.patience_s:.0f} s for clients: {have} of {need} are here; the state is "
                    "saved, go on with: fedsplit serve … --resume"
                )
            case Phase.TRAIN if self._round is not None and now > self._round.deadline_s:
                return self._deadline(now)
            case Phase.MEASURE if self._measure is not None and now > self._measure.deadline_s:
                return self._close_measure(now)
            case Phase.DONE if not self._keep_open and now - self._since > FAREWELL_S:
                for member in self._roster:
                    member.here = False
        return self._probe(now)

    def _probe(self, now: float) -> list[Out]:
        """A dead connection shows when something is sent on it."""
        if now - self._probed < PROBE_S:
            return []
        self._probed = now
        silent = [m for m in self._roster if m.here and now - m.last_seen > PROBE_S]
        return [Out(member.name, Alive()) for member in silent]

    def _deadline(self, now: float) -> list[Out]:
        opened = self._round
        assert opened is not None
        if opened.has_quorum:
            return self._close_round(now)
        arrived, late = tuple(sorted(opened.updates)), opened.missing()
        reason = f"{len(arrived)} of {opened.quorum} updates at the deadline; missing: {', '.join(late)}"
        self._tell(
            RoundClosed(
                round=opened.round,
                arrived=arrived,
                late=late,
                seconds=now - opened.opened_s,
                committed=False,
                reason=reason,
            )
        )
        self._desk.close()
        self._round = None
        return self._lobby(now)

    def _without(self, member: Member, now: float) -> list[Out]:
        """Does anything go on without this member?"""
        if self._measure is not None and member.name in self._measure.missing():
            self._measure.expected = tuple(name for name in self._measure.expected if name != member.name)
            return self._close_measure(now) if not self._measure.missing() else []
        if self._round is None or member.name not in self._round.missing():
            return []
        gone = all(not self._is_here(name) for name in self._round.missing())
        return self._close_round(now) if gone and self._round.has_quorum else []

    def _is_here(self, name: str) -> bool:
        member = self._roster.get(name)
        return member is not None and member.here

    # ---- phases --------------------------------------------------------------------------------------------------

    def _lobby(self, now: float) -> list[Out]:
        self.phase, self._since = Phase.LOBBY, now
        return self._advance(now)

    def _advance(self, now: float) -> list[Out]:
        """From the lobby, or after a measurement: what comes next."""
        ready = self._roster.ready()
        if len(ready) < self._run.rounds.clients:
            if self.phase is not Phase.LOBBY:
                self.phase, self._since = Phase.LOBBY, now
            self._tell(WaitingEvent(on=self._missing_names(), what="clients to join"))
            return []
        if not self._measured_before:
            self._measured_before = True
            return self._open_measure("before", now)
        if self._rules.state.round >= self._run.train.rounds:
            return self._finish("all rounds done", now)
        return self._open_round(now)

    def _missing_names(self) -> tuple[str, ...]:
        here = {member.name for member in self._roster.ready()}
        known = tuple(section.name for section in self._run.clients if section.name not in here)
        need = self._run.rounds.clients - len(here)
        return known or (f"{need} more client{'s' if need > 1 else ''}",)

    def _open_round(self, now: float, participants: tuple[str, ...] = ()) -> list[Out]:
        state, rounds = self._rules.state, self._run.rounds
        names = participants or self._draw(state.round)
        self._era += 1
        self._round = OpenRound(
            round=state.round,
            era=self._era,
            participants=names,
            opened_s=now,
            deadline_s=now + rounds.deadline_s,
            quorum=min(rounds.quorum or len(names), len(names)),
        )
        self.phase, self._since = Phase.TRAIN, now
        members = [member for name in names if (member := self._roster.get(name)) is not None]
        seats = {m.name: letters.seat(m) for m in members if m.held_by_server is not None and m.here}
        self._desk.open(self._opened(), state.adapter, state.head, seats)
        self._step_started = dict.fromkeys(names, now)
        self._tell(RoundStarted(round=state.round, rounds=self._run.train.rounds, clients=names))
        return [letters.start(member, self._opened(), self._rules.state) for member in members if member.here]

    def _draw(self, round: int) -> tuple[str, ...]:
        names = [member.name for member in self._roster.ready()]
        count = max(1, round_half_up(self._run.rounds.participation * len(names)))
        drawn = seeds.generator(self._run.run.seed, round, "participants").permutation(len(names))[:count]
        return tuple(sorted(names[i] for i in drawn))

    def _opened(self) -> Opened:
        assert self._round is not None
        state, steps = self._rules.state, self._run.train.steps
        return Opened(
            round=self._round.round,
            era=self._round.era,
            first_step=self._round.round * steps,
            steps=steps,
            base_version=state.base_version,
            adapter_version=state.adapter_version,
        )

    def _close_round(self, now: float) -> list[Out]:
        opened = self._round
        assert opened is not None
        updates = self._desk.complete(opened.updates)
        late = opened.missing()
        self._round = None
        self._desk.close()
        for note in self._rules.close_round(opened, updates, now):
            self._tell(Note(text=note, warning=True))
        self._use_global()
        self._tell(
            RoundClosed(
                round=opened.round,
                arrived=tuple(sorted(opened.updates)),
                late=late,
                seconds=now - opened.opened_s,
                committed=True,
            )
        )
        every, done = self._run.evaluate.every, self._rules.state.round
        due = done >= self._run.train.rounds or (every > 0 and done % every == 0)
        return self._open_measure("round", now) if due else self._advance(now)

    def _open_measure(self, phase: str, now: float) -> list[Out]:
        members = [m for m in self._roster.ready() if self._run.evaluate.clients and m.data.eval_examples > 0]
        self._measure = OpenMeasure(
            round=self._rules.state.round,
            phase=phase,
            expected=tuple(member.name for member in members),
            deadline_s=now + self._run.rounds.deadline_s,
        )
        self.phase, self._since = Phase.MEASURE, now
        if not members:
            return self._close_measure(now)
        return [letters.evaluate(member, self._measure, self._rules.state) for member in members]

    def _close_measure(self, now: float) -> list[Out]:
        assert self._measure is not None
        measure, self._measure = self._measure, None
        verdict = self._rules.judge(measure)
        return self._finish(verdict.stop, now) if verdict.stop else self._advance(now)

    def _finish(self, reason: str, now: float) -> list[Out]:
        self.phase, self.reason, self._since = Phase.DONE, reason, now
        self._use_global()
        return [letters.finish(member, self.reason, *self._rules.best()) for member in self._roster.ready()]

    def _waiting(self, member: Member) -> list[Out]:
        match self.phase:
            case Phase.LOBBY:
                on, what = self._missing_names(), "clients to join"
            case Phase.TRAIN if self._round is not None:
                on, what = self._round.missing(), f"updates of round {self._round.round + 1}"
            case Phase.MEASURE if self._measure is not None:
                on, what = self._measure.missing(), "measurements"
            case _:
                return [Out(member.name, Alive())]
        others = tuple(name for name in on if name != member.name)
        return [Out(member.name, Waiting(on=others, what=what) if others else Alive())]

    def _use_global(self) -> None:
        state = self._rules.best()[0] if self.phase is Phase.DONE else self._rules.state
        self._inference.use(state.adapter, state.head)

    def _tell(self, event: Event) -> None:
        self._rules.record(event)
        self._emit(event)


def round_half_up(value: float) -> int:
    return int(value + 0.5)
