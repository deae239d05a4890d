"""The cost model: the worked example to the MiB, operations, bytes, and what changes them."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from families import config_of

from fedsplit.devices.find import find
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.plan.card import card
from fedsplit.plan.grid import Grid
from fedsplit.plan.memory import SLABS_BYTES, Memory, adapter_bytes, client_memory, disk_bytes, server_memory
from fedsplit.plan.timing import head_s, layers_s, step_times, traffic
from fedsplit.plan.types import Cut, Topology
from fedsplit.plan.work import Work, loss_chunk

MIB = 2**20
LLAMA_1B = card(
    {
        "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128_256, "tie_word_embeddings": True,
    }
)  # fmt: skip
WORK = Work(
    card=LLAMA_1B,
    batch=2,
    tokens=512,
    typical=512,
    valid=512,
    rank=8,
    dtype="bfloat16",
    half_adapters=True,
    padded=False,
    measured_kept=(18.5 * 2048, 2048.0),
)
ONE_FLOPS = DeviceProfile(
    name="one", arch="", cores=1, threads=1, flops={"float32": 1.0, "bfloat16": 1.0}, memory_bandwidth_bps=1e30,
    memory_bytes=2**40, free_memory_bytes=2**40, runtime_bytes=0, link=Link(up_bps=1e6, down_bps=2e6, latency_s=0.25),
)  # fmt: skip


def only(*layers: int) -> tuple[str, ...]:
    return tuple(f"model.layers.{layer}.self_attn.{name}_proj" for layer in layers for name in "qv")


# Rows: weights, embedding, adapters, front, tail, logits, wire, total (MiB) of the worked example in docs/planner.md.
WORKED = [
    (Topology.V, Cut(2, 16), WORK, (232, 501, 1.6, 156, 0, 0, 8), 899),
    (Topology.U, Cut(2, 15), WORK, (348, 501, 2.4, 156, 78, 1252.5, 16), 2354),
    (Topology.U, Cut(2, 15), replace(WORK, bits=4, chunk=128), (87, 501, 2.4, 156, 78, 156.6, 16), 997),
    (Topology.LOCAL, Cut(16, 16), WORK, (1856, 501, 13, 1248, 0, 1252.5, 0), 4871),
    (
        Topology.LOCAL,
        Cut(16, 16),
        replace(WORK, targets=only(12, 13, 14, 15)),
        (1856, 501, 3.3, 312, 0, 1252.5, 0),
        3925,
    ),
    (Topology.LOCAL, Cut(16, 16), replace(WORK, targets=only(0, 15)), (1856, 501, 1.6, 1192, 0, 1252.5, 0), 4803),
]


@pytest.mark.parametrize(("topology", "cut", "work", "terms", "total"), WORKED)
def test_worked_example(topology: Topology, cut: Cut, work: Work, terms: tuple[float, ...], total: int) -> None:
    found = client_memory(work, topology, cut)
    names = ("weights", "embedding", "adapters", "acts_front", "acts_tail", "logits", "wire")
    assert [getattr(found, name) / MIB for name in names] == pytest.approx(terms, abs=0.55)
    assert found.total / MIB == pytest.approx(total, abs=1)


def test_the_closed_forms_come_to_the_same_activations() -> None:
    """Beside 18.5 and 1 units of D they count a scalar a head, one a norm, and what is rank-wide: half a percent."""
    exact = replace(WORK, measured_kept=None)
    assert exact.kept + exact.adapter_kept[1] == pytest.approx(19.5 * 2048, rel=0.005)
    assert exact.kept - 18.5 * 2048 == 2 * (32 + 2)
    assert exact.adapter_kept[1] - 2048 == 2 * 8


def test_operations_of_the_example() -> None:
    """Forward alone: 258 GFLOP in two layers, 538 in the head, 1,675 in thirteen layers."""
    lora = 2 * 2 * 8 * (2048 + 2048 + 2048 + 512) * 1024
    attention = 4 * 512 * 2048 * 1024
    forward = (layers_s(WORK, range(2), ONE_FLOPS) - 3 * lora - 2 * attention) / 2
    assert forward / 1e9 == pytest.approx(258, abs=0.5)
    assert head_s(WORK, ONE_FLOPS) / 2 / 1e9 == pytest.approx(538, abs=0.5)
    assert forward * 6.5 / 1e9 == pytest.approx(1675, abs=2)


def test_bytes_of_a_step() -> None:
    crossing = 2 * 512 * 2048 * 2
    assert traffic(WORK, Topology.U, Cut(2, 15)) == (2 * crossing, 2 * crossing)
    assert traffic(WORK, Topology.W, Cut(0, 16)) == (2 * crossing, crossing)
    assert traffic(WORK, Topology.V, Cut(2, 16)) == (crossing + 8 * 2 * 512, crossing)
    assert traffic(WORK, Topology.LOCAL, Cut(16, 16)) == (0, 0)
    assert traffic(replace(WORK, valid=128), Topology.U, Cut(2, 15))[0] == crossing // 2
    # Nothing in the front trains: its gradient is not asked for.
    assert traffic(replace(WORK, targets=only(5)), Topology.U, Cut(2, 15)) == (2 * crossing, crossing)


def test_a_frozen_front_keeps_nothing_and_a_tail_above_a_training_body_everything() -> None:
    frozen = replace(WORK, targets=only(7))
    found = client_memory(frozen, Topology.U, Cut(2, 15))
    assert found.acts_front == 0
    assert found.acts_tail == round(1024 * 2 * frozen.kept)
    assert server_memory(frozen, Topology.U, Cut(2, 15)).acts_tail == pytest.approx(
        1024 * 2 * 8 * frozen.kept, rel=0.02
    )


def test_latency_and_rates_count_per_message() -> None:
    host = replace_profile(ONE_FLOPS, link=None)
    times = step_times(WORK, Topology.U, Cut(2, 15), ONE_FLOPS, host)
    assert times.latency == (4 + 2) * 0.25
    assert step_times(replace(WORK, micro_batches=2), Topology.U, Cut(2, 15), ONE_FLOPS, host).latency == 2.5
    assert times.up == pytest.approx(2 * 4 * MIB / 1e6)
    assert times.down == pytest.approx(2 * 4 * MIB / 2e6)
    assert step_times(WORK, Topology.U, Cut(2, 15), ONE_FLOPS, host, share=0.5).server == pytest.approx(
        2 * times.server
    )


def test_the_slower_of_two_links_counts() -> None:
    host = replace_profile(ONE_FLOPS, link=Link(up_bps=8e6, down_bps=1e6))
    times = step_times(WORK, Topology.U, Cut(2, 15), ONE_FLOPS, host, link_share=0.5)
    assert times.up == pytest.approx(2 * 4 * MIB / 0.5e6)  # the server receives more slowly than the device sends
    assert times.down == pytest.approx(2 * 4 * MIB / 2e6)


def test_fewer_threads_take_longer() -> None:
    quad = replace_profile(ONE_FLOPS, threads=4)
    slow = step_times(WORK, Topology.LOCAL, Cut(16, 16), quad, ONE_FLOPS, threads=1).device
    assert slow == pytest.approx(4 * step_times(WORK, Topology.LOCAL, Cut(16, 16), quad, ONE_FLOPS).device)


def test_a_slow_memory_bounds_small_batches() -> None:
    starved = replace_profile(ONE_FLOPS, flops={"float32": 1e15}, memory_bandwidth_bps=1e9)
    found = layers_s(replace(WORK, dtype="float32"), range(2), starved)
    assert found == pytest.approx(2 * 2 * LLAMA_1B.layer_params * 4 / 1e9)


def test_segments_add_up_to_the_whole_model() -> None:
    """However it is cut, weights, adapters and activations of client and server together are the local ones."""
    whole = client_memory(WORK, Topology.LOCAL, Cut(16, 16))
    for c1, c2 in ((1, 16), (2, 9), (15, 16)):
        here, there = client_memory(WORK, Topology.U, Cut(c1, c2)), server_memory(WORK, Topology.U, Cut(c1, c2))
        assert here.weights + there.weights == whole.weights
        assert here.adapters + there.adapters == whole.adapters
        assert acts(here) + acts(there) == pytest.approx(acts(whole), abs=2)


def acts(memory: Memory) -> int:
    return memory.acts_front + memory.acts_tail


def test_micro_batches_shrink_activations_but_two_wait_at_once() -> None:
    halves = replace(WORK, micro_batches=2)
    one, two = (client_memory(work, Topology.U, Cut(2, 15)) for work in (WORK, halves))
    assert two.acts_tail * 2 == pytest.approx(one.acts_tail)
    assert two.acts_front == pytest.approx(one.acts_front)


def test_heads_of_classifiers_are_small_and_may_train() -> None:
    bert = card(config_of("bert"), "classification", 5)
    work = Work(card=bert, batch=4, tokens=16, typical=16, valid=16, trains_head=True)
    frozen = replace(work, trains_head=False)
    extra = adapter_bytes(work, Topology.U, Cut(1, 2)) - adapter_bytes(frozen, Topology.U, Cut(1, 2))
    assert extra == 4 * bert.head_params
    assert adapter_bytes(work, Topology.V, Cut(1, 3)) == adapter_bytes(frozen, Topology.V, Cut(1, 3))
    assert client_memory(work, Topology.U, Cut(1, 2)).logits == 4 * 5 * 12


def test_disk_holds_what_the_client_holds_in_the_checkpoints_precision() -> None:
    assert disk_bytes(WORK, Topology.LOCAL, Cut(16, 16)) == 4 * LLAMA_1B.params
    assert disk_bytes(WORK, Topology.W, Cut(0, 16)) == 4 * (LLAMA_1B.params - 16 * LLAMA_1B.layer_params)


def test_large_vocabularies_are_scored_in_slices() -> None:
    assert loss_chunk(LLAMA_1B, 64) == 0
    assert loss_chunk(LLAMA_1B, 1024) == 130
    assert loss_chunk(card(config_of("bert"), "classification", 5), 10**9) == 0


def replace_profile(profile: DeviceProfile, **changes: object) -> DeviceProfile:
    import msgspec

    return msgspec.structs.replace(profile, **changes)


def test_a_checkpointed_layer_keeps_its_input() -> None:
    work = replace(WORK, checkpoint=True)
    found, whole = client_memory(work, Topology.U, Cut(2, 15)), client_memory(WORK, Topology.U, Cut(2, 15))
    hidden_bytes = work.peak_tokens * 2 * work.card.hidden
    assert (found.acts_front, found.acts_tail, found.twice) == (2 * hidden_bytes, hidden_bytes, 3)
    assert found.recompute == pytest.approx(whole.acts_tail - hidden_bytes)
    assert server_memory(work, Topology.U, Cut(2, 15)) == server_memory(WORK, Topology.U, Cut(2, 15))
    frozen = replace(work, targets=("model.layers.15.self_attn.q_proj",))
    assert client_memory(frozen, Topology.U, Cut(2, 16)).recompute == 0
    one = client_memory(work, Topology.V, Cut(1, 16))
    assert one.passing == pytest.approx(client_memory(WORK, Topology.V, Cut(1, 16)).passing)


@pytest.mark.parametrize("accelerator", [False, True])
def test_arrays_of_checkpointed_plans(accelerator: bool) -> None:
    work = replace(WORK, checkpoint=True, micro_batches=2)
    device = msgspec.structs.replace(ONE_FLOPS, runtime_bytes=0 if accelerator else 1)
    chosen = [
        (Topology.LOCAL, Cut(16, 16)),
        (Topology.U, Cut(2, 15)),
        (Topology.V, Cut(3, 16)),
        (Topology.W, Cut(0, 16)),
    ]
    (found,) = Grid(works=[work], chosen=chosen).client_MO(accelerator=accelerator)
    wanted = [client_memory(work, *one).with_holes(work, device) for one in chosen]
    assert found.tolist() == [memory.total - memory.runtime for memory in wanted]


def test_a_large_vocabulary_stays_in_its_file_on_a_cpu_only() -> None:
    live, table = client_memory(WORK, Topology.U, Cut(2, 15)), 128_256 * 2048 * 2
    device = find("laptop_x86_4core")
    gpu = msgspec.structs.replace(device, runtime_bytes=0)
    assert live.with_holes(WORK, gpu).embedding == table
    found = live.with_holes(WORK, device)
    assert (found.embedding, found.head) == (0, live.head)
    assert found.logits == SLABS_BYTES < live.logits
    alone = client_memory(WORK, Topology.V, Cut(2, 16)).with_holes(WORK, device)
    assert (alone.embedding, alone.head, alone.logits) == (0, 0, 0)
    small = replace(WORK, card=msgspec.structs.replace(WORK.card, vocab=32_000))
    assert client_memory(small, Topology.U, Cut(2, 15)).with_holes(small, device).embedding == live.embedding
