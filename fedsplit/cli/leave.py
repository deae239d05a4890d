"""``fedsplit leave``: end this device's part in a run, politely and for good; another terminal is running it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fedsplit.errors import ConfigError, Problem, Timeout
from fedsplit.state.lock import is_locked
from fedsplit.state.personal import Kept, Personal

POLL_S = 0.2


def leave(
    run: Annotated[str, typer.Argument(help="The run's name; may be left out where this device is in one.")] = "",
    state: Annotated[Path | None, typer.Option(help="The folder that was given to join as --state.")] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until it has left.")] = 60.0,
) -> None:
    """Leave a run: the server hears it and does not wait where it has a quorum. State is kept; `forget` deletes it."""
    personal = Personal(state)
    running = [one for one in personal.kept() if is_locked(one.path)]
    chosen = [one for one in running if one.info.run == run] if run else running
    names = sorted({one.info.run for one in running})
    if not chosen or len({one.info.run for one in chosen}) > 1:
        found = repr(run) if run else f"{len(names)} runs" if names else "nothing"
        known = f"running: {', '.join(names)}" if names else f"no process takes part with the state in {personal.path}"
        raise ConfigError([Problem("run", found, "one run that this device takes part in now", known)])
    for one in chosen:
        (one.path / "leave").touch()
    _wait(chosen, wait)
    typer.echo(f"left {chosen[0].info.run}; `fedsplit join` takes part again, `fedsplit forget` deletes what is kept")


def _wait(chosen: list[Kept], seconds: float) -> None:
    """Until their processes are gone. Raises Timeout: a step takes that long."""
    until = time.monotonic() + seconds
    while any(is_locked(one.path) for one in chosen):
        if time.monotonic() > until:
            raise Timeout(
                f"{chosen[0].info.run} was told to leave and has not after {seconds:.0f} s: it ends after its step"
            )
        time.sleep(POLL_S)
