"""The frontier of memory and time against comparing everything with everything."""

from __future__ import annotations

from families import config_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_grid import OPEN, asked, device

from fedsplit.config.run import ModelSection, RunFile
from fedsplit.plan.card import card
from fedsplit.plan.frontier import MOST, every_option, frontier, shown
from fedsplit.plan.options import Option
from fedsplit.plan.question import Question, options_of, questions


def beaten(one: Option, other: Option) -> bool:
    mine, theirs = (one.memory.total, one.times.total), (other.memory.total, other.times.total)
    return theirs[0] <= mine[0] and theirs[1] <= mine[1] and theirs != mine


@settings(max_examples=15, deadline=None)
@given(asked())
def test_equal_to_comparing_everything(question: Question) -> None:
    options = list(every_option(question))
    found = frontier(options)
    points = {(one.memory.total, one.times.total) for one in options if not any(beaten(one, two) for two in options)}
    assert {(one.memory.total, one.times.total) for one in found} == points
    assert len(found) == len(points)


@settings(max_examples=10, deadline=None)
@given(st.floats(4, 80), st.floats(1e8, 1e11))
def test_what_is_shown(megabytes: float, flops: float) -> None:
    model = card(config_of("llama", num_hidden_layers=6, vocab_size=997), "causal-lm")
    run = RunFile(model=ModelSection(path="x", max_length=64), policy=OPEN)
    question = questions(model, {"c": device(megabytes, flops, 1e6)}, run)["c"]
    chosen = options_of(question)[0][0]
    found = frontier(list(every_option(question)))
    rows = shown(found, chosen)
    assert len(rows) <= MOST
    assert rows.count(chosen) == 1
    assert all(row in found for row in rows if row != chosen)
    assert [row.memory.total for row in rows] == sorted((row.memory.total for row in rows), reverse=True)
    if len(found) > 1:
        assert {found[0].memory.total, found[-1].memory.total} <= {row.memory.total for row in rows} | {
            chosen.memory.total
        }
