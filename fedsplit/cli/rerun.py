"""``fedsplit rerun RUN``: a simulated run once more, from what its directory says of it, to the same bits.

Where versions, threads and machine are what they were, the digest of the adapter is the same; where it is not, the
verb names what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import replace

from fedsplit.cli.interrupts import if_interrupted, kept_in
from fedsplit.cli.output import view
from fedsplit.cli.report import last_plans
from fedsplit.cli.simulate import run_processes
from fedsplit.config.load import dumps
from fedsplit.config.run import RunFile
from fedsplit.data.partition import digest
from fedsplit.devices.load import save
from fedsplit.errors import ConfigError, FedsplitError, Problem
from fedsplit.events import Emit, Note, silent
from fedsplit.plan.options import describe
from fedsplit.plan.types import ClientPlan
from fedsplit.state import manifest
from fedsplit.state.journal import Journal
from fedsplit.state.manifest import Manifest, Result, SimulatedClients
from fedsplit.state.rundir import RunDir

GIVEN = "given"
"""Folder in the new run directory: the run file and the profiles that it was started with."""
JOB = tuple(
    name
    for name in ClientPlan.__struct_fields__
    if name not in ("client", "estimate", "binding", "exposure", "reasons")
)
"""What a client does by its plan; the rest says why, and what it is predicted to take."""


def rerun(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run that simulate or compare made.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to run; by default RUN-again.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON line an event instead of the view.")] = False,
) -> None:
    """Repeat a finished simulated run and compare the adapters' digests: the same, or what differs."""
    target = out or run.with_name(f"{run.resolve().name}-again")
    with ExitStack() as stack:
        stack.enter_context(if_interrupted(lambda: kept_in(target)))
        emit = stack.enter_context(view(f"repeating {run}", json))
        before, after = repeat(run, target, emit)
    changed = differences(before, after)
    if result_of(before).digest != result_of(after).digest:
        raise FedsplitError(_unequal(before, after, [*changed, *other_plans(run, target)]))
    if not json:
        aside = f", though {', '.join(changed)}" if changed else ""
        typer.echo(f"the same in every bit{aside}: {result_of(after).digest}")


def repeat(
    run: Path, out: Path, emit: Emit = silent, *, simulate: Callable[..., object] = run_processes
) -> tuple[Manifest, Manifest]:
    """Run what ``run`` holds again in the new folder ``out``; the manifests of then and now.

    ``simulate``: what runs it, with the arguments of ``run_processes``.

    :raises ConfigError: ``run`` is no finished simulated run, its data or model is not what it was, or ``out`` is not
        free. :raises FedsplitError: a process failed.
    """
    before, clients = manifest.read(run), manifest.read_simulated(run)
    result_of(before, run)
    if out.exists() and any(out.iterdir()):
        raise ConfigError([Problem(str(out), "a folder that is not empty", "a new one", "name another with --out")])
    resolved = with_clients(before.run_file, clients, out.resolve())
    _refuse_changed(before, clients)
    for warning in _versions(before):
        emit(Note(text=f"{warning}; the bits may differ", warning=True))
    given = out / GIVEN
    profiles = {name: save(one.profile, given / f"{name}.toml") for name, one in clients.clients.items() if one.profile}
    run_file, server = given / "run.toml", save(before.server, given / "@server.toml")
    run_file.write_text(dumps(resolved), "utf-8")
    last = before.starts[-1]
    simulate(
        run_file,
        emit=emit,
        device=last.device,
        flags=["--profile", str(server)],
        join_flags={name: one.flags for name, one in clients.clients.items()},
        profiles=profiles,
        server_threads=last.threads,
        client_threads={name: one.threads for name, one in clients.clients.items()},
    )
    after = manifest.read(out)
    if after.base != before.base:
        raise ConfigError([Problem("model.path", "other weights than those of the run", before.run_file.model.path)])
    return before, after


