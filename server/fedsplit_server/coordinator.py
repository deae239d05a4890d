"""Every message of every client comes through here: is it allowed, is it a repeat, who answers it. Messages in and out.

It owns no socket and reads no clock (``now`` is an argument), so tests drive it directly. The wire's session knows the
legal moves, its ledger what was answered before: nothing that changes a number is ever executed twice.
"""

from __future__ import annotations

from fedsplit.config.run import RunFile
from fedsplit.devices.units import duration
from fedsplit.errors import RemoteProtocolError
from fedsplit.events import Emit, Joined, Left, StepDone
from fedsplit.plan.given import steps_of
from fedsplit.wire import Packet
from fedsplit.wire.ledger import Ledger, Standing
from fedsplit.wire.messages import (
    Accept,
    Alive,
    Bye,
    Commit,
    Exchange,
    Forward,
    Hello,
    Missing,
    Refuse,
    Report,
    Start,
    Update,
    Waiting,
    Welcome,
)
from fedsplit.wire.session import Verdict
from fedsplit_server.absence import AWAY_S
from fedsplit_server.admission import Admission
from fedsplit_server.content import WrongContent
from fedsplit_server.course import Course
from fedsplit_server.desk import Desk, Out, where
from fedsplit_server.inference import Inference
from fedsplit_server.letters import Letters
from fedsplit_server.roster import Member, Roster
from fedsplit_server.rules import Rules

PROBE_S = 3.0


