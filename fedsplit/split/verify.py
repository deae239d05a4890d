"""Proof on this machine that the split model is the unsplit model: same loss, same gradients, to the last bit.

The reference is stock transformers and peft: ``get_peft_model(AutoModelFor….from_pretrained(folder))``, one forward
with labels, one backward. Against it stand three segments of our own that pass packed wire tensors to each other. The
comparison is exact on a CPU with the same number of threads; elsewhere the largest difference is reported.

Legend: B samples, T padded tokens, D model width, N valid tokens.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fedsplit.config.run import LoraSection, Task
from fedsplit.errors import ConfigError
from fedsplit.split import loss as losses
from fedsplit.split.base import Base, open_base
from fedsplit.split.placement import device_of
from fedsplit.split.reference import Reference
from fedsplit.split.rows import Rows, pack, unpack
from fedsplit.split.segment import Segment, Span, build, dtype_of
from fedsplit.split.tensors import from_wire, to_wire

LENGTHS = (7, 3, 5)
LABELS = 3


@dataclass(frozen=True)
class VerifyRow:
    """One comparison. ``cut`` is (c1, c2); ``max_difference`` is the largest one of any entry of any gradient."""

    family: str
    task: Task
    padding: str
    cut: tuple[int, int]
    loss_equal: bool
    max_difference: float
    exact: bool


@dataclass(frozen=True)
class Case:
    """What is compared: a model, a task, one batch. ``label_tokens``: loss positions of the batch."""

    base: Base
    task: Task
    lora: LoraSection
    rows: Rows
    labels: Tensor
    label_tokens: int
    padding: str
    dtype: torch.dtype
    device: torch.device
    segments: dict[Span, Segment]

    def segment(self, span: Span) -> Segment:
        """Built once for all cuts and batches that use it."""
        if span not in self.segments:
            self.segments[span] = build(
                self.base,
                span,
                task=self.task,
                num_labels=LABELS,
                lora=self.lora,
                dtype=self.dtype,
                device=self.device,
            )
        return self.segments[span]


def verify(
    base: Base | None = None,
    cuts: Literal["all"] | Sequence[tuple[int, int]] = "all",
    family: str | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    *,
    lora: LoraSection | None = None,
) -> list[VerifyRow]:
    """Compare split with unsplit steps: every supported task, left and right padding, every cut.

    ``base`` None: the model that ships with fedsplit, or with ``family`` a tiny random model of that family (``all``:
    of every one). Raises ConfigError for an unknown family or a cut outside the model.
    """
    if base is not None or family is None:
        return _verify_base(base or open_base("pydoc-llama"), cuts, device, dtype, lora or LoraSection())
    from fedsplit.testing.models import FAMILIES, tiny

    if family != "all" and family not in FAMILIES:
        raise ConfigError(f"--family: found {family!r}, expected all or one of {', '.join(FAMILIES)}")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in FAMILIES if family == "all" else (family,):
            made = open_base(str(tiny(Path(scratch) / name, name)))
            rows += _verify_base(made, cuts, device, dtype, lora or LoraSection(targets=("all-linear",)))
    return rows


def _verify_base(
    base: Base,
    cuts: Literal["all"] | Sequence[tuple[int, int]],
    device: str | torch.device,
    dtype: str,
    lora: LoraSection,
) -> list[VerifyRow]:
    chosen = list(itertools.combinations_with_replacement(range(base.num_layers + 1), 2)) if cuts == "all" else cuts
    for c1, c2 in chosen:
        Span(c1, c2).check(base.num_layers)
    rows = []
    for case in cases(base, lora, dtype_of(dtype), device_of(device)):
        rows += compare(case, chosen)
    return rows


def cases(base: Base, lora: LoraSection, dtype: torch.dtype, device: torch.device) -> Iterable[Case]:
    """One batch of unequal lengths a task and a side of padding; one of images."""
    for task in base.family.heads:
        segments: dict[Span, Segment] = {}
        for padding in ("right", "left") if task != "image-classification" else ("none",):
            rows = _rows(base, padding)
            labels, count = _labels(base, task, rows)
            yield Case(base, task, lora, rows, labels, count, padding, dtype, device, segments)


def compare(case: Case, cuts: Iterable[tuple[int, int]]) -> list[VerifyRow]:
    """One unsplit step against the split step of every cut, with the same trainable tensors."""
    whole = case.segment(Span(0, case.base.num_layers, True, True))
    params = trainables(whole)
    reference = Reference(case.base, case.task, case.lora, case.dtype, case.device, LABELS)
    with dropout_seed(case.device):
        loss, grads = reference.step(case.rows, case.labels, case.label_tokens, params)
    results = []
    for cut in cuts:
        own = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
        with dropout_seed(case.device):
            split_loss = split_step(case, cut, own)
        pairs = [(grads[name].float(), value.grad) for name, value in own.items()]
        worst = max(float((g - h).abs().max()) if h is not None else float("inf") for g, h in pairs)
        equal = torch.equal(loss.float(), split_loss.float())
        exact = equal and all(h is not None and torch.equal(g, h) for g, h in pairs)
        model_type = str(case.base.config.model_type)
        results.append(VerifyRow(model_type, case.task, case.padding, cut, equal, worst, exact))
    return results


@contextmanager
def dropout_seed(device: torch.device) -> Iterator[None]:
    """One stream of masks, drawn in forward order, for the unsplit and for the split step."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(3)
        yield


