"""``fedsplit simulate``: a whole run on one machine, every party a process of its own, over TCP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated

import typer

from fedsplit.cli.after_run import how_to_export
from fedsplit.cli.chosen_method import MethodName, Options, flags_of, with_method
from fedsplit.cli.display import AccuracyRow, accuracy_table
from fedsplit.cli.emulated import devices_of, holding, written
from fedsplit.cli.failures import failure
from fedsplit.cli.given import as_files, keep, profiles_of
from fedsplit.cli.interrupts import if_interrupted, kept_in, terminated_like_interrupted
from fedsplit.cli.output import view
from fedsplit.cli.place import Device, check_device
from fedsplit.cli.serve import JOIN
from fedsplit.config.load import load
from fedsplit.config.run import ClientSection, RunFile
from fedsplit.emulate.emulation import Emulation
from fedsplit.errors import ConfigError, Problem, Timeout
from fedsplit.events import Emit, Event, Finished, Note, RoundStarted, from_json, silent
from fedsplit.method.of_run import method_of
from fedsplit.wire.link import JoinLink

START_S = 600.0
"""The server has this long to load the model and open its port."""
LAST_WORDS_S = 10.0
"""What a process said before it ended is read within this time."""


@dataclass
class Simulated:
    """How a simulated run ended; ``clients`` and ``server`` are the last events of the processes."""

    folder: Path
    server: Finished | None = None
    clients: dict[str, Finished] = field(default_factory=dict)


def simulate(
    run_file: Annotated[Path, typer.Argument(help="A run file whose clients name their data.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    device: Device = "cpu",
    emulate: Annotated[
        bool, typer.Option("--emulate", help="Hold every client to its device's speed, link and memory.")
    ] = False,
    fleet: Annotated[str, typer.Option(help="Clients' devices are members of this fleet: a file, home, campus.")] = "",
    method: MethodName = "",
    options: Options = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON line an event instead of the view.")] = False,
) -> None:
    """Start a server and all clients of a run file as real processes on this machine and show them in one view.

    With --emulate a wrong plan fails here as it would on the devices: a client that takes more memory than a plan may
    fill on its device is killed and named (exit code 7).
    """
    run = with_method(load(run_file), method, options)
    method_of(run)  # a word that is wrong is refused before a process is started
    folder, flags = _folder(run, run_file), flags_of(method, options)
    with if_interrupted(lambda: kept_in(folder)), view(f"simulating {run.run.name}", json) as emit:
        done = run_processes(
            run_file, emit=emit, resume=resume, device=device, emulate=emulate, fleet=fleet, flags=flags
        )
    if not json:
        _report(done, run)


def run_processes(
    run_file: Path,
    *,
    emit: Emit = silent,
    resume: bool = False,
    device: str = "cpu",
    profile: Path | None = None,
    emulate: bool = False,
    fleet: str = "",
    flags: Sequence[str] = (),
    join_flags: Mapping[str, Sequence[str]] | None = None,
    profiles: Mapping[str, Path] | None = None,
    server_threads: int = 0,
    client_threads: Mapping[str, int] | None = None,
) -> Simulated:
    """One server and one process for every ``[[clients]]``; returns when all have ended.

    ``profile``: what every client says of itself where the run file names no device (this machine's by default).
    ``device``: where the server's body runs. ``emulate``: hold every client to its device's profile; ``fleet``: a fleet
    file or name whose members the clients' devices are. ``flags``: of ``fedsplit serve``, beside its own;
    ``join_flags``: of ``fedsplit join``, by client. ``profiles``: files, by client, before any other.
    ``server_threads``: CPU threads of the server; 0: its own choice. ``client_threads``: of processes, by client,
    whatever their sections say.

    :raises ConfigError: the run file has no clients with data, or with ``emulate`` one without a device.
    :raises OutOfMemory: a client took more memory than its emulated device could give.
    :raises FedsplitError: a process failed; says which and why, with that process's own exit code.
    """
    check_device(device)
    run = load(run_file)
    _check_clients(run)
    with ExitStack() as stack:
        stack.enter_context(terminated_like_interrupted())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedsplit-")))
        devices = devices_of(run, run_file.parent, fleet, profile) if emulate or fleet else {}
        named = {**written(devices, scratch / "devices"), **(profiles or {})}
        emulation = stack.enter_context(Emulation(holding(devices, run, emit))) if emulate else None
        crew = stack.enter_context(Crew(emit, emulation))
        link = scratch / "link"
        flags = [*flags, *(["--resume"] if resume else [])]
        crew.start(
            "",
            ["serve", str(run_file), "--port", "0", "--link-file", str(link), "--device", device, *flags],
            server_threads,
        )
        address = crew.wait_for_file(link, START_S)
        shown = profiles_of(run, named, profile, emit)
        files, threads = as_files(shown, scratch), {one.name: _threads(one, emulation) for one in run.clients}
        threads |= client_threads or {}
        for section in run.clients:
            state = _state(run, run_file) / section.name
            verb = _joining(section, address, str(files[section.name]), state, emulation)
            crew.start(section.name, [*verb, *(join_flags or {}).get(section.name, ())], threads[section.name])
        keep(_folder(run, run_file), run, shown, threads, join_flags or {}, emulated=emulate)
        crew.wait()
        server = crew.finished.pop("", None)
        return Simulated(_folder(run, run_file), server, dict(crew.finished))


def _joining(section: ClientSection, address: str, profile: str, state: Path, emulation: Emulation | None) -> list[str]:
    """The verb of one client's process."""
    if emulation is not None:
        address = str(emulation.link(section.name, JoinLink.parse(address)))
    what = ["join", address, "--data", section.data, "--name", section.name, "--yes", "--state", str(state)]
    what += ["--no-learn", "--no-measure-link"]  # clients that share a machine disturb each other
    return what + (["--profile", profile] if profile else [])


def _threads(section: ClientSection, emulation: Emulation | None) -> int:
    return emulation.devices[section.name].threads if emulation is not None else section.threads or 1


class Crew:
    """Child processes whose events come here as JSON lines; an ``emulation`` holds clients to their devices.

    Leaving the context ends them all.
    """

    def __init__(self, emit: Emit, emulation: Emulation | None = None) -> None:
        self.finished: dict[str, Finished] = {}
        self._emulation = emulation
        self._emit, self._lock = emit, threading.Lock()
        self._children: dict[str, subprocess.Popen[str]] = {}
        self._readers: dict[str, list[threading.Thread]] = {}
        self._errors: dict[str, str] = {}

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        for child in self._children.values():
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in self._children.values():
            try:
                child.wait(10.0)
            except subprocess.TimeoutExpired:
                child.kill()
        self._hear_out(self._children)
        for child in self._children.values():
            for stream in (child.stdout, child.stderr):
                if stream is not None:
                    stream.close()

    def start(self, name: str, verb: list[str], threads: int = 0) -> None:
        """Run ``fedsplit VERB --json`` as ``name`` (empty: the server)."""
        # ``python -m`` puts the working directory on the path: sources and installed package work alike.
        environment = dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        child = subprocess.Popen(
            [sys.executable, "-m", "fedsplit", *verb, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._children[name] = child
        if self._emulation is not None and name:
            self._emulation.started(name, child.pid)
        assert child.stdout is not None
        assert child.stderr is not None
        for target, stream in ((self._events, child.stdout), (self._complaints, child.stderr)):
            reader = threading.Thread(target=target, args=(name, stream), daemon=True)
            reader.start()
            self._readers.setdefault(name, []).append(reader)

    def wait_for_file(self, path: Path, timeout_s: float) -> str:
        """The content of a file that a child writes. Raises Timeout, or the child's error when it ends before."""
        deadline = time.monotonic() + timeout_s
        while not path.exists():
            self._raise_if_failed()
            if time.monotonic() > deadline:
                raise Timeout(f"the server did not open its port within {timeout_s:.0f} s")
            time.sleep(0.05)
        return path.read_text("utf-8")

    def wait(self) -> None:
        """Until every child has ended; a child that fails ends the others."""
        while any(child.poll() is None for child in self._children.values()):
            self._raise_if_failed()
            time.sleep(0.1)
        self._hear_out(self._children)
        self._raise_if_failed()

    def _events(self, name: str, stream: IO[str]) -> None:
        for line in stream:
            event = from_json(line)
            if isinstance(event, RoundStarted) and self._emulation is not None and name:
                self._emulation.computes(name)
            if isinstance(event, Finished):
                self.finished[name] = event
            elif event is not None and self._concerns(name, event):
                with self._lock:
                    self._emit(_by(name, event))

    @staticmethod
    def _concerns(name: str, event: Event) -> bool:
        """The server and a client both tell of the same steps and rounds: the client knows its loss, the server all."""
        kind = type(event).__name__
        if isinstance(event, Note) and JOIN in event.text:
            return False
        if name:
            return kind in ("StepDone", "Progress", "Note", "Measured")
        return kind not in ("StepDone", "Measured") or (kind == "Measured" and event.client == "")

    def _complaints(self, name: str, stream: IO[str]) -> None:
        for line in stream:
            if line.strip():
                self._errors[name] = (self._errors.get(name, "") + line)[-4000:]

    def _hear_out(self, names: Iterable[str]) -> None:
        """Until all that these children said has been read. They have ended; what they started may hold the pipes."""
        for name in names:
            for reader in self._readers[name]:
                reader.join(LAST_WORDS_S)

    def _raise_if_failed(self) -> None:
        for name, child in self._children.items():
            if child.poll() not in (None, 0):
                if self._emulation is not None and (refusal := self._emulation.refusal(name)) is not None:
                    raise refusal
                self._hear_out([name])
                raise failure(f"client {name}" if name else "the server", child.returncode, self._errors.get(name, ""))


def _by(name: str, event: Event) -> Event:
    """A client's note says whose it is: here many speak in one place."""
    if not (isinstance(event, Note) and name):
        return event
    # In the text: a view that has heard of one device only so far leaves names out.
    return Note(text=f"{name}: {event.text}", warning=event.warning)


def _check_clients(run: RunFile) -> None:
    problems = [
        Problem(f"clients[{index}].data", "nothing", "the file with this client's rows")
        for index, section in enumerate(run.clients)
        if not section.data
    ]
    if not run.clients:
        problems = [Problem("clients", "none", "one [[clients]] table for each client to simulate")]
    if run.clients and run.rounds.clients > len(run.clients):
        fix = "add clients, or lower rounds.clients"
        problems.append(
            Problem("rounds.clients", str(run.rounds.clients), f"at most {len(run.clients)}, as listed", fix)
        )
    if problems:
        raise ConfigError(problems)


def _folder(run: RunFile, run_file: Path) -> Path:
    return Path(run.run.dir) if run.run.dir else Path("runs") / run.run.name


def _state(run: RunFile, run_file: Path) -> Path:
    return _folder(run, run_file) / "clients"


def _report(done: Simulated, run: RunFile) -> None:
    names = sorted({name for end in done.clients.values() for name in end.before} - {"tokens"})
    for metric in names:
        rows = [
            AccuracyRow(name, end.before.get(metric), None, end.after.get(metric))
            for name, end in sorted(done.clients.items())
        ]
        accuracy_table(rows, metric)
    if done.server is not None:
        typer.echo(f"done: {done.server.reason}. {how_to_export(run, done.folder)}")
