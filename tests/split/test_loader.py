"""Only what a span needs is read, from whole or partial folders, whatever the checkpoint calls its tensors."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging

from fedsplit.config.run import LoraSection
from fedsplit.errors import ConfigError, OutOfMemory
from fedsplit.split.base import Base, open_base
from fedsplit.split.checkpoint import PIECE_BYTES, open_checkpoint
from fedsplit.split.loader import read, tensors_for, write_subset
from fedsplit.split.rows import Rows
from fedsplit.split.segment import Span, build
from fedsplit.testing.models import VOCABULARY, tiny

LORA = LoraSection(rank=5)
ROWS = Rows.of([[5, 6, 7, 8], [9, 10, 11]])


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def whole(base: Base) -> Span:
    return Span(0, base.num_layers, True, True)


def logits(base: Base, task: str = "causal-lm", dtype: str = "float32", **options: object) -> torch.Tensor:
    segment = build(base, whole(base), task=task, lora=LORA, dtype=dtype, **options)
    params = segment.new_params(0)
    with torch.no_grad():
        return segment.logits(ROWS, segment.run(ROWS, None, params), params)


def rewrite(folder: Path, rename: dict[str, str]) -> None:
    """Rename tensors of a folder's file by regular expressions."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for pattern, replacement in rename.items():
        tensors = {re.sub(pattern, replacement, name): value for name, value in tensors.items()}
    save_file(tensors, file, metadata={"format": "pt"})


# ---- only what is needed ---------------------------------------------------------------------------------------------


def test_names_of_a_span(tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path, "llama", tie_word_embeddings=True)))
    assert tensors_for(base, Span(0, 0, embeds=True), "causal-lm") == ["model.embed_tokens.weight"]
    assert tensors_for(base, Span(3, 3, heads=True), "causal-lm") == ["model.embed_tokens.weight", "model.norm.weight"]
    body = tensors_for(base, Span(1, 2), "causal-lm")
    assert len(body) == 9
    assert all(name.startswith("model.layers.1.") for name in body)
    assert tensors_for(base, whole(base), "causal-lm") == sorted(base.checkpoint.tensors)


def test_a_segment_reads_its_own_tensors_and_no_other(tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path, "llama", layers=4)))
    segment = build(base, Span(1, 3), task="causal-lm", lora=LORA)
    assert len(base.loaded) == len(tensors_for(base, Span(1, 3), "causal-lm")) == 18
    assert segment.parameter_bytes == sum(
        base.checkpoint.tensors[n].nbytes for n in tensors_for(base, Span(1, 3), "causal-lm")
    )
    assert all(value.data_ptr() % 64 == 0 for value in segment.parameters())
    assert not any(value.requires_grad for value in segment.parameters())


def test_segments_share_what_they_have_in_common(tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path, "llama", tie_word_embeddings=True)))
    front = build(base, Span(0, 2, embeds=True), task="causal-lm")
    tail = build(base, Span(1, 3, heads=True), task="causal-lm")
    assert front.model.model.embed_tokens.weight is tail.model.lm_head.weight
    assert front.model.model.layers[1].mlp.up_proj.weight is tail.model.model.layers[1].mlp.up_proj.weight
    del front, tail
    assert not base.loaded


