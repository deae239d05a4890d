"""Real processes of the real command over real TCP, for tests that kill them."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedsplit.devices.load import save
from fedsplit.events import Event, Finished, from_json
from tests.ports import HeldPort
from tests.run.party import LAPTOP
from tests.waiting import LIMIT_S, wait_for

ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join(str(ROOT / part) for part in (".", "server", "client"))
PROGRAM = (sys.executable, "-m", "fedsplit")


def dies_at(
    event: type[Event],
    number: signal.Signals = signal.SIGKILL,
    program: tuple[str, ...] = PROGRAM,
    **fields: object,
) -> tuple[str, ...]:
    """``program``, which sends itself a signal as soon as it has said an event of this kind with these fields."""
    said = json.dumps({"event": event.__name__, **fields})
    path = os.pathsep.join([str(Path(__file__).with_name("mortal")), PATHS])
    return ("env", f"DIES_AT={int(number)} {said}", f"PYTHONPATH={path}", *program)


@dataclass
class Process:
    """``fedsplit VERB … --json``, its events as they come, what it complained about, how it ended."""

    words: list[str]
    program: tuple[str, ...] = PROGRAM
    events: list[Event] = field(default_factory=list)
    fresh: queue.SimpleQueue[Event | None] = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        self.child = subprocess.Popen(
            [*self.program, *self.words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.error = ""
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._listen, self._complain)]
        for thread in self._threads:
            thread.start()

    def until(self, kind: type[Event], **fields: object) -> Event:
        """Wait for an event of this kind with these fields."""
        deadline = time.monotonic() + LIMIT_S
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                event = self.fresh.get(timeout=left_s)
            except queue.Empty:
                break
            assert event is not None, f"{self.words[0]} ended before {kind.__name__}: {self.error}"
            if isinstance(event, kind) and all(getattr(event, name) == value for name, value in fields.items()):
                return event
        raise AssertionError(f"{self.words[0]}: no {kind.__name__} {fields} within {LIMIT_S:.0f} s")

    def end(self, expected: int = 0) -> str:
        """Wait for the end and its exit code; what it said on standard error."""
        code = self.close()
        assert code == expected, f"{' '.join(self.words)} ended with {code}: {self.error}"
        assert "Traceback" not in self.error
        return self.error

    def close(self) -> int:
        """Wait for its end, read what is left; its exit code."""
        code = self.child.wait(LIMIT_S)
        for thread in self._threads:
            thread.join(LIMIT_S)
        for stream in (self.child.stdout, self.child.stderr):
            if stream is not None:
                stream.close()
        return code

    def signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    @property
    def finished(self) -> Finished:
        """The last word of a process that ended well."""
        [event] = [event for event in self.events if isinstance(event, Finished)]
        return event

    def _listen(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            if (event := from_json(line)) is not None:
                self.events.append(event)
                self.fresh.put(event)
        self.fresh.put(None)

    def _complain(self) -> None:
        assert self.child.stderr is not None
        for line in self.child.stderr:
            self.error += line


class Stage:
    """One run's files and processes; leaving it ends what still runs."""

    def __init__(self, folder: Path, run_toml: str, data: Mapping[str, Path]) -> None:
        self._held = HeldPort()
        self.folder, self.data, self.port = folder, data, self._held.number
        self.run_file = folder / "run.toml"
        self.run_file.write_text(run_toml, "utf-8")
        self.profile = folder / "laptop.toml"
        save(LAPTOP, self.profile)
        self.server: Process
        self.member: Process
        self._started: list[Process] = []

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            if process.child.poll() is None:
                process.child.kill()
            process.close()
        self._held.close()

    def start(self, *words: str, program: tuple[str, ...] = PROGRAM) -> Process:
        """Any verb. ``program``: what runs it, ``python -m fedsplit``."""
        process = Process(list(words), program)
        self._started.append(process)
        return process

    def serve(self, *flags: str, program: tuple[str, ...] = PROGRAM) -> Process:
        """The server, on the same port every time; returns at once."""
        link = self.folder / "link"
        link.unlink(missing_ok=True)
        where = ("--port", str(self.port), "--link-file", str(link))
        return self.start("serve", str(self.run_file), "--json", *where, *flags, program=program)

    def link(self) -> str:
        """The join line, once the server listens."""
        path = self.folder / "link"
        wait_for(path.exists)
        return path.read_text("utf-8")

    def join(
        self,
        name: str,
        *flags: str,
        link: str = "",
        data: Path | None = None,
        program: tuple[str, ...] = PROGRAM,
    ) -> Process:
        """A client with its rows, its state in a folder of its own."""
        rows = str(data or self.data[name])
        where = ("--state", str(self.folder / "devices" / name), "--profile", str(self.profile))
        who = ("--json", "--yes", "--data", rows, "--name", name)
        return self.start("join", link or self.link(), *who, *where, *flags, program=program)
