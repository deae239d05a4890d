"""``fedsplit bench step``: a step split over loopback TCP with encryption against the plain peft step of that model.

Real processes: ``fedsplit serve``, a client that is ``fedsplit join``, and a third one that runs transformers and peft
alone. Client and server take turns by nature; all three processes are kept on the same cores, ``threads`` of them, so
the split never computes on more cores at once than the plain step does, encryption and checksums included. Split and
plain steps alternate (first one, then the other goes first), so whatever else the machine does hits both alike.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsplit.cli.bench_models import task_of, write_model, write_rows
from fedsplit.cli.bench_runs import PROFILE, Shape, client, words, write_run
from fedsplit.cli.bench_turns import START_S, Turns, child_pid, on_cores, processor_seconds
from fedsplit.cli.place import check_device
from fedsplit.cli.simulate import Crew
from fedsplit.errors import ConfigError, InternalError, Problem
from fedsplit.events import silent

CLIENT = "device"
NO_SPIN = {"GOMP_SPINCOUNT": "1000"}
"""What the command sets for itself; the bench's own client does not come through the command."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison: ``batch`` rows of ``tokens`` tokens, layers [c1, c2) at the server."""

    folder: Path
    family: str
    batch: int
    tokens: int
    topology: str
    cut: tuple[int, int]
    threads: int
    device: str
    steps: int


def rows(
    families: str = "llama,bert",
    shapes: str = "8x64,4x128",
    topologies: str = "u,w",
    pairs: int = 20,
    warmup: int = 4,
    threads: int = 1,
    device: Annotated[str, typer.Option(help="Where all three compute: cpu, cuda, cuda:1.")] = "cpu",
    hidden: int = 384,
    layers: int = 6,
) -> list[dict[str, object]]:
    """Seconds of a split step (client, server, TCP, CURVE) and of the plain peft step on the same cores.

    ``ratio`` is the median over interleaved pairs, ``processor_ratio`` compares processor time of all processes.
    """
    check_device(device)
    found = []
    with tempfile.TemporaryDirectory(prefix="fedsplit-") as scratch, on_cores(threads):
        for family in words(families):
            folder = write_model(Path(scratch) / family, family, hidden=hidden, layers=layers)
            for batch, tokens in map(_shape, words(shapes)):
                with _plain(folder, family, batch, tokens, threads, device) as plain:
                    for topology in words(topologies):
                        case = Case(
                            folder=folder,
                            family=family,
                            batch=batch,
                            tokens=tokens,
                            topology=topology,
                            cut=(0, layers) if topology == "w" else (1, layers - 1),
                            threads=threads,
                            device=device,
                            steps=warmup + pairs,
                        )
                        found.append(_compare(case, plain, warmup))
    return found


def _shape(text: str) -> tuple[int, int]:
    batch, _, tokens = text.partition("x")
    if not (batch.isdecimal() and tokens.isdecimal() and int(batch) > 0 and int(tokens) > 0):
        raise ConfigError([Problem("--shapes", repr(text), "BATCHxTOKENS such as 8x64, several with commas")])
    return int(batch), int(tokens)


@contextmanager
def _plain(folder: Path, family: str, batch: int, tokens: int, threads: int, device: str) -> Iterator[Turns]:
    arguments = [str(folder), task_of(family), str(batch), str(tokens), device]
    with Turns("fedsplit.cli.bench_plain", arguments, threads, {}) as plain:
        plain.ready()
        yield plain


def _compare(case: Case, plain: Turns, warmup: int) -> dict[str, object]:
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedsplit-")))
        crew = stack.enter_context(Crew(silent))
        link = _serve(case, scratch, crew)
        data = write_rows(scratch / "rows.jsonl", task_of(case.family), case.tokens, 8 * case.batch)
        arguments = [link, str(data), CLIENT, PROFILE, str(scratch / "state"), case.device]
        split = stack.enter_context(Turns("fedsplit.cli.bench_client", arguments, case.threads, NO_SPIN))
        split.ready()
        ours = [split.pid, child_pid("serve")]
        for _ in range(warmup):
            split.step()
            plain.step()
        before = processor_seconds(ours), processor_seconds([plain.pid])
        pairs = [_pair(split, plain, number) for number in range(case.steps - warmup)]
        spent = processor_seconds(ours) - before[0], processor_seconds([plain.pid]) - before[1]
    return _row(case, pairs, spent)


def _pair(split: Turns, plain: Turns, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    if number % 2:
        there = plain.step()
        return split.step(), there
    return split.step(), plain.step()


def _serve(case: Case, scratch: Path, crew: Crew) -> str:
    """Start the server; the join link."""
    link = scratch / "link"
    fixed = client(CLIENT, case.topology, case.cut, threads=case.threads)
    shape = Shape(batch=case.batch, tokens=case.tokens, steps=case.steps)
    run_file = write_run(scratch, case.folder, task_of(case.family), [fixed], shape)
    verb = ["serve", str(run_file), "--link-file", str(link), "--device", case.device]
    crew.start("", verb, threads=case.threads)
    return crew.wait_for_file(link, START_S)


def _row(
    case: Case, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], spent: tuple[float, float]
) -> dict[str, object]:
    if not all(math.isfinite(split["loss"]) for split, _ in pairs):
        raise InternalError("a split step ended without a finite loss: nothing was trained, nothing was measured")
    seconds = [split["seconds"] for split, _ in pairs]
    plain_seconds = [plain["seconds"] for _, plain in pairs]
    ratios = [a / b for a, b in zip(seconds, plain_seconds, strict=True)]
    return {
        "family": case.family,
        "batch": case.batch,
        "tokens": case.tokens,
        "topology": case.topology,
        "cut": f"{case.cut[0]}-{case.cut[1]}",
        "threads": case.threads,
        "bytes": int(statistics.median(split["bytes"] for split, _ in pairs)),
        "seconds": round(statistics.median(seconds), 5),
        "plain_seconds": round(statistics.median(plain_seconds), 5),
        "ratio": round(statistics.median(ratios), 4),
        "processor_ratio": round(spent[0] / spent[1], 4) if spent[1] else None,
    }