class Coordinator:
    """Answers messages, with the parts that know how: admission, desk, inference, and the course of the run."""

    def __init__(
        self,
        run: RunFile,
        rules: Rules,
        admission: Admission,
        roster: Roster,
        desk: Desk,
        inference: Inference,
        letters: Letters,
        course: Course,
        *,
        base: str,
        tell: Emit,
        now: float,
    ) -> None:
        self._run, self._rules, self._admission, self._roster = run, rules, admission, roster
        self._desk, self._inference, self._letters, self._course = desk, inference, letters, course
        self._base, self._tell = base, tell
        self._ledger = Ledger()
        self._probed = now
        self._step_began: dict[str, float] = {}

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
            verdict = member.session.received(message)
            # An update that comes too late is told so; anything else that is out of date is of no interest.
            if verdict is Verdict.STALE and not isinstance(message, Update):
                return []
            return self._noted(self._from_member(member, packet, now), now)
        except WrongContent as error:
            self._ledger.forget(member.name)
            return [Out(member.name, Refuse(code="content", reason=str(error), fix="use the same version of fedsplit"))]
        except RemoteProtocolError as error:
            # What is left of its step cannot be completed. It says hello again and repeats its round.
            self._ledger.forget(member.name)
            return [Out(member.name, Refuse(code="stale", reason=str(error), fix="join again"))]

    def lost(self, name: str, now: float) -> list[Out]:
        """A message to ``name`` could not be delivered: it is gone until it says hello again."""
        member = self._roster.get(name)
        if member is None or not member.here:
            return []
        member.here = False
        self._tell(Left(client=name, reason="connection lost"))
        return self._noted([*self._desk.leave(name), *self._course.gone(member, now, for_good=False)], now)

    def tick(self, now: float) -> list[Out]:
        """Deadlines and probes; call at least once a second. Raises what ``Course.tick`` raises."""
        return self._noted(self._course.tick(now), now) + self._probe(now)

    # ---- joining and leaving -------------------------------------------------------------------------------------

    def _hello(self, identity: bytes, public_key: str, hello: Hello, now: float) -> list[Out]:
        answer = self._admission.hello(identity, public_key, hello, now, self._rules.state.round)
        if not isinstance(answer, Welcome):
            return [Out(hello.client, answer, identity=identity)]
        self._ledger.forget(hello.client)
        outs = self._desk.leave(hello.client)
        member = self._roster.get(hello.client)
        assert member is not None
        member.session.received(hello)
        return self._noted([*outs, Out(hello.client, answer)], now)

    def _accept(self, member: Member, accept: Accept, now: float) -> list[Out]:
        if accept.base != self._base:
            raise RemoteProtocolError(f"{member.name} holds another base model ({accept.base}); ours is {self._base}")
        if member.offered is not None:
            answer = self._course.answered(member, accept.keeps, now)
            if member.ready:
                return answer
        if member.ready:
            return []
        member.ready, member.dropped_out = True, False
        if accept.data is not None:
            member.data = accept.data
        cut = member.plan.cut
        self._tell(Joined(client=member.name, topology=member.plan.topology.value, cut=(cut.c1, cut.c2)))
        return self._course.joined(member, now)

    def _bye(self, member: Member, bye: Bye, now: float) -> list[Out]:
        """It goes, for good or for a while; who has not taken part yet leaves no gap."""
        away = bye.back_s > 0
        member.finished, member.dropped_out = not away, member.ready or member.dropped_out
        member.here, member.ready = False, False
        reason = bye.reason or "left"
        if away:
            back_s = min(bye.back_s, AWAY_S)
            member.back_by = now + back_s
            reason = f"{reason}, back within {duration(back_s)}"
        self._tell(Left(client=member.name, reason=reason))
        return [*self._desk.leave(member.name), *self._course.gone(member, now, for_good=not away)]

    def _probe(self, now: float) -> list[Out]:
        """A dead connection shows when something is sent on it."""
        if now - self._probed < PROBE_S:
            return []
        self._probed = now
        silent = [m for m in self._roster if m.here and now - m.last_seen > PROBE_S]
        return [Out(member.name, Alive()) for member in silent]

    # ---- messages of members -------------------------------------------------------------------------------------

    def _from_member(self, member: Member, packet: Packet, now: float) -> list[Out]:
        match packet.message:
            case Accept() as accept:
                return self._accept(member, accept, now)
            case Forward(train=False):
                return [self._look(member, packet)]
            case Exchange() | Update():
                return self._once(member, packet, now)
            case Report() as report:
                return self._course.report(member, report, now)
            case Bye() as bye:
                return self._bye(member, bye, now)
            case Alive() if not member.ready:
                raise RemoteProtocolError(f"{member.name} has not accepted its plan")
            case Alive():
                return self._course.remind(member, now)
            case other:
                raise RemoteProtocolError(f"a client does not send {type(other).__name__}")

    def _once(self, member: Member, packet: Packet, now: float) -> list[Out]:
        """Execute a request that is new; a repeat gets the reply it got, or patience."""
        message = packet.message
        assert isinstance(message, Exchange | Update)
        found = self._ledger.ask(member.name, message)
        match found.standing:
            case Standing.ANSWERED:
                assert found.reply is not None
                return [Out(member.name, found.reply.message, found.reply.tensors)]
            case Standing.PENDING:
                on = tuple(name for name in self._desk.waits_for() if name != member.name)
                return [Out(member.name, Waiting(on=on, what="a step taken together") if on else Alive())]
            case Standing.GONE:
                return self._gone(member, message)
            case Standing.FRESH if isinstance(message, Update):
                return self._course.update(member, message, packet, now)
            case Standing.FRESH:
                return self._desk.handle(member.name, packet)

    def _gone(self, member: Member, message: Exchange | Update) -> list[Out]:
        """A request whose reply is no longer kept. Out of date: no interest. Else its step cannot go on from here."""
        if not isinstance(message, Exchange) or message.step != member.session.open_step:
            return []
        if isinstance(message, Forward) and member.held_by_server is not None and not member.held_by_server.head:
            return [Out(member.name, Missing(**where(message), reason="the reply was dropped to save memory"))]
        raise RemoteProtocolError(f"the reply to this {type(message).__name__} was dropped to save memory")

    def _look(self, member: Member, packet: Packet) -> Out:
        seat = self._letters.seat(member, self._inference.state)
        held, message = (seat.held.lo, seat.held.hi), packet.message
        if isinstance(message, Forward) and tuple(message.cut) != held:
            raise RemoteProtocolError(
                f"{member.name} asks at cut {tuple(message.cut)}, its plan has {held}; join again"
            )
        return self._inference.answer(member.name, seat, packet)

    def _noted(self, outs: list[Out], now: float) -> list[Out]:
        """Every reply on its way out: into the ledger, and commits into the record."""
        for out in outs:
            match out.message:
                case Start():
                    self._step_began[out.name] = now
                case Commit() as commit:
                    self._step_done(out.name, commit, now)
            self._ledger.answer(out.name, out.message, out.tensors)
        return outs

    def _step_done(self, name: str, commit: Commit, now: float) -> None:
        began, self._step_began[name] = self._step_began.get(name, now), now
        member = self._roster.get(name)
        steps = steps_of(member.plan, self._run) if member is not None else self._run.train.steps
        event = StepDone(client=name, round=commit.round, step=commit.step, steps=steps, loss=None, seconds=now - began)
        self._tell(event)