def result_of(found: Manifest, folder: Path | str = "") -> Result:
    """How the run ended. Raises ConfigError where it did not."""
    if found.result is None:
        fix = "let it end first: fedsplit simulate RUN.TOML --resume"
        raise ConfigError([Problem(str(folder), "a run that has not ended", "a finished one", fix)])
    return found.result


def with_clients(run: RunFile, clients: SimulatedClients, folder: Path) -> RunFile:
    """The run file with its clients' data again, kept in ``folder``."""
    sections = tuple(
        replace(section, data=clients.clients[section.name].data)
        for section in run.clients
        if section.name in clients.clients
    )
    return replace(run, run=replace(run.run, dir=str(folder)), clients=sections)


def differences(before: Manifest, after: Manifest) -> list[str]:
    """What is not as it was, in words: versions, threads, machine."""
    then, now = before.starts[-1], after.starts[-1]
    found = list(_versions(before))
    if then.threads != now.threads:
        found.append(f"the server computed with {then.threads} threads, now {now.threads}")
    if then.machine.processor != now.machine.processor:
        found.append(f"the processor was {then.machine.processor}, is {now.machine.processor}")
    return found


def other_plans(then: Path, now: Path) -> list[str]:
    """Clients that did another job in the run directory ``now`` than in ``then``, in words."""
    before, after = _last_plans(then), _last_plans(now)
    found = []
    for name in sorted(before.keys() & after.keys()):
        was, is_now = before[name], after[name]
        if other := [what for what in JOB if getattr(was, what) != getattr(is_now, what)]:
            plans = f"{describe(was.topology, was.cut)}, is {describe(is_now.topology, is_now.cut)}"
            found.append(f"the plan of {name} was {plans} (unequal: {', '.join(other)})")
    return found


def _last_plans(folder: Path) -> dict[str, ClientPlan]:
    path = RunDir(folder).journal_db
    if not path.is_file():
        return {}
    with Journal(path, read_only=True) as journal:
        return last_plans(journal)


def _versions(before: Manifest) -> Iterator[str]:
    now = manifest.versions()
    for start in before.starts:
        for name in sorted(start.versions.keys() | now.keys()):
            was, is_now = start.versions.get(name, "not installed"), now.get(name, "not installed")
            if was != is_now:
                yield f"{name} was {was}, is {is_now}"


def _refuse_changed(before: Manifest, clients: SimulatedClients) -> None:
    """:raises ConfigError: files that the run was made from are gone or others; all of them at once."""
    known = {f"clients.{name}.data": (one.data, one.sha256) for name, one in clients.clients.items()}
    known |= {what: (_path_of(what, before.run_file), expected) for what, expected in before.files.items()}
    problems = []
    for where, (path, expected) in known.items():
        if not (path and expected):
            continue
        found = digest(Path(path)) if Path(path).exists() else ""
        if found != expected:
            seen = f"{path} with other content" if found else f"no {path}"
            problems.append(Problem(where, seen, f"the file of the run (SHA-256 {expected[:12]}…)"))
    if problems:
        raise ConfigError(problems)


def _path_of(what: str, run: RunFile) -> str:
    """The file that an entry of the manifest's ``files`` is about."""
    if what == "server_data":
        return run.server_data.path
    name = what.removeprefix("method ")
    return name.rpartition(":")[0] if ".py:" in name else name


def _unequal(before: Manifest, after: Manifest, changed: list[str]) -> str:
    found = f"another adapter: {result_of(after).digest[:16]}… instead of {result_of(before).digest[:16]}…"
    if changed:
        return f"{found}. What differs: {'; '.join(changed)}"
    if any(start.device != "cpu" for start in before.starts):
        return f"{found}. Versions are equal; GPUs need not repeat sums in the same order"
    late = "a round that closed without a late client, or a method of your own that draws without its key"
    return f"{found}. Versions, threads, processor and plans are equal: look for {late}; else please report it"
