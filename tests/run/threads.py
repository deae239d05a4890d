"""``simulate.run_processes`` with threads for processes: real serve and join over TCP, without imports of torch."""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from fedsplit.cli.given import keep, profiles_of
from fedsplit.config.load import load
from fedsplit.devices.find import find
from fedsplit.events import Emit, Event, Joined, silent
from fedsplit_client.join import join
from fedsplit_server.serve import serve

LIMIT_S = 120.0


def run_threads(
    run_file: Path,
    *,
    emit: Emit = silent,
    device: str = "cpu",
    flags: Sequence[str] = (),
    join_flags: Mapping[str, Sequence[str]] | None = None,
    profiles: Mapping[str, Path] | None = None,
    server_threads: int = 0,
    client_threads: Mapping[str, int] | None = None,
) -> None:
    """``flags``: ``--profile FILE`` is understood. ``join_flags``, ``…_threads``: all have this process's."""
    assert not any((join_flags or {}).values())
    run = load(run_file)
    run = replace(run, server=replace(run.server, port=0))
    own = find(flags[1]) if flags else None
    links, events = queue.SimpleQueue[str](), queue.SimpleQueue[Event]()
    with ThreadPoolExecutor() as pool:
        server = pool.submit(serve, run, device=device, profile=own, emit=events.put, ready=links.put)
        link = _next(links, server)
        shown = profiles_of(run, profiles or {}, None, silent)
        clients: dict[str, Future[Any]] = {}
        for section in run.clients:
            state = Path(run.run.dir) / "clients" / section.name
            options: dict[str, Any] = {"name": section.name, "profile": shown[section.name], "state": state}
            clients[section.name] = pool.submit(join, link, section.data, measure_link=False, **options)
            # One after the other: while a model is put together, transformers patches torch for all threads.
            while not isinstance(event := _next(events, server), Joined) or event.client != section.name:
                pass
        keep(Path(run.run.dir), run, shown, dict.fromkeys(clients, 1), {}, emulated=False)
        for party in (*clients.values(), server):
            party.result(LIMIT_S)


def _next(some: queue.SimpleQueue[Any], server: Future[Any]) -> Any:
    """What comes next, or the server's error."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        try:
            return some.get(timeout=0.1)
        except queue.Empty:
            if server.done():
                server.result()
    raise AssertionError("waited too long")
