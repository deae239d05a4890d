"""``fedsplit export``: a run's result as a plain peft adapter, or as a complete model."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedsplit import assets
from fedsplit.errors import ConfigError, Problem
from fedsplit.lora.peft_folder import Card
from fedsplit.state.own_adapter import export_own, is_own


def export(
    run: Annotated[
        Path, typer.Argument(help="The folder that fedsplit serve, or on a device fedsplit join, named at its end.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The adapter folder to write.")] = Path("adapter"),
    merge: Annotated[
        Path | None, typer.Option(help="Write the base with the adapter added in, a complete model, to this folder.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="No module has a higher rank; says what that loses.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Numbers of the merged weights; by default those that the run computed with."),
    ] = None,
    round: Annotated[int | None, typer.Option(help="Another round than the best one.")] = None,
    group: Annotated[str, typer.Option(help="Whose adapter, where every group of clients has one.")] = "",
) -> None:
    """Write a run's result: a peft adapter for the untouched base model, or with --merge a model that needs no peft.

    On a device, RUN is the folder that fedsplit join named at its end: what this device computes with, its own factors
    among it. That needs no torch.
    """
    if is_own(run):
        _refuse_on_devices(merge=merge, rank=rank, dtype=dtype, round=round, group=group)
        card = export_own(run, out)
        typer.echo(f"wrote {out} (round {card.round} of {card.run}, {card.client}'s own). Load it with:")
        typer.echo(f"  {load_line(out, card)}")
        return
    from fedsplit.train import exporting

    place = merge or out
    card = exporting.export(run, place, round, group, rank=rank, merge=merge is not None, dtype=dtype)
    typer.echo(f"wrote {place} (round {card.round} of {card.run}). Load it with:")
    typer.echo(f"  {model_line(str(place), card) if merge else load_line(out, card)}")
    if rank is not None and card.lost == 0:
        typer.echo(f"no module has a higher rank than {rank}: nothing was left out")
    if card.lost > 0:
        why = " and ".join(["rank"] * (rank is not None) + ["rounding the weights"] * (merge is not None))
        typer.echo(f"{why} changed what was learnt by {card.lost:.2g} of its length (Frobenius)")


def _refuse_on_devices(**options: object) -> None:
    if given := [name for name, value in options.items() if value not in (None, "")]:
        fix = "leave it out: a device has the end of a run, as one adapter"
        raise ConfigError(
            [Problem(f"--{name}", "a device's folder", "a run directory of a server", fix) for name in given]
        )


def load_line(out: Path, card: Card) -> str:
    """The line of Python that loads an exported adapter."""
    folder = card.model
    with suppress(ConfigError):  # on a device the package with the model need not be installed
        folder = str(assets.path(card.model)) if card.model in assets.NAMES else card.model
    return f'peft.PeftModel.from_pretrained({model_line(folder, card, new_head=True)}, "{out}")'


def model_line(folder: str, card: Card, *, new_head: bool = False) -> str:
    """The line that loads a model. ``new_head``: its config does not say how many labels there are."""
    kinds = {"causal-lm": "CausalLM", "image-classification": "ImageClassification"}
    kind = kinds.get(card.task, "SequenceClassification")
    labels = 1 if card.task == "regression" else len(card.labels)
    count = f", num_labels={labels}" if new_head and kind != "CausalLM" else ""
    return f'transformers.AutoModelFor{kind}.from_pretrained("{folder}"{count})'
