"""Memory of devices without torch: what was measured, and rules that hold whatever the constants are."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace

import msgspec
import pytest

from fedsplit import assets
from fedsplit.config.run import ModelSection, RunFile
from fedsplit.devices.find import find
from fedsplit.plan.card import card
from fedsplit.plan.edge import HEAD_BYTES, layer_bytes, streams_head, tokenizer_bytes
from fedsplit.plan.grid import Grid
from fedsplit.plan.memory import client_memory, server_memory
from fedsplit.plan.model import ModelCard
from fedsplit.plan.timing import passes, step_times
from fedsplit.plan.types import Cut, Topology
from fedsplit.plan.work import Work, work_of

BERT = {
    "model_type": "bert", "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12,
    "num_hidden_layers": 6, "vocab_size": 30522, "max_position_embeddings": 512,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 6,
    "num_key_value_heads": 6, "head_dim": 128, "num_hidden_layers": 6, "vocab_size": 4096, "tie_word_embeddings": False,
    "max_position_embeddings": 512,
}  # fmt: skip
PROGRAM = 75_000_000
"""Of the process that was measured: no wire, no tokenizer."""
U, W, LOCAL = Topology.U, Topology.W, Topology.LOCAL
MEASURED = [  # model, topology, cut, bits, rows, tokens, megabytes at the peak: onnxruntime 1.27, x86-64, 2026-11-21
    ("minilm", U, (1, 5), 32, 8, 64, 125),
    ("minilm", U, (1, 5), 32, 16, 128, 233),
    ("minilm", U, (2, 5), 32, 8, 128, 172),
    ("minilm", W, (0, 6), 32, 8, 64, 82),
    ("minilm", W, (0, 6), 32, 16, 128, 104),
    ("pydoc-llama", U, (1, 5), 32, 16, 128, 178),
    ("pydoc-llama", W, (0, 6), 32, 8, 64, 93),
    ("llama", U, (1, 5), 32, 8, 64, 233),
    ("llama", U, (1, 5), 8, 16, 128, 479),
    ("llama", U, (2, 4), 32, 16, 128, 598),
    ("llama", U, (2, 4), 8, 8, 64, 230),
    ("llama", W, (0, 6), 32, 16, 128, 274),
    ("llama", W, (0, 6), 8, 8, 64, 147),
    ("minilm", LOCAL, (6, 6), 32, 8, 128, 197),
    ("minilm", LOCAL, (6, 6), 8, 8, 64, 133),
]


def model(name: str) -> ModelCard:
    if name == "pydoc-llama":
        return card(json.loads((assets.path(name) / "config.json").read_text("utf-8")), "causal-lm")
    return card(BERT, "classification", 6) if name == "minilm" else card(LLAMA, "causal-lm")


def work(name: str, rows: int = 8, tokens: int = 64, bits: int = 32) -> Work:
    asked = model(name)
    section = {"path": "x", "task": asked.task, "max_length": tokens, "edge_bits": bits, "labels": [*"abcdef"]}
    section |= {"labels": []} if asked.task == "causal-lm" else {}
    return work_of(asked, RunFile(model=msgspec.convert(section, ModelSection)), batch=rows, edge=True)


def part(asked: Work, topology: Topology, cut: Cut) -> int:
    """What the process that was measured is predicted to take."""
    return client_memory(asked, topology, cut).total - tokenizer_bytes(asked.card) + PROGRAM


@pytest.mark.parametrize(("name", "topology", "cut", "bits", "rows", "tokens", "megabytes"), MEASURED)
def test_a_measured_peak(
    name: str, topology: Topology, cut: tuple[int, int], bits: int, rows: int, tokens: int, megabytes: int
) -> None:
    assert part(work(name, rows, tokens, bits), topology, Cut(*cut)) == pytest.approx(megabytes * 1e6, rel=0.15)


def test_the_middle_of_what_was_measured() -> None:
    off = []
    for name, topology, cut, bits, rows, tokens, megabytes in MEASURED:
        found = part(work(name, rows, tokens, bits), topology, Cut(*cut))
        off.append(abs(found / (megabytes * 1e6) - 1))
    assert statistics.median(off) < 0.05


def test_rows_of_tokens_and_a_large_head_stay_in_their_file() -> None:
    small = work("llama")
    assert client_memory(small, W, Cut(0, 6)).embedding == tokenizer_bytes(small.card)
    large = replace(small, card=msgspec.structs.replace(small.card, vocab=HEAD_BYTES // (4 * 768) + 1))
    assert streams_head(large)
    assert not streams_head(small)
    assert client_memory(large, W, Cut(0, 6)).head < client_memory(small, W, Cut(0, 6)).head / 1000


def test_fewer_bits_take_less_where_layers_are_held() -> None:
    sizes = [layer_bytes(work("llama", bits=bits)) for bits in (32, 16, 8, 4)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] / sizes[0] == pytest.approx(1.125 / 4, rel=0.01)


def test_the_server_holds_what_it_holds_for_any_device() -> None:
    torch = replace(work("minilm"), edge=False)
    assert server_memory(work("minilm"), U, Cut(1, 5)) == server_memory(torch, U, Cut(1, 5))


def test_layers_are_computed_again_on_the_way_back() -> None:
    edge, device = work("llama"), find("laptop_x86_4core")
    torch = replace(edge, edge=False)
    front = passes(edge, range(2), device, twice=True)[1] - passes(edge, range(2), device)[1]
    both = [step_times(one, U, Cut(2, 6), device, device).device for one in (edge, torch)]
    assert both[0] - both[1] == pytest.approx(front)


@pytest.mark.parametrize("name", ["minilm", "llama"])
@pytest.mark.parametrize("pieces", [1, 2])
def test_arrays_of_cuts(name: str, pieces: int) -> None:
    asked = replace(work(name, bits=8), micro_batches=pieces)
    chosen = [(LOCAL, Cut(6, 6)), (U, Cut(2, 5)), (Topology.V, Cut(3, 6)), (Topology.V, Cut(0, 6)), (W, Cut(0, 6))]
    for one in (asked, replace(asked, ranks=(0, 0, 0, 0, 0, 8))):
        [found] = Grid(works=[one], chosen=chosen).client_MO(accelerator=False)
        assert found.tolist() == [client_memory(one, *choice).total for choice in chosen]