MEMORY = """
import resource, sys, torch
from fedsplit.split.base import open_base
from fedsplit.split.segment import Span, build
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
base = open_base(sys.argv[1])
kept = [build(base, Span(0, 1), task="causal-lm")]
for span, dtype in ((Span(2, 4), "bfloat16"), (Span(4, 6), "float32")):
    before = peak()
    kept.append(build(base, span, task="causal-lm", dtype=dtype))
    print(peak() - before, kept[-1].parameter_bytes)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the module resource is for Unix")
def test_peak_memory_is_the_segment_not_the_model(tmp_path: Path) -> None:
    sizes = {"hidden_size": 384, "intermediate_size": 1792, "head_dim": 128, "vocab_size": 10_000}
    folder = tiny(tmp_path, "llama", layers=16, **sizes)
    total = (folder / "model.safetensors").stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(folder)], capture_output=True, text=True, check=True, timeout=240
    )
    assert total > 170e6
    for line in done.stdout.splitlines():
        grown, held = map(int, line.split())
        assert held < total / 7
        assert grown < held + 24e6, f"{grown / 1e6:.0f} MB more for a segment of {held / 1e6:.0f} MB"
    assert len(done.stdout.splitlines()) == 2


# ---- partial folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert", "classification")])
def test_a_device_runs_from_the_parts_it_fetched(family: str, task: str, tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path / "whole", family)))
    device = tmp_path / "device"
    device.mkdir()
    shutil.copy(base.folder / "config.json", device)
    for number, span in enumerate((Span(0, 1, embeds=True), Span(2, 3, heads=True))):
        write_subset(base, tensors_for(base, span, task), device / f"part-{number}.safetensors")
    partial = open_base(str(device))
    assert partial.identity == base.identity
    assert sum(file.stat().st_size for file in device.glob("*.safetensors")) < sum(
        s.nbytes for s in base.checkpoint.tensors.values()
    )
    ours, theirs = (build(b, Span(0, 1, embeds=True), task=task, lora=LORA) for b in (partial, base))
    params = ours.new_params(0)
    assert torch.equal(ours.run(ROWS, None, params), theirs.run(ROWS, None, params))
    tail = build(partial, Span(2, 3, heads=True), task=task, lora=LORA)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            tail.new_params(0).values(),
            build(base, Span(2, 3, heads=True), task=task, lora=LORA).new_params(0).values(),
            strict=True,
        )
    )
    with pytest.raises(ConfigError, match=r"found no tensor for \S*layers?\.1\.\S+ .*the folder is incomplete"):
        build(partial, Span(1, 2), task=task, lora=LORA)


def test_a_subset_has_exactly_the_named_tensors_with_their_bytes(tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path / "m", "gpt2", dtype=torch.bfloat16)))
    names = tensors_for(base, Span(1, 2), "causal-lm")
    write_subset(base, names, tmp_path / "part-x.safetensors")
    written, original = load_file(tmp_path / "part-x.safetensors"), load_file(base.folder / "model.safetensors")
    assert sorted(written) == names
    assert all(torch.equal(written[name], original[name]) and written[name].dtype == torch.bfloat16 for name in names)
    with pytest.raises(ConfigError, match="found no tensor nonsense"):
        write_subset(base, ["nonsense"], tmp_path / "part-y.safetensors")


def test_shards_give_the_same_model_and_the_same_identity(tmp_path: Path) -> None:
    one = open_base(str(tiny(tmp_path / "one", "llama")))
    model = AutoModelForCausalLM.from_pretrained(one.folder)
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    many = open_base(str(tmp_path / "many"))
    assert len(many.checkpoint.files) > 2
    assert many.identity == one.identity
    assert torch.equal(logits(many), logits(one))
    save_file({"tok_embeddings.weight": torch.zeros(3)}, many.folder / "consolidated.safetensors")
    assert open_base(str(many.folder)).identity == one.identity
    assert "model.safetensors.index.json" in many.files()
    assert set(one.files()) >= {"config.json", "model.safetensors"}


def test_identity_notices_one_changed_number(tmp_path: Path) -> None:
    folder = tiny(tmp_path, "llama")
    before = open_base(str(folder)).identity
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert open_base(str(folder)).identity != before


# ---- names, dtypes, heads --------------------------------------------------------------------------------------------


def test_old_names_and_absent_prefixes(tmp_path: Path, minilm: Path) -> None:
    plain = logits(open_base(str(tiny(tmp_path / "a", "bert"))), "classification")
    rewrite(
        tiny(tmp_path / "b", "bert"), {r"LayerNorm\.weight": "LayerNorm.gamma", r"LayerNorm\.bias": "LayerNorm.beta"}
    )
    assert torch.equal(logits(open_base(str(tmp_path / "b")), "classification"), plain)
    gpt = logits(open_base(str(tiny(tmp_path / "c", "gpt2"))))
    rewrite(tiny(tmp_path / "d", "gpt2"), {r"^transformer\.": ""})
    assert torch.equal(logits(open_base(str(tmp_path / "d"))), gpt)
    assert "embeddings.word_embeddings.weight" in open_base(str(minilm)).checkpoint.tensors


def test_vit_has_the_names_of_the_hub(tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path, "vit")))
    assert "vit.encoder.layer.0.attention.attention.query.weight" in base.checkpoint.tensors
    assert len(tensors_for(base, Span(1, 2), "image-classification")) == 16


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_dtypes_are_converted_as_transformers_does(stored: torch.dtype, wanted: str, tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path, "llama", dtype=stored)))
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=getattr(torch, wanted))
    with torch.no_grad():
        expected = model(input_ids=ROWS.ids_BT, attention_mask=ROWS.mask_BT).logits
    found = logits(base, dtype=wanted)
    assert found.dtype == expected.dtype
    assert torch.equal(found[ROWS.mask_BT.bool()], expected[ROWS.mask_BT.bool()])


def test_large_tensors_are_converted_piece_by_piece(tmp_path: Path) -> None:
    value = torch.arange(PIECE_BYTES // 2 + 1001).to(torch.bfloat16)
    save_file({"w": value, "x": value[:5].clone()}, tmp_path / "part-w.safetensors")
    stored = open_checkpoint(tmp_path).tensors["w"]
    assert stored.nbytes > PIECE_BYTES
    assert torch.equal(stored.read(torch.float32), value.float())
    assert torch.equal(stored.read(torch.bfloat16), value)
    assert sum(map(len, stored.pieces())) == stored.nbytes


def test_a_trained_head_is_kept_and_a_missing_one_drawn(tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path / "b", "bert", num_labels=3)))
    tail = Span(3, 3, heads=True)
    kept = build(base, tail, task="classification").new_params(0)
    assert torch.equal(kept["classifier.weight"], load_file(base.folder / "model.safetensors")["classifier.weight"])
    other = build(base, tail, task="classification", num_labels=7).new_params(0)
    assert other["classifier.weight"].shape == (7, 24)
    assert 0.01 < float(other["classifier.weight"].detach().std()) < 0.03
    assert not other["classifier.bias"].any()
    lm = open_base(str(tiny(tmp_path / "l", "llama")))
    assert list(build(lm, tail, task="classification", num_labels=4).new_params(0)) == ["score.weight"]


def test_a_missing_pooler_trains_with_the_head(tmp_path: Path) -> None:
    folder = tiny(tmp_path, "bert")
    tensors = {n: t for n, t in load_file(folder / "model.safetensors").items() if "pooler" not in n}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    segment = build(
        open_base(str(folder)), Span(3, 3, heads=True), task="classification", lora=LoraSection(targets=("all-linear",))
    )
    assert [name for name in segment.trainable_names() if "pooler" in name] == [
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
    ]


def test_a_fine_tuned_classifier_predicts_as_in_transformers(tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path, "roberta")))
    model = AutoModelForSequenceClassification.from_pretrained(base.folder).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.where(ROWS.mask_BT.bool(), ROWS.ids_BT, 1), attention_mask=ROWS.mask_BT).logits
    assert torch.equal(logits(base, "classification"), expected)


def test_streamed_vocabulary_gives_the_same_numbers(tmp_path: Path) -> None:
    for family in ("llama", "gemma", "gpt2"):
        base = open_base(str(tiny(tmp_path / family, family)))
        segment = build(base, Span(0, 0, embeds=True), task="causal-lm", map_embedding=True)
        plain = build(base, Span(0, 0, embeds=True), task="causal-lm")
        assert torch.equal(segment.run(ROWS, None, {}), plain.run(ROWS, None, {}))
        matrix = VOCABULARY * base.hidden_size * 4
        assert plain.parameter_bytes - segment.parameter_bytes == matrix
        assert torch.allclose(logits(base, map_embedding=True), logits(base), atol=1e-5)


# ---- what is refused -------------------------------------------------------------------------------------------------


def refuse(folder: Path | str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        open_base(str(folder))


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    refuse(tmp_path, "found no config.json")
    refuse(tmp_path / "absent", "found no folder")
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    refuse(tmp_path, "found 'mamba', expected one of llama, mistral, .*bert, roberta, vit")
    (tmp_path / "config.json").write_text("{")
    refuse(tmp_path, "not JSON")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    refuse(tmp_path, r"found no safetensors file \(other weights: pytorch_model.bin\)")


def test_damaged_weights(tmp_path: Path) -> None:
    folder = tiny(tmp_path, "llama")
    file = folder / "model.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-10])
    refuse(folder, "tensor .* is cut short; download")
    file.write_bytes(good[:5])
    refuse(folder, "not a safetensors file, or cut short")
    file.write_bytes(good[:8] + b"?" + good[9:])
    refuse(folder, "the header is not JSON")


def test_weights_of_another_config_are_named(tmp_path: Path) -> None:
    folder = tiny(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 36}))
    refuse(folder, r"tensor model\.layers\.0\.mlp\.down_proj\.weight has shape \(24, 34\), config.json says \(24, 36\)")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path, "bert")))
    with pytest.raises(ConfigError, match="found cuda:1, this machine has no CUDA device"):
        build(base, whole(base), task="classification", device="cuda:1")


def test_a_tensor_too_large_for_any_memory(tmp_path: Path) -> None:
    stored = next(iter(open_base(str(tiny(tmp_path, "bert"))).checkpoint.tensors.values()))
    huge = replace(stored, shape=(1 << 55,))
    with pytest.raises(OutOfMemory, match=r"out of memory: a tensor of model.safetensors on cpu needs [\d,]+ MB"):
        read(huge, torch.float32, torch.device("cpu"))


def test_impossible_requests(tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path, "bert")))
    for options, match in (({"dtype": "int3"}, "found 'int3', expected one of"), ({"device": "tpu0"}, "found 'tpu0'")):
        with pytest.raises(ConfigError, match=match):
            build(base, whole(base), task="classification", **options)
    with pytest.raises(ConfigError, match="found 'causal-lm', a bert model does 'classification' or 'regression'"):
        build(base, whole(base), task="causal-lm")
    with pytest.raises(ConfigError, match=r"layers \[2, 5\) are not within the model's \[0, 3\)"):
        build(base, Span(2, 5), task="classification")
    for span in (whole(base), Span(0, 0, embeds=True)):
        with pytest.raises(ConfigError, match=r"found q_proj .*expected all-linear or some of .*query"):
            build(base, span, task="classification", lora=LoraSection(targets=("q_proj",)))
