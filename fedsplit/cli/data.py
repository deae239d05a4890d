"""``fedsplit data check``: the rows of a file as the model will see them, and what does not fit."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.text import Text

from fedsplit.cli.tokens import model_folder, tokenizer_of
from fedsplit.config.load import dumps, load, validated
from fedsplit.config.run import RunFile
from fedsplit.data import images
from fedsplit.data.batches import split
from fedsplit.data.examples import IGNORED, Example, Examples, TruncationReport, tokenise
from fedsplit.data.labels import infer_labels
from fedsplit.data.records import describe, records
from fedsplit.data.rows import Row, find_columns, read
from fedsplit.data.tokenizer import Tokenizer
from fedsplit.errors import DataError

app = typer.Typer(help="Show how the rows of a file are read.", no_args_is_help=True)

_SHOWN_CHARS, _BAR, _CLASSES = 600, 24, 20


@app.callback()
def _data() -> None:
    """Show how the rows of a file are read."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A data file or folder.")],
    run: Annotated[Path | None, typer.Option(help="Take everything from this run file.")] = None,
    model: Annotated[
        str, typer.Option(help="A model folder, minilm or pydoc-llama; without it rows are shown as text.")
    ] = "",
    task: Annotated[str, typer.Option(help="causal-lm, classification, regression, image-classification.")] = "",
    labels: Annotated[str, typer.Option(help="Class names in the order of their ids, with commas.")] = "",
    max_length: Annotated[int, typer.Option(help="Longer texts are cut to this many tokens.")] = 0,
    text: Annotated[str, typer.Option(help='The text\'s column, or a template such as "{title}. {body}".')] = "",
    text_pair: Annotated[str, typer.Option(help="The second text's column.")] = "",
    label: Annotated[str, typer.Option(help="The label's column.")] = "",
    prompt: Annotated[str, typer.Option(help="The prompt's column or template.")] = "",
    completion: Annotated[str, typer.Option(help="The completion's column.")] = "",
    messages: Annotated[str, typer.Option(help="The column of conversations.")] = "",
    image: Annotated[str, typer.Option(help="The column of image paths.")] = "",
    rows: Annotated[int, typer.Option(help="How many rows to show.", min=0)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Show parsed rows as the model will see them, counts, what is cut off, and the labels."""
    columns = {"text": text, "text_pair": text_pair, "label": label, "prompt": prompt}
    columns |= {"completion": completion, "messages": messages, "image": image}
    settings = _settings(file, run, model, task, labels, max_length, {k: v for k, v in columns.items() if v})
    found = _Check(file, settings, bool(model or run), rows)
    typer.echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False)) if as_json else found.show()


def _settings(
    file: Path, run: Path | None, model: str, task: str, labels: str, max_length: int, columns: dict[str, str]
) -> RunFile:
    """The run file with the flags laid over it; without one, the flags and what the data itself tells."""
    document: dict[str, Any] = tomllib.loads(dumps(load(run))) if run else {"model": {"path": model or "none"}}
    section: dict[str, Any] = document["model"]
    section |= {"path": model} if model else {}
    section |= {"task": task} if task else {}
    section |= {"max_length": max_length} if max_length else {}
    section |= {"labels": [one.strip() for one in labels.split(",")]} if labels else {}
    if str(section.get("task", "")).endswith("classification") and not section.get("labels"):
        section["labels"] = list(infer_labels([file], columns.get("label", "")))
    document.setdefault("data", {}).update(columns)
    return validated(document, str(run) if run else "the flags")


class _Check:
    """Everything the command shows, gathered once."""

    def __init__(self, file: Path, run: RunFile, has_model: bool, shown: int) -> None:
        self.file, self.run, self.task = file, run, run.model.task
        self.layout = describe(file)
        first = next(records(file))
        self.columns = list(first.fields)
        self.used = dict(find_columns(first, run.data, self.task).names)
        self.first = list(islice(self._rows(), shown))
        self.tokenizer: Tokenizer | None = None
        self.preparation: images.Preparation | None = None
        self.examples: Examples | None = None
        self.report: TruncationReport | None = None
        self.labels: Counter[str] = Counter()
        self.count = 0
        self._read(has_model)

    def _rows(self) -> Iterator[Row]:
        return read(self.file, self.run.data, self.task, self.run.model.labels)

    def _read(self, has_model: bool) -> None:
        if has_model and self.task == "image-classification":
            self.preparation = images.preparation(model_folder(self.run.model.path))
        elif has_model:
            self.tokenizer = tokenizer_of(self.run.model.path)
        if has_model:
            self.examples, self.report = self._tokenised(self._counted(self._rows()))
        else:
            for _ in self._counted(self._rows()):
                pass

    def _tokenised(self, rows: Any) -> tuple[Examples, TruncationReport]:
        model = self.run.model
        return tokenise(
            rows,
            self.tokenizer,
            model.max_length,
            self.task,
            preparation=self.preparation,
            long=self.run.data.long,
        )

    def _counted(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            self.count += 1
            if isinstance(row.label, int):
                self.labels[self.run.model.labels[row.label]] += 1
            yield row

    def show(self) -> None:
        """For people."""
        console = Console(highlight=False)
        # A pipe gets whole lines; only a terminal has a width.
        console.soft_wrap = not console.is_terminal
        console.print(Text.assemble((str(self.file), "bold"), f"  {self.layout}, {self.count:,} rows"))
        used = ", ".join(f"{part} = {column}" for part, column in self.used.items())
        console.print(Text(f"{self.task}: reads {used}  (columns: {', '.join(self.columns)})", style="dim"))
        for row in self.first:
            console.print()
            console.print(Text(_place(row), style="cyan"))
            console.print(self._shown(row, console.is_terminal))
        console.print()
        for line in self._counts():
            console.print(Text(line, style="yellow" if line.startswith("cut") else ""))
        if self.labels:
            _print_histogram(console, [(one, self.labels[one]) for one in self.run.model.labels])

    def _shown(self, row: Row, coloured: bool) -> Text:
        if self.task == "image-classification":
            image = images.decode(row.image, row.file, row.line)
            return Text(f"image {' x '.join(map(str, image.shape))}  label: {self._label(row)}")
        if self.tokenizer is None:
            return _as_text(row, self._label(row))
        try:
            examples, _ = self._tokenised([row])
        except DataError:
            return Text(f"dropped: the prompt alone fills {self.run.model.max_length} tokens", style="yellow")
        shown = Text()
        for example in examples:
            shown.append_text(_coloured(example, self.tokenizer, coloured))
        if row.label is not None:
            shown.append(f"\nlabel: {self._label(row)}", "bold")
        return shown

    def _label(self, row: Row) -> str:
        return self.run.model.labels[row.label] if isinstance(row.label, int) else str(row.label)

    def _counts(self) -> Iterator[str]:
        if self.examples is None or self.report is None:
            yield f"{self.count:,} rows read; name a --model to see tokens and what would be cut"
            return
        lengths, fraction = self.examples.lengths, self.run.data.eval_fraction
        train, held_out = split(len(self.examples), fraction, self.run.run.seed)
        parts = f"{len(train):,} to train on, {len(held_out):,} held out ({fraction:.0%})"
        yield f"{len(self.examples):,} examples: {parts}"
        if self.task != "image-classification":
            middle = int(np.median(lengths))
            yield f"{lengths.sum():,} tokens; an example has {lengths.min():,} to {lengths.max():,}, median {middle:,}"
            yield f"{'fits' if self.report.clean else 'cut'}: {self.report}"
        if self.task == "causal-lm":
            share = float((self.examples.labels != IGNORED).mean())
            yield f"loss on {share:.0%} of the tokens"
        if self.task == "regression":
            values = self.examples.labels
            yield f"numbers from {values.min():g} to {values.max():g}, mean {values.mean():.4g}"

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        shown = []
        for row in self.first:
            one: dict[str, Any] = {"file": row.file, "line": row.line, "label": row.label}
            one |= {} if row.image is not None else {"text": _as_text(row, "").plain}
            shown.append(one)
        made: dict[str, Any] = {"file": str(self.file), "layout": self.layout, "rows": self.count}
        made |= {"task": self.task, "columns": self.columns, "used": self.used, "first": shown}
        made |= {"labels": dict(self.labels)} if self.labels else {}
        if self.report is not None:
            made["truncation"] = asdict(self.report)
        return made


def _place(row: Row) -> str:
    return row.file if isinstance(row.image, str) and row.file == row.image else f"{row.file}:{row.line}"


def _as_text(row: Row, label: str) -> Text:
    """A row without a tokenizer: what is given dim, what is learned green."""
    shown = Text()
    for one in row.messages:
        shown.append(f"{one['role']}: ", "dim")
        shown.append(_short(one["content"]) + "\n", "green" if one["role"] == "assistant" else "")
    if row.text:
        shown.append(_short(row.text))
    if row.pair is not None:
        shown.append(f"\n{_short(row.pair)}")
    if row.completion is not None:
        shown.append(f"\n{_short(row.completion)}", "green")
    if label and row.label is not None:
        shown.append(f"\nlabel: {label}", "bold")
    return shown


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"


def _coloured(example: Example, tokenizer: Tokenizer, coloured: bool) -> Text:
    """Decoded tokens; where the loss is they are green, or stand between ⟦ and ⟧ where there is no colour."""
    shown = Text()
    per_token = isinstance(example.labels, tuple)
    for learned, ids in _runs(example):
        text = _short(tokenizer.decode(ids, special=True))
        mark = learned and not coloured
        shown.append(f"⟦{text}⟧" if mark else text, "green" if learned else "dim" if per_token else "")
    shown.append(f"\n{len(example.ids)} tokens", "dim")
    if isinstance(example.labels, tuple):
        shown.append(f", loss on {sum(one != IGNORED for one in example.labels)}", "dim")
    return shown


def _runs(example: Example) -> Iterator[tuple[bool, Sequence[int]]]:
    """Stretches of neighbouring tokens with or without loss."""
    labels = example.labels if isinstance(example.labels, tuple) else (IGNORED,) * len(example.ids)
    start = 0
    for i in range(1, len(labels) + 1):
        if i == len(labels) or (labels[i] == IGNORED) != (labels[start] == IGNORED):
            yield labels[start] != IGNORED, example.ids[start:i]
            start = i


def _print_histogram(console: Console, labels: Sequence[tuple[str, int]]) -> None:
    most = max(count for _, count in labels)
    width = max(len(name) for name, _ in labels)
    for name, count in labels[:_CLASSES]:
        bar = "█" * round(_BAR * count / most)
        console.print(Text.assemble((f"{name:<{width}} ", "bold"), (f"{bar:<{_BAR}}", "blue"), f" {count:>7,}"))
    if len(labels) > _CLASSES:
        console.print(Text(f"… and {len(labels) - _CLASSES} more classes", style="dim"))
