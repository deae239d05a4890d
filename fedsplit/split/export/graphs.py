"""What a device computes in a step, as functions of tensors alone, each small enough to become one graph.

    embed         e, mask (, types)           → h
    layer         h, mask, factors            → out
    layer_grad    g, h, mask, factors         → g of h, gradients
    head          y, labels, scale (, mask)   → loss, g of y, gradients
    scores        y (, mask)                  → logits
    finish        y                           → out (the last norm, where a large head stays in its file)
    finish_grad   g, y                        → g of y

The layers of a model are alike, so a layer is traced once (once a kind, where kinds alternate) and every layer gets the
same graph with its own weights. Between layers a device keeps hidden states only: backward computes a layer again.
Token embeddings ``e`` are looked up outside, so that the table stays in its file. ``scale`` is 1 / label tokens of the
step. A language model's head sees label positions only, (N, D) and (N,): as many at a time as memory allows.

Legend: B samples, T tokens, N label positions, D model width, C classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsplit.errors import InternalError
from fedsplit.split.export.rows import TracedRows
from fedsplit.split.export.trace import Traced
from fedsplit.split.segment import Segment
from fedsplit.split.span import HEAD, part_of

B, T, N = 5, 7, 11
"""Sizes of the examples: different from one another, and not sizes that models have."""
BATCH, TOKENS, POSITIONS = "batch", "tokens", "positions"
GRAD = "grad:"
"""Prefix of an output that is the gradient of the input of that name."""

Sizes = Mapping[str, Mapping[int, str]]


class Looked(nn.Module):
    """Stands where the token embedding was: gives what the caller looked up, scaled as the original scales."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.padding_idx = getattr(table, "padding_idx", None)
        # The second is a streamed table's name for it.
        self.scale = getattr(table, "scalar_embed_scale", getattr(table, "scale", None))
        self.value: Tensor | None = None

    def forward(self, ids: Tensor) -> Tensor:
        if self.value is None:
            raise InternalError("no embeddings were given")
        return self.value if self.scale is None else self.value * self.scale


