"""``plan.layers = "fit"``: all layers where they fit, else the most valuable plan, never over budget or time."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import msgspec
import pytest
from families import config_of
from test_grid import device

from fedsplit.config.run import LoraSection, ModelSection, PlanSection, PolicySection, RunFile, TrainSection
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import PlanError
from fedsplit.plan.card import card
from fedsplit.plan.factors import factor_bytes
from fedsplit.plan.fitted import EQUAL, Fitter, allowed_ranks
from fedsplit.plan.knapsack import Item
from fedsplit.plan.memory import client_memory
from fedsplit.plan.options import Option
from fedsplit.plan.question import Question, priced, questions, step_of
from fedsplit.plan.selection import chosen_ranks, own_layers, value_of
from fedsplit.plan.solve import solve
from fedsplit.plan.trained import offers, weighed
from fedsplit.plan.trained import trained as in_words
from fedsplit.plan.types import ClientPlan, LayerPlan, Topology

MODEL = card(config_of("llama", num_hidden_layers=4), "causal-lm")


def run_file(**sections: object) -> RunFile:
    plain = RunFile(
        model=ModelSection(path="x", max_length=32), train=TrainSection(batch=4), lora=LoraSection(rank=8),
        plan=PlanSection(layers="fit", ranks=(2,), checkpoint=False), policy=PolicySection(),
    )  # fmt: skip
    return msgspec.structs.replace(plain, **sections)


def question(profile: DeviceProfile, run: RunFile) -> Question:
    return questions(MODEL, {"c": profile}, run)["c"]


def by_trying(asked: Question) -> list[Option]:
    """Every selection of every candidate that fits and is in time: by the closed forms alone."""
    chosen, works, _ = step_of(asked)
    found = []
    for (topology, cut), work in itertools.product(chosen, works):
        mine = own_layers(work, topology, cut)
        for ranks in itertools.product((0, *allowed_ranks(asked)), repeat=len(mine)):
            items = [Item(rank=rank, value=0, bytes=0) for rank in ranks]
            tried = replace(work, ranks=chosen_ranks(work, topology, cut, items))
            if tried.adapter_params[-1]:
                option = priced(asked, topology, cut, [tried])
                if option.fits:
                    found.append(option)
    return found


LOCAL_ONLY = PolicySection(topologies=("local",))


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("policy", [LOCAL_ONLY, PolicySection(topologies=("u",)), PolicySection(shares_labels=True)])
def test_equal_to_trying_everything(policy: PolicySection, checkpoint: bool) -> None:
    run = run_file(policy=policy, plan=PlanSection(layers="fit", ranks=(2,), checkpoint=checkpoint))
    whole = [option.memory.total for option in full_plans(question(device(1000, 1e10, 1e6), run))]
    hits = 0
    for share in (0.99, 0.9, 0.8, 0.72, 0.6):
        asked = question(device(min(whole) * share / 0.9 / 1e6, 1e10, 1e6), run)
        found, every = Fitter(asked).best(asked), by_trying(asked)
        assert (found is None) == (not every)
        if found is None:
            continue
        top = max(value_of(option.work) for option in every)
        assert found.value == pytest.approx(top, abs=EQUAL)
        assert found.option.fits
        # Among the most valuable none is faster, but for what rounding the memory to units costs.
        quickest = min(option.times.total for option in every if value_of(option.work) >= top - EQUAL)
        assert found.option.times.total == pytest.approx(quickest, rel=0.01)
        hits += found.value < found.full
    assert hits >= 2


def full_plans(asked: Question) -> list[Option]:
    chosen, works, _ = step_of(asked)
    return [priced(asked, topology, cut, [works[-1]]) for topology, cut in chosen]


def plan(megabytes: float, run: RunFile) -> ClientPlan:
    return solve(MODEL, {"c": device(megabytes, 1e10, 1e6)}, run).clients[0]


def trained(found: ClientPlan) -> list[int]:
    return [layer.rank if layer.trains else 0 for layer in found.layers]


def test_memory_enough_is_as_if_nobody_had_asked() -> None:
    fit, every = (run_file(plan=PlanSection(layers=layers)) for layers in ("fit", "all"))
    assert msgspec.json.encode(plan(500, fit)) == msgspec.json.encode(plan(500, every))
    assert trained(plan(500, fit)) == [8] * 4


def test_less_memory_trains_less_until_nothing_fits() -> None:
    run = run_file(policy=LOCAL_ONLY)
    need = full_plans(question(device(500, 1e10, 1e6), run))[0].memory.total / 0.9 / 1e6
    before, seen = 1.0, set()
    for share in range(100, 10, -2):
        try:
            found = plan(need * share / 100 * 1.01, run)
        except PlanError:
            break
        assert found.estimate is not None
        assert found.estimate.memory_bytes <= 0.9 * need * share / 100 * 1.01 * 1e6
        value = sum(1 - 2 ** (-rank / 4) for rank in trained(found)) / 4
        assert value <= before + EQUAL
        before = value
        seen.add(tuple(trained(found)))
    assert share > 10
    assert (8, 8, 8, 8) in seen
    assert len(seen) >= 4


def test_the_plan_says_what_it_costs() -> None:
    run = run_file(policy=LOCAL_ONLY)
    need = full_plans(question(device(500, 1e10, 1e6), run))[0].memory.total / 0.9 / 1e6
    found, asked = plan(0.9 * need, run), question(device(0.9 * need, 1e10, 1e6), run)
    assert 0 in trained(found)
    assert found.estimate is not None
    works = step_of(asked)[1]
    work = replace(next(w for w in works if w.micro_batches == found.micro_batches), ranks=tuple(trained(found)))
    option = priced(asked, found.topology, found.cut, [work])
    assert (
        found.estimate.memory_bytes
        == client_memory(work, found.topology, found.cut).with_holes(work, asked.device).total
    )
    assert found.estimate.step_s == option.times.total
    assert found.estimate.factors_up_bytes == factor_bytes(work, found.topology, found.cut, own_head=False)[0]
    assert found.binding == "memory of the device"
    assert any("not trained here" in reason for reason in found.reasons)
    assert plan(0.9 * need, run) == found


def test_without_leave_nothing_is_cut_down() -> None:
    run = run_file(policy=LOCAL_ONLY, plan=PlanSection(layers="all", ranks=(2,)))
    need = full_plans(question(device(500, 1e10, 1e6), run))[0].memory.total / 0.9 / 1e6
    with pytest.raises(PlanError, match=r"memory of the device"):
        plan(0.9 * need, run)


def test_smaller_ranks_only_where_named_and_not_below_the_least() -> None:
    asked = question(device(10, 1e10, 1e6), run_file(plan=PlanSection(layers="fit", ranks=(1, 2, 4, 16))))
    assert allowed_ranks(asked) == (1, 2, 4, 8)
    assert allowed_ranks(replace(asked, run=run_file(plan=PlanSection(layers="fit")))) == (8,)
    few = run_file(plan=PlanSection(layers="fit", ranks=(1, 2, 4)), policy=PolicySection(min_rank=4))
    assert allowed_ranks(replace(asked, run=few)) == (4, 8)


def test_the_body_trains_whole_and_the_client_what_it_can() -> None:
    run = run_file(
        policy=PolicySection(topologies=("u",), min_front=2), plan=PlanSection(layers="fit", checkpoint=False)
    )
    need = min(option.memory.total for option in full_plans(question(device(500, 1e10, 1e6), run))) / 0.9 / 1e6
    found = plan(0.97 * need, run)
    assert found.topology is Topology.U
    ranks = trained(found)
    assert all(ranks[layer.layer] == 8 for layer in found.layers if layer.place == "server")
    assert 0 in ranks


def test_a_round_in_time() -> None:
    """Late with all layers: fewer train, from further up, until the round is short enough."""
    slow = device(500, 1e8, 1e6)
    base = run_file(policy=LOCAL_ONLY)
    whole = solve(MODEL, {"c": slow}, base).clients[0].estimate
    assert whole is not None
    seconds = base.train.steps * whole.step_s
    limited = run_file(policy=PolicySection(topologies=("local",), round_s=0.85 * seconds))
    asked = question(slow, limited)
    found, every = Fitter(asked).best(asked), by_trying(asked)
    assert found is not None
    assert found.option.fits
    assert found.value == pytest.approx(max(value_of(option.work) for option in every), rel=0.05)
    assert 0 < found.value < found.full


def test_less_exposing_plans_are_offered() -> None:
    run = run_file(plan=PlanSection(layers="fit", checkpoint=False))
    local = full_plans(question(device(500, 1e10, 1e6), run_file(policy=LOCAL_ONLY)))[0].memory.total / 0.9 / 1e6
    asked = question(device(0.9 * local, 1e10, 1e6), run)
    found = plan(0.9 * local, run)
    assert found.topology is Topology.U
    assert trained(found) == [8] * 4
    (offer,) = offers(found, asked)
    assert offer.startswith("local, training ")


def test_a_refusal_proposes_it_and_following_it_helps() -> None:
    """Of a run whose batch, length and rank cannot shrink, fewer layers are the change that helps."""
    small = {"train": TrainSection(batch=1), "model": ModelSection(path="x", max_length=16, dtype="bfloat16")}
    run = run_file(**small, policy=LOCAL_ONLY, lora=LoraSection(rank=1), plan=PlanSection(layers="all"))
    need = full_plans(question(device(500, 1e10, 1e6), run))[0].memory.total / 0.9 / 1e6
    with pytest.raises(PlanError, match=r'plan.layers = "fit"'):
        plan(0.99 * need, run)
    assert 0 in trained(plan(0.99 * need, run_file(**small, policy=LOCAL_ONLY, lora=LoraSection(rank=1))))


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([8, 8, 8], "all 3 · r 8"),
        ([0, 8, 8], "1–2 of 3 · r 8"),
        ([8, 0, 8], "0, 2 of 3 · r 8"),
        ([0, 2, 8], "1 r 2, 2 r 8 of 3"),
        ([0, 0, 0], "none of 3"),
    ],
)
def test_layers_in_words(ranks: list[int], words: str) -> None:
    layers = [LayerPlan(layer=i, place="client", trains=rank > 0, rank=rank or 8) for i, rank in enumerate(ranks)]
    assert in_words(layers) == words


def test_the_arithmetic_adds_up() -> None:
    run = run_file(policy=LOCAL_ONLY)
    need = full_plans(question(device(500, 1e10, 1e6), run))[0].memory.total / 0.9 / 1e6
    found, asked = plan(0.85 * need, run), question(device(0.85 * need, 1e10, 1e6), run)
    rows = weighed(found, asked)
    trains = [row for row in rows if row.rank]
    assert found.estimate is not None
    taken = trains[0].start_bytes + sum(row.cost_bytes for row in trains) + asked.device.runtime_bytes
    assert taken == pytest.approx(found.estimate.memory_bytes, rel=0.005)
    assert all(row.missing_bytes > 0 for row in rows if not row.rank)
    assert all(row.missing_bytes == 0 for row in trains)


def test_it_stays_quick() -> None:
    model = card(config_of("llama", num_hidden_layers=32), "causal-lm")
    run = run_file(policy=LOCAL_ONLY, plan=PlanSection(layers="fit", ranks=(2, 4), checkpoint=False))
    fleet = {f"c{n}": device(20 + n * 0.1, 1e10 + n, 1e6) for n in range(40)}
    start = time.process_time()
    found = solve(model, fleet, run)
    assert time.process_time() - start < 3
    assert sum(0 in trained(client) for client in found.clients) > 30
