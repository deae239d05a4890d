"""Codecs in plans: fewer bits where they pay, as many as the policy asks for, the same codec when plans change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedsplit.config.load import loads
from fedsplit.config.run import RunFile
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.errors import ConfigError
from fedsplit.plan.codec import WORTH, with_codecs
from fedsplit.plan.prices import Shelf
from fedsplit.plan.question import options_of, questions
from fedsplit.plan.replan import Standing, replan
from fedsplit.plan.solve import solve
from fedsplit.plan.timing import traffic
from fedsplit.plan.traffic import Known, run_traffic
from fedsplit.plan.types import Topology
from tests.plan.test_fleet import LLAMA

MODEL = '[model]\npath = "llama"\nmax_length = 64\n'
U = '[[clients]]\nname = "pi"\ntopology = "u"\ncut = [1, 3]\n'


def run_file(codecs: str, rest: str = "", before: str = "") -> RunFile:
    return loads(f"{before}{MODEL}[wire]\ncodecs = {codecs}\n{rest}")


def device(bps: float, flops: float = 1e11) -> DeviceProfile:
    return DeviceProfile(
        name="pi", arch="", cores=4, threads=4, flops={"float32": flops}, memory_bandwidth_bps=1e10,
        memory_bytes=2**38, free_memory_bytes=2**38, link=Link(up_bps=bps, down_bps=bps, latency_s=0.001),
    )  # fmt: skip


ALL = '["raw", "bf16", "int8", "int4"]'


@pytest.mark.parametrize(("bps", "codec"), [(1e12, "raw"), (1e3, "int5")])
def test_fewer_bits_where_they_pay(bps: float, codec: str) -> None:
    [plan] = solve(LLAMA, {"pi": device(bps)}, run_file(ALL, U)).clients
    assert (plan.wire_up, plan.wire_down) == (codec, codec)
    assert plan.grad_up == plan.grad_down == ("int3" if codec == "int5" else codec)
    assert any("travel in int5, gradients in int3" in reason for reason in plan.reasons) == (codec == "int5")


def test_the_chosen_codec_is_the_one_with_most_bits_that_is_fast_enough() -> None:
    for bps in (1e5, 3e6, 1e7, 3e7, 1e8, 1e9):
        [plan] = solve(LLAMA, {"pi": device(bps)}, run_file(ALL, U)).clients
        seconds = {}
        for codec in ("raw", "bf16", "int8", "int4"):
            [alone] = solve(LLAMA, {"pi": device(bps)}, run_file(f'["{codec}"]', U)).clients
            assert alone.estimate is not None
            seconds[alone.wire_up] = alone.estimate.step_s
        least = min(seconds.values())
        assert plan.wire_up == next(codec for codec in seconds if seconds[codec] <= (1 + WORTH) * least)


@pytest.mark.parametrize("codec", ["bf16", "int8", "int4"])
def test_grid_and_definition_agree(codec: str) -> None:
    asked = questions(LLAMA, {"pi": device(1e6)}, run_file(f'["{codec}"]', "[policy]\nshares_labels = true\n"))["pi"]
    shelf = Shelf(question=asked)
    [(_, block)] = shelf.blocks([asked])
    options, _ = options_of(asked)
    found = {(one.topology, one.cut): one.times for one in options}
    for column, choice in enumerate(shelf.grid.chosen):
        assert block.times(0, column) == found[choice]
        up, down = traffic(options[0].work, *choice)
        assert (shelf.grid.bytes_O[0][column], shelf.grid.bytes_O[1][column]) == (up, down)


def test_local_plans_have_no_codec() -> None:
    local = U.replace('"u"\ncut = [1, 3]', '"local"')
    [plan] = solve(LLAMA, {"pi": device(1e3)}, run_file('["int8"]', local)).clients
    assert (plan.wire_up, plan.grad_down) == ("raw", "raw")


def test_measuring_counts_hidden_states_in_their_codec() -> None:
    for codec in ("raw", "int4"):
        run = run_file(f'["{codec}"]', U)
        [plan] = solve(LLAMA, {"pi": device(1e6)}, run).clients
        cost = plan.estimate
        assert cost is not None
        assert cost.up_bytes == cost.hidden_bytes * (2 if codec == "raw" else 1) + (
            0 if codec == "raw" else cost.up_bytes - cost.hidden_bytes
        )
        moved = run_traffic(plan, run, Known(eval_rows=plan.batch))
        assert moved.measuring.up_bytes // moved.measurements == pytest.approx(cost.hidden_bytes, rel=0.01)


def test_a_running_client_keeps_its_codec() -> None:
    """A link that got faster would want raw now, but that would be other work."""
    run = run_file(ALL, U)
    [plan] = solve(LLAMA, {"pi": device(1e3)}, run).clients
    assert plan.wire_up == "int5"
    standing = Standing(profile=device(1e12), data=None, plan=plan, agreed=plan)
    assert {one.wire_up for one in replan(LLAMA, run, {"pi": standing}).plan.clients} == {"int5"}
    [fresh] = solve(LLAMA, {"pi": device(1e12)}, run).clients
    assert fresh.wire_up == "raw"


def test_one_codec_is_not_asked_for_twice() -> None:
    asked = questions(LLAMA, {"pi": device(1e3)}, run_file('["int8"]', U))
    assert with_codecs(asked) is asked
    assert replace(asked["pi"]).wire == "int8"
    assert Topology.U in {topology for topology, _ in Shelf(question=asked["pi"]).grid.chosen}


@pytest.mark.parametrize(
    ("codecs", "rest", "words"),
    [
        ("[]", "", "at least one"),
        ('["raw", "raw"]', "", "every codec once"),
        ('["int8"]', "[policy]\nmin_wire_bits = 16\n", "at least policy.min_wire_bits = 16"),
        ('["int4"]', "[policy]\nmin_wire_bits = 4\n", "of 3 bits, expected at least policy.min_wire_bits = 4"),
        ('["zip"]', "", "zip"),
        ('["int5"]', "", "int5"),
        ('["int4"]\ngradient_bits = 2', "", "gradient_bits"),
    ],
)
def test_codecs_that_a_run_cannot_have(codecs: str, rest: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run_file(codecs, rest)


def test_a_cast_to_what_the_model_computes_in_is_refused() -> None:
    with pytest.raises(ConfigError, match="fewer bits than the 16"):
        loads(f'{MODEL}dtype = "bfloat16"\n[wire]\ncodecs = ["bf16"]\n')