class Shapes:
    """Example inputs for one model, and which of their axes vary: images have one size."""

    def __init__(self, segment: Segment) -> None:
        config, self.text = segment.base.config, bool(segment.base.family.vocabulary)
        self.width, self.task = segment.base.hidden_size, segment.task
        self.tokens = T if self.text else (config.image_size // config.patch_size) ** 2 + 1
        self.axes: Mapping[int, str] = {0: BATCH, 1: TOKENS} if self.text else {0: BATCH}
        self.pixels = None if self.text else (B, config.num_channels, config.image_size, config.image_size)

    def hidden(self) -> Tensor:
        return _random(B, self.tokens, self.width)

    def mask(self) -> Tensor:
        mask = torch.ones(B, self.tokens, dtype=torch.int64)
        if self.text:
            mask[1, T - 3 :] = 0
        return mask


def embed(segment: Segment, *, types: bool) -> Traced:
    """From looked-up embeddings (B, T, D), or pixels, to the first layer's input."""
    shapes, family = Shapes(segment), segment.base.family
    if shapes.text:
        path = family.vocabulary.rpartition(".")[0]
        looked = Looked(segment.backbone.get_submodule(path))
        segment.backbone.set_submodule(path, looked)

    def run(e: Tensor, mask: Tensor, *kinds: Tensor) -> tuple[Tensor]:
        if shapes.text:
            looked.value = e
        rows = TracedRows(mask, kinds[0] if kinds else None, None if shapes.text else e)
        h = segment.run(rows, None, {}, layers=(0, 0), train=False)  # type: ignore[arg-type]
        return (h.clone(),)  # a graph's output must not be its input, where a model does nothing more than look up

    if shapes.pixels is not None:
        inputs, sizes = {"e": _random(*shapes.pixels), "mask": shapes.mask()}, dict.fromkeys(("e", "mask"), shapes.axes)
        return Traced(run, inputs, sizes, ["h"])
    inputs = {"e": shapes.hidden(), "mask": shapes.mask()}
    if types:
        inputs["types"] = (torch.arange(T).unsqueeze(0) > torch.arange(1, B + 1).unsqueeze(1)).to(torch.int64)
    return Traced(run, inputs, dict.fromkeys(inputs, shapes.axes), ["h"])


def layer(segment: Segment, index: int, params: Mapping[str, Tensor]) -> Traced:
    """One layer, its factors by their names within the layer."""
    names = factor_names(segment, index)
    inputs, sizes = _layer_inputs(segment, names, params)

    def run(h: Tensor, mask: Tensor, *factors: Tensor) -> tuple[Tensor]:
        return (_layer(segment, index, h, mask, dict(zip(names.values(), factors, strict=True))),)

    return Traced(run, inputs, sizes, ["out"])


def layer_grad(segment: Segment, index: int, params: Mapping[str, Tensor]) -> Traced:
    """The same layer backwards: gradients of its input and of all its factors."""
    names = factor_names(segment, index)
    inputs, sizes = _layer_inputs(segment, names, params)

    def run(g: Tensor, h: Tensor, mask: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_() for value in (h, *factors)]
            out = _layer(segment, index, leaves[0], mask, dict(zip(names.values(), leaves[1:], strict=True)))
            return torch.autograd.grad(out, leaves, g)

    first = {"g": _random(*inputs["h"].shape) * inputs["mask"].unsqueeze(-1)}
    outputs = [GRAD + "h", *(GRAD + name for name in names)]
    return Traced(run, first | inputs, {"g": sizes["h"]} | dict(sizes), outputs)


def scores(segment: Segment, params: Mapping[str, Tensor]) -> Traced:
    """Final norm and head: (N, D) to (N, V) of a language model, else (B, T, D) to (B, C)."""
    names, (inputs, sizes, _) = head_names(segment), _finished(segment)

    def run(*given: Tensor) -> tuple[Tensor]:
        return (_scores(segment, given[: len(inputs)], dict(zip(names, given[len(inputs) :], strict=True))),)

    return Traced(run, inputs | {name: params[name].detach() for name in names}, sizes, ["logits"])


def head(segment: Segment, params: Mapping[str, Tensor]) -> Traced:
    """The head's loss, times ``scale``, with the gradients of its input and of the tensors that train."""
    names, (inputs, sizes, labels) = head_names(segment), _finished(segment)
    trained = [name for name in segment.trainable_names() if name in names]

    def run(labels: Tensor, scale: Tensor, y: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            rest, tensors = given[: len(inputs) - 1], dict(zip(names, given[len(inputs) - 1 :], strict=True))
            tensors |= {name: tensors[name].detach().requires_grad_() for name in trained}
            loss = _loss(segment, _scores(segment, (y, *rest), tensors).float(), labels) * scale
            return loss, *torch.autograd.grad(loss, [y, *(tensors[name] for name in trained)])

    first = {"labels": labels, "scale": torch.tensor(0.25)}
    outputs = ["loss", GRAD + "y", *(GRAD + name for name in trained)]
    given = first | inputs | {name: params[name].detach() for name in names}
    return Traced(run, given, {"labels": {0: sizes["y"][0]}} | dict(sizes), outputs)


def finish(segment: Segment) -> Traced:
    """The last norm, (N, D) to (N, D), of a language model whose head stays in its file."""

    def run(y: Tensor) -> tuple[Tensor]:
        return (segment._finish(y.unsqueeze(0), {}, None).squeeze(0),)

    inputs, sizes, _ = _finished(segment)
    return Traced(run, inputs, sizes, ["out"])


def finish_grad(segment: Segment) -> Traced:
    """The last norm backwards."""

    def run(g: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            return torch.autograd.grad(segment._finish(y.unsqueeze(0), {}, None).squeeze(0), [y], g)

    inputs, sizes, _ = _finished(segment)
    first = {"g": _random(N, inputs["y"].shape[1] + 1)[:, 1:].contiguous()}
    return Traced(run, first | inputs, {"g": sizes["y"]} | dict(sizes), [f"{GRAD}y"])


# ---- names -----------------------------------------------------------------------------------------------------------


def factor_names(segment: Segment, index: int) -> dict[str, str]:
    """Names of a layer's factors: within the layer → in the model."""
    prefix = f"{segment.layers_path}.{index}."
    return {name.removeprefix(prefix): name for name in segment.shapes() if name.startswith(prefix)}


def head_names(segment: Segment) -> list[str]:
    """Tensors of the head that come with a call."""
    family = segment.base.family
    return [name for name in segment.shapes() if part_of(name, family, segment.prefix) == HEAD]


# ---- what runs -------------------------------------------------------------------------------------------------------


def _layer(segment: Segment, index: int, h: Tensor, mask: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    segment._shared = None  # masks of another trace are no tensors of this one
    return segment.run(TracedRows(mask), h, params, layers=(index, index + 1), train=False)  # type: ignore[arg-type]


def _scores(segment: Segment, given: Sequence[Tensor], params: Mapping[str, Tensor]) -> Tensor:
    if segment.task == "causal-lm":
        rows = TracedRows(torch.ones(1, 1, dtype=torch.int64))
        return segment.logits(rows, given[0].unsqueeze(0), params, train=False).squeeze(0)  # type: ignore[arg-type]
    y, mask = given
    return segment.logits(TracedRows(mask), y, params, train=False)  # type: ignore[arg-type]


def _loss(segment: Segment, logits: Tensor, labels: Tensor) -> Tensor:
    if segment.task == "regression":
        return F.mse_loss(logits.view(-1), labels.view(-1), reduction="sum")
    # As log_softmax and a gather: cross_entropy's own backward has no form in ONNX that keeps sizes free.
    return -torch.log_softmax(logits, dim=-1).gather(1, labels.unsqueeze(1)).sum()


# ---- examples --------------------------------------------------------------------------------------------------------


def _layer_inputs(
    segment: Segment, names: Mapping[str, str], params: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Mapping[int, str]]]:
    shapes = Shapes(segment)
    inputs = {"h": shapes.hidden(), "mask": shapes.mask()}
    return inputs | {short: params[name].detach() for short, name in names.items()}, dict.fromkeys(inputs, shapes.axes)


def _finished(segment: Segment) -> tuple[dict[str, Tensor], dict[str, Mapping[int, str]], Tensor]:
    shapes = Shapes(segment)
    if shapes.task == "causal-lm":
        return {"y": _random(N, shapes.width)}, {"y": {0: POSITIONS}}, torch.arange(N)
    inputs = {"y": shapes.hidden(), "mask": shapes.mask()}
    labels = _random(B) if shapes.task == "regression" else torch.arange(B) % 2
    return inputs, dict.fromkeys(inputs, shapes.axes), labels


def _random(*sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(sum(sizes)))
