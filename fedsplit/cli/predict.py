"""``fedsplit predict``: ask the fine-tuned model, here or through the split."""

from __future__ import annotations

from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from fedsplit.devices.find import find

if TYPE_CHECKING:
    from fedsplit.exchange.predict import Prediction, Predictor


def predict(
    source: Annotated[str, typer.Argument(help="An adapter folder, or a server's 'fedsplit://…'")],
    texts: Annotated[list[str], typer.Argument(help="What to ask, one text or more.")],
    tokens: Annotated[int, typer.Option(help="How many tokens a language model adds at most.")] = 40,
    model: Annotated[str, typer.Option(help="The base model's folder, when it is not where the run had it.")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    name: Annotated[str, typer.Option(help="Through the split: your name; by default this machine's.")] = "",
    topology: Annotated[str, typer.Option(help="Through the split: insist on local, u, v or w.")] = "",
    profile: Annotated[str, typer.Option(help="Through the split: a device profile instead of this machine's.")] = "",
    backend: Annotated[str, typer.Option(help="Through the split: what computes, torch or edge.")] = "",
    state: Annotated[Path | None, typer.Option(help="Through the split: folder for keys and state.")] = None,
    json: Annotated[bool, typer.Option("--json", help='{"predictions": [...]}')] = False,
) -> None:
    """Ask the fine-tuned model. Through the split, the texts are turned into hidden states here."""
    with ExitStack() as stack:
        if source.startswith("fedsplit://"):
            from fedsplit_client.remote import remote_predictor

            predictor = stack.enter_context(
                remote_predictor(
                    source,
                    name=name,
                    topology=topology,
                    model=model,
                    profile=find(profile) if profile else None,
                    device=device,
                    backend=backend,
                    state=state,
                )
            )
        else:
            predictor = _from_folder(Path(source), model, device)
        found = [predictor(text, tokens) for text in texts]
    if json:
        rows = [{"text": text, **_plain(one)} for text, one in zip(texts, found, strict=True)]
        typer.echo(msgspec.json.encode({"predictions": rows}).decode())
        return
    for text, one in zip(texts, found, strict=True):
        typer.echo(f"{_shown(text)}  →  {_words(one)}")


def _from_folder(folder: Path, model: str, device: str) -> Predictor:
    from fedsplit.errors import ConfigError, MissingExtra

    if find_spec("torch") is None:
        instead = "fedsplit predict 'fedsplit://…' asks a server, without it"
        raise MissingExtra(f"torch, which a model from a folder needs ({instead}),", "torch")
    from fedsplit.exchange.predict import Predictor
    from fedsplit.split.base import open_base
    from fedsplit.split.placement import device_of
    from fedsplit.train.exported import model_folder, read_card, read_peft
    from fedsplit.train.predict import local_logits
    from fedsplit.train.tokenizer import load_tokenizer

    device_of(device)
    card = read_card(folder)
    base = open_base(model_folder(model or card.model))
    if base.identity != card.base:
        raise ConfigError(f"{folder} was trained on another base than {model or card.model}; give its folder: --model")
    exported = read_peft(folder, base, card.task)
    logits = local_logits(base, exported, device)
    return Predictor(card.task, card.labels, card.max_length, load_tokenizer(base.folder), logits)


def _plain(one: Prediction) -> dict[str, object]:
    fields = {"scores": one.scores, "value": one.value, "completion": one.text}
    return {name: value for name, value in fields.items() if value is not None}


def _words(one: Prediction) -> str:
    if one.scores is not None:
        return ", ".join(f"{label} {share:.0%}" for label, share in list(one.scores.items())[:3])
    return f"{one.value:.4g}" if one.value is not None else str(one.text)


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "…"
