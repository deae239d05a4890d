"""``fedsplit export``: a run's result as a plain peft adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedsplit.train.exported import Card


def export(
    run: Annotated[Path, typer.Argument(help="The run directory that fedsplit serve named at its end.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The adapter folder to write.")] = Path("adapter"),
    round: Annotated[int | None, typer.Option(help="Another round than the best one.")] = None,
    group: Annotated[str, typer.Option(help="Whose adapter, where every group of clients has one.")] = "",
) -> None:
    """Write a run's result as a plain peft adapter; loads with peft alone on the untouched base model."""
    from fedsplit.train import exported

    card = exported.export(run, out, round, group)
    typer.echo(f"wrote {out} (round {card.round} of {card.run}). Load it with:")
    typer.echo(f"  {load_line(out, card)}")


def load_line(out: Path, card: Card) -> str:
    """The line of Python that loads an exported adapter."""
    from fedsplit.train.exported import model_folder

    kinds = {"causal-lm": "CausalLM", "image-classification": "ImageClassification"}
    kind = kinds.get(card.task, "SequenceClassification")
    count = f", num_labels={1 if card.task == 'regression' else len(card.labels)}" if kind != "CausalLM" else ""
    model = f'transformers.AutoModelFor{kind}.from_pretrained("{model_folder(card.model)}"{count})'
    return f'peft.PeftModel.from_pretrained({model}, "{out}")'
