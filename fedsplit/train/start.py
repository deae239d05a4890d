"""The global state before round 0: first factors and head, drawn by name, so that every start of a run has the same."""

from __future__ import annotations

from fedsplit.config.run import RunFile
from fedsplit.method.record import GlobalState
from fedsplit.split.base import Base
from fedsplit.split.lora import read
from fedsplit.split.segment import Span, build


def first_state(base: Base, run: RunFile) -> GlobalState:
    """LoRA A as peft draws it, B zero, a classification head as the checkpoint has it or new. Loads no weights."""
    outline = build(
        base,
        Span(0, base.num_layers, embeds=True, heads=True),
        task=run.model.task,
        num_labels=len(run.model.labels) or None,
        lora=run.lora,
        weights=False,
    )
    return GlobalState.first(*read(outline.new_params(run.run.seed), outline))
