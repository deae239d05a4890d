"""A repeated request gets its stored reply, within a budget, and never a second execution."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fedsplit.errors import RemoteProtocolError
from fedsplit.wire import WireTensor
from fedsplit.wire import messages as m
from fedsplit.wire.ledger import Ledger, Standing

ANSWERED, FRESH, GONE, PENDING = Standing.ANSWERED, Standing.FRESH, Standing.GONE, Standing.PENDING


def at(step: int = 0, micro: int = 0, attempt: int = 0, round: int = 0, era: int = 0) -> dict[str, Any]:
    return {"round": round, "era": era, "step": step, "micro": micro, "attempt": attempt}


def forward(*where: int, train: bool = True, **more: int) -> m.Forward:
    return m.Forward(**at(*where, **more), lengths=(1,), starts=(0,), width=1, label_tokens=1, train=train)


def hidden(*where: int, **more: int) -> m.Hidden:
    return m.Hidden(**at(*where, **more), label_tokens=1)


def backward(*where: int) -> m.Backward:
    return m.Backward(**at(*where))


def prepare(step: int = 0) -> m.Prepare:
    return m.Prepare(**at(step), squares=(), finite=True, examples=1)


def tensor(nbytes: int = 100) -> dict[str, WireTensor]:
    return {"h": WireTensor.of(np.zeros(nbytes, "u1"))}


def update(round: int = 0, era: int = 0) -> m.Update:
    return m.Update(round=round, era=era, base_version=0, examples=1, steps=1)


def test_fresh_then_pending_then_answered() -> None:
    ledger = Ledger()
    assert ledger.ask("pi", forward()).standing is FRESH
    assert ledger.ask("pi", forward()).standing is PENDING
    tensors = tensor()
    ledger.answer("pi", hidden(), tensors)
    found = ledger.ask("pi", forward())
    assert found.standing is ANSWERED
    assert found.reply is not None
    assert (found.reply.message, found.reply.tensors) == (hidden(), tensors)


def test_every_part_of_the_key_counts() -> None:
    ledger = Ledger()
    requests = [forward(0, 0), forward(0, 1), forward(0, 0, 1), backward(0, 0), backward(0, 1), prepare()]
    assert [ledger.ask("pi", request).standing for request in requests] == [FRESH] * 6
    assert ledger.ask("laptop", forward()).standing is FRESH


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (forward(), hidden()),
        (forward(), m.Grad(**at(), loss=1.0)),
        (forward(), m.Missing(**at())),
        (backward(), m.Grad(**at())),
        (backward(), m.Missing(**at())),
        (prepare(), m.Commit(**at(), clip=1.0, rate=1.0)),
        (prepare(), m.Abort(**at(), reason="non-finite")),
        (update(), m.Received(round=0)),
    ],
)
def test_which_reply_answers_which_request(request_: m.Message, reply: m.Message) -> None:
    ledger = Ledger()
    ledger.ask("pi", request_)
    ledger.answer("pi", reply)
    found = ledger.ask("pi", request_)
    assert found.standing is ANSWERED
    assert found.reply is not None
    assert found.reply.message == reply


def test_a_gradient_answers_the_backward_not_the_forward() -> None:
    ledger = Ledger()
    ledger.ask("pi", forward())
    ledger.answer("pi", hidden())
    ledger.ask("pi", backward())
    ledger.answer("pi", m.Grad(**at()))
    assert isinstance(ledger.ask("pi", forward()).reply.message, m.Hidden)  # type: ignore[union-attr]
    assert isinstance(ledger.ask("pi", backward()).reply.message, m.Grad)  # type: ignore[union-attr]


def test_a_later_step_drops_what_came_before() -> None:
    ledger = Ledger()
    for step in range(50):
        ledger.ask("pi", forward(step))
        ledger.answer("pi", hidden(step), tensor(100))
        assert ledger.stored_bytes == 100
    assert ledger.ask("pi", forward(48)).standing is GONE
    ledger.ask("pi", update())
    assert ledger.stored_bytes == 0
    assert ledger.ask("pi", forward(0, round=1)).standing is FRESH
    assert ledger.ask("pi", forward(9, era=0)).standing is GONE
    assert ledger.ask("pi", forward(0, round=1, era=1)).standing is FRESH


def test_the_budget_drops_the_oldest_reply_of_anyone() -> None:
    ledger = Ledger(budget_bytes=250)
    for client in ("a", "b", "c"):
        ledger.ask(client, forward())
        ledger.answer(client, hidden(), tensor(100))
    assert ledger.stored_bytes == 200
    standings = [ledger.ask(client, forward()).standing for client in ("a", "b", "c")]
    assert standings == [GONE, ANSWERED, ANSWERED]
    ledger.answer("a", hidden(), tensor(100))
    assert ledger.ask("a", forward()).standing is GONE


def test_a_reply_beyond_the_budget_does_not_push_out_the_others() -> None:
    ledger = Ledger(budget_bytes=250)
    ledger.ask("a", forward())
    ledger.answer("a", hidden(), tensor(100))
    ledger.ask("b", forward())
    ledger.answer("b", hidden(), tensor(300))
    assert ledger.ask("a", forward()).standing is ANSWERED
    assert ledger.ask("b", forward()).standing is GONE


def test_small_replies_outlive_the_budget() -> None:
    ledger = Ledger(budget_bytes=10)
    ledger.ask("pi", prepare())
    ledger.answer("pi", m.Commit(**at(), clip=1.0, rate=1.0))
    ledger.ask("pi", forward())
    ledger.answer("pi", hidden(), tensor(11))
    assert ledger.ask("pi", prepare()).standing is ANSWERED


def test_an_aborted_step_answers_everything_with_abort() -> None:
    ledger = Ledger()
    ledger.ask("pi", forward(0, 0))
    ledger.answer("pi", hidden(0, 0), tensor())
    ledger.ask("pi", forward(0, 1))
    ledger.answer("pi", m.Abort(**at(), reason="another client left"))
    for request in (forward(0, 0), forward(0, 1), backward(0, 0), prepare()):
        found = ledger.ask("pi", request)
        assert found.standing is ANSWERED
        assert isinstance(found.reply.message, m.Abort)  # type: ignore[union-attr]
    assert ledger.stored_bytes == 0
    assert ledger.ask("pi", forward(1)).standing is FRESH


def test_the_same_key_with_other_contents_is_refused() -> None:
    ledger = Ledger()
    ledger.ask("pi", forward())
    with pytest.raises(RemoteProtocolError, match="pi repeated forward of step 0"):
        ledger.ask("pi", replace(forward(), tensors=(m.TensorSpec("h", "f32", (1, 1), 4, 1234),)))


def test_evaluations_may_run_twice() -> None:
    ledger = Ledger()
    assert ledger.ask("pi", forward(train=False)).standing is FRESH
    ledger.answer("pi", hidden(), tensor())
    assert ledger.ask("pi", forward(train=False)).standing is FRESH
    assert ledger.stored_bytes == 0


def test_forget_frees_everything() -> None:
    ledger = Ledger()
    ledger.ask("pi", forward())
    ledger.answer("pi", hidden(), tensor())
    ledger.forget("pi")
    assert ledger.stored_bytes == 0
    assert ledger.ask("pi", forward()).standing is FRESH
    ledger.forget("nobody")
    ledger.answer("nobody", hidden(), tensor())


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(0, 1), st.booleans()), max_size=60),
    st.integers(0, 500),
)
@settings(max_examples=150, deadline=None)
def test_never_executed_twice_never_over_budget(events: list[tuple[str, int, int, bool]], budget: int) -> None:
    """Any order of requests and repeats from two clients, answered at once or never."""
    ledger = Ledger(budget_bytes=budget)
    executed: Counter[tuple[str, int, int]] = Counter()
    for client, step, micro, answered in events:
        if ledger.ask(client, forward(step, micro)).standing is FRESH:
            executed[client, step, micro] += 1
            if answered:
                ledger.answer(client, hidden(step, micro), tensor(100 + micro))
        assert ledger.stored_bytes <= budget
    assert all(count == 1 for count in executed.values())
    for client in "ab":
        ledger.forget(client)
    assert ledger.stored_bytes == 0
