"""Segments whose frozen matrices have 16, 8 or 4 bits: split like unsplit, the same numbers as stock peft's on the
rounded model, as few bytes as promised."""

from __future__ import annotations

import builtins
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedsplit.config.run import LoraSection
from fedsplit.errors import ConfigError, MissingExtra
from fedsplit.split import fewbits
from fedsplit.split.base import Base, open_base
from fedsplit.split.segment import Segment, Span, build
from fedsplit.split.verify import Case, cases, compare
from fedsplit.testing.models import FAMILIES, tiny

LAYERS = 3
LORA = LoraSection(rank=5, alpha=20, targets=("all-linear",))
MIXED = {0: 4, 1: 8, 2: 16}
LAYER = re.compile(r"(?:layers?|h)\.(\d+)\..*weight$")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def rounded(value: Tensor, bits: int) -> Tensor:
    """With bitsandbytes' codes, the matrix as a whole, and the papers' formulas."""
    functional = pytest.importorskip("bitsandbytes.functional")
    if bits == 4:
        codes, state = functional.quantize_4bit(value, blocksize=64, quant_type="nf4")
        halves = torch.stack([codes.view(-1) >> 4, codes.view(-1) & 15], 1).view(-1)[: value.numel()]
        scales = state.absmax.repeat_interleave(64)[: value.numel()]
        return (functional.get_4bit_type("nf4", "cpu")[halves.long()] * scales).view(value.shape)  # type: ignore[no-any-return]
    if bits == 8:
        codes, most_M, _ = functional.int8_vectorwise_quant(value)
        return codes * (most_M / 127)[:, None]  # type: ignore[no-any-return]
    return value.half().float() if bits == 16 else value


def rounded_folder(folder: Path, target: Path, bits: dict[int, int]) -> Path:
    """The same model, its layers' matrices as they are once they were packed."""
    target.mkdir()
    for file in folder.iterdir():
        target.joinpath(file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        if (found := LAYER.search(name)) and value.dim() == 2:
            tensors[name] = rounded(value, bits.get(int(found[1]), 32)).contiguous()
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def with_bits(case: Case, base: Base, bits: dict[int, int]) -> Case:
    """``case`` of the rounded model, its segments of the model itself with packed matrices."""
    count = base.num_layers
    spans = [Span(0, count, True, True), Span(0, 1, embeds=True), Span(1, 2), Span(2, count, heads=True)]
    spans += [Span(0, 0, embeds=True), Span(0, count), Span(count, count, heads=True)]
    segments = {
        span: build(base, span, task=case.task, num_labels=3, lora=case.lora, dtype=case.dtype, bits=bits)
        for span in spans
    }
    return replace(case, segments=segments)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_splits_to_the_bit_and_learns_as_stock_peft_does_on_the_rounded_model(
    family: str, tmp_path: Path
) -> None:
    folder = tiny(tmp_path / "plain", family, layers=LAYERS)
    base, other = open_base(str(folder)), open_base(str(rounded_folder(folder, tmp_path / "rounded", MIXED)))
    [case, *_] = cases(other, LORA, torch.float32, CPU)
    rows = compare(with_bits(case, base, MIXED), [(0, LAYERS), (1, 2)])
    assert all(row.exact and row.loss_equal for row in rows), rows


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_half_precision_computes_with_the_same_codes(family: str, bits: int, tmp_path: Path) -> None:
    """Numbers are those of float32 rounded to bfloat16 once; a cut changes none."""
    base = open_base(str(tiny(tmp_path, family, layers=LAYERS, dtype=torch.bfloat16)))
    [case, *_] = cases(base, LORA, torch.bfloat16, CPU)
    every = dict.fromkeys(range(LAYERS), bits)
    whole = with_bits(case, base, every).segments
    found = matrix(whole[Span(0, LAYERS, True, True)])
    assert torch.equal(found.values(torch.bfloat16), found.values(torch.float32).bfloat16())
    rows = [compare(replace(case, segments=whole), [cut])[0] for cut in [(0, LAYERS), (1, 2)]]
    assert len({(row.loss_equal, row.max_difference) for row in rows}) == 1


def matrix(segment: Segment) -> fewbits.Packed:
    return next(module for module in segment.model.modules() if isinstance(module, fewbits.FewBits)).packed


@pytest.mark.parametrize(("rows", "width"), [(130, 34), (7, 5), (3, 64), (3, 96), (1, 96)])
@pytest.mark.parametrize("bits", [4, 8])
def test_slabs_give_what_the_whole_matrix_gives(
    rows: int, width: int, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    base = open_base(str(tiny(tmp_path, "llama")))
    stored = next(iter(base.checkpoint.tensors.values()))
    path = tmp_path / "one.bin"
    path.write_bytes(value.numpy().tobytes())
    monkeypatch.setattr(fewbits, "SLAB", 1)
    fewbits._prepare()
    one = replace(stored, file=path, dtype="F32", shape=(rows, width), offset=0, nbytes=4 * value.numel())
    assert torch.equal(fewbits.pack(one, bits, CPU).values(torch.float32), rounded(value, bits))


def test_minilm_takes_a_seventh_of_the_bytes_and_shares_them(minilm: Path) -> None:
    base = open_base(str(minilm))

    def body(bits: int) -> Segment:
        return build(
            base, Span(1, 5), task="classification", num_labels=4, lora=LORA, bits=dict.fromkeys(range(6), bits)
        )

    full, four = body(32), body(4)
    assert four.parameter_bytes / full.parameter_bytes == pytest.approx(0.143, abs=0.001)
    again = body(4)
    assert {p.data_ptr() for p in again.parameters()} == {p.data_ptr() for p in four.parameters()}
    assert body(8).parameter_bytes / full.parameter_bytes == pytest.approx(0.254, abs=0.001)
    assert body(16).parameter_bytes / full.parameter_bytes == pytest.approx(0.501, abs=0.001)


def test_an_unknown_width_and_a_missing_package_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = open_base(str(tiny(tmp_path, "llama")))
    with pytest.raises(ConfigError, match="layer 1: found weights of 3 bits, expected one of"):
        build(base, Span(0, 2), task="causal-lm", bits={1: 3})
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "bitsandbytes":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    monkeypatch.setattr(builtins, "__import__", absent)
    assert build(base, Span(0, 2), task="causal-lm", bits={1: 16}).parameter_bytes
    with pytest.raises(MissingExtra, match=r"fedsplit\[bits\]"):
        build(base, Span(0, 2), task="causal-lm", bits={1: 4})
