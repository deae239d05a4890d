"""Arrays against the closed forms: the same bytes, seconds and choice for every candidate of any device."""

from __future__ import annotations

import time
from typing import Any

from families import CONFIGS, config_of, tasks_of
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsplit.config.run import (
    ClientSection,
    LoraSection,
    ModelSection,
    PlanSection,
    PolicySection,
    RunFile,
    TrainSection,
)
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.plan.card import card
from fedsplit.plan.fleet import balanced
from fedsplit.plan.prices import Shelf, anything_fits
from fedsplit.plan.question import Question, options_of, questions
from fedsplit.plan.solve import solve
from fedsplit.wire.messages import DataSummary

OPEN = PolicySection(shares_labels=True, exposes_tokens=True)


def device(megabytes: float, flops: float, up: float, overhead: float = 0.0, **changes: Any) -> DeviceProfile:
    values: dict[str, Any] = {
        "name": "d", "arch": "aarch64", "cores": 4, "threads": 4, "flops": {"float32": flops},
        "memory_bandwidth_bps": flops, "memory_bytes": 2**40, "free_memory_bytes": int(megabytes * 1e6),
        "runtime_bytes": 1_000_000, "layer_overhead_s": overhead,
        "link": Link(up_bps=up, down_bps=2 * up, latency_s=0.001),
    }  # fmt: skip
    return DeviceProfile(**(values | changes))


DEVICES = st.builds(
    device,
    megabytes=st.floats(3, 80),
    flops=st.floats(1e8, 1e12),
    up=st.floats(1e4, 1e8),
    overhead=st.sampled_from([0.0, 1e-4]),
    runtime_bytes=st.sampled_from([0, 1_000_000]),
    slowdown=st.sampled_from([1.0, 1.7, 900.0]),
    flops_by_threads=st.sampled_from(
        [{}, {"float32": {"1": 4e9, "2": 7e9, "4": 8e9}, "bfloat16": {"1": 1e9, "4": 3e9}}]
    ),
)
SERVERS = st.none() | st.builds(device, st.floats(3, 80), st.floats(1e10, 1e13), st.just(1e9))

POLICIES = st.builds(
    PolicySection,
    shares_labels=st.just(True),
    exposes_tokens=st.just(True),
    topologies=st.sampled_from([(), ("u",), ("local", "v"), ("w", "u", "v")]),
    max_server_bytes=st.sampled_from([0, 3_000_000, 20_000_000]),
    round_s=st.sampled_from([0.0, 0.05, 2.0, 100.0]),
)
"""What rules candidates out must do so in both, too."""


@st.composite
def asked(draw: st.DrawFn) -> Question:
    name = draw(st.sampled_from(sorted(CONFIGS)))
    task = tasks_of(name)[0]
    layers = draw(st.integers(1, 5))
    size = {"n_layer": layers} if name.startswith("gpt2") else {"num_hidden_layers": layers}
    model = card(config_of(name, **size), task, 5 if task != "causal-lm" else 0)
    only = (f"{model.layer_prefix}.{layers - 1}.{model.linears[0].path}",)
    run = RunFile(
        model=ModelSection(path="x", task=task, max_length=32, dtype=draw(st.sampled_from(["float32", "bfloat16"]))),  # type: ignore[arg-type]
        lora=LoraSection(targets=draw(st.sampled_from([(), only])), dropout=draw(st.sampled_from([0.0, 0.1]))),
        policy=draw(POLICIES),
        train=TrainSection(batch=draw(st.sampled_from([1, 6, 8])), optimizer=draw(st.sampled_from(["sgd", "adamw"]))),
        plan=PlanSection(overlap=draw(st.booleans()), checkpoint=draw(st.booleans())),
        clients=draw(st.sampled_from([(), (ClientSection(name="c", threads=2),)])),
    )
    counts = draw(st.sampled_from([None, DataSummary(train_examples=9, tokens_mean=7.3, tokens_max=19)]))
    found = questions(model, {"c": draw(DEVICES)}, run, server=draw(SERVERS), data={"c": counts} if counts else None)
    return found["c"]


@settings(max_examples=80, deadline=None)
@given(asked())
def test_arrays_equal_the_closed_forms(question: Question) -> None:
    shelf = Shelf(question=question)
    block = shelf.block([question])
    options, _ = options_of(question)
    found = [shelf.option(question, block, 0, column) for column in range(len(shelf.grid.chosen))]
    by_cut = {(option.topology, option.cut): option for option in options}
    for one in found:
        same = by_cut[one.topology, one.cut]
        assert (one.fits, one.memory.total if one.work == same.work else 0) == (
            same.fits,
            same.memory.total if one.work == same.work else 0,
        )
        assert one.times.total >= same.times.total
    fits = [option for option in options if option.fits]
    best = shelf.best(block, 0)
    assert anything_fits(question) == bool(fits) == (best >= 0)
    if fits:
        assert found[best] == fits[0]


def test_a_cut_that_is_slower_but_in_time_is_found() -> None:
    """What cannot be the fastest may still be the fastest in time: factors count for a round, and not for a step."""
    run = RunFile(
        model=ModelSection(path="x", task="classification", max_length=32),
        policy=PolicySection(shares_labels=True, exposes_tokens=True, round_s=100.0),
        train=TrainSection(batch=6, optimizer="sgd"),
        plan=PlanSection(overlap=True, checkpoint=False),
    )
    slow = device(3, 1e8, 1e4, runtime_bytes=0)
    [question] = questions(card(config_of("bert", num_hidden_layers=2), "classification", 5), {"c": slow}, run).values()
    shelf = Shelf(question=question)
    block = shelf.block([question])
    found = {one: shelf.option(question, block, 0, column).fits for column, one in enumerate(shelf.grid.chosen)}
    assert found == {(option.topology, option.cut): option.fits for option in options_of(question)[0]}


def test_a_block_is_its_rows() -> None:
    model = card(config_of("llama", num_hidden_layers=4), "causal-lm")
    run = RunFile(model=ModelSection(path="x", max_length=32), policy=OPEN)
    fleet = {f"c{n:03}": device(4 + n % 13, 1e9 + 1e7 * n, 1e5 * (1 + n)) for n in range(150)}
    together, asked_for = solve(model, fleet, run), balanced(questions(model, fleet, run))
    for name in ("c000", "c064", "c149"):
        question = asked_for[name]
        best = next(option for option in options_of(question)[0] if option.fits)
        plan = next(client for client in together.clients if client.client == name)
        assert plan.estimate is not None
        assert (plan.topology, plan.cut, plan.micro_batches) == (best.topology, best.cut, best.work.micro_batches)
        assert (plan.estimate.memory_bytes, plan.estimate.step_s) == (best.memory.total, best.times.total)


def test_large_fleets_are_quick() -> None:
    model = card(config_of("llama", num_hidden_layers=32), "causal-lm")
    run = RunFile(model=ModelSection(path="x"), policy=OPEN)
    fleet = {f"c{n:05}": device(20 + n % 101, 1e9 + 1e5 * n, 1e6 + 10 * n) for n in range(1000)}
    start = time.process_time()
    solve(model, fleet, run)
    assert time.process_time() - start < 2
