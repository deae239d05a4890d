"""A policy's topologies and limits: plans keep to them, say so, and a refusal names changes that really help."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import msgspec
import pytest
from families import config_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedsplit.config.load import dumps, validated
from fedsplit.config.run import RunFile
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.devices.units import BYTES, RATES, parse
from fedsplit.errors import PlanError
from fedsplit.plan.card import card
from fedsplit.plan.factors import factor_bytes
from fedsplit.plan.limits import limits_of
from fedsplit.plan.memory import server_total
from fedsplit.plan.question import options_of, questions
from fedsplit.plan.solve import solve
from fedsplit.plan.types import ClientPlan, Topology

CARD = card(config_of("llama", num_hidden_layers=6, vocab_size=4001), "causal-lm")
ALL = ("local", "u", "v", "w")
OPEN = {"shares_labels": True, "exposes_tokens": True}


def device(megabytes: float = 500, flops: float = 1e9, up: float = 1e6, **changes: Any) -> DeviceProfile:
    values: dict[str, Any] = {
        "name": "d", "arch": "aarch64", "cores": 4, "threads": 4, "flops": {"float32": flops},
        "memory_bandwidth_bps": 1e10, "memory_bytes": 2**36, "free_memory_bytes": int(megabytes * 1e6),
        "runtime_bytes": 1_000_000, "link": Link(up_bps=up, down_bps=2 * up, latency_s=0.001),
    }  # fmt: skip
    return DeviceProfile(**(values | changes))


SERVER = device(9000, 2e11, 1e9)


def run_file(policy: dict[str, Any] | None = None, **sections: Any) -> RunFile:
    return validated(
        {"model": {"path": "x", "max_length": 32}, "train": {"batch": 8}, "policy": policy or {}} | sections
    )


def one(profile: DeviceProfile, run: RunFile, **how: Any) -> ClientPlan:
    return solve(CARD, {"pi": profile}, run, **how).clients[0]


def refused(profile: DeviceProfile, run: RunFile, **how: Any) -> str:
    with pytest.raises(PlanError) as caught:
        one(profile, run, **how)
    return str(caught.value)


@pytest.mark.parametrize("topology", ALL)
def test_only_named_topologies_are_planned(topology: str) -> None:
    run = run_file({**OPEN, "topologies": [topology]})
    found = one(device(), run)
    assert found.topology == topology
    assert found.reasons.count(f"policy.topologies leaves only {topology}") == 1
    [question] = questions(CARD, {"pi": device()}, run).values()
    assert {option.topology for option in options_of(question)[0]} == {topology}


def seconds_of_round(found: ClientPlan, profile: DeviceProfile, run: RunFile) -> float:
    assert found.estimate is not None
    assert profile.link is not None
    cost = found.estimate
    moving = cost.factors_up_bytes / profile.link.up_bps + cost.factors_down_bytes / profile.link.down_bps
    return run.train.steps * cost.step_s + moving


@settings(max_examples=40, deadline=None)
@given(st.floats(1e8, 1e12), st.floats(1e4, 1e8), st.floats(0.01, 600))
def test_no_planned_round_is_longer_than_allowed(flops: float, up: float, round_s: float) -> None:
    profile, run = device(flops=flops, up=up), run_file({**OPEN, "round_s": round_s})
    free = one(profile, run_file(OPEN))
    try:
        found = one(profile, run)
    except PlanError:
        assert seconds_of_round(free, profile, run) > round_s
        return
    assert seconds_of_round(found, profile, run) <= round_s * (1 + 1e-9)
    assert any("policy.round_s" in reason for reason in found.reasons)


def test_the_deadline_can_rule_out_the_fastest_step() -> None:
    """All factors over a slow link make a round of few steps long, however fast the steps are."""
    profile = device(flops=1e9, up=1e5)
    run = run_file(OPEN, train={"batch": 1, "steps": 1})
    free = one(profile, run)
    rounds = {t: one(profile, run, allowed={t}) for t in Topology}
    shortest = min(rounds.values(), key=lambda plan: seconds_of_round(plan, profile, run))
    assert free.topology is Topology.LOCAL
    limit = seconds_of_round(shortest, profile, run) * 1.01
    assume_longer = seconds_of_round(free, profile, run)
    assert limit < assume_longer
    found = one(profile, run_file({**OPEN, "round_s": limit}, train={"batch": 1, "steps": 1}))
    assert found.topology is shortest.topology
    assert found.binding == "deadline of the round"


def test_the_server_takes_no_more_than_granted() -> None:
    row = {"batch": 1}
    free = one(device(), run_file({"topologies": ["u"]}, train=row), server=SERVER)
    assert free.estimate is not None
    some = free.estimate.server_memory_bytes + SERVER.runtime_bytes - 1
    found = one(device(), run_file({"topologies": ["u"], "max_server_bytes": some}, train=row), server=SERVER)
    assert found.estimate is not None
    assert found.estimate.server_memory_bytes < free.estimate.server_memory_bytes
    assert found.binding == "policy.max_server_bytes"
    assert any("policy.max_server_bytes" in reason for reason in found.reasons)
    limits = limits_of(run_file({"max_server_bytes": 10_000_000_000}), SERVER)
    assert (limits.server_bytes, limits.server_rule) == (SERVER.budget_bytes, "memory of the server")


def test_all_clients_together_take_no_more_than_granted() -> None:
    fleet = {f"c{n}": device(flops=1e8 + n) for n in range(6)}
    alone = one(device(flops=1e8), run_file({"topologies": ["u"]}), server=SERVER).estimate
    assert alone is not None
    run = run_file({"topologies": ["u"], "max_server_bytes": alone.server_memory_bytes + 1_000_001})
    together = solve(CARD, fleet, run, server=SERVER)
    assert server_total(CARD, together.clients, 4) + SERVER.runtime_bytes <= run.policy.max_server_bytes
    run = run_file({"topologies": ["u"], "max_server_bytes": alone.server_memory_bytes // 5})
    with pytest.raises(PlanError, match=r"binding: policy\.max_server_bytes") as caught:
        solve(CARD, fleet, run, server=SERVER)
    fewer, *ways = proposals(str(caught.value))
    assert fewer == "fewer clients at once"
    assert [way.split(" = ")[0] for way in ways] == ["model.max_length", "policy.max_server_bytes"]
    for way in ways:
        assert solve(CARD, fleet, after(way, SERVER, run)[1], server=SERVER), way
    assert solve(CARD, fleet, run_file({"topologies": ["local"], "max_server_bytes": 1}), server=SERVER)


# ---- what is proposed when nothing fits ------------------------------------------------------------------------------

SETTING = re.compile(r"(\w+)\.(\w+) = (\[[^]]*\]|\"[^\"]*\"|[\w.]+)")


def proposals(text: str) -> list[str]:
    named = re.search(r"smallest change(?: that helps)?: (.*?)(?:\.(?: Not considered|$)|$)", text)
    assert named, text
    return named[1].split(", or ")


def after(way: str, profile: DeviceProfile, run: RunFile) -> tuple[DeviceProfile, RunFile]:
    """The device and the run file once ``way`` was followed to the letter."""
    raw = tomllib.loads(dumps(run))
    for section, key, value in SETTING.findall(re.sub(r"\(now [^)]*\)", "", way)):
        raw[section][key] = tomllib.loads(f"x = {value}")["x"]
    for client in raw["clients"]:
        for key in ("topology", "cut"):
            if re.search(rf"leave the .*{key}.* to the planner", way):
                client.pop(key, None)
        if match := re.match(r"batch = (\d+) .*in the", way):
            client["batch"] = int(match[1])
    if match := re.search(r"a link of (.*?) up and (.*?) down", way):
        up, down = (parse(text, RATES) for text in match.groups())
        assert up
        assert down
        profile = msgspec.structs.replace(profile, link=Link(up_bps=up, down_bps=down, latency_s=0.001))
    if match := re.search(r"([\d.]+ [kMG]?B) (?:of the device's|more) memory", way):
        more = parse(match[1], BYTES)
        assert more
        profile = msgspec.structs.replace(profile, free_memory_bytes=profile.free_memory_bytes + round(more))
    return profile, validated(raw)


CASES: dict[str, tuple[DeviceProfile, dict[str, Any]]] = {
    "deadline": (device(flops=1e9), {"policy": {"round_s": 0.5}}),
    "slow link": (device(8, flops=1e12, up=1e4), {"policy": {"round_s": 20.0}, "train": {"batch": 1}}),
    "deadline beyond the round's end": (
        device(flops=1e7),
        {"policy": {"round_s": 3.0}, "rounds": {"deadline_s": 4.0}},
    ),
    "server": (device(6.5), {"policy": {"topologies": ["u"], "max_server_bytes": 2_000_000}}),
    "topologies": (device(4.0, flops=1e8), {"policy": {**OPEN, "topologies": ["local"]}}),
    "topology with permission": (device(3.2), {"policy": {"topologies": ["local", "u"]}, "train": {"batch": 1}}),
    "front": (device(7.0), {"policy": {"min_front": 5, "topologies": ["u"]}, "train": {"batch": 1}}),
    "batch in pieces": (device(500), {"policy": {"round_s": 1.0}, "train": {"batch": 12, "micro_batches": 3}}),
    "fixed": (device(9.0), {"clients": [{"name": "pi", "topology": "local", "batch": 8}]}),
    "fixed batch": (device(6.2), {"clients": [{"name": "pi", "batch": 512}]}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_proposed_change_makes_a_plan_fit(name: str) -> None:
    profile, sections = CASES[name]
    run = run_file(**{"policy": {}, **sections})
    text = refused(profile, run, server=SERVER)
    ways = proposals(text)
    assert ways
    for way in ways:
        changed, run_after = after(way, profile, run)
        assert (changed, run_after) != (profile, run), way
        assert one(changed, run_after, server=SERVER), way


@settings(max_examples=40, deadline=None)
@given(
    st.floats(2, 40), st.floats(1e8, 1e11), st.floats(1e4, 1e7), st.floats(0.1, 60),
    st.sampled_from([(), ("local",), ("u",), ("local", "u")]), st.sampled_from([0, 2_000_000, 8_000_000]),
)  # fmt: skip
def test_whatever_is_proposed_helps(
    megabytes: float, flops: float, up: float, round_s: float, topologies: tuple[str, ...], server: int
) -> None:
    profile = device(megabytes, flops, up)
    run = run_file({"round_s": round_s, "topologies": list(topologies), "max_server_bytes": server})
    try:
        one(profile, run, server=SERVER)
        assume(False)
    except PlanError as error:
        text = str(error)
    for way in proposals(text):
        changed, run_after = after(way, profile, run)
        assert one(changed, run_after, server=SERVER), way


def test_all_clients_without_a_plan_are_named_at_once() -> None:
    run = run_file({"topologies": ["local"]})
    fleet = {"a": device(3), "b": device(500), "c": device(4, up=1e4), "d": device(4, up=1e4)}
    with pytest.raises(PlanError) as caught:
        solve(CARD, fleet, run)
    head, *lines = str(caught.value).splitlines()
    assert head == "3 of 4 clients have no plan:"
    assert [re.findall(r"no plan for (\w)", line) for line in lines] == [["a"], ["c"], []]
    assert lines[-1].strip() == "and 1 more"


def test_a_late_round_is_explained() -> None:
    text = refused(device(flops=1e9), run_file({"round_s": 2.5}))
    assert "binding: deadline of the round" in text
    assert "a round of 10 steps and its transfer takes" in text
    assert "policy.round_s = " in text
    assert "(now 2.5)" in text
    assert "train.steps = " in text


def test_topologies_that_leave_nothing_are_named() -> None:
    text = refused(device(2.5, flops=1e8), run_file({"topologies": ["local"]}))
    assert "binding: memory of the device" in text
    assert "Not considered: policy.topologies leaves only local." in text


def test_floors_are_not_undercut_by_advice() -> None:
    text = refused(device(6.0), run_file({"min_wire_bits": 32, "min_rank": 8}, train={"batch": 1}))
    assert "bfloat16" not in text
    assert "lora.rank" not in text


def test_the_round_counts_factors_as_they_travel() -> None:
    profile, run = device(), run_file({"round_s": 600.0})
    [question] = questions(CARD, {"pi": profile}, run).values()
    option = options_of(question)[0][0]
    up, down = factor_bytes(option.work, option.topology, option.cut, own_head=False)
    assert profile.link is not None
    assert option.round_s == 10 * option.times.total + (up / profile.link.up_bps + down / profile.link.down_bps)


# ---- what rests on the number of layers ------------------------------------------------------------------------------


def test_keys_that_ask_for_more_layers_are_all_named() -> None:
    run = run_file(
        {**OPEN, "min_front": 6},
        clients=[
            {"name": "a", "topology": "u", "cut": [6, 9]},
            {"name": "b", "topology": "v", "cut": [6, 5 + 2]},
            {"name": "c", "topology": "w", "cut": [0, 4]},
        ],
    )
    text = refused(device(), run)
    assert "the model has 6 layers (binding: policy):" in text
    assert "policy.min_front: found 6, expected at most 5" in text
    assert "clients[0].cut: found [6, 9], expected at most 6" in text
    assert "clients[1].cut: found [6, 7]" in text
    assert "clients[2].cut: found [0, 4], expected c2 = 6 with topology w; write [0, 6]" in text


def test_a_deep_front_is_no_matter_where_nothing_is_split() -> None:
    assert one(device(), run_file({"min_front": 9, "topologies": ["local"]})).topology is Topology.LOCAL
    flat = card(config_of("llama", num_hidden_layers=1), "causal-lm")
    assert solve(flat, {"pi": device()}, run_file()).clients[0].topology is Topology.LOCAL
    with pytest.raises(PlanError, match="u needs a model of at least 2 layers") as caught:
        solve(flat, {"pi": device()}, run_file({"topologies": ["u"]}))
    assert proposals(str(caught.value)) == ['policy.topologies = ["u", "local"] (now ["u"])']


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(1e8, 1e10), min_size=2, max_size=4), st.floats(1, 200))
def test_no_round_of_a_fleet_is_longer_than_allowed(speeds: list[float], round_s: float) -> None:
    fleet = {f"c{n}": device(flops=flops) for n, flops in enumerate(speeds)}
    run = run_file({**OPEN, "round_s": round_s})
    try:
        plan = solve(CARD, fleet, run, server=SERVER)
    except PlanError:
        with pytest.raises(PlanError, match="binding: deadline of the round"):
            solve(CARD, fleet, run, server=SERVER)
        return
    for client in plan.clients:
        assert seconds_of_round(client, fleet[client.client], run) <= round_s * (1 + 1e-9)
