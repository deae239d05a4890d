"""``fedsplit new``: a commented run file after three questions, or from flags."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from fedsplit import assets
from fedsplit.config.run import Task
from fedsplit.config.template import template
from fedsplit.data import columnar, images
from fedsplit.data.labels import infer_labels
from fedsplit.data.records import SUFFIXES
from fedsplit.errors import ConfigError, Problem

_TASKS: tuple[str, ...] = get_args(Task)


def new(
    model: Annotated[str, typer.Option(help="A folder, a hub id, minilm or pydoc-llama.")] = "",
    task: Annotated[str, typer.Option(help=f"{', '.join(_TASKS)}.")] = "",
    data: Annotated[str, typer.Option(help="A data file, or a folder with one file a client.")] = "",
    clients: Annotated[int, typer.Option(help="How many clients take part; 0: as many as there are files.")] = 0,
    labels: Annotated[str, typer.Option(help="Class names in the order of their ids, with commas.")] = "",
    name: Annotated[str, typer.Option(help="The run's name.")] = "run",
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("run.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented run file; asks three questions unless flags answer them."""
    if out.exists() and not force:
        raise ConfigError(f"{out} exists; name another with --out, or overwrite it with --force")
    if sys.stdin.isatty() and not (model and task and (data or clients)):
        model = model or typer.prompt("Which model (a folder, a hub id, minilm, pydoc-llama)?", "minilm")
        task = task or typer.prompt(f"What shall it learn ({', '.join(_TASKS)})?", _usual_task(model))
        if not (data or clients):
            answer = typer.prompt(
                "Where is the data (a file, a folder with a file a client), or how many clients?", "3"
            )
            data, clients = ("", int(answer)) if answer.strip().isdecimal() else (answer.strip(), clients)
        if task.endswith("classification") and not labels and not data:
            labels = typer.prompt("Its classes, with commas?")
    _check_flags(model, task, clients)
    text = run_file(model, task, data, clients, labels, name, out.resolve().parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    typer.echo(f"wrote {out}")
    _say_what_next(data, clients, out)


def _usual_task(model: str) -> str:
    return "classification" if "minilm" in model.lower() or "bert" in model.lower() else "causal-lm"


def _check_flags(model: str, task: str, clients: int) -> None:
    problems = []
    if not model:
        problems.append(Problem("--model", "nothing", "a folder, a hub id, minilm or pydoc-llama"))
    if task not in _TASKS:
        problems.append(Problem("--task", task or "nothing", f"one of {', '.join(_TASKS)}"))
    if clients < 0:
        problems.append(Problem("--clients", str(clients), "0 or more"))
    if problems:
        raise ConfigError(problems)


def run_file(model: str, task: str, data: str, clients: int, labels: str, name: str, folder: Path) -> str:
    """The text of a run file that lies in ``folder``; local paths are written relative to it.

    :raises ConfigError: if the answers contradict each other.
    :raises DataError: if the data is wrong.
    """
    files = client_files(Path(data)) if data else []
    if clients and files and len(files) > 1 and clients != len(files):
        found, expected = str(clients), f"{len(files)}, the number of data files in {data}"
        raise ConfigError([Problem("--clients", found, expected, "leave it out")])
    values: dict[str, Mapping[str, Any]] = {
        "run": {"name": name},
        "model": {"path": _local(model, folder), "task": task},
        "rounds": {"clients": clients or max(1, len(files))},
    }
    if task.endswith("classification"):
        given = tuple(one.strip() for one in labels.split(",") if one.strip())
        values["model"] = {**values["model"], "labels": given or _inferred(files)}
        # With the general default a fresh classification head barely moves within a short run.
        values["train"] = {"learning_rate": 3e-3}
    sections = [{"name": one.name.split(".")[0], "data": _local(str(one), folder)} for one in files]
    return template(values, sections if len(files) > 1 or clients == 1 else [])


def _inferred(files: list[Path]) -> tuple[str, ...]:
    if not files:
        fix = "or --data FILE to read them from"
        raise ConfigError([Problem("--labels", "nothing", "the names of the classes, with commas", fix)])
    return infer_labels(files)


def _local(value: str, folder: Path) -> str:
    """A path that exists, relative to ``folder``; anything else as it is."""
    if value in assets.NAMES or not Path(value).exists():
        return value
    try:
        return Path(os.path.relpath(Path(value).resolve(), folder)).as_posix()
    except ValueError:  # Another drive on Windows.
        return Path(value).resolve().as_posix()


def client_files(data: Path) -> list[Path]:
    """The data files of a folder, sorted, one a client; a file, an image or a datasets folder is one by itself.

    :raises ConfigError: if there is nothing to read.
    """
    if not data.exists():
        raise ConfigError([Problem("--data", f"no file or folder {data}", "a data file, or a folder of them")])
    if data.is_file() or columnar.names_a_dataset(data) or images.is_image_folder(data):
        return [data]
    kinds = {one for suffix in SUFFIXES for one in (suffix, suffix + ".gz")}
    found = [one for one in sorted(data.iterdir()) if one.is_file() and _ending(one) in kinds]
    found = [one for one in found if not one.name.endswith("manifest.json")]
    if not found:
        raise ConfigError([Problem("--data", f"no data file in {data}", f"files ending in {' '.join(SUFFIXES)}")])
    return found


def _ending(file: Path) -> str:
    return "".join(file.suffixes[-2:] if file.suffix == ".gz" else file.suffixes[-1:]).lower()


def _say_what_next(data: str, clients: int, out: Path) -> None:
    if data and Path(data).is_file() and clients > 1:
        typer.echo(f"to try it here, cut the data first: fedsplit partition {data} --clients {clients} --out clients")
        typer.echo(f"and name the pieces: fedsplit new --data clients --out {out} --force")
    typer.echo(f"host it:  fedsplit serve {out}")
    if data and not Path(data).is_file():
        typer.echo(f"all here: fedsplit simulate {out}")
