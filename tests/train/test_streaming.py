"""A client leaves a large vocabulary in its file: the same loss, without the memory."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fedsplit.config.run import LoraSection, ModelSection, RunFile
from fedsplit.plan.streaming import STREAM_BYTES, streams
from fedsplit.plan.types import ClientPlan, Cut, LayerPlan, Topology
from fedsplit.split.base import open_base
from fedsplit.split.checkpoint import encode_header
from fedsplit.split.rows import Rows
from fedsplit.split.streamed import StreamedEmbedding, StreamedLinear
from fedsplit.testing.models import tiny
from fedsplit.train.batch import Batch
from fedsplit.train.part import ClientPart
from fedsplit.train.start import first_state

WIDTH, VOCABULARY = 24, 3_000_000
EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("vocabulary", "hidden", "width", "expected"),
    [
        (30_522, 384, 4, False),  # MiniLM
        (50_257, 768, 4, False),  # GPT-2
        (49_152, 576, 4, False),  # SmolLM 135M
        (128_256, 2048, 2, True),  # Llama 3.2 1B in bfloat16
        (151_936, 896, 4, True),  # Qwen2.5 0.5B in float32
        (256_000, 2048, 2, True),  # Gemma 2B
    ],
)
def test_what_is_large(vocabulary: int, hidden: int, width: int, expected: bool) -> None:
    assert streams(vocabulary, hidden, width) is expected


def test_the_edge() -> None:
    assert not streams(STREAM_BYTES // 4, 1, 4)
    assert streams(STREAM_BYTES // 4 + 1, 1, 4)


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A tiny tied Llama with a vocabulary of millions whose embedding is zero: a hole in the file."""
    folder = tiny(tmp_path / "wide", "llama", layers=2, tie_word_embeddings=True)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": VOCABULARY}), "utf-8")
    file = folder / "model.safetensors"
    with safe_open(str(file), "pt") as stored:
        tensors = {name: stored.get_tensor(name).clone() for name in stored.keys() if name != EMBEDDING}  # noqa: SIM118
    header: dict[str, object] = {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    size = 4 * WIDTH * VOCABULARY
    header[EMBEDDING] = {"dtype": "F32", "shape": [VOCABULARY, WIDTH], "data_offsets": [offset, offset + size]}
    with file.open("wb") as stream:
        stream.write(encode_header(header))
        for tensor in tensors.values():
            stream.write(tensor.numpy().tobytes())
        stream.truncate(stream.tell() + size)
    return folder


def part(folder: Path, topology: Topology, cut: Cut) -> ClientPart:
    base = open_base(str(folder))
    run = RunFile(model=ModelSection(path=str(folder)), lora=LoraSection(rank=2, alpha=2.0))
    held = [(i, "server" if cut.c1 <= i < cut.c2 else "client") for i in range(base.num_layers)]
    layers = tuple(LayerPlan(layer=layer, place=place) for layer, place in held)
    one = ClientPart(base, ClientPlan(client="c", topology=topology, cut=cut, layers=layers, batch=2), run)
    state = first_state(base, run)
    one.load(state.adapter, state.head)
    return one


def test_a_client_streams_what_is_large(wide: Path) -> None:
    one = part(wide, Topology.W, Cut(0, 2))
    assert isinstance(one.first.backbone.embed_tokens, StreamedEmbedding)
    assert isinstance(one.last.model.lm_head, StreamedLinear)
    assert one.first.parameter_bytes + one.last.parameter_bytes < 1000
    ids = [[5, VOCABULARY - 1, 7], [VOCABULARY // 2, 9]]
    rows = Rows.of(ids)
    assert rows.ids_BT is not None
    labels = torch.where(rows.mask_BT.bool(), rows.ids_BT, -100)
    assert one.front(rows).abs().max() == 0
    h_BTD = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = one.tail_loss(Batch(rows, labels, 3), h_BTD, 3)
    loss.backward()
    # All logits are zero, so every word is as likely as any other and nothing pulls at the states.
    assert float(loss.detach()) == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert h_BTD.grad is not None
    assert h_BTD.grad.abs().max() == 0


def test_a_client_keeps_what_is_small(tmp_path: Path) -> None:
    one = part(tiny(tmp_path / "small", "llama", layers=2), Topology.W, Cut(0, 2))
    assert not isinstance(one.first.backbone.embed_tokens, StreamedEmbedding)
    assert not isinstance(one.last.model.lm_head, StreamedLinear)
