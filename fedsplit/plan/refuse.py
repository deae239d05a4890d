"""Nothing fits: say what binds, which plan comes nearest, and the smallest change that would make one fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedsplit.devices.units import duration, size
from fedsplit.plan.changes import helping, nearest, room_for
from fedsplit.plan.explain import MEMORY
from fedsplit.plan.limits import DEADLINE, SERVER, SERVER_RULE, Limits
from fedsplit.plan.options import Option
from fedsplit.plan.question import Question, options_of, server_of

MOST_SAID = 3
"""Clients without a plan of which each is explained; the others are counted."""


def without_plan(kinds: Mapping[str, Question], lost: Sequence[str], clients: int) -> str:
    """The message of the PlanError: ``lost`` of all ``clients`` have no plan, ``kinds`` of them are unlike."""
    said = list(kinds.items())[:MOST_SAID]
    messages = [nothing_fits(name, question, *options_of(question)) for name, question in said]
    if len(lost) == 1:
        return messages[0]
    others = f"\n  and {len(lost) - len(said)} more" if len(lost) > len(said) else ""
    return f"{len(lost)} of {clients} clients have no plan:" + "".join(f"\n  {text}" for text in messages) + others


def nothing_fits(name: str, question: Question, options: Sequence[Option], why_not: Sequence[str]) -> str:
    """Why one client has no plan."""
    ways = helping(question, options)
    if not options:
        rules = "; ".join(why_not) or "the run file fixes a cut that this model does not have"
        advice = f"; the smallest change: {ways[0]}" if ways else ""
        return f"no plan for {name}: {rules} (binding: policy){advice}"
    near = nearest(options)
    rules = f" Not considered: {'; '.join(why_not)}." if why_not else ""
    advice = f"The smallest change that helps: {', or '.join(ways)}." if ways else "No single change helps."
    return (
        f"no plan for {name} fits (binding: {near.short_of}). Nearest is {near.name}: {_need(question, near)}. "
        f"{advice}{rules}"
    )


def _need(question: Question, near: Option) -> str:
    policy = question.run.policy
    if near.short_of == DEADLINE:
        steps = question.run.train.steps
        return (
            f"a round of {steps} steps and its transfer takes {duration(near.round_s)}, and policy.round_s allows "
            f"{duration(policy.round_s)} ({duration(near.times.total)} a step)"
        )
    if near.short_of == SERVER:
        return f"the server is short of {size(near.short_bytes)} for it"
    if near.short_of == SERVER_RULE:
        return f"the server needs {size(near.server.total)} of the {size(policy.max_server_bytes)} that it may take"
    label, count = near.memory.largest()
    part = f"most of it {MEMORY[label]}: {size(count)}"
    return f"it needs {size(near.memory.total)} of {size(question.device.budget_bytes)} ({part})"


def crowded(question: Question, clients: int, limits: Limits, least_bytes: int, change: str) -> str:
    """The message where each client alone fits the server, and all of them do not. ``change``: one of the run file
    with which they would, if there is any."""
    ways = ["fewer clients at once", room_for(question, limits, least_bytes)]
    if change:
        ways.insert(1, change)
    return (
        f"the server {server_of(question).name} needs {size(least_bytes)} for {clients} clients, even with the plans "
        f"that take least, and may take {size(limits.server_bytes)} (binding: {limits.server_rule}); the smallest "
        f"change: {', or '.join(ways)}"
    )
