"""``fedsplit fit MODEL``: will it fit, in which topology, how long a step, how many bytes; which devices could join.

From ``config.json`` alone, before any weight is downloaded: every device gets the plan that a run with default
settings would give it, alone with the server. No torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import msgspec
import typer
from msgspec import Struct
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsplit.cli.gathered import Gathered
from fedsplit.cli.plan import config_file, read_config, this_machine
from fedsplit.config.run import ModelSection, RoundsSection, RunFile, Task, TrainSection
from fedsplit.devices.find import find, names
from fedsplit.devices.profile import DeviceProfile
from fedsplit.devices.units import duration, size
from fedsplit.errors import ConfigError, PlanError, Problem
from fedsplit.plan.card import ModelCard, card
from fedsplit.plan.options import describe
from fedsplit.plan.solve import solve
from fedsplit.plan.types import ClientPlan

TASKS = {"bert": "classification", "roberta": "classification", "vit": "image-classification"}
"""What a family is used for when nobody says; the others are language models."""


class Answer(Struct, frozen=True, kw_only=True):
    """One device: its plan, or why it has none."""

    device: str
    budget_bytes: int
    plan: ClientPlan | None = None
    reason: str = ""


def fit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, config.json, hub id, or a shipped model.")],
    device: Annotated[str, typer.Option("--device", help="One profile; default: all of the shelf.")] = "",
    here: Annotated[bool, typer.Option("--here", help="This machine, as measured by `fedsplit profile`.")] = False,
    task: Annotated[str, typer.Option(help="Default: what the model's family is used for.")] = "",
    batch: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 8,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a row, at most.")] = 256,
    server: Annotated[str, typer.Option("--server", help="Profile of the server's machine.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the answers as JSON.")] = False,
) -> None:
    """Say, from config.json alone, which devices could train a model, in which topology, and what a step costs."""
    if here and device:
        raise ConfigError([Problem("--here", f"together with --device {device}", "one of the two", "drop one")])
    gathered = Gathered()
    known = gathered.take("", lambda: _card(model, task))
    machine = gathered.take("--device", this_machine if here else lambda: find(device)) if here or device else None
    host = gathered.take("--server", lambda: find(server)) if server else None
    gathered.refuse()
    assert known is not None
    found, chosen = known
    devices = [machine] if machine else _shelf()
    run = RunFile(
        model=ModelSection(path=model, task=chosen, max_length=length),
        train=TrainSection(batch=batch),
        rounds=RoundsSection(clients=1),
    )
    answers = [_answer(found, profile, run, host) for profile in devices]
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode({"params": found.params, "devices": answers})).decode())
    else:
        _print(model, found, answers, run, server)


def _card(model: str, task: str) -> tuple[ModelCard, Task]:
    """The card for ``task``, or for what the model's family is used for."""
    path = config_file(model, Path())
    config = read_config(path)
    chosen = cast("Task", task or TASKS.get(str(config.get("model_type")), "causal-lm"))
    return card(config, chosen, source=str(path)), chosen


def _shelf() -> list[DeviceProfile]:
    """Every curated device that is no server."""
    return [find(name) for name in names() if not name.startswith("server_")]


def _answer(model: ModelCard, device: DeviceProfile, run: RunFile, server: DeviceProfile | None) -> Answer:
    try:
        plan = solve(model, {device.name: device}, run, server=server).clients[0]
    except PlanError as error:
        return Answer(device=device.name, budget_bytes=device.budget_bytes, reason=str(error))
    return Answer(device=device.name, budget_bytes=device.budget_bytes, plan=plan)


def _print(model: str, found: ModelCard, answers: list[Answer], run: RunFile, server: str) -> None:
    console = Console(highlight=False)
    title = f"{model}: {found.family}, {found.params / 1e6:,.1f} M parameters in {found.num_layers} layers"
    console.print(Text(title, style="bold"), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", padding=(0, 1, 0, 0))
    for header in ("device", "plan", "memory", "a step", "up", "down"):
        table.add_column(header, justify="left" if header in ("device", "plan") else "right", no_wrap=True)
    for answer in answers:
        table.add_row(Text(answer.device, style="bold"), *_cells(answer))
    console.print(table)
    fitting = sum(answer.plan is not None for answer in answers)
    at = f"server: {server}" if server else "server: not given, 200 GFLOP/s assumed"
    shape = f"{run.train.batch} rows of {found.tokens or min(run.model.max_length, found.max_tokens)} tokens"
    for line in (f"{fitting} of {len(answers)} devices could join", f"{shape}, {run.model.task}, {at}; bytes a step"):
        console.print(Text(line, style="dim"), soft_wrap=True)
    for answer in answers:
        if answer.reason and len(answers) == 1:
            console.print(Text(answer.reason), soft_wrap=True)


def _cells(answer: Answer) -> tuple[Any, ...]:
    if answer.plan is None or answer.plan.estimate is None:
        return Text("does not fit", style="red"), f"– of {size(answer.budget_bytes)}", "–", "–", "–"
    plan, cost = answer.plan, answer.plan.estimate
    memory = f"{size(cost.memory_bytes)} of {size(answer.budget_bytes)}"
    up, down = size(cost.up_bytes), size(cost.down_bytes)
    return describe(plan.topology, plan.cut), memory, duration(cost.step_s), up, down
