"""``fedsplit bench quality``: what training together reaches on real data, every party a process, over encrypted TCP.

Two tasks, each with four clients in mixed topologies (local, two times u, w):

* ``e2e``: a small language model learns to write restaurant descriptions (E2E NLG; columns ``mr`` and ``ref``).
* ``ag_news``: MiniLM sorts news into four topics (AG News; columns ``text`` and ``label``), labels split unevenly.

The data sets do not ship: ``--data`` names a folder with ``e2e_nlg/`` and ``ag_news/``, each with ``train.jsonl.gz``
and ``test.jsonl.gz``, and for ``e2e`` ``models/stories260k`` (docs/data.md says where to get them).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from fedsplit.cli.bench_table import Row
from fedsplit.cli.display import Display
from fedsplit.cli.place import Device, check_device
from fedsplit.cli.simulate import run_processes
from fedsplit.config.load import loads
from fedsplit.data.partition import Law, Request, partition
from fedsplit.errors import ConfigError, DataError, Problem


@dataclass(frozen=True, kw_only=True)
class Task:
    """One comparison. ``goal``: what the metric must reach; ``test_rows``: how many rows of the test file it is on."""

    name: str
    folder: str
    model: str
    settings: str
    law: Law
    metric: str
    goal: float
    rounds: int
    steps: int
    test_rows: int
    bits: int = 32


TASKS = {
    "e2e": Task(
        name="e2e",
        folder="e2e_nlg",
        model="models/stories260k",
        settings="""
[model]
path = "{model}"
task = "causal-lm"
max_length = 256
[data]
text = "{{mr}}\\n{{ref}}"
eval_fraction = 0.005
[lora]
rank = 8
alpha = 16.0
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
[train]
rounds = {rounds}
steps = {steps}
batch = 16
learning_rate = 0.01
schedule = "cosine"
clip = 1.0
[evaluate]
every = {every}
""",
        law="iid",
        metric="perplexity",
        goal=3.0,
        rounds=20,
        steps=15,
        test_rows=512,
    ),
    "ag_news": Task(
        name="ag_news",
        folder="ag_news",
        model="minilm",
        settings="""
[model]
path = "{model}"
task = "classification"
labels = ["World", "Sports", "Business", "Sci/Tech"]
max_length = 64
[data]
text = "text"
label = "label"
eval_fraction = 0.01
[lora]
rank = 8
alpha = 16.0
targets = ["query", "value", "intermediate.dense", "output.dense"]
[train]
rounds = {rounds}
steps = {steps}
batch = 16
learning_rate = 0.004
schedule = "linear"
warmup_steps = 10
clip = 1.0
[evaluate]
every = {every}
metric = "loss"
""",
        law="dirichlet",
        metric="accuracy",
        goal=0.86,
        rounds=20,
        steps=10,
        test_rows=2000,
    ),
}
NAMES = ("laptop", "nuc", "mini", "pi")
LAYERS = {"models/stories260k": 5, "minilm": 6}
RUN = """
[run]
name = "{name}"
dir = "{folder}/run"
[rounds]
clients = 4
deadline_s = 1800.0
[policy]
exposes_tokens = true
[server]
bits = {bits}
"""
CLIENT = """
[[clients]]
name = "{name}"
data = "{data}"
topology = "{topology}"
{cut}
"""


def rows(
    *,
    data: Path = Path("data"),
    task: str = "all",
    rounds: int = 0,
    seed: int = 0,
    test_rows: int = 0,
    bits: int = 32,
    device: Device = "cpu",
) -> Sequence[Row]:
    """Train four clients in mixed topologies on real data and measure the global adapter on the test file.

    ``data``: the folder with the data sets. ``task``: e2e, ag_news or all. ``rounds``: fewer, to try it out. ``bits``:
    of the matrices in the body; the adapter is measured on the model as it is in its files.
    """
    check_device(device)
    some = [replace(one, rounds=rounds or one.rounds, bits=bits) for one in chosen(task, data)]
    return [measured(one, data, seed, test_rows, device) for one in some]


def chosen(task: str, data: Path) -> list[Task]:
    """The task of this name, or all of them. Raises ConfigError for another name, DataError without its data."""
    names = list(TASKS) if task == "all" else [task]
    if unknown := sorted(set(names) - set(TASKS)):
        raise ConfigError([Problem("--task", unknown[0], f"all or one of {', '.join(TASKS)}")])
    some = [TASKS[name] for name in names]
    for one in some:
        if not (data / one.folder).is_dir():
            raise DataError(f"no folder {one.folder} there; docs/data.md says where to get the data", str(data))
    return some


def measured(
    task: Task, data: Path, seed: int, test_rows: int, device: str, look: Callable[[Path], object] | None = None
) -> Row:
    """One row: train, and measure on the test file. ``look`` gets the run file before the run's folder goes."""
    # Not at the top: listing the benches must not wait for torch.
    from fedsplit.split.base import open_base
    from fedsplit.train.exam import Exam
    from fedsplit.train.exported import model_folder, of_run
    from fedsplit.train.start import first_state

    with tempfile.TemporaryDirectory(prefix="fedsplit-quality-") as scratch:
        run_file = _write(task, data, Path(scratch), seed)
        begun = time.monotonic()
        with Display(title=task.name, console=Console(stderr=True, highlight=False)) as emit:
            done = run_processes(run_file, emit=emit, device=device)
        seconds = time.monotonic() - begun
        run, state, _ = of_run(done.folder)
        base = open_base(model_folder(run.model.path))
        if look is not None:
            look(run_file)
        exam = Exam(run, base, data / task.folder / "test.jsonl.gz", rows=test_rows or task.test_rows, device=device)
        return {
            "task": task.name,
            "clients": "local, u, u, w",
            "body_bits": task.bits,
            "steps": task.rounds * task.steps,
            "metric": task.metric,
            "before": exam.of(first_state(base, run))[task.metric],
            "after": exam.of(state)[task.metric],
            "goal": task.goal,
            "test_rows": exam.rows,
            "seconds": round(seconds, 1),
            "up_bytes": sum(end.up_bytes for end in done.clients.values()),
        }


def _write(task: Task, data: Path, folder: Path, seed: int) -> Path:
    files = _client_files(task, data / task.folder / "train.jsonl.gz", folder, seed)
    model = task.model if task.model == "minilm" else (data / task.model).resolve().as_posix()
    last = LAYERS[task.model]
    text = RUN.format(name=task.name, folder=folder.as_posix(), bits=task.bits)
    every = max(1, task.rounds // 4)
    text += task.settings.format(model=model, rounds=task.rounds, steps=task.steps, every=every)
    plans = [("local", ""), ("u", f"cut = [1, {last - 1}]"), ("u", f"cut = [2, {last}]"), ("w", "")]
    for (name, path), (topology, cut) in zip(files.items(), plans, strict=True):
        text += CLIENT.format(name=name, data=path.as_posix(), topology=topology, cut=cut)
    loads(text)
    run_file = folder / "run.toml"
    run_file.write_text(text, "utf-8")
    return run_file


def _client_files(task: Task, source: Path, folder: Path, seed: int) -> dict[str, Path]:
    """Four files, split as the task's law says, named as the demo names devices."""
    parts = partition(source, folder / "data", Request(law=task.law, clients=4, alpha=0.5, seed=seed))
    return {name: folder / "data" / part.file for name, part in zip(NAMES, parts, strict=True)}
