"""The planner: what it promises on any fleet (hypothesis), and what it says."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import msgspec
import pytest
from families import config_of
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsplit.config.run import (
    ClientSection,
    LoraSection,
    ModelSection,
    PlanSection,
    PolicySection,
    RoundsSection,
    RunFile,
    TrainSection,
)
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.errors import ConfigError, PlanError
from fedsplit.plan.card import card
from fedsplit.plan.memory import server_total
from fedsplit.plan.question import options_of, questions
from fedsplit.plan.solve import sealed, solve
from fedsplit.plan.types import ClientPlan, Cut, Plan, Topology
from fedsplit.wire.messages import DataSummary

CARD = card(config_of("llama", num_hidden_layers=6, vocab_size=4001), "causal-lm")
BERT = card(config_of("bert", num_hidden_layers=4), "classification", 5)
OPEN = PolicySection(shares_labels=True, exposes_tokens=True)


def device(megabytes: float = 500, flops: float = 1e9, up: float = 1e6, **changes: Any) -> DeviceProfile:
    values: dict[str, Any] = {
        "name": "d", "arch": "aarch64", "cores": 4, "threads": 4, "flops": {"float32": flops},
        "memory_bandwidth_bps": 1e10, "memory_bytes": 2**36, "free_memory_bytes": int(megabytes * 1e6 / 0.9) + 1,
        "runtime_bytes": 1_000_000, "link": Link(up_bps=up, down_bps=2 * up, latency_s=0.001),
    }  # fmt: skip
    return DeviceProfile(**(values | changes))


def run_file(policy: PolicySection = OPEN, **sections: Any) -> RunFile:
    model = ModelSection(path="x", max_length=32)
    return RunFile(**({"model": model, "policy": policy, "train": TrainSection(batch=8)} | sections))


def one_row(policy: PolicySection, **sections: Any) -> RunFile:
    return run_file(policy, train=TrainSection(batch=1), **sections)


def one(profile: DeviceProfile, run: RunFile | None = None, **how: Any) -> ClientPlan:
    return solve(CARD, {"pi": profile}, run or run_file(), **how).clients[0]


DEVICES = st.builds(
    device,
    megabytes=st.floats(6, 60),
    flops=st.floats(1e8, 1e12),
    up=st.floats(1e4, 1e8),
)
POLICIES = st.builds(
    PolicySection, shares_labels=st.booleans(), exposes_tokens=st.booleans(), min_front=st.integers(1, 3)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(DEVICES, min_size=1, max_size=3), POLICIES, st.sampled_from(["all", "fit"]))
def test_promises(devices: list[DeviceProfile], policy: PolicySection, layers: Literal["all", "fit"]) -> None:
    fleet = {f"c{index}": profile for index, profile in enumerate(devices)}
    run = run_file(policy, plan=PlanSection(layers=layers, ranks=(2,)))
    try:
        plan = solve(CARD, fleet, run)
    except PlanError:
        return
    assert [client.client for client in plan.clients] == sorted(fleet)
    for client in plan.clients:
        assert client.estimate is not None
        assert client.estimate.memory_bytes <= fleet[client.client].budget_bytes
        assert [layer.layer for layer in client.layers] == list(range(CARD.num_layers))
        assert places(client) == ["client"] * len(client.layers) or not obeys_nothing(client, policy)
        assert client.batch == 8
        assert 8 % client.micro_batches == 0
        assert all(layer.trains and layer.rank == 8 for layer in client.layers if layer.place == "server")
        assert any(layer.trains for layer in client.layers)
        assert layers == "fit" or all(layer.trains and layer.rank == 8 for layer in client.layers)
        assert client.reasons
        assert client.exposure
    assert solve(CARD, dict(reversed(fleet.items())), run) == plan
    assert sealed(plan).digest == plan.digest


def places(client: ClientPlan) -> list[str]:
    return [layer.place for layer in client.layers]


def obeys_nothing(client: ClientPlan, policy: PolicySection) -> bool:
    """True when a rule of the policy is broken."""
    if client.topology is Topology.V:
        return not policy.shares_labels or client.cut.c1 < policy.min_front
    if client.topology is Topology.W:
        return not policy.exposes_tokens
    return client.topology is Topology.U and client.cut.c1 < policy.min_front


@settings(max_examples=40, deadline=None)
@given(DEVICES, st.floats(1, 30))
def test_more_memory_is_never_slower(profile: DeviceProfile, more: float) -> None:
    larger = msgspec.structs.replace(profile, free_memory_bytes=profile.free_memory_bytes + int(more * 1e6))
    try:
        small = one(profile)
    except PlanError:
        return
    big = one(larger)
    assert small.estimate is not None
    assert big.estimate is not None
    assert big.estimate.step_s <= small.estimate.step_s * 1.001


@settings(max_examples=25, deadline=None)
@given(DEVICES)
def test_equal_to_trying_everything(profile: DeviceProfile) -> None:
    """Each cut fixed in the run file, one after the other: none of them beats the plan."""
    try:
        free = one(profile)
    except PlanError:
        free = None
    best = None
    shapes = [("local", None), ("w", None), *(("v", (c1, 6)) for c1 in range(1, 6))]
    shapes += [("u", pair) for pair in itertools.combinations(range(1, 7), 2)]
    for topology, cut in shapes:
        section = ClientSection(name="pi", topology=topology, cut=cut)  # type: ignore[arg-type]
        try:
            fixed = one(profile, run_file(clients=(section,)))
        except PlanError:
            continue
        assert fixed.estimate is not None
        best = min(best or fixed.estimate.step_s, fixed.estimate.step_s)
    assert (free is None) == (best is None)
    if free is not None:
        assert free.estimate is not None
        assert free.estimate.step_s == pytest.approx(best, rel=1e-3)


def test_cut_of_every_topology() -> None:
    run = run_file()
    cuts = {t: one(device(), run, allowed={t}).cut for t in Topology}
    assert cuts[Topology.LOCAL] == Cut(6, 6)
    assert cuts[Topology.W] == Cut(0, 6)
    assert cuts[Topology.V].c2 == 6
    assert 1 <= cuts[Topology.U].c1 < cuts[Topology.U].c2 <= 6
    everywhere = {t: places(one(device(), run, allowed={t})) for t in Topology}
    assert everywhere[Topology.LOCAL] == ["client"] * 6
    assert everywhere[Topology.W] == ["server"] * 6
    assert everywhere[Topology.V] == ["client"] * cuts[Topology.V].c1 + ["server"] * (6 - cuts[Topology.V].c1)


def test_what_decides() -> None:
    assert one(device(flops=1e13)).topology is Topology.LOCAL
    assert one(device(flops=1e8, up=1e8), run_file(PolicySection(shares_labels=True))).topology is Topology.V
    slow = one(device(flops=1e8, up=1e8), run_file(PolicySection()))
    assert (slow.topology, slow.cut, slow.binding) == (Topology.U, Cut(1, 6), "speed of the device")
    tight = one(device(9.0, flops=1e13), run_file(PolicySection()))
    assert (tight.topology, tight.binding) == (Topology.U, "memory of the device")


def test_reasons_carry_numbers() -> None:
    found = one(device(9.0, flops=1e13), run_file(PolicySection()))
    text = "\n".join(found.reasons)
    assert "MB of 9 MB; local needs" in text
    assert "local would take" in text
    assert "lacks" in text
    assert "policy.shares_labels = true" in text
    assert "policy.exposes_tokens = true" in text


def test_memory_is_met_with_more_micro_batches_before_giving_up() -> None:
    alone = run_file(PolicySection(), train=TrainSection(batch=8))
    roomy = one(device(500), alone, allowed={Topology.LOCAL})
    assert roomy.micro_batches == 1
    assert roomy.estimate is not None
    tight = one(device(roomy.estimate.memory_bytes / 1e6 - 1), alone, allowed={Topology.LOCAL})
    assert tight.micro_batches > 1
    assert any("micro-batches of" in reason for reason in tight.reasons)


def test_the_run_file_fixes() -> None:
    section = ClientSection(name="pi", topology="u", cut=(2, 3), batch=4, threads=1)
    run = run_file(clients=(section, ClientSection(name="other", topology="local")))
    found = one(device(), run)
    assert (found.topology, found.cut, found.batch, found.binding) == (
        Topology.U, Cut(2, 3), 4, "fixed in the run file",
    )  # fmt: skip
    slow, fast = (
        found.estimate,
        one(device(), run_file(clients=(ClientSection(name="pi", topology="u", cut=(2, 3), batch=4),))).estimate,
    )
    assert slow is not None
    assert fast is not None
    assert slow.step_s > fast.step_s
    by_cut = one(device(), run_file(clients=(ClientSection(name="pi", cut=(0, 6)),)))
    assert by_cut.topology is Topology.W
    without_body = one(device(), run_file(clients=(ClientSection(name="pi", topology="u", cut=(3, 3)),)))
    assert places(without_body) == ["client"] * 6


@pytest.mark.parametrize(
    ("section", "policy", "words"),
    [
        (ClientSection(name="pi", topology="w"), PolicySection(), "policy.exposes_tokens = true"),
        (ClientSection(name="pi", topology="v"), PolicySection(), "policy.shares_labels = true"),
        (ClientSection(name="pi", topology="u", cut=(1, 2)), PolicySection(min_front=2), "policy.min_front = 2"),
        (ClientSection(name="pi", topology="u", cut=(2, 40)), OPEN, "a cut that this model does not have"),
    ],
)
def test_a_fixed_plan_against_the_policy_is_refused(section: ClientSection, policy: PolicySection, words: str) -> None:
    with pytest.raises(PlanError, match="binding: policy") as caught:
        one(device(), run_file(policy, clients=(section,)))
    assert words in str(caught.value)


def test_nothing_fits_names_constraint_nearest_plan_and_change() -> None:
    with pytest.raises(PlanError) as caught:
        one(device(6.0), one_row(PolicySection()))
    text = str(caught.value)
    assert "no plan for pi fits (binding: memory of the device)" in text
    assert "Nearest is u (" in text
    assert "of 6 MB" in text
    assert 'model.dtype = "bfloat16"' in text
    assert "MB of the device's memory" in text


def test_the_named_change_really_helps() -> None:
    with pytest.raises(PlanError, match=r'smallest change that helps: model.dtype = "bfloat16"'):
        one(device(6.0), one_row(PolicySection()))
    halved = ModelSection(path="x", max_length=32, dtype="bfloat16")
    assert one(device(6.0), one_row(PolicySection(), model=halved)).topology is Topology.U


def test_no_device_and_unknown_targets() -> None:
    with pytest.raises(PlanError, match="no device"):
        solve(CARD, {}, run_file())
    with pytest.raises(ConfigError, match=r"lora\.targets"):
        one(device(), run_file(lora=LoraSection(targets=("query",))))


def test_a_server_too_small() -> None:
    fleet = {f"c{index}": device(flops=1e8) for index in range(6)}
    run = run_file(PolicySection())
    alone = solve(CARD, {"c0": fleet["c0"]}, run, server=device(5000, 1e12)).clients[0].estimate
    assert alone is not None
    small = device(alone.server_memory_bytes / 1e6 + 1.5, 1e12)
    assert solve(CARD, {"c0": fleet["c0"]}, run, server=small)
    together = solve(CARD, fleet, run, server=small)
    assert server_total(CARD, together.clients, 4) + small.runtime_bytes <= small.budget_bytes
    tiny = device(alone.server_memory_bytes / 5e6, 1e12)
    assert solve(CARD, {"c0": fleet["c0"]}, run, server=tiny, allowed={Topology.U})
    with pytest.raises(PlanError, match=r"memory of the server.*fewer clients"):
        solve(CARD, fleet, run, server=tiny, allowed={Topology.U})
    # Too small for anything: the clients that can, stay on their own.
    assert one(device(), run_file(PolicySection()), server=device(1.5, 1e15)).topology is Topology.LOCAL


def test_known_lengths_make_the_estimate_smaller() -> None:
    short = DataSummary(train_examples=10, tokens_mean=8.0, tokens_max=16)
    allowed = {Topology.U}
    long, known = one(device(), allowed=allowed).estimate, one(device(), allowed=allowed, data={"pi": short}).estimate
    assert long is not None
    assert known is not None
    assert known.up_bytes * 4 == long.up_bytes
    assert known.memory_bytes < long.memory_bytes
    assert known.step_s < long.step_s


def test_more_clients_share_the_server() -> None:
    def seconds(clients: int) -> float:
        rounds = RoundsSection(clients=clients)
        found = one(device(flops=1e8), run_file(rounds=rounds), server=device(5000, 1e9), allowed={Topology.W}).estimate
        assert found is not None
        return found.step_s

    assert seconds(1) < seconds(2) < seconds(8)


def test_disk_and_energy_are_estimated() -> None:
    found = solve(BERT, {"pi": device(power_w=5.0)}, run_file()).clients[0].estimate
    assert found is not None
    assert found.energy_j > 0
    assert found.disk_bytes > 0


def test_exposure_depends_on_the_cut() -> None:
    texts = {t: one(device(), allowed={t}).exposure for t in Topology}
    assert "nearest one names the token" in texts[Topology.W]
    assert "sees the labels" in texts[Topology.V]
    assert "activations after" in texts[Topology.U]
    assert "nothing per example" in texts[Topology.LOCAL]
    shallow, deep = (
        one(device(), run_file(clients=(ClientSection(name="pi", topology="u", cut=(c1, 6)),))).exposure
        for c1 in (1, 5)
    )
    assert "reconstruct most tokens" in shallow
    assert "read back" in deep
    small = solve(
        BERT,
        {"pi": device()},
        run_file(PolicySection(), model=ModelSection(path="x", task="classification")),
        allowed={Topology.U},
    )
    assert "5 classes" in small.clients[0].exposure
    vit = card(config_of("vit"), "image-classification", 5)
    assert "images" in solve(vit, {"pi": device()}, run_file(), allowed={Topology.W}).clients[0].exposure


def test_unmeasured_things_are_said() -> None:
    found = one(
        device(link=None, flops=1e8), run_file(model=ModelSection(path="x", dtype="bfloat16")), allowed={Topology.U}
    )
    text = " ".join(found.reasons)
    assert "the link was not measured: 100 Mbit/s" in text
    assert "bfloat16 was not measured" in text
    assert "200 GFLOP/s" in solve(CARD, {"pi": device()}, run_file()).reasons[0]


def test_equal_devices_are_solved_once_and_alike() -> None:
    plan = solve(CARD, {f"c{index:03}": device() for index in range(100)}, run_file())
    assert len({msgspec.structs.replace(client, client="") for client in plan.clients}) == 1


def test_digest_covers_everything_and_plans_survive_json() -> None:
    plan = solve(CARD, {"pi": device()}, run_file())
    other = solve(CARD, {"pi": device()}, run_file(), round=1)
    assert plan.digest != other.digest
    assert len(plan.digest) == 64
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


def test_options_are_ordered_fastest_first() -> None:
    [question] = questions(CARD, {"pi": device()}, run_file()).values()
    options, why_not = options_of(question)
    assert not why_not
    assert [option.key for option in options] == sorted(option.key for option in options)