def trainables(whole: Segment) -> dict[str, Tensor]:
    """Trainable tensors in the middle of training: with B zero as at the start, A would have no gradient."""
    params = whole.new_params(0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for value in params.values():
            value += 0.05 * torch.randn(value.shape).to(value.device)
    return params


def split_step(case: Case, cut: tuple[int, int], params: Mapping[str, Tensor]) -> Tensor:
    """Front, body, tail and back, as three processes do it; ``grad`` accumulates in ``params``. Returns the loss."""
    c1, c2 = cut
    front = case.segment(Span(0, c1, embeds=True))
    body = case.segment(Span(c1, c2)) if c1 < c2 else None
    tail = case.segment(Span(c2, case.base.num_layers, heads=True))
    rows, remote = case.rows, replace(case.rows, ids_BT=None, types_BT=None, pixels=None)
    h1 = front.run(rows, None, params)
    x = y = sent(h1, rows).requires_grad_()
    if body is not None:
        h2 = body.run(remote, x, params)
        y = sent(h2, rows).requires_grad_()
    loss = tail.loss(rows, tail.run(remote, y, params), case.labels, case.label_tokens, params)
    loss.backward()
    if body is not None and h2.requires_grad:
        assert y.grad is not None
        h2.backward(sent(y.grad, rows))
    if h1.requires_grad:
        assert x.grad is not None
        h1.backward(sent(x.grad, rows))
    return loss.detach()


def sent(h_BTD: Tensor, rows: Rows) -> Tensor:
    """A tensor as it arrives: packed to its valid tokens, through the wire's form, unpacked."""
    return unpack(from_wire(to_wire(pack(h_BTD, rows)), h_BTD.device), rows)


def _rows(base: Base, padding: str) -> Rows:
    """Token ids that avoid the special ones (a pad id inside a text would be another text to transformers)."""
    random = torch.Generator().manual_seed(2)
    if padding == "none":
        size, channels = base.config.image_size, base.config.num_channels
        tokens = (size // base.config.patch_size) ** 2 + 1
        return Rows.images(torch.randn(len(LENGTHS), channels, size, size, generator=random), tokens)
    ids = [torch.randint(5, int(base.config.vocab_size), (n,), generator=random).tolist() for n in LENGTHS]
    return Rows.of(ids, pad=base.config.pad_token_id or 0, side=padding)


def _labels(base: Base, task: Task, rows: Rows) -> tuple[Tensor, int]:
    if task == "causal-lm":
        assert rows.ids_BT is not None
        labels = torch.where(rows.mask_BT.bool(), rows.ids_BT, losses.IGNORED)
        labels[torch.arange(len(LENGTHS)), torch.tensor(rows.starts)] = losses.IGNORED  # nothing predicts a first token
        labels[0, rows.starts[0] : rows.starts[0] + 2] = losses.IGNORED  # a prompt, where no loss is wanted
        return labels, losses.label_tokens(labels, rows)
    if task == "regression":
        return torch.linspace(-1, 1, len(LENGTHS)), len(LENGTHS)
    return torch.arange(len(LENGTHS)) % LABELS, len(LENGTHS)
