"""What clients wait for the slowest, and what a fleet leaves untrained, said."""

from __future__ import annotations

import msgspec
import pytest
from families import config_of
from test_grid import OPEN, device

from fedsplit.config.run import LoraSection, ModelSection, PlanSection, RunFile, TrainSection
from fedsplit.plan.card import card
from fedsplit.plan.coverage import coverage, coverage_note
from fedsplit.plan.question import questions
from fedsplit.plan.slack import in_time
from fedsplit.plan.solve import planned, solve
from fedsplit.plan.types import ClientPlan, Topology

LLAMA = card(config_of("llama", num_hidden_layers=6, vocab_size=4001), "causal-lm")
RUN = RunFile(model=ModelSection(path="x", max_length=32), policy=OPEN, train=TrainSection(batch=1))
LOCAL = {Topology.LOCAL}
FLEET = {"fast": device(80, 4e9, 1e8), "middle": device(80, 2e9, 1e8), "slow": device(80, 1e9, 1e8)}


def waits(plan: ClientPlan) -> str:
    return next((reason for reason in plan.reasons if reason.startswith("waits ")), "")


def test_slack_is_said() -> None:
    plan = solve(LLAMA, FLEET, RUN, allowed=LOCAL)
    fast, middle, slow = plan.clients
    assert fast.estimate
    assert middle.estimate
    assert slow.estimate
    assert fast.estimate.step_s * 4 == pytest.approx(slow.estimate.step_s, rel=0.01)
    assert f"waits {1e3 * (slow.estimate.step_s - fast.estimate.step_s):.0f} ms of each step" in waits(fast)
    assert waits(middle)
    assert not waits(slow)
    assert "on average a client waits 42% of the time" in plan.reasons[-1]


def test_nobody_waits_alone_or_among_equals() -> None:
    for fleet in ({"a": FLEET["fast"]}, {"a": FLEET["fast"], "b": FLEET["fast"]}):
        plan = solve(LLAMA, fleet, RUN, allowed=LOCAL)
        assert not any(map(waits, plan.clients))
        assert not any("waits" in reason for reason in plan.reasons)


def test_layers_that_few_or_none_train_are_named() -> None:
    run = msgspec.structs.replace(RUN, plan=PlanSection(layers="fit", checkpoint=False))
    whole = solve(LLAMA, {"a": FLEET["fast"]}, run, allowed=LOCAL)
    need = next(client.estimate for client in whole.clients if client.estimate).memory_bytes
    small = device(need / 0.9e6 - 0.4, 4e9, 1e8)
    alone = solve(LLAMA, {"small": small}, run, allowed=LOCAL)
    trained = coverage(alone.clients, LLAMA, ())
    assert 0 < sum(trained.values()) < LLAMA.num_layers
    missing = [layer for layer, count in trained.items() if not count]
    assert missing[0] == 0
    assert alone.reasons[-1].startswith(f"no client trains layer 0{f'–{missing[-1]}' if missing[-1] else ''}")
    both = solve(LLAMA, {"small": small, "large": FLEET["fast"]}, run, allowed=LOCAL)
    assert any("trained by 1 of 2 clients only" in reason for reason in both.reasons)
    assert coverage_note(whole.clients, LLAMA, ()) == ""


def test_layers_that_are_no_target_are_not_missed() -> None:
    only = (f"{LLAMA.layer_prefix}.5.{LLAMA.linears[0].path}",)
    run = msgspec.structs.replace(RUN, plan=PlanSection(layers="fit"), lora=LoraSection(targets=only))
    plan = solve(LLAMA, FLEET, run, allowed=LOCAL)
    assert coverage(plan.clients, LLAMA, only) == {5: 3}
    assert coverage_note(plan.clients, LLAMA, only) == ""


def test_the_largest_rank_in_time() -> None:
    run = msgspec.structs.replace(RUN, plan=PlanSection(ranks=(16, 64, 4096)))
    plan, asked = planned(questions(LLAMA, FLEET, run, allowed=LOCAL))
    assert "at rank 64 its step" in waits(plan.clients[0])
    assert "rank" not in waits(solve(LLAMA, FLEET, RUN, allowed=LOCAL).clients[0])
    # The plan itself stays at the run's rank.
    assert {layer.rank for layer in plan.clients[0].layers} == {RUN.lora.rank}
    for client in plan.clients:
        cost = client.estimate
        assert cost
        question = asked[client.client]
        assert in_time(client, question, 0.999 * cost.step_s) == 0
        assert in_time(client, question, 1e9) in (64, 4096)
        assert in_time(client, question, 1.05 * cost.step_s) <= in_time(client, question, 4 * cost.step_s)
