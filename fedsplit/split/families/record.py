"""What a model family is: where its parts are and how they are called. Data and plain functions, no inheritance.

Paths are relative to the backbone (``model``, ``bert``, ``transformer``, ``vit``: the part a task's head sits on),
heads are relative to the whole model. Names are those of the installed transformers, hence peft's.
Legend: B samples, T padded tokens, D model width, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fedsplit.config.run import Task
from fedsplit.split.rows import Rows

Context = Mapping[str, Any]
"""What the layers of one pass share: masks, positions, rotary tables."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """``embed(backbone, rows)``, ``context(backbone, config, rows, h)``, ``layer(module, h, context, index)`` and
    ``head(model, backbone, h, rows, task)`` do by hand what the family's ``forward`` does in one go."""

    name: str
    model_types: tuple[str, ...]
    heads: Mapping[Task, tuple[str, ...]]
    """Supported tasks, and the modules outside the backbone that each needs."""
    layers: str
    """The list of layers."""
    embeddings: tuple[str, ...]
    final: tuple[str, ...]
    """What comes between the last layer and the head."""
    targets: tuple[str, ...]
    """Where LoRA goes by default: the attention's query and value projections."""
    renames: tuple[tuple[str, str], ...] = ()
    """Regular expressions from names in old checkpoints to today's, all applied in order."""
    vocabulary: str = ""
    """The token embedding matrix; ``lm_head`` shares it where the config says so. Empty: no tokens."""
    embed: Callable[[nn.Module, Rows], Tensor] = field(repr=False)
    context: Callable[[nn.Module, Any, Rows, Tensor], Context] = field(repr=False)
    layer: Callable[[nn.Module, Tensor, Context, int], Tensor] = field(repr=False)
    finish: Callable[[nn.Module, Tensor], Tensor] = field(repr=False)
    """The final norm, over all positions."""
    head: Callable[[Any, Any, Tensor, Rows, Task], Tensor] = field(repr=False)
    """From finished hidden states (B, T, D) to logits: (B, T, V), or (B, C)."""
